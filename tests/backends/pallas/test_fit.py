"""What no family of Pallas kernels runs, and how the terms of a problem are asked."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import gates, masks, mods, normalizers, operand, scores
from jattn.backends.pallas.fit import unfit_dtypes, unfit_kind, unfit_terms
from tests.problems import problem

X = np.ones((2, 8, 2, 4), np.float32)
BLOCKS = masks.blocks(np.ones((2, 2), bool), 4)
NONE = lambda *_: None


def _problem(dtype="float32", **options):
    return problem((X.astype(dtype),) * 3, options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, None),
        ({"score": scores.cosine()}, None),
        ({"normalizer": normalizers.sparsemax()}, "has no kernel for normalizer sparsemax"),
        ({"normalizer": normalizers.sigmoid()}, "has no kernel for normalizer sigmoid"),
        (
            {"score": scores.additive(X[0, :4, 0], X[0, :4, 0], X[0, 0, 0])},
            "has no kernel for score additive, which is not a product",
        ),
    ],
)
def test_kinds_of_weights(options, reason):
    assert unfit_kind(_problem(**options)) == reason


def test_dtypes_that_are_not_taken_are_named():
    taken = ("float32", "bfloat16")
    assert unfit_dtypes(_problem(), taken) is None
    assert unfit_dtypes(_problem("float16"), taken) == "takes float32 and bfloat16, not float16"
    mixed = problem((X, X.astype("float16"), X), {})
    assert unfit_dtypes(mixed, ("bfloat16",)) == "takes bfloat16, not float16 and float32"


@pytest.mark.parametrize(
    ("mask", "fits"),
    [(BLOCKS, True), (masks.causal() & ~BLOCKS, True), (BLOCKS | masks.prefix(3), True)],
    ids=["alone", "and, not", "or"],
)
def test_layouts_are_taken_combined_with_others(mask, fits):
    assert (unfit_terms(_problem(mask=mask), NONE, NONE) is None) == fits


class Around(masks.Mask):
    """A mask of a user's own around one of the library's."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, i, j):
        return self.inner(i, j)


def test_layouts_inside_other_masks_are_not():
    reason = unfit_terms(_problem(mask=Around(BLOCKS)), NONE, NONE)
    assert reason == "takes masks.blocks combined with & | ~ alone, not inside another mask"
    assert unfit_terms(_problem(mask=Around(masks.causal())), NONE, NONE) is None


def test_every_operand_and_function_is_asked_until_one_is_refused():
    asked = []
    tilt = mods.function(lambda s, i, j, x: s + x, operand(np.ones(2, np.float32), "h"))
    scale = gates.function(lambda w, i, j: w * 2)
    odd = masks.function(lambda i, j: (i + j) % 2 == 1)
    whole = _problem(mods=(tilt, mods.relative(np.ones((2, 8), np.float32))), gates=scale, mask=odd)
    of_operand = lambda x: asked.append(("operand", x.axes))
    of_function = lambda x, tiles: asked.append((type(x).__module__, tiles))
    assert unfit_terms(whole, of_operand, of_function) is None
    assert asked == [
        ("operand", "h"),
        ("jattn.mods", 1),
        ("jattn.masks", 0),
        ("jattn.gates", 1),
    ]  # a table is no operand
    assert unfit_terms(whole, lambda x: "has no room", NONE) == "has no room"
    refused = lambda x, tiles: "takes no gates" if isinstance(x, gates.Function) else None
    assert unfit_terms(whole, NONE, refused) == "takes no gates"


@pytest.mark.usefixtures("x64")
def test_integers_of_64_bits_are_refused_where_they_are_kept():
    ids = np.arange(8)
    whole = _problem(mask=masks.segments(jnp.asarray(ids)))
    assert unfit_terms(whole, NONE, NONE) == "takes integers of 32 bits, not int64"
    with jax.enable_x64(False):
        assert unfit_terms(_problem(mask=masks.segments(ids)), NONE, NONE) is None
