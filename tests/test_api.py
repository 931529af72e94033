"""The functions beside `attention`: weights, sample, merge, and shapes without a batch axis."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import gates, masks, mods, normalizers


def _arrays(seed=0, b=2, t=9, s=11, h=4, g=2, d=5, e=3, dtype=jnp.float32):
    draw = lambda n, *shape: jax.random.normal(jax.random.key(seed * 10 + n), shape, dtype)
    return draw(0, b, t, h, d), draw(1, b, s, g, d), draw(2, b, s, g, e)


OPTIONS = {
    "plain": {},
    "masked": {"mask": masks.causal(-2) | masks.dilated(3)},
    "modded": {"mods": (mods.softcap(2.0),), "bias": np.linspace(-1, 1, 11, dtype=np.float32)},
    "gated": {"dropout": gates.dropout(0.4, 3)},
    "sparse": {"normalizer": normalizers.sparsemax()},
    "sinks": {"sinks": np.linspace(-1, 1, 4, dtype=np.float32)},
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", OPTIONS)
def test_weights_are_what_multiplies_the_values(name):
    q, k, v = _arrays()
    w = jattn.weights(q, k, v, **OPTIONS[name])
    assert w.shape == (2, 4, 9, 11)
    out = jnp.einsum("bhts,bshe->bthe", w, jnp.repeat(v, 2, axis=2))
    np.testing.assert_allclose(out, jattn.attention(q, k, v, **OPTIONS[name]), rtol=1e-5, atol=1e-6)


@pytest.mark.smoke
def test_the_batch_axis_may_be_absent():
    q, k, v = _arrays(b=1)
    mask = masks.lengths(7)
    out, lse = jattn.attention(q, k, v, mask=mask, return_lse=True)
    single = jattn.attention(q[0], k[0], v[0], mask=mask, return_lse=True)
    np.testing.assert_allclose(single[0], out[0], rtol=1e-6)
    np.testing.assert_allclose(single[1], lse[0], rtol=1e-6)
    np.testing.assert_allclose(jattn.weights(q[0], k[0], v[0]), jattn.weights(q, k, v)[0], rtol=1e-6)
    drawn = jattn.sample(jax.random.key(0), q[0], k[0], v[0])
    assert [x.shape for x in drawn] == [(9, 4, 3), (9, 4), (9, 4)]


@pytest.mark.parametrize("cuts", [(4,), (0, 4, 4, 9), (2, 7)])
def test_merge_of_parts_is_the_whole(x64, cuts):
    q, k, v = _arrays(dtype=jnp.float64)
    mask = np.random.default_rng(0).random((9, 11)) < 0.5
    mask[2], mask[3, :4], mask[4, 4:] = False, False, False
    edges = [0, *cuts, 11]
    pieces = [slice(a, b) for a, b in itertools.pairwise(edges) if b > a]

    def parts(q, k, v):
        return jattn.merge(*[jattn.attention(q, k[:, x], v[:, x], mask=mask[:, x], return_lse=True) for x in pieces])

    whole = lambda q, k, v: jattn.attention(q, k, v, mask=mask, return_lse=True)
    chex.assert_trees_all_close(jax.jit(parts)(q, k, v), jax.jit(whole)(q, k, v), atol=1e-13)
    loss = lambda fn: lambda *x: sum(jnp.sum(jnp.sin(jnp.where(jnp.isfinite(y), y, 0))) for y in fn(*x))
    got, wanted = (jax.jit(jax.grad(loss(fn), (0, 1, 2)))(q, k, v) for fn in (parts, whole))
    chex.assert_trees_all_close(got, wanted, atol=1e-12)


def test_merge_keeps_the_dtype():
    q, k, v = _arrays(dtype=jnp.bfloat16)
    part = jattn.attention(q, k, v, return_lse=True)
    out, lse = jattn.merge(part, part)
    assert (out.dtype, lse.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(lse, part[1] + np.log(2), rtol=1e-6)


def test_sinks_are_a_key_with_value_zero(x64):
    q, k, v = _arrays(dtype=jnp.float64, g=4)
    sinks = jnp.linspace(-1, 2, 4)
    mask = masks.lengths([0, 11])
    out, lse = jattn.attention(q, k, v, sinks=sinks, mask=mask, return_lse=True)
    plain, log = jattn.attention(q, k, v, mask=mask, return_lse=True)
    np.testing.assert_allclose(lse, jnp.logaddexp(log, sinks), atol=1e-13)
    np.testing.assert_allclose(out, plain * jnp.exp(log - lse)[..., None], atol=1e-13)
    np.testing.assert_allclose(lse[0], jnp.broadcast_to(sinks, lse[0].shape))  # nothing but the sink is left
    slope = jax.grad(lambda s: jnp.sum(jnp.sin(jattn.attention(q, k, v, sinks=s, mask=mask))))(sinks)
    step = 1e-6 * jnp.asarray([1.0, -2, 3, 1])
    f = lambda s: jnp.sum(jnp.sin(jattn.attention(q, k, v, sinks=s, mask=mask)))
    np.testing.assert_allclose((f(sinks + step) - f(sinks - step)) / 2, jnp.vdot(slope, step), rtol=1e-6)


def test_merge_takes_what_attention_takes():
    """Arrays of NumPy and lists of numbers as well as JAX's, pairs that are lists as well as tuples."""
    q, k, v = _arrays()
    parts = [jattn.attention(q, k[:, x], v[:, x], return_lse=True) for x in (slice(0, 4), slice(4, 11))]
    wanted = jattn.merge(*parts)
    (out, lse), (other, other_lse) = (tuple(np.asarray(x) for x in part) for part in parts)
    for got in (
        jattn.merge((out, lse), (other, other_lse)),
        jattn.merge((out.tolist(), lse.tolist()), (parts[1][0], other_lse)),
        jattn.merge((out.astype(np.float64), lse), [other, other_lse]),  # type: ignore[arg-type] # what a jax.tree.map may give
    ):
        assert all(isinstance(x, jax.Array) and x.dtype == np.float32 for x in got)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), got, wanted)
    with pytest.raises(TypeError, match="out must be float32, bfloat16, float16 or float64, got int32"):
        jattn.merge((np.ones((3, 2), np.int32), np.ones(3, np.float32)))
    with pytest.raises(TypeError, match="lse must be an array, got str"):
        jattn.merge((out, "none"))  # type: ignore[arg-type] # a wrong argument is what this is about


def test_a_part_that_saw_nothing_counts_for_nothing_whatever_it_holds():
    q, k, v = _arrays()
    whole = jattn.attention(q, k, v, return_lse=True)

    def merged(out, lse):
        return jattn.merge((out, lse), (jnp.full_like(out, jnp.nan), jnp.full_like(lse, -jnp.inf)))

    chex.assert_trees_all_equal(merged(*whole), whole)
    slopes = jax.grad(lambda out, lse: jnp.sum(merged(out, lse)[0] ** 2), (0, 1))(*whole)
    chex.assert_trees_all_close(slopes, (2 * whole[0], jnp.zeros_like(whole[1])))
