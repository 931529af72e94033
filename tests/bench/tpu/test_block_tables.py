"""The tables of kernels are found in the program around them."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bench.tpu._block_tables import block_tables


def _call(grid: int):
    """A kernel that takes a table and copies x."""

    def kernel(table_ref, x_ref, o_ref):
        o_ref[...] = x_ref[...] + table_ref[0]

    def at(i, table_ref):
        return i, 0

    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(1, (grid,), [pl.BlockSpec((8, 128), at)], pl.BlockSpec((8, 128), at)),
        out_shape=jax.ShapeDtypeStruct((8 * grid, 128), jnp.int32),
        name="copies",
    )


def _lowered(fn, *shapes) -> Any:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes]
    return jax.jit(fn).trace(*arguments).lower(lowering_platforms=("tpu",)).compiler_ir("stablehlo")


def test_tables_are_computed_from_the_program_around_the_kernel():
    @jax.jit
    def inner(table, x):
        return _call(2)(jnp.roll(table, 1) * 2, x)

    def outer(x):
        table = jnp.arange(4, dtype=jnp.int32)
        return inner(table + 1, inner(table, x))

    got = block_tables(_lowered(outer, (16, 128)))
    assert [one.kernel for one in got] == ["copies", "copies"]
    assert [[run[0].tolist() for run in one.runs] for one in got] == [[[6, 0, 2, 4]], [[8, 2, 4, 6]]]
    assert [[list(run) for run in one.runs] for one in got] == [[[0]], [[0]]]


def test_tables_that_depend_on_arguments_are_left_out():
    (got,) = block_tables(_lowered(lambda table, x: _call(2)(table, x), (4,), (16, 128)))
    assert got.runs == [{}]


def test_a_kernel_in_a_loop_has_the_tables_of_each_run():
    def loop(x):
        first = jnp.arange(4, dtype=jnp.int32)

        def body(carry, n):
            x, grown = carry
            return (_call(2)(first * n, _call(2)(grown, x)), grown + 1), x.sum()

        (x, grown), _ = jax.lax.scan(body, (x, first), 10 * jnp.arange(3, dtype=jnp.int32))
        return _call(2)(grown, x)

    grown, scaled, last = block_tables(_lowered(loop, (16, 128)))
    assert [run[0].tolist() for run in grown.runs] == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]
    assert [run[0].tolist() for run in scaled.runs] == [[0, 0, 0, 0], [0, 10, 20, 30], [0, 20, 40, 60]]
    assert [run[0].tolist() for run in last.runs] == [[3, 4, 5, 6]]


def test_a_loop_in_a_loop():
    def loop(x):
        inner = lambda n: lambda m, x: _call(2)(jnp.stack([n, m, n, m]), x)
        return jax.lax.fori_loop(0, 2, lambda n, x: jax.lax.fori_loop(5, 7, inner(n), x), x)

    (got,) = block_tables(_lowered(loop, (16, 128)))
    assert [run[0].tolist()[:2] for run in got.runs] == [[0, 5], [0, 6], [1, 5], [1, 6]]


@pytest.mark.parametrize(
    "loop",
    [
        lambda n, x: jax.lax.fori_loop(0, n[0], lambda i, x: _call(2)(n, x), x),
        lambda n, x: jax.lax.cond(n[0] > 0, lambda x: _call(2)(n, x), lambda x: x, x),
    ],
)
def test_a_kernel_that_runs_as_often_as_an_argument_says_is_refused(loop):
    with pytest.raises(NotImplementedError, match="how often it runs"):
        block_tables(_lowered(loop, (4,), (16, 128)))


def test_loops_without_kernels_are_not_followed():
    def loop(n, x):
        table = jax.lax.fori_loop(0, 3, lambda i, y: y + i, jnp.zeros(4, jnp.int32))
        return _call(2)(table, jax.lax.fori_loop(0, n[0], lambda i, y: y + 1, x))

    (got,) = block_tables(_lowered(loop, (4,), (16, 128)))
    assert len(got.runs) == 1
