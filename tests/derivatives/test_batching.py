"""vmap over any of the arrays, in any nesting, against the same of the reference, in float64."""

from __future__ import annotations

import hypothesis
import jax
import jax.numpy as jnp
import pytest
from hypothesis import strategies as st

import jattn
from jattn import masks, mods
from tests.derivatives.problem import (
    LEVELS,
    SHAPES,
    B,
    E,
    H,
    N,
    T,
    along,
    assert_same,
    attend,
    floats,
    integers,
    loss,
    run,
)

INNER = {
    "values": lambda f, x, dx: f(x),
    "grad": lambda f, x, dx: jax.grad(f)(x),
    "jvp": lambda f, x, dx: along(f, x, dx),
    "hvp": lambda f, x, dx: along(jax.grad(f), x, dx)["k"],
}
OUTER = {
    "values": lambda f, x, dx: f(x),
    "grad": lambda f, x, dx: jax.grad(lambda y: sum(jnp.sum(jnp.sin(z)) for z in jax.tree.leaves(f(y))))(x),
    "jvp": lambda f, x, dx: along(f, x, dx),
}


def check_vmap(levels, outer, inner, tangents=(), implementation="blockwise"):
    """outer(vmap(.. vmap(inner(loss)))); `levels` as in `floats`; `tangents`: the vmaps of the tangents, by default none."""

    def make(implementation):
        def fn(x, n, dx):
            return INNER[inner](lambda y: loss(y, n, implementation), x, dx)

        for (over, axis), d_over in zip(levels, tangents or [()] * len(levels), strict=True):
            place = lambda names, over, axis=axis: {name: axis if name in over else None for name in names}
            fn = jax.vmap(fn, in_axes=(place(SHAPES, over), place(LEVELS, over), place(SHAPES, d_over)), axis_size=N)
        return lambda x, n, dx, dy: OUTER[outer](lambda y: fn(y, n, dx), x, dy)

    axes = [axis for _, axis in levels]
    inside = floats(3, list(zip(tangents, axes, strict=True)) if tangents else ())
    args = floats(1, levels), integers(2, levels), inside, floats(4, levels)
    assert_same(
        run(make, implementation, *args),
        run(make, "reference", *args),
        1e-4 if implementation == "pallas_tpu" else 1e-11,
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["q", "k", "v", "bias", "table", "cap", "center", "q_ids", "length", "dense", "seed"])
def test_vmap_over_one_array(name):
    check_vmap([((name,), 0)], "values", "grad")


def test_vmap_over_what_is_learned_alone(monkeypatch):
    """The rest keeps a batch of its own in kernels, shorter than that of the call."""
    monkeypatch.setenv("JATTN_INTERPRET", "1")
    x = floats(1, [(("table", "cap"), 0)])
    q, k, v = (x[name].astype(jnp.float32) for name in "qkv")

    def out(table, cap, implementation):
        terms = mods.relative(table), mods.softcap(cap)
        return jattn.attention(q, k, v, mods=terms, mask=masks.causal(-1), implementation=implementation)

    def gradients(implementation):
        over = jax.vmap(lambda table, cap: jnp.sum(out(table, cap, implementation) ** 3))
        return jax.jit(jax.grad(lambda *args: jnp.sum(over(*args)), (0, 1)))(x["table"], x["cap"])

    assert_same(gradients("pallas_tpu"), gradients("reference"), 1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["q", "v", "cap"])
def test_vmap_over_tangents_alone(name):
    check_vmap([((), 0)], "values", "jvp", tangents=[(name,)])


@pytest.mark.parametrize("implementation", ["blockwise", "pallas_tpu", "reference"])
@pytest.mark.parametrize("name", ["q", "k", "bias", "table", "q_ids"])
def test_vmap_over_nothing(name, implementation, monkeypatch):
    """Its results are empty, and so are gradients inside; those outside, of what it shares, are zero."""
    monkeypatch.setenv("JATTN_INTERPRET", "1")
    x, n = ({y: z[:0] if y == name else z for y, z in of(1, [((name,), 0)]).items()} for of in (floats, integers))
    fn = lambda x, n: attend(x, n, implementation)
    over = lambda fn: jax.vmap(fn, ({y: 0 if y == name else None for y in x}, {y: 0 if y == name else None for y in n}))
    out, lse = over(fn)(x, n)
    assert out.shape == (0, B, T, H, E) and lse.shape == (0, B, T, H)
    assert out.dtype == lse.dtype == jnp.float32
    inside = over(jax.grad(lambda x, n: loss(x, n, implementation)))(x, n)
    assert all(inside[y].shape == (0, *SHAPES[y]) for y in x)
    outside = jax.jit(jax.grad(lambda x: sum(map(jnp.sum, over(fn)(x, n)))))(x)
    for y in x:
        assert outside[y].shape == x[y].shape and outside[y].dtype == x[y].dtype and not outside[y].any()


@st.composite
def nests(draw):
    """Up to two vmaps, each over a subset of all arrays."""
    some = st.sets(st.sampled_from([*SHAPES, *LEVELS]), min_size=1).map(sorted)
    return draw(st.lists(st.tuples(some, st.sampled_from([0, -1])), min_size=1, max_size=2))


@pytest.mark.usefixtures("x64")
@hypothesis.settings(max_examples=8, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(nests(), st.sampled_from(sorted(OUTER)), st.sampled_from(sorted(INNER)))
def test_vmap_over_any_arrays(levels, outer, inner):
    check_vmap(levels, outer, inner)
