"""Blocks that a mask leaves empty are never visited, full ones never look at it; seen from where a NaN shows up."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import _terms, masks, operand
from jattn._terms.block_tables import Answer

# A visited block with a NaN among the values that some query of the tile sees makes NaN of all its rows that see
# something, even where the mask gives it no weight (0 * NaN): so what is not NaN has not been visited, or holds nothing
# that is seen.

RANDOM = np.random.default_rng(0)
LENGTH, BLOCK = 16, 4
Q, K, V = QKV = [jnp.asarray(RANDOM.standard_normal((2, LENGTH, 2, 4)), jnp.float32) for _ in range(3)]


def attend(q, k, v, mask):
    return jattn.attention(q, k, v, mask=mask, implementation="blockwise", blocks=(BLOCK, BLOCK))


def gradients(q, k, v, mask):
    return jax.grad(lambda q, k, v: jnp.sum(jnp.sin(attend(q, k, v, mask))), (0, 1, 2))(q, k, v)


def visits(mask, fn=attend) -> np.ndarray:
    """Which key blocks each query block visits, `[b, query blocks, key blocks]`, from where a NaN shows up."""

    @jax.jit
    def one(mask, block):
        bad = (jnp.arange(LENGTH) // BLOCK == block)[:, None, None]
        return fn(Q, K, jnp.where(bad, jnp.nan, QKV[2]), mask)

    got = [np.isnan(one(mask, n)).any((2, 3)).reshape(2, -1, BLOCK) for n in range(LENGTH // BLOCK)]
    return np.stack([x.any(-1) for x in got], axis=-1)


DOCUMENTS = np.repeat([[0, 0, 1, 2], [0, 1, 1, 1]], BLOCK, axis=1)
HOLES = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
SKIPS = {
    "causal": (masks.causal(), np.tri(4)),
    "causal-traced": (masks.causal(jnp.asarray(4)), np.tri(4, k=1)),
    "window": (masks.window(4), np.tri(4) - np.tri(4, k=-2)),
    "not-causal": (~masks.causal(), 1 - np.tri(4, k=-1)),
    "prefix": (masks.prefix(5), [1, 1, 0, 0]),
    "prefix-batch": (masks.prefix(np.array([9, 4])), np.array([[[1, 1, 1, 0]], [[1, 0, 0, 0]]])),
    "lengths": (masks.lengths(np.array([9, 4]), np.array([16, 8])),
                np.array([np.outer([1] * 4, [1, 1, 1, 0]), np.outer([1, 1, 0, 0], [1, 0, 0, 0])])),
    "around": (masks.around(np.linspace(1.2, 13.4, LENGTH), 1, 1), [[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]),
    "segments": (masks.segments(DOCUMENTS), DOCUMENTS[:, ::BLOCK, None] == DOCUMENTS[:, None, ::BLOCK]),
    "segments-causal": (masks.segments(DOCUMENTS) & masks.causal(),
                        (DOCUMENTS[:, ::BLOCK, None] == DOCUMENTS[:, None, ::BLOCK]) & (np.tri(4) > 0)),
    "blocks": (masks.blocks(HOLES, BLOCK), HOLES),
    "blocks-heads": (masks.blocks(np.stack([HOLES, np.zeros((4, 4), bool)]), BLOCK), HOLES),
    "dense": (masks.dense(np.kron(HOLES, np.eye(BLOCK)) > 0), HOLES),
    "function": (masks.function(lambda i, j: (j < 4) & (i >= 8)), np.outer([0, 0, 1, 1], [1, 0, 0, 0])),
    # visited everywhere, but nothing is seen beyond the first block
    "function-operands": (
        masks.function(lambda i, j, n: j < n, operand(jnp.asarray(4))),
        np.outer(np.ones(4), [1, 0, 0, 0]),
    ),
    "or": (masks.prefix(4) | masks.window(0), np.eye(4) + np.eye(1, 4) > 0),
}  # fmt: skip


@pytest.mark.parametrize("name", SKIPS)
def test_only_blocks_with_pairs_are_visited(name):
    """With the mask's arrays traced, so those of segments and lengths are known at run time only."""
    mask, blocks = SKIPS[name]
    np.testing.assert_array_equal(visits(mask), np.broadcast_to(blocks, (2, 4, 4)) > 0)


@pytest.mark.parametrize("name", ["prefix-batch", "segments-causal", "function", "around"])
def test_the_derivatives_skip_the_same_blocks(name):
    mask, blocks = SKIPS[name]
    blocks = np.broadcast_to(blocks, (2, 4, 4)) > 0
    pushed = lambda q, k, v, mask: jax.jvp(lambda q: attend(q, k, v, mask), (q,), (q,))[1]
    np.testing.assert_array_equal(visits(mask, pushed), blocks)
    pulled = lambda q, k, v, mask: jax.vjp(lambda q: attend(q, k, v, mask), q)[1](jnp.ones_like(q))[0]
    np.testing.assert_array_equal(visits(mask, pulled), blocks)


@pytest.mark.parametrize("name", ["prefix", "lengths"])
def test_nans_in_unused_keys_reach_nothing(name):
    mask = {"prefix": masks.prefix(8), "lengths": masks.lengths(jnp.asarray([8, 8]), jnp.asarray([16, 3]))}[name]
    q, k, v = QKV
    bad = (jnp.arange(LENGTH) >= 8)[:, None, None]
    spoilt = q, jnp.where(bad, jnp.nan, k), jnp.where(bad, jnp.nan, v)
    np.testing.assert_array_equal(jax.jit(attend)(*spoilt, mask), jax.jit(attend)(q, k, v, mask))
    chex.assert_trees_all_equal(jax.jit(gradients)(*spoilt, mask), jax.jit(gradients)(q, k, v, mask))
    assert not np.any(jax.jit(gradients)(*spoilt, mask)[1][:, 8:])


@_terms.term
class _Claims(masks.Mask):
    """No pair attends; but of key block 1, `blocks` claims that all do."""

    def __call__(self, i, j):
        return jnp.zeros(jnp.broadcast_shapes(i.shape, j.shape), bool)

    def blocks(self, i, j):
        full = (i.lo >= 0) & (j.lo == BLOCK)
        return Answer(np.ones_like(full), full)


def test_skipping_changes_no_values():
    for mask, _ in (SKIPS[name] for name in ("not-causal", "blocks-heads", "lengths")):
        wanted = jattn.attention(*QKV, mask=mask, implementation="reference")
        np.testing.assert_allclose(attend(Q, K, V, mask), wanted, rtol=1e-5, atol=1e-6)


def test_full_blocks_never_look_at_the_mask():
    only = masks.prefix(2 * BLOCK) & ~masks.prefix(BLOCK)
    np.testing.assert_array_equal(attend(Q, K, V, _Claims()), attend(Q, K, V, only))
    chex.assert_trees_all_close(gradients(Q, K, V, _Claims()), gradients(Q, K, V, only), atol=1e-6)


def test_one_program_decodes_every_step():
    q, k, v = QKV

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(n, k, v):
        return attend(jax.lax.dynamic_slice_in_dim(q, n, 1, axis=1), k, v, masks.causal(n))

    whole = attend(q, k, v, masks.causal())
    for n in (0, 3, 4, 10, 15):
        unwritten = (jnp.arange(LENGTH) // BLOCK > n // BLOCK)[:, None, None]  # blocks of the cache not reached yet
        got = step(n, *(jnp.where(unwritten, jnp.nan, x) for x in (k, v)))
        np.testing.assert_allclose(got[:, 0], whole[:, n], rtol=1e-5, atol=1e-6)
