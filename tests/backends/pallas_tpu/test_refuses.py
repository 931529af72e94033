"""What the TPU kernels refuse, and in which order the reasons come."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks, mods, normalizers, scores
from jattn._call import targets
from jattn._call.targets import Target
from jattn.backends.pallas_tpu.refuses import unfit
from tests.problems import problem

_EYE = np.eye(8, dtype=bool)
_LARGE = np.ones((2048, 2048), bool)


def _unfit(target: Target | None = None, dtype: str = "float32", **options) -> str | None:
    x = jnp.ones((1, 8, 2, 4), dtype)
    return unfit(problem((x, x, x), options), targets.named("v5e") if target is None else target)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, None),
        ({"normalizer": normalizers.sparsemax(), "dtype": "float16"}, "has no kernel for normalizer sparsemax"),
        ({"score": scores.additive(jnp.ones((4, 8)), jnp.ones((4, 8)), jnp.ones(8))}, "score additive"),
        ({"dtype": "float16"}, "takes float32 and bfloat16, not float16"),
        ({"mask": masks.blocks(_LARGE, 1)}, "takes block layouts of up to 2097152 entries, not 4194304"),
        ({"mask": masks.function(lambda i, j: jnp.asarray(_EYE)[i, j])}, "jattn.operand"),
        ({"mods": mods.function(lambda s, i, j, x: s + x[..., 0], jattn.operand(jnp.ones((2, 3)), "h"))}, "[2, 3]"),
        ({"mods": mods.function(lambda s, i, j: jax.lax.fori_loop(0, 3, lambda _, x: x / 2, s))}, "elementwise"),
    ],
)  # fmt: skip
def test_the_problem(options, reason):
    got = _unfit(**options)
    assert got is None if reason is None else reason in str(got)


@pytest.mark.usefixtures("x64")
def test_integers_of_64_bits():
    ids = jattn.operand(jnp.arange(8, dtype=jnp.int64), "t")
    assert _unfit(mask=masks.function(lambda i, j, x: x > j, ids)) == "takes integers of 32 bits, not int64"


def test_elsewhere_it_refuses(monkeypatch):
    monkeypatch.delenv("JATTN_INTERPRET", raising=False)
    reason = "runs on TPU, not cpu; JATTN_INTERPRET=1 interprets it, slowly"
    assert _unfit(Target("cpu"), normalizer=normalizers.sparsemax()) == reason
    x = jnp.ones((1, 8, 2, 4))
    with pytest.raises(jattn.UnsupportedError, match="JATTN_INTERPRET=1"):
        jattn.attention(x, x, x, implementation="pallas_tpu")
    assert jattn.explain(x, x, x).backend == "blockwise"
