"""The table of cases under JAX's own settings: dtypes, promotion, checks, and without jit.

Settings that act while tracing are tried on every case: the program must be the same to the letter, so its values and
gradients are.  Those that act at run time are tried on cases that have something of each kind.
"""

from __future__ import annotations

import contextlib
import gc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import gates, masks, mods, normalizers
from tests.cases import CASES, make
from tests.evaluate import as_function, widen
from tests.tolerances import assert_close

BLOCKS = {"blockwise": (4, 5), "reference": None}


def _both(inputs, implementation):
    """Values and all gradients as a function of the arrays, and the arrays."""
    fn, arrays, _ = as_function(inputs, implementation=implementation, blocks=BLOCKS[implementation])

    def both(*arrays):
        out, pull = jax.vjp(fn, *arrays)
        return out, pull(jax.tree.map(jnp.ones_like, out))

    return both, arrays


@pytest.mark.parametrize("implementation", BLOCKS)
@pytest.mark.parametrize("name", CASES)
def test_promotion(name, implementation):
    """Of ranks and of dtypes: either setting does nothing but raise, so that both are tried at once."""
    inputs = make(name, jnp.float32)

    def program():
        both, arrays = _both(inputs, implementation)
        return jax.jit(both).lower(*arrays).as_text()

    wanted = program()
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        assert program() == wanted


KINDS = ["everything", "dropout", "gumbel", "concat-heads", "sparsemax-empty-rows", "sinks-empty-rows", "relative"]


@contextlib.contextmanager
def _without_jit():
    with jax.disable_jit():
        yield


@contextlib.contextmanager
def _checking_leaks():
    """Without the collector of garbage, which would hide a leak inside a cycle whenever it happens to run."""
    gc.disable()
    try:
        with jax.checking_leaks():
            yield
    finally:
        gc.enable()


RUNNING = {
    "enable_checks": lambda: jax.enable_checks(True),
    "leaks": _checking_leaks,
    "debug_nans": lambda: jax.debug_nans(True),
    "disable_jit": _without_jit,
}


@pytest.mark.parametrize("mode", RUNNING)
@pytest.mark.parametrize("name", ["everything", "gumbel", "sparsemax-empty-rows", "sinks-empty-rows"])
def test_running(name, mode):
    both, arrays = _both(make(name, jnp.float32), "blockwise")
    wanted = jax.jit(both)(*arrays)
    with RUNNING[mode]():
        got = both(*arrays)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert_close(x, y, 1e-5)


def test_debug_infs():
    """Rows that see nothing have lse -inf, which is nobody's to see where lse is not asked for."""
    (q, k, v), options = make("empty-rows", jnp.float32)
    loss = lambda q: jnp.sum(jattn.attention(q, k, v, **options, blocks=(4, 5)) ** 2)
    wanted = jax.grad(loss)(q)
    with jax.debug_infs(True):
        assert_close(jax.grad(loss)(q), wanted, 1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("implementation", BLOCKS)
@pytest.mark.parametrize("name", KINDS)
def test_operands_of_float64_beside_narrower_queries(name, implementation, dtype):
    """They are computed with in the query's working dtype; their gradients come back in their own."""
    arrays, options = make(name, jnp.float32)
    arrays = tuple(x.astype(dtype) for x in arrays)
    narrow, wide = (arrays, options), (arrays, widen(options))
    (wanted, pulled), (got, gradients) = (
        jax.jit(both)(*x) for both, x in (_both(y, implementation) for y in (narrow, wide))
    )
    jax.tree.map(lambda x, y: assert_close(x, y, 1e-6), got, wanted)
    chex.assert_trees_all_equal_dtypes(got, wanted)
    chex.assert_trees_all_equal_dtypes(list(gradients), _both(wide, implementation)[1])
    for x, y in zip(gradients, pulled, strict=True):
        assert_close(x, y, 0.02 if dtype == "bfloat16" else 1e-5)


@pytest.mark.usefixtures("x64")
def test_the_slopes_of_the_paper_under_x64():
    q, k, v = (x.astype(jnp.float32) for x in make("alibi", jnp.float32)[0])
    out = jattn.attention(q, k, v, mods=(mods.alibi(mods.alibi_slopes(4)),))
    assert out.dtype == jnp.float32


def test_keys_of_both_kinds():
    q, k, v = make("plain", jnp.float32)[0]
    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        drawn = jattn.attention(q, k, v, normalizer=normalizers.gumbel(key))
        index = jattn.sample(key, q, k, v)[1]
        if key.ndim == 0:
            wanted = drawn, index
    assert_close(drawn, wanted[0], 0)
    assert (index == wanted[1]).all()


@pytest.mark.parametrize("seed", [5, np.uint32(5), np.int64(5)])
def test_seeds_without_jit(seed):
    q, k, v = make("plain", jnp.float32)[0]
    wanted = jattn.attention(q, k, v, dropout=gates.dropout(0.3, 5))
    with jax.disable_jit():
        got = jattn.attention(q, k, v, dropout=gates.dropout(0.3, seed), mask=masks.causal(100))
    assert_close(got, wanted, 1e-6)
