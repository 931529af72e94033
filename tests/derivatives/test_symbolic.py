"""A batch, or the axis of a vmap, whose length is a symbol of `jax.export`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jattn
from jattn import masks, normalizers
from tests.derivatives.problem import SHAPES, B, N, attend, floats, integers
from tests.tolerances import assert_close

BATCHED = {"q", "k", "v", "center", "q_ids", "kv_ids", "length", "dense"}


def exported(fn, args, batched):
    """fn, exported for arrays whose first axis is a symbol where they are `batched`, and called with args."""
    (n,) = export.symbolic_shape("n")
    size = lambda x, y: jax.ShapeDtypeStruct((n, *x.shape[1:]) if y else x.shape, x.dtype)
    return export.export(jax.jit(fn))(*jax.tree.map(size, args, batched)).call(*args)


def loss(x, n, implementation):
    out, lse = attend(x, n, implementation)
    return jnp.sum(jnp.sin(3 * out)) + jnp.sum(jnp.sin(lse))


def named(x, batched):
    return {name: name in batched for name in x}


def assert_same(fn, args, batched):
    wanted = jax.tree.leaves(jax.jit(fn)(*args))
    for x, y in zip(jax.tree.leaves(exported(fn, args, batched)), wanted, strict=True):
        assert_close(x, y, 2e-5)
    assert all(np.abs(x).max() > 1e-3 for x in wanted)


@pytest.mark.parametrize("implementation", ["blockwise", "pallas_tpu"])
@pytest.mark.parametrize("derivative", [lambda f: f, jax.value_and_grad], ids=["value", "gradients"])
def test_batch(implementation, derivative, monkeypatch):
    monkeypatch.setenv("JATTN_INTERPRET", "1")
    x, n = floats(1), integers(2)
    fn = derivative(lambda x, n: loss(x, n, implementation))
    assert_same(fn, (x, n), (named(x, BATCHED), named(n, BATCHED)))


@pytest.mark.parametrize("over", [{"q", "k", "v", "bias", "q_ids"}, {"v", "cap"}], ids=["most", "two"])
def test_vmap(over):
    """What it is not over gets the sum of its elements' gradients."""
    x, n = floats(1, [(over, 0)]), integers(2, [(over, 0)])
    of_one = lambda x, n: loss(x, n, "blockwise")
    axes = tuple({name: 0 if name in over else None for name in y} for y in (x, n))
    fn = jax.grad(lambda x, n: jnp.sum(jnp.cos(jax.vmap(of_one, axes)(x, n))))
    assert {len(x["v"]), *SHAPES["v"][:1]} == {N, B}
    assert_same(fn, (x, n), (named(x, over), named(n, over)))


def test_batch_and_vmap_are_both_symbols():
    x = floats(1)
    q, k, v = (x[name][None].repeat(N, 0) for name in "qkv")
    fn = jax.grad(lambda q, k, v: jnp.sum(jax.vmap(jattn.attention)(q, k, v) ** 2), (0, 1, 2))
    sizes = export.symbolic_shape("n, b")
    shapes = [jax.ShapeDtypeStruct((*sizes, *y.shape[2:]), y.dtype) for y in (q, k, v)]
    got = export.export(jax.jit(fn))(*shapes).call(q, k, v)
    for y, z in zip(got, fn(q, k, v), strict=True):
        assert_close(y, z, 1e-5)


@pytest.mark.parametrize(
    "fn",
    [
        lambda q, k, v: jattn.attention(q, k, v, normalizer=normalizers.sparsemax(), mask=masks.causal()),
        lambda q, k, v: jattn.attention(q, k, v, normalizer=normalizers.sigmoid()),
        lambda q, k, v: jattn.sample(jax.random.key(0), q, k, v),
        lambda q, k, v: jattn.weights(q, k, v),
        lambda q, k, v: jax.jvp(jax.grad(lambda *x: jnp.sum(jattn.attention(*x) ** 2)), (q, k, v), (q, k, v))[1],
    ],
    ids=["sparsemax", "sigmoid", "sample", "weights", "second derivatives"],
)
def test_whole_rows(fn):
    x = floats(1)
    assert_same(fn, tuple(x[name] for name in "qkv"), (True,) * 3)


def test_pages():
    x = floats(1)
    pool, query = x["v"].reshape(-1, 1, *x["v"].shape[2:]), x["q"][..., :2]
    table = jnp.arange(len(pool), dtype=jnp.int32).reshape(B, -1)
    fn = lambda q, lengths, table: jattn.attention(q, pool, pool, pages=table, mask=masks.lengths(lengths))
    assert_same(fn, (query, jnp.array([3, 5]), table), (True,) * 3)


def test_other_axes_are_numbers():
    x = floats(1)
    arrays = x["q"], x["k"], x["v"]
    b, n, h = export.symbolic_shape("b, n, h")
    of = lambda **options: jax.jit(lambda q, k, v: jattn.attention(q, k, v, mask=masks.causal(), **options))
    shapes = [jax.ShapeDtypeStruct((b, n, *y.shape[2:]), y.dtype) for y in arrays]
    for asked in (None, "blockwise", "pallas_tpu", "pallas_gpu", "cudnn"):
        with pytest.raises(jattn.UnsupportedError, match="numbers, not n: .*implementation='reference'") as caught:
            export.export(of(implementation=asked))(*shapes)
        assert (asked or "attention in tiles") in str(caught.value) and "pass None" not in str(caught.value)
    shapes = [jax.ShapeDtypeStruct((b, n, h, x["q"].shape[3]), y.dtype) for y in arrays]
    with pytest.raises(jattn.UnsupportedError, match="not n and h: "):
        export.export(of())(*shapes)
    got = export.export(of(implementation="reference"))(*shapes).call(x["q"], x["q"], x["q"])
    assert_close(got, of()(x["q"], x["q"], x["q"]), 1e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_several_devices_take_numbers(kind):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(kind,), devices=jax.devices()[:2])
    (b,) = export.symbolic_shape("b", constraints=["mod(b, 2) == 0"])
    lies = NamedSharding(mesh, PartitionSpec("x"))
    fn = jax.jit(lambda x: jattn.attention(x, x, x), in_shardings=lies)
    with jax.set_mesh(mesh):
        x = jax.ShapeDtypeStruct((b, 16, 2, 8), jnp.float32, sharding=lies)
        with pytest.raises(NotImplementedError, match="on 2 devices takes sizes .* not b: .*'reference'"):
            export.export(fn)(x)
