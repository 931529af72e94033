"""Layers and caches of all kinds, as a serving loop has them."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx

from jattn import masks, mods
from jattn.nn import Latent, MultiHeadAttention
from tests.layers import LOOSE, normal, randomised

B, N, F, PAGE = 3, 14, 16, 4


X = normal((B, N, F))


LAYERS: dict[str, dict[str, Any]] = {
    "plain": {"rotary_base": 1e4, "kv_heads": 2},
    "terms": {"mods": mods.alibi(np.array([0.5, 0.25, 0.1, 0.0])), "sinks": True},
    "latent": {"latent": Latent(6, 4), "rotary_base": 1e4},
}


KINDS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "paged": {"page": PAGE},
    "quantised": {"dtype": "int8"},
    "both": {"dtype": "int8", "page": PAGE},
}


def make(name="plain", mask=masks.causal(), **options):  # noqa: B008
    return randomised(MultiHeadAttention(F, 4, mask=mask, rngs=nnx.Rngs(0), **{**LAYERS[name], **options}))


def near(kind):
    """How far numbers of that kind may be from those of the whole sequence at once."""
    return 0.05 if "dtype" in KINDS.get(kind, {}) else LOOSE


def held(paged):
    """Holders are who holds a page, and all of them."""
    for pages, holders in zip(
        np.asarray(paged.pages).reshape(-1, *paged.pages.shape[-2:]), np.asarray(paged.holders).reshape(-1, paged.holders.shape[-1]), strict=True
    ):  # fmt: skip
        counts = np.bincount(pages.ravel(), minlength=holders.size + 1)
        np.testing.assert_array_equal(counts[: holders.size], holders)
    return int((np.asarray(paged.holders) > 0).sum())
