"""Every transformation of JAX, in any nesting, against the same transformation of the reference, in float64."""

from __future__ import annotations

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import export
from jax.experimental import jet
from jax.sharding import NamedSharding, PartitionSpec

import jattn
from jattn import api, gates, masks, mods, normalizers, scores
from tests.evaluate import QUICK, equations
from tests.tolerances import assert_close

B, T, S, H, G, D, E, N = 2, 5, 7, 4, 2, 3, 2, 3
SHAPES = {
    "q": (B, T, H, D), "k": (B, S, G, D), "v": (B, S, G, E), "w": (H, D, D), "bias": (H, T, S), "table": (H, 6), "cap": (),
    "sinks": (H,), "center": (B, T), "sigma": (),
}  # fmt: skip
LEVELS = {
    "q_ids": ((B, T), 3),
    "kv_ids": ((B, S), 3),
    "length": ((B,), S),
    "dense": ((B, 1, 1, S), 2),
    "seed": ((), 99),
}


def _shape(name, shape, levels):
    for over, axis in levels:
        if name in over:
            shape = (N, *shape) if axis == 0 else (*shape, N)
    return shape


def floats(seed, levels=()):
    """The differentiable arrays; `levels` are vmaps, the innermost first: (names of the arrays it is over, axis)."""
    random = np.random.default_rng(seed)
    found = {name: random.standard_normal(_shape(name, shape, levels)) for name, shape in SHAPES.items()}
    found["cap"], found["sigma"] = 2 + np.abs(found["cap"]), 3 + np.abs(found["sigma"])
    return {name: jnp.asarray(x) for name, x in found.items()}


def integers(seed, levels=()):
    random = np.random.default_rng(seed)
    found = {
        name: jnp.asarray(random.integers(0, top, _shape(name, shape, levels))) for name, (shape, top) in LEVELS.items()
    }
    return {**found, "dense": found["dense"] == 1, "seed": found["seed"].astype(jnp.uint32)}


def attend(x, n, implementation):
    """out and lse of a problem that has nearly everything; some rows see nothing."""
    return jattn.attention(
        x["q"], x["k"], x["v"],
        score=scores.general(x["w"], 0.5),
        mask=(masks.causal(1) & masks.segments(n["q_ids"], n["kv_ids"])) | (masks.prefix(n["length"]) & masks.dense(n["dense"])),
        mods=(mods.relative(x["table"]), mods.softcap(x["cap"])),
        gates=(gates.gaussian(x["center"], x["sigma"]), gates.dropout(0.2, n["seed"])),
        bias=x["bias"],
        sinks=x["sinks"],
        return_lse=True,
        implementation=implementation,
        blocks=(2, 3) if implementation == "blockwise" else None,
    )  # fmt: skip


def loss(x, n, implementation):
    out, lse = attend(x, n, implementation)
    u = jnp.cos(jnp.arange(out.size)).reshape(out.shape)
    return jnp.sum(out * u) + jnp.sum(jnp.sin(lse))


def check(make, *args, tolerance=1e-11):
    """make(implementation) gives a function of the args: that of blockwise must equal that of the reference."""
    run = lambda implementation: jax.jit(make(implementation), compiler_options=QUICK)(*args)
    got, wanted = run("blockwise"), run("reference")
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for (path, x), y in zip(jax.tree_util.tree_flatten_with_path(got)[0], jax.tree.leaves(wanted), strict=True):
        assert_close(x, y, tolerance, jax.tree_util.keystr(path))
    assert any(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(wanted))


def _only(x, names):
    return {name: x[name] for name in names}


def _along(fn, x, dx):
    """The derivative of fn along dx, in forward mode."""
    return jax.jvp(fn, (x,), (dx,))[1]


def _inner(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# name: from f(x) to a function of (x, dx)
TRANSFORMS = {
    "grad": lambda f: lambda x, dx: jax.grad(f)(x),
    "jvp": lambda f: lambda x, dx: _along(f, x, dx),
    "forward over reverse": lambda f: lambda x, dx: _along(jax.grad(f), x, dx),
    "reverse over forward": lambda f: lambda x, dx: jax.grad(lambda y: _along(f, y, dx))(x),
    "reverse over reverse": lambda f: lambda x, dx: jax.grad(lambda y: _inner(jax.grad(f)(y), dx))(x),
    "forward over forward": lambda f: lambda x, dx: _along(lambda y: _along(f, y, dx), x, dx),
    "third order": lambda f: lambda x, dx: _along(lambda y: _along(jax.grad(f), y, dx), x, dx)["q"],
    "linearize": lambda f: lambda x, dx: jax.linearize(f, x)[1](dx),
    "linear transpose": lambda f: lambda x, dx: jax.linear_transpose(functools.partial(_along, f, x), dx)(1.0),
    "checkpoint": lambda f: lambda x, dx: jax.grad(jax.checkpoint(f))(x),
    "forward over checkpoint": lambda f: lambda x, dx: _along(jax.grad(jax.checkpoint(f)), x, dx),
}
SMOKE = {"grad", "jvp"}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [pytest.param(x, marks=pytest.mark.smoke) if x in SMOKE else x for x in TRANSFORMS])
def test_derivative(name):
    n = integers(0)
    check(lambda implementation: TRANSFORMS[name](lambda x: loss(x, n, implementation)), floats(1), floats(2))


SOME = ("q", "sinks", "cap")
JACOBIANS = {
    "jacfwd": (jax.jacfwd, attend),
    "jacrev": (jax.jacrev, attend),
    "hessian": (jax.hessian, loss),
    "jacrev of jacfwd": (lambda f: jax.jacrev(jax.jacfwd(f)), loss),
    "grad of jacfwd": (
        lambda f: jax.grad(lambda y: sum(jnp.sum(jnp.sin(z)) for z in jax.tree.leaves(jax.jacfwd(f)(y)))),
        attend,
    ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", JACOBIANS)
def test_jacobian(name):
    transform, of = JACOBIANS[name]
    x, n = floats(1), integers(0)
    check(lambda implementation: transform(lambda y: of({**x, **y}, n, implementation)), _only(x, SOME))


@pytest.mark.usefixtures("x64")
def test_scan_over_layers():
    n = integers(0)

    def make(implementation):
        def fn(x, layers):
            def layer(v, w):
                out, lse = attend({**x, "w": w}, n, implementation)
                return v + 0.1 * jnp.sum(out), lse

            return jnp.sum(jax.lax.scan(layer, x["v"], layers)[1] ** 2)

        return jax.grad(fn, (0, 1))

    check(make, floats(1), jnp.stack([floats(s)["w"] for s in range(3)]))


# vmap


INNER = {
    "values": lambda f, x, dx: f(x),
    "grad": lambda f, x, dx: jax.grad(f)(x),
    "jvp": lambda f, x, dx: _along(f, x, dx),
    "hvp": lambda f, x, dx: _along(jax.grad(f), x, dx)["k"],
}
OUTER = {
    "values": lambda f, x, dx: f(x),
    "grad": lambda f, x, dx: jax.grad(lambda y: sum(jnp.sum(jnp.sin(z)) for z in jax.tree.leaves(f(y))))(x),
    "jvp": lambda f, x, dx: _along(f, x, dx),
}


def check_vmap(levels, outer, inner, tangents=()):
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
    check(make, floats(1, levels), integers(2, levels), inside, floats(4, levels))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["q", "k", "v", "bias", "table", "cap", "center", "q_ids", "length", "dense", "seed"])
def test_vmap_over_one_array(name):
    check_vmap([((name,), 0)], "values", "grad")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["q", "v", "cap"])
def test_vmap_over_tangents_alone(name):
    check_vmap([((), 0)], "values", "jvp", tangents=[(name,)])


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


# integers, retraces, placement


@pytest.mark.usefixtures("x64")
def test_integer_arrays_have_float0_derivatives():
    x, n = floats(1), integers(2)
    names = ("q_ids", "length", "seed", "dense")
    of = lambda some: loss(x, {**n, **some}, "blockwise")
    some = _only(n, names)
    zeros = {name: np.zeros(y.shape, jax.dtypes.float0) for name, y in some.items()}
    value, slope = jax.jvp(of, (some,), (zeros,))
    assert slope == 0 and value == of(some)
    gradient = jax.grad(of, allow_int=True)(some)
    assert all(gradient[name].dtype == jax.dtypes.float0 for name in names)
    both = jax.grad(lambda x, n: loss(x, n, "blockwise"), (0, 1), allow_int=True)(x, n)
    alone = jax.grad(loss)(x, n, "blockwise")
    assert all((both[0][name] == alone[name]).all() for name in x)


@pytest.mark.smoke
def test_an_array_that_is_not_differentiated_gets_no_gradient():
    x, n = floats(1), integers(2)
    of = lambda names: jax.make_jaxpr(jax.grad(lambda y: loss({**x, **y}, n, "blockwise")))(_only(x, names)).jaxpr
    for names, count in ((("q", "k", "v"), 3), (("q", "bias"), 4), (("table", "cap"), 5)):
        (backward,) = equations(of(names), "attend_backward")
        assert len(backward.outvars) == count


# a second call with the same shapes traces nothing


def _tilt(score, i, j, slope):
    _traced.append("mod")
    return score - slope * (i - j)


def _odd(i, j):
    _traced.append("mask")
    return (i + j) % 2 == 1


_traced: list[str] = []


def _pieces(n):
    """Made anew at every call; other seeds, ids and float parameters."""
    x = floats(n)
    return {
        "score": scores.dot(x["cap"]),
        "mask": masks.function(_odd)
        | (masks.causal(jnp.asarray(n)) & masks.segments(integers(n)["q_ids"], integers(n)["kv_ids"])),
        "mods": (
            mods.function(_tilt, jattn.operand(x["sinks"], "h")),
            mods.softcap(x["cap"]),
            mods.relative(x["table"]),
        ),
        "gates": (gates.gaussian(x["center"], x["sigma"]),),
        "dropout": gates.dropout(0.5, n),
        "normalizer": normalizers.gumbel(jax.random.key(n), x["cap"]),
    }


@pytest.mark.smoke
def test_no_retrace():
    def use(n):
        x = floats(n)
        of = lambda q, options: jnp.sum(jattn.attention(q, x["k"], x["v"], blocks=(2, 3), **options))
        return of(x["q"], _pieces(n)), jax.grad(of)(x["q"], _pieces(n))

    use(0)
    assert {"mod", "mask"} <= set(_traced)
    cached = api._run._cache_size()
    _traced.clear()
    use(1)
    assert not _traced
    assert api._run._cache_size() == cached


@pytest.mark.smoke
def test_no_retrace_inside_jit():
    counted = jax.jit(lambda x, options: jattn.attention(x["q"], x["k"], x["v"], **options))
    for n in range(3):
        counted(floats(n), _pieces(n))
    assert counted._cache_size() == 1


# where the arrays live


def _mesh(kind):
    return jax.make_mesh((2,), ("devices",), axis_types=(kind,))


AXES = {"batch": ("devices",), "heads": (None, None, "devices")}
KINDS = [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("axes", "normalizer"), [("batch", "softmax"), ("heads", "softmax"), ("batch", "sparsemax")])
def test_sharded_arrays(axes, normalizer, kind):
    """Values, gradients and a Hessian-vector product of arrays that live on two devices."""
    x, normalizer = floats(1), getattr(normalizers, normalizer)()

    def of(q, k, v, cap, sinks):
        options = {"mask": masks.causal(1), "mods": (mods.softcap(cap),), "normalizer": normalizer, "blocks": (2, 3)}
        return jnp.sum(jnp.sin(jattn.attention(q, k, v, sinks=sinks if normalizer.is_softmax else None, **options)))

    @jax.jit
    def all_of(*args):
        gradient = jax.grad(of, (0, 1, 2, 3, 4))
        return of(*args), gradient(*args), jax.jvp(gradient, args, args)[1]

    inputs = x["q"], x["k"], x["v"], x["cap"], x["sinks"]
    mesh = _mesh(kind)
    with jax.set_mesh(mesh):
        specs = [PartitionSpec(*AXES[axes])] * 3 + [PartitionSpec()] * 2
        got = all_of(*(jax.device_put(y, NamedSharding(mesh, spec)) for y, spec in zip(inputs, specs, strict=True)))
    assert len(got[1][0].sharding.device_set) == 2
    for y, z in zip(jax.tree.leaves(got), jax.tree.leaves(all_of(*inputs)), strict=True):
        assert_close(y, z, 1e-5)


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_shard_map(axes):
    """The gradient of what is the same on all devices (here `cap`) is summed over them."""
    x, spec = floats(1), PartitionSpec(*axes)
    options = {"mask": masks.causal(1), "blocks": (2, 3)}
    fn = lambda q, k, v, cap: jattn.attention(q, k, v, mods=(mods.softcap(cap),), **options)
    over = jax.shard_map(fn, mesh=_mesh(KINDS[0]), in_specs=(spec, spec, spec, PartitionSpec()), out_specs=spec)
    inputs = x["q"], x["k"], x["v"], x["cap"]

    def all_of(fn):
        gradient = jax.grad(lambda *args: jnp.sum(jnp.sin(fn(*args))), (0, 1, 2, 3))
        return fn(*inputs), gradient(*inputs), jax.jvp(gradient, inputs, inputs)[1]

    got, wanted = jax.jit(lambda: all_of(over))(), jax.jit(lambda: all_of(fn))()
    for y, z in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert_close(y, z, 1e-5)


def test_donated_arrays():
    x, n = floats(1), integers(2)
    x["v"] = jnp.ones((B, S, G, D))
    fn = lambda q: attend({**x, "q": q}, n, "blockwise")[0]
    wanted = fn(x["q"])
    given = x["q"] + 0
    got = jax.jit(fn, donate_argnums=0)(given)
    assert given.is_deleted()
    assert_close(got, wanted, 1e-5)


# residuals by name


def _block(x):
    return x + jattn.attention(jnp.sin(x), x, x, mask=masks.causal(), sinks=jnp.ones(H), blocks=(2, 3))


@pytest.mark.smoke
@pytest.mark.parametrize(("names", "kernels"), [(jattn.RESIDUAL_NAMES, 1), ((), 2), (jattn.RESIDUAL_NAMES[:1], 2)])
def test_saved_residuals_leave_the_kernel_without_a_second_run(names, kernels):
    policy = jax.checkpoint_policies.save_only_these_names(*names)
    layer = jax.checkpoint(_block, policy=policy)
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(layer(x))))
    x = floats(1)["q"]
    assert len(list(equations(jax.make_jaxpr(gradient)(x).jaxpr, "attend"))) == kernels
    assert_close(gradient(x), jax.grad(lambda x: jnp.sum(jnp.sin(_block(x))))(x), 1e-5)


# transformations that need rules of their own


@pytest.mark.usefixtures("x64")
def test_linear_transpose_in_the_values():
    x = floats(1)
    fn = lambda v: jattn.attention(x["q"], x["k"], v, mask=masks.causal(-1), bias=x["bias"], blocks=(2, 3))
    u = jnp.cos(jnp.arange(B * T * H * E, dtype=float)).reshape(B, T, H, E)
    (got,), (wanted,) = jax.linear_transpose(fn, x["v"])(u), jax.vjp(fn, x["v"])[1](u)
    assert_close(got, wanted, 1e-12)
    with pytest.raises(NotImplementedError, match="linear in the values alone"):
        jax.linear_transpose(lambda q: jattn.attention(q, x["k"], x["v"]), x["q"])(u)


@pytest.mark.usefixtures("x64")
def test_jet():
    """Taylor coefficients of attention along a curve are the derivatives along it."""
    x, dx = floats(1), floats(2)
    fn = lambda q, k, v, implementation: jattn.attention(q, k, v, mask=masks.causal(1), implementation=implementation)
    names = ("q", "k", "v")
    first = tuple(x[y] for y in names)
    series = tuple((dx[y], x[y], dx[y]) for y in names)
    out, terms = jet.jet(functools.partial(fn, implementation="blockwise"), first, series)

    def curve(t):
        return fn(
            *(x + t * a + t**2 / 2 * b + t**3 / 6 * c for x, (a, b, c) in zip(first, series, strict=True)), "reference"
        )

    assert_close(out, curve(0.0), 1e-12)
    derivative = curve
    for term in terms:
        derivative = jax.jacfwd(derivative)
        assert_close(term, derivative(0.0), 1e-10)


def test_export():
    x = floats(1)
    arrays = x["q"], x["k"], x["v"]
    (n,) = export.symbolic_shape("n")
    shapes = [jax.ShapeDtypeStruct((n, *y.shape[1:]), y.dtype) for y in arrays]
    of = lambda **options: jax.jit(lambda q, k, v: jattn.attention(q, k, v, mask=masks.causal(), **options))
    with pytest.raises(jattn.UnsupportedError, match="numbers, not n.*implementation='reference'"):
        export.export(of())(*shapes)
    got = export.export(of(implementation="reference"))(*shapes).call(*arrays)
    assert_close(got, of()(*arrays), 1e-6)
    with pytest.warns(UserWarning, match=r"traced for cpu and is compiled for tpu.*jax\.set_mesh"):
        export.export(of(), platforms=["tpu"])(*arrays)
    export.export(of(implementation="blockwise"), platforms=["tpu"])(*arrays)
