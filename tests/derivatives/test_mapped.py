"""Axes of vmap in front of a call's arrays: how they join the batch axis, and how gradients come back."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import mods
from jattn._call import targets
from jattn._call.problem import reduce
from jattn._derivatives import mapped
from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import Spec
from tests.problems import problem

M, N, B, T, S, H, D = 2, 3, 4, 5, 6, 2, 7


def _spec(count, **options):
    q, k = jnp.ones((B, T, H, D)), jnp.ones((B, S, H, D))
    tiled = reduce(problem((q, k, k), options))
    return Spec(BLOCKWISE, tiled.signature, q.dtype, None, None, targets.current(), ((),) * count)


def _numbers(*shape):
    return jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)


def test_lengths_are_those_of_the_arrays_that_have_an_axis():
    shapes = [(M, 1, B, 1), (1, N, 1, 1), (1, 1, 9)]
    assert mapped.lengths(shapes, ["bt", "bt", "h"], 2) == (M, N, B)
    assert mapped.lengths(shapes[:1], ["bt"], 2) == (M, 1, B)


def test_an_axis_of_length_0_is_not_that_of_an_array_without_it():
    assert mapped.lengths([(1, B, T), (0, 1, T)], ["bt", "bt"], 1) == (0, B)


def test_without_mapped_axes_nothing_is_done():
    fold = mapped.BatchFold(_spec(0), [_numbers(B, T, H, D)] + [_numbers(B, S, H, D)] * 2)
    assert fold.folded is fold.spec
    x = _numbers(B, T, H, D)
    np.testing.assert_array_equal(fold.arg(0, x), x)
    np.testing.assert_array_equal(fold.unfold(x), x)


@pytest.mark.parametrize("lead", [(M, N), (1, N), (M, 1), (1, 1)])
def test_entry_b_of_a_folded_array_is_that_of_its_place(lead):
    """Element b of the call uses entry b % length."""
    x = _numbers(*lead, B, T, H, D)
    keys = jnp.zeros((M, N, B, S, H, D))
    fold = mapped.BatchFold(_spec(2), [x, keys, keys])
    got, full = np.asarray(fold.arg(0, x)), np.broadcast_to(x, (M, N, B, T, H, D)).reshape(-1, T, H, D)
    assert got.shape[0] == {(M, N): M * N * B, (1, N): N * B, (M, 1): M * N * B, (1, 1): B}[lead]
    np.testing.assert_array_equal(got[np.arange(M * N * B) % len(got)], full)


@pytest.mark.parametrize("lead", [(M, N), (1, N), (M, 1), (1, 1)])
@pytest.mark.parametrize("own", [B, 1])
def test_a_gradient_is_summed_over_the_axes_that_its_argument_lacks(lead, own):
    """What `arg` spreads, `gradient` adds up: it is the transpose."""
    x, keys = _numbers(*lead, own, T, H, D), jnp.zeros((M, N, B, S, H, D))
    fold = mapped.BatchFold(_spec(2), [x, keys, keys])
    weights = jnp.sin(_numbers(M * N * B, T, H, D))

    def loss(x):
        folded = fold.arg(0, x)
        return jnp.sum(jnp.tile(folded, (len(weights) // len(folded), 1, 1, 1)) * weights)

    whole = jnp.broadcast_to(x, (M, N, B, T, H, D))
    np.testing.assert_allclose(loss(x), jnp.sum(whole.reshape(weights.shape) * weights), rtol=1e-4)
    folded = fold.arg(0, x)
    of_entries = weights.reshape(-1, *folded.shape).sum(0)
    np.testing.assert_allclose(fold.gradient(0, of_entries), jax.grad(loss)(x), rtol=1e-4, atol=1e-4)


def test_an_operand_gets_a_batch_axis_where_it_had_a_mapped_one():
    spec = _spec(1, mods=mods.alibi(np.ones(H)))
    arrays = [jnp.zeros((M, B, T, H, D)), *[jnp.zeros((M, B, S, H, D))] * 2]
    shared = mapped.BatchFold(spec, [*arrays, jnp.zeros((1, H))])
    assert shared.folded.axes[3:] == ("h",) and shared.folded.mapped == ()
    apart = mapped.BatchFold(spec, [*arrays, _numbers(M, H)])
    assert apart.folded.axes[3:] == ("bh",)
    np.testing.assert_array_equal(apart.arg(3, _numbers(M, H)), np.repeat(_numbers(M, H), B, 0))


def test_results_come_apart_again():
    arrays = [jnp.zeros((M, 1, B, T, H, D)), jnp.zeros((1, N, B, S, H, D)), jnp.zeros((1, 1, B, S, H, D))]
    fold = mapped.BatchFold(_spec(2), arrays)
    out = _numbers(M, N, B, T, H, D)
    np.testing.assert_array_equal(fold.unfold(fold.row(out)), out)


@pytest.mark.parametrize(("x", "y"), [((M, N), (M, N)), ((M, 1), (1, N)), ((1, 1), (1, N)), ((1, 1), (1, 1))])
def test_a_function_is_mapped_over_the_axes_that_its_arguments_have(x, y):
    left, right = _numbers(*x, 4), _numbers(*y, 4)
    seen = []
    got = mapped.over(lambda a, b: seen.append((a.shape, b.shape)) or a + 2 * b, [left, right], 2)
    np.testing.assert_array_equal(got, left + 2 * right)
    assert set(seen) == {((4,), (4,))}


def test_folding_is_static():
    """Specs of the same mapped axes are one program."""
    assert _spec(2) == _spec(2) and hash(_spec(2)) == hash(_spec(2))
    assert dataclasses.replace(_spec(2), mapped=(("x",), ())) != _spec(2)
