"""Normalisers of a user's own: rows in the order of the keys, what hidden keys get, and gradients of every array."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks, normalizers, operand
from tests import oracle
from tests.cases import stick_breaking
from tests.tolerances import assert_close

BLOCKS = {"reference": [None], "blockwise": [(4, 5), (13, 1), (6, 17)]}
WAYS = [(name, blocks) for name in BLOCKS for blocks in BLOCKS[name]]


@pytest.mark.parametrize(("implementation", "blocks"), WAYS)
def test_whole_rows_come_in_the_order_of_the_keys(draw, implementation, blocks):
    """A share of the stick depends on which keys are later, whatever tiles they lie in."""
    q, k, v = draw.inputs()
    wanted = oracle.attention(*map(np.asarray, (q, k, v)), normalizer=oracle.stick_breaking(), mask=oracle.window(8, 2))
    got = jattn.attention(
        q,
        k,
        v,
        normalizer=normalizers.function(stick_breaking),
        mask=masks.window(8, 2),
        implementation=implementation,
        blocks=blocks,
    )
    assert_close(got, wanted.out, 2e-14)


@pytest.mark.parametrize(("implementation", "blocks"), WAYS)
@pytest.mark.parametrize("elementwise", [True, False])
def test_operands_and_closed_over_arrays_get_gradients(draw, elementwise, implementation, blocks):
    """weight = shift[h, s] + c score, of which the slopes are sums over the pairs that are seen."""
    q, k, v = draw.inputs()
    shift, c = draw.normal("hs"), draw.number(0.7)

    def loss(shift, c):
        # the -inf of a whole row must not meet the array that multiplies it
        fn = lambda s, x: jnp.where(jnp.isneginf(s), 0, s) * c + x
        normalizer = normalizers.function(fn, operand(shift, "hs"), elementwise=elementwise)
        return jattn.attention(
            q, k, v, normalizer=normalizer, mask=masks.causal(), implementation=implementation, blocks=blocks
        ).sum()

    got, slopes = jax.value_and_grad(loss, (0, 1))(shift, c)
    plain = oracle.attention(*map(np.asarray, (q, k, v)), mask=oracle.causal())
    seen = np.isfinite(plain.scores)
    score = np.where(seen, plain.scores, 0)
    # what a weight is worth is the sum of the values of its key
    worth = np.repeat(np.asarray(v).sum(-1), q.shape[2] // v.shape[2], axis=2).swapaxes(1, 2)[:, :, None]
    assert_close(got, np.sum(seen * (0.7 * score + np.asarray(shift)[:, None]) * worth), 1e-13)
    assert_close(slopes[0], np.sum(seen * worth, axis=(0, 2)), 1e-13)
    assert_close(slopes[1], np.sum(score * worth), 1e-13)


@pytest.mark.parametrize("elementwise", [True, False])
def test_a_hidden_key_gets_nothing_whatever_the_function_says(draw, elementwise):
    normalizer = normalizers.function(lambda s: jnp.full_like(s, 3.0), elementwise=elementwise)
    got = jattn.weights(*draw.inputs(), normalizer=normalizer, mask=masks.window(2, 1))
    i, j = np.ogrid[:13, :17]
    np.testing.assert_array_equal(got, np.broadcast_to(3.0 * ((i - 2 <= j) & (j <= i + 1)), got.shape))


@pytest.mark.parametrize("elementwise", [True, False])
def test_what_the_function_is_given_of_a_hidden_key(x64, elementwise):
    """0 if it is elementwise, which may then multiply it; else -inf, by which it tells which keys there are."""
    rows = jnp.asarray([[1.0, -jnp.inf, 2.0], [-jnp.inf, 3.0, -jnp.inf]])
    given = []

    def fn(scores):
        given.append(np.asarray(scores))
        return scores

    got = normalizers.function(fn, elementwise=elementwise)(rows)
    hidden = 0 if elementwise else -np.inf
    np.testing.assert_array_equal(given[-1], [[1, hidden, 2], [hidden, 3, hidden]])
    np.testing.assert_array_equal(got, [[1, 0, 2], [0, 3, 0]])


def test_an_overflow_is_seen_in_the_weight():
    """Functions that end in a bounded one would pass it for a number."""
    got = normalizers.function(lambda s: jnp.tanh(s), elementwise=True)(jnp.asarray([jnp.inf, 1.0, -jnp.inf]))
    np.testing.assert_allclose(got, [np.nan, np.tanh(1), 0], rtol=1e-6)
