"""A tile function replayed on plain arrays gives what it gives by itself, with vectors where vectors suffice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels.gpu.lowering import Column, NotLowered, Plain, Row, Table, lowered, why_not
from jax import lax

SHAPES = [(8, 8), (8, 16), (1, 8), (8, 1), (1, 1)]
_TABLE = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
_IDS = np.random.default_rng(1).integers(0, 3, 40).astype(np.int32)
_LAYOUT = np.random.default_rng(2).random((6, 6)) < 0.5


def bucket(x: jax.Array) -> jax.Array:
    """As T5's: exact distances, then logarithms."""
    size = jnp.abs(x)
    far = 2 + (jnp.log(jnp.maximum(size, 1).astype(jnp.float32)) * 1.5).astype(jnp.int32)
    return jnp.where(size < 3, size, jnp.minimum(far, 6))


def mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    return x ^ (x >> 15)


def inputs(shape: tuple[int, int]) -> tuple[jax.Array, jax.Array, jax.Array]:
    s = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    return jnp.asarray(s), jnp.arange(shape[0], dtype=jnp.int32) + 3, jnp.arange(shape[1], dtype=jnp.int32) + 5


def replayed(fn: Callable[..., Any], shape: tuple[int, int], *tables: np.ndarray) -> Callable[..., Any]:
    """fn(s, i, j, *tables) of vectors i and j; tables lie in memory as a kernel has them."""
    flat = [jnp.asarray(x.reshape(-1).astype(np.int8 if x.dtype == np.bool_ else x.dtype)) for x in tables]
    held = [Table(f, x.shape, x.dtype) for f, x in zip(flat, tables, strict=True)]
    return lambda s, i, j: lowered(fn, shape, Plain())(s, Row(i), Column(j), *held)


def abstract(shape: tuple[int, int], *tables: np.ndarray) -> tuple[Any, ...]:
    i, j = (jax.ShapeDtypeStruct((n,), jnp.int32) for n in shape)
    held = [Table(None, x.shape, x.dtype) for x in tables]
    return jax.ShapeDtypeStruct(shape, jnp.float32), Row(i), Column(j), *held


def check(fn: Callable[..., Any], shape: tuple[int, int], *tables: np.ndarray) -> None:
    s, i, j = inputs(shape)
    want = fn(s, i[:, None], j[None], *map(jnp.asarray, tables))
    got = replayed(fn, shape, *tables)(s, i, j)

    def compare(got: Any, want: Any) -> None:
        got = got.x[:, None] if isinstance(got, Row) else got.x[None] if isinstance(got, Column) else got
        assert got.dtype == want.dtype
        want = want.reshape(got.shape)  # a vector without its other axis
        np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(want, np.float32), 5e-6, 1e-6)

    jax.tree.map(compare, got, want, is_leaf=lambda x: isinstance(x, (Row, Column)))
    assert why_not(fn, shape, *abstract(shape, *tables)) is None


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
    "alibi": (lambda s, i, j: s - 0.5 * (i - j), ()),
    "mask": (lambda s, i, j: ((i - j) % 3 == 0) & (i // 4 == j // 4) | ~(i > j), ()),
    "bools": (lambda s, i, j: jnp.where((i < 5) ^ (j > 7), s, 0) + ((i < 5) == (j < 7)) + jnp.where(i < j, i < 5, j < 7), ()),
    "hash": (lambda s, i, j: mix(mix(i.astype(jnp.uint32)) ^ j.astype(jnp.uint32)) < np.uint32(1 << 31), ()),
    "kinds": (lambda s, i, j: (s, i * 2, j + 1, jnp.float32(3) * 2, jnp.broadcast_to(i, s.shape), i[:, 0]), ()),
    "gelu": (lambda s, i, j: jax.nn.gelu(s, approximate=False) + jax.nn.softplus(s) + jax.nn.silu(s), ()),
    "calls": (lambda s, i, j: jax.checkpoint(jnp.sin)(s) + jax.jit(jnp.tanh)(s) + lax.stop_gradient(s), ()),
    "powers": (lambda s, i, j: jnp.abs(s) ** 1.5 + s**3 + i**2 + jnp.logaddexp(s, 0.0), ()),
    "whole numbers": (lambda s, i, j: jnp.abs(i - j) + jnp.sign(i - j) + (~i) + (i << 2) + lax.population_count(j) + lax.clz(i), ()),
    "choices": (lambda s, i, j: lax.select_n(jnp.clip(i - j, 0, 2), s, -s, 2 * s), ()),
    "multiples": (lambda s, i, j: (s * 0.5 * 4.0 * -3.0, s * 1e-30 * 1e-30 * 1e30, 1e30 * (s * 1e30) * 0.0, 3 * jnp.tanh(s * 0.1 * 2)), ()),
    "conversions": (lambda s, i, j: s.astype(jnp.bfloat16).astype(jnp.float32) + s.astype(bool) + s.astype(jnp.int32), ()),
    "bfloat16": (lambda s, i, j: jnp.tanh(s.astype(jnp.bfloat16)) * jnp.bfloat16(2), ()),
    "loop": (lambda s, i, j: lax.fori_loop(0, 5, lambda n, x: x * 0.5 + n, s), ()),
    "while": (lambda s, i, j: lax.while_loop(lambda c: c[0] < 5, lambda c: (c[0] + 1, c[1] * 2), (0, s))[1], ()),
    "scan": (lambda s, i, j: lax.scan(lambda c, x: (c * x, c), s, jnp.arange(1.0, 4.0), reverse=True)[1][1], ()),
    "vjp": (lambda s, i, j: jax.vjp(lambda x: jnp.where(i > j, jnp.exp(x) * jnp.tanh(x), x * x + x), s)[1](s)[0], ()),
    "row sum": (lambda s, i, j: jax.vjp(lambda x: x * s + x, i.astype(jnp.float32))[1](s)[0], ()),
    "row sum of rows": (lambda s, i, j: jnp.broadcast_to(i, s.shape).sum(1, keepdims=True), ()),
    "row sum of columns": (lambda s, i, j: jnp.broadcast_to(j, s.shape).sum(1), ()),
    "own array": (lambda s, i, j: s + jnp.take(jnp.arange(8.0), jnp.clip(i - j, 0, 7)) + jnp.array([1.0, 5.0, 2.0])[i % 3], ()),
    "table": (lambda s, i, j, t: s + t[1, i % 7] + t[2, j % 7], (_TABLE,)),
    "table of both": (lambda s, i, j, t: s + t[i % 3, j % 7], (_TABLE,)),
    "T5": (lambda s, i, j, t: s + jnp.take(t[1], bucket(j - i), mode="clip"), (_TABLE,)),
    "outside, filled": (lambda s, i, j, t: s + jnp.take(t, j - i, axis=1, mode="fill", fill_value=3)[2], (_TABLE,)),
    "outside, clipped": (lambda s, i, j, t: s + t.at[1, 5 * (j - i)].get(mode="clip"), (_TABLE,)),
    "documents": (lambda s, i, j, d: d[i] == d[j], (_IDS,)),
    "layout": (lambda s, i, j, b: b[i // 4, j // 4], (_LAYOUT,)),
    "nested": (lambda s, i, j, d, t: jnp.where(d[i] == d[j], s, t[d[i], bucket(i - j)]), (_IDS, _TABLE)),
    "of a table": (lambda s, i, j, t: s + (t * 2).astype(jnp.float32)[0][i % 7] + t.sum(0)[j % 7] + t[::-1, 2:6].T[j % 4, 0], (_TABLE,)),
    "flat table": (lambda s, i, j, t: s + t.reshape(-1)[i] + t.reshape(7, 3)[j % 7, 1], (_TABLE,)),
    "one number": (lambda s, i, j, t: s + t[1, 2] + lax.dynamic_slice(t, (1, 2), (1, 1))[0, 0], (_TABLE,)),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_replay(name: str, shape: tuple[int, int]):
    fn, tables = FUNCTIONS[name]
    check(fn, shape, *tables)


def shapes_of(
    fn: Callable[..., Any], *tables: np.ndarray, shape: tuple[int, int] = (8, 8)
) -> dict[str, list[tuple[int, ...]]]:
    """The shapes that each primitive's first result has in the replay."""
    got: dict[str, list[tuple[int, ...]]] = {}
    for eqn in jax.make_jaxpr(replayed(fn, shape, *tables))(*inputs(shape)).eqns:
        got.setdefault(eqn.primitive.name, []).append(eqn.outvars[0].aval.shape)
    return got


def test_what_a_row_or_a_column_decides_stays_a_vector():
    got = shapes_of(
        lambda s, i, j: s + (i.astype(jnp.float32) * 2.0) - jnp.broadcast_to(j, s.shape).astype(jnp.float32)
    )
    assert got["convert_element_type"] == [(8,), (8,)] and got["mul"] == [(8,)]
    assert got["add"] == [(8, 8)] and got["sub"] == [(8, 8)]
    got = shapes_of(lambda s, i, j: mix(mix(i.astype(jnp.uint32)) ^ mix(j.astype(jnp.uint32))))
    assert got["mul"] == [(8,), (8,), (8, 8)]
    got = shapes_of(lambda s, i, j, d: d[i] == d[j], _IDS)
    assert got["gather"] == [(8,), (8,)] and got["eq"][-1] == (8, 8)


def test_what_nobody_wants_is_not_computed():
    got = shapes_of(lambda s, i, j: jax.vjp(lambda s, x: s * x, s, jnp.float32(2))[1](s)[0])
    assert "reduce_sum" not in got


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "sort": (lambda s, i, j: jnp.sort(s, 1), "has no sort"),
    "cumsum": (lambda s, i, j: jnp.cumsum(s, 1), "has no cumsum"),
    "maximum": (lambda s, i, j: s - s.max(1, keepdims=True), "has no maxima over a tile"),
    "transpose": (lambda s, i, j: s.T, "cannot turn rows of a tile into columns"),
    "sum over rows": (lambda s, i, j: s.sum(0), "has no sums over rows"),
    "sum": (lambda s, i, j: s.sum(), "has no sums over rows"),
    "roll": (lambda s, i, j: jnp.roll(s, 1, 1), "looks at other places of the tile than its own"),
    "positions": (lambda s, i, j: s + jnp.arange(s.shape[1]), "takes positions from i and j, not from a tile's shape"),
    "long loop": (lambda s, i, j: lax.fori_loop(0, 100, lambda n, x: x * 0.5, s), "takes loops of up to 64 steps, not 100"),
    "loop of values": (
        lambda s, i, j: lax.while_loop(lambda x: x[0] < jnp.float32(3) ** x[0], lambda x: (x[0] + 1, x[1] * 2), (0.0, s))[1],
        "has no loops whose length depends on values",
    ),
    "reshape": (lambda s, i, j: s.reshape(-1), "cannot reshape a tile"),
    "large array": (lambda s, i, j: s + jnp.asarray(np.arange(1000.0))[i], "cannot look up an array of 1000 numbers that is no operand"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_what_is_missing(name: str):
    fn, reason = REFUSED[name]
    assert why_not(fn, (8, 8), *abstract((8, 8))) == reason
    with pytest.raises(NotLowered, match=f"^{reason}$"):
        replayed(fn, (8, 8))(*inputs((8, 8)))


def test_settings_of_the_user_do_not_matter():
    fn = lambda s, i, j: s + (i - j) * 0.5 + np.float64(2) * i
    want = replayed(fn, (8, 8))(*inputs((8, 8)))
    s, i, j = inputs((8, 8))
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        got = replayed(fn, (8, 8))(s, i, j)
        assert why_not(fn, (8, 8), *abstract((8, 8))) is None
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, want)


def test_tables_begin_anywhere_and_shapes_are_checked():
    _, i, _ = inputs((8, 8))
    table = Table(jnp.arange(40.0), (7,), jnp.float32, start=jnp.int32(20))
    got = lowered(lambda i, t: t[i % 7], (8, 8), Plain())(Row(i), table)
    np.testing.assert_array_equal(got.x, 20 + i % 7)
    with pytest.raises(ValueError, match=r"a row of a tile \(8, 8\) has shape \(8,\), not \(7,\)"):
        lowered(lambda i: i, (8, 8), Plain())(Row(i[:7]))


def test_python_values_reach_the_function_as_they_are():
    s, _, _ = inputs((8, 8))
    np.testing.assert_array_equal(lowered(lambda s, double: 2 * s if double else s, (8, 8), Plain())(s, True), 2 * s)


def test_a_scalar_chooses_between_branches():
    s, _, _ = inputs((8, 8))
    fn = lambda s, n: lax.switch(n, [lambda x: x, lambda x: -x, lambda x: 2 * x], s)
    for n, factor in enumerate((1, -1, 2)):
        np.testing.assert_array_equal(lowered(fn, (8, 8), Plain())(s, jnp.int32(n)), factor * s)
