"""Attention pooling: against plain jnp with the same parameters, with padding, under Flax's transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.typing import ArrayLike

from jattn import normalizers
from jattn.nn import AttentionPooling
from tests.layers import LOOSE, TIGHT
from tests.tolerances import TOLERANCES, assert_close

F, M, H = 5, 3, 2


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def some(*shape, seed=3):
    """A mask, its first row with nothing real in it."""
    mask = np.random.default_rng(seed).random(shape) < 0.6
    mask[(0,) * (len(shape) - 1)] = False
    return mask


def pool_of(heads=1, **options):
    layer = AttentionPooling(F, M, heads=heads, **{"param_dtype": float, "rngs": nnx.Rngs(0), **options})
    layer.context[...] *= 3
    if layer.hidden.bias is not None:
        layer.hidden.bias[...] += normal(M, seed=9).astype(layer.hidden.bias.dtype)
    return layer


def plain(p, x, mask: ArrayLike = True):
    """(weights `[.., h, s]`, out `[.., h, f]`)"""
    u = jnp.tanh(x @ p["hidden"]["kernel"] + p["hidden"].get("bias", 0))
    score = jnp.einsum("...sm,hm->...hs", u, p["context"])
    mask = jnp.broadcast_to(jnp.asarray(mask), x.shape[:-1])[..., None, :]
    weight = jax.nn.softmax(jnp.where(mask, score, -1e30), axis=-1) * mask
    return weight, jnp.einsum("...hs,...sf->...hf", weight, x)


@pytest.mark.parametrize(
    ("heads", "options", "shape", "masked"),
    [
        (1, {}, (3, 7), True),
        (H, {}, (3, 7), True),
        (3, {"use_bias": False}, (7,), False),
        (1, {}, (2, 3, 1), False),
        (H, {}, (2, 1, 3, 7), True),
    ],
)
@pytest.mark.usefixtures("x64")
def test_layer_is_what_is_written(heads, options, shape, masked):
    layer, x = pool_of(heads, **options), normal(*shape, F, seed=1)
    mask = some(*shape) if masked else None
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    squeeze = (lambda y: y) if heads > 1 else (lambda y: y[..., 0, :])

    def got(p, x):
        layer = nnx.merge(graph, p, rest)
        return layer(x, mask), layer.weights(x, mask)

    def want(p, x):
        weight, out = plain(nnx.to_pure_dict(p), x, True if mask is None else mask)
        return squeeze(out), squeeze(weight)

    results = []
    for fn in (got, want):
        found, pull = jax.vjp(jax.jit(fn), params, x)
        results.append((found, pull(tuple(normal(*y.shape, seed=n) for n, y in enumerate(found)))))
    jax.tree.map(lambda a, b: assert_close(a, b, TIGHT), *results)
    assert results[0][0][0].shape == (*shape[:-1], *((heads,) if heads > 1 else ()), F)
    if masked:  # the first row, in which nothing is real
        assert all((y[(0,) * (len(shape) - 1)] == 0).all() for y in (*results[0][0], results[0][1][1]))


@pytest.mark.usefixtures("x64")
def test_padding_changes_nothing():
    layer, x, y = pool_of(H), normal(3, 7, F), normal(3, 4, F, seed=1)
    loss = lambda m, x, mask=None: jnp.sum(m(x, mask) ** 2)
    padded = jnp.concatenate([x, jnp.nan * y], axis=1)
    want, got = (
        nnx.grad(loss, argnums=(0, 1))(layer, x),
        nnx.grad(loss, argnums=(0, 1))(layer, padded, jnp.arange(11) < jnp.full((3, 1), 7)),
    )
    jax.tree.map(lambda a, b: assert_close(a, b, TIGHT), got[0], want[0])
    assert_close(got[1][:, :7], want[1], TIGHT)
    assert (got[1][:, 7:] == 0).all()


@pytest.mark.usefixtures("x64")
def test_other_normalizers():
    x, mask = normal(3, 7, F), some(3, 7)
    sparse = pool_of(normalizer=normalizers.sparsemax())
    weight = sparse.weights(x, mask)
    assert_close(weight.sum(-1), mask.any(-1), TIGHT)
    assert ((weight == 0) & mask).any()
    assert_close(sparse(x, mask), jnp.einsum("bs,bsf->bf", weight, x), TIGHT)


def test_insisting_on_what_is_no_backend():
    with pytest.raises(ValueError, match="implementation must be None or one of"):
        pool_of(implementation="nonsense")(normal(3, 7, F))


def test_under_the_transformations_of_flax():
    x, mask = normal(3, 7, F).astype(jnp.float32), jnp.asarray(some(3, 7))
    loss = lambda m, x, mask: jnp.sum(m(x, mask) ** 2)
    scan = nnx.scan(lambda carry, m: (carry, m(x, mask)), in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))

    @nnx.jit
    def every_way(layer, layers):
        grads = nnx.grad(loss)(layer, x, mask), nnx.grad(nnx.remat(loss))(layer, x, mask)
        each = nnx.vmap(lambda m: m(x, mask))(layers)
        return grads, (each, scan(0.0, layers)[1]), (layer(x, mask), jax.vmap(layer)(x, mask))

    layers = nnx.split_rngs(splits=2)(nnx.vmap(lambda rngs: AttentionPooling(F, rngs=rngs)))(nnx.Rngs(0))
    (plain, again), (each, scanned), (out, mapped) = every_way(pool_of(param_dtype=jnp.float32), layers)
    jax.tree.map(lambda a, b: assert_close(a, b, LOOSE), again, plain)
    assert_close(scanned, each, LOOSE)
    assert_close(mapped, out, LOOSE)
    assert float(abs(each[0] - each[1]).max()) > 1e-3


def test_shapes_and_dtypes():
    layer = AttentionPooling(F, M, heads=H, rngs=nnx.Rngs(0))
    shapes = jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(layer, nnx.Param)))
    assert shapes == {"hidden": {"kernel": (F, M), "bias": (M,)}, "context": (H, M)}
    assert AttentionPooling(F, rngs=nnx.Rngs(0)).hidden.kernel[...].shape == (F, F)
    x = normal(3, 7, F).astype(jnp.float32)
    narrow = AttentionPooling(F, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert narrow(x).dtype == jnp.bfloat16
    assert narrow.hidden.kernel[...].dtype == narrow.context[...].dtype == jnp.float32
    assert layer(x.astype(jnp.bfloat16)).dtype == jnp.float32
    assert_close(narrow(x), AttentionPooling(F, rngs=nnx.Rngs(0))(x), 4 * TOLERANCES["bfloat16"].gradient)


@pytest.mark.parametrize(
    ("x", "mask", "error", "message"),
    [
        ((F,), None, ValueError, r"x must be \[.., s, 5\], got shape \[5\]"),
        ((3, 7, F + 1), None, ValueError, r"x must be \[.., s, 5\], got shape \[3, 7, 6\]"),
        ((3, 7, F), np.ones((3, 7)), TypeError, "mask must be booleans, True where x is real, got float"),
        ((3, 7, F), np.ones(7, bool), ValueError, r"mask must be \[.., s\] = \[3, 7\].*got shape \[7\]"),
    ],
)
def test_errors_of_calling(x, mask, error, message):
    layer = AttentionPooling(F, rngs=nnx.Rngs(0))
    for method in (layer, layer.weights):
        with pytest.raises(error, match=message):
            method(jnp.ones(x), mask)


@pytest.mark.parametrize("name", ["features", "hidden", "heads"])
def test_errors_of_making(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        AttentionPooling(**{"features": F, "hidden": M, "heads": H, "rngs": nnx.Rngs(0), name: 0})
