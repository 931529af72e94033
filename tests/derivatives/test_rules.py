"""Every transformation of JAX, in any nesting, on every backend, against the same transformation of the definition."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import jet

import jattn
from jattn import masks, normalizers, scores
from tests.derivatives.problem import (
    DEFINITION,
    B,
    E,
    H,
    T,
    along,
    assert_same,
    attend,
    floats,
    inner,
    integers,
    loss,
    only,
    run,
)
from tests.evaluate import equations
from tests.tolerances import assert_close
from tests.toy import TOY

# name: from f(x) to a function of (x, dx)
TRANSFORMS = {
    "grad": lambda f: lambda x, dx: jax.grad(f)(x),
    "jvp": lambda f: lambda x, dx: along(f, x, dx),
    "forward over reverse": lambda f: lambda x, dx: along(jax.grad(f), x, dx),
    "reverse over forward": lambda f: lambda x, dx: jax.grad(lambda y: along(f, y, dx))(x),
    "reverse over reverse": lambda f: lambda x, dx: jax.grad(lambda y: inner(jax.grad(f)(y), dx))(x),
    "forward over forward": lambda f: lambda x, dx: along(lambda y: along(f, y, dx), x, dx),
    "third order": lambda f: lambda x, dx: along(lambda y: along(jax.grad(f), y, dx), x, dx)["q"],
    "linearize": lambda f: lambda x, dx: jax.linearize(f, x)[1](dx),
    "linear transpose": lambda f: lambda x, dx: jax.linear_transpose(functools.partial(along, f, x), dx)(1.0),
    "checkpoint": lambda f: lambda x, dx: jax.grad(jax.checkpoint(f))(x),
    "forward over checkpoint": lambda f: lambda x, dx: along(jax.grad(jax.checkpoint(f)), x, dx),
}
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
SMOKE = {"grad", "jvp"}
# all but cuDNN, which takes none of the problem's terms and runs on a GPU alone
BACKENDS = {
    "blockwise": "blockwise",
    "reference": "reference",
    "toy": TOY,
    "pallas_tpu": "pallas_tpu",
    "pallas_gpu": "pallas_gpu",
}
TOLERANCES = {"pallas_tpu": 1e-4, "pallas_gpu": 1e-2}  # of float32, and of queries, keys and values of 16 bits
# the interpreter compiles for long: of the kernels, what reaches each rule
KERNELS = {"grad", "jvp", "forward over reverse", "reverse over reverse", "third order", "linear transpose", "jacrev"}


def _scan_over_layers(n, implementation):
    def fn(x, layers):
        def layer(v, w):
            out, lse = attend({**x, "w": w}, n, implementation)
            return v + 0.1 * jnp.sum(out), lse

        return jnp.sum(jax.lax.scan(layer, x["v"], layers)[1] ** 2)

    return jax.grad(fn, (0, 1))


def _made(name):
    """From a backend to a function, and the arguments of the function."""
    n = integers(0)
    if name == "scan over layers":
        return functools.partial(_scan_over_layers, n), (floats(1), jnp.stack([floats(s)["w"] for s in range(3)]))
    if name in TRANSFORMS:
        return lambda backend: TRANSFORMS[name](lambda x: loss(x, n, backend)), (floats(1), floats(2))
    transform, of = JACOBIANS[name]
    make = lambda backend: lambda x, y: transform(lambda y: of({**x, **y}, n, backend))(y)
    return make, (floats(1), only(floats(1), SOME))


@functools.lru_cache(maxsize=1)
def _wanted(name):
    make, args = _made(name)
    return run(make, DEFINITION, *args)


def _marks(name, backend):
    if backend == "pallas_gpu":
        without = pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the simulator of GPUs is jax 0.11's")
        return [pytest.mark.gpu, without]
    return [pytest.mark.smoke] if name in SMOKE and backend == "blockwise" else []


ROWS = [
    pytest.param(name, backend, marks=_marks(name, backend))
    for name in (*TRANSFORMS, *JACOBIANS, "scan over layers")
    for backend in BACKENDS
    if not backend.startswith("pallas") or name in KERNELS - ({"jacrev"} if backend == "pallas_gpu" else set())
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "backend"), ROWS)
def test_every_derivative_on_every_backend(name, backend, monkeypatch):
    monkeypatch.setenv("JATTN_INTERPRET", "1")
    make, args = _made(name)
    assert_same(run(make, BACKENDS[backend], *args), _wanted(name), TOLERANCES.get(backend, 1e-11))


# Integers, and what is not differentiated


@pytest.mark.usefixtures("x64")
def test_integer_arrays_have_float0_derivatives():
    x, n = floats(1), integers(2)
    names = ("q_ids", "length", "seed", "dense")
    of = lambda some: loss(x, {**n, **some}, "blockwise")
    some = only(n, names)
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
    of = lambda names: jax.make_jaxpr(jax.grad(lambda y: loss({**x, **y}, n, "blockwise")))(only(x, names)).jaxpr
    for names, count in ((("q", "k", "v"), 3), (("q", "bias"), 4), (("table", "cap"), 5)):
        (backward,) = equations(of(names), "attend_backward")
        assert len(backward.outvars) == count


# Residuals by name


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


# Transformations that need rules of their own


@pytest.mark.usefixtures("x64")
def test_linear_transpose_in_the_values():
    x = floats(1)
    options = {"mask": masks.causal(-1), "bias": x["bias"], "blocks": (2, 3)}
    fn = lambda v: jattn.attention(x["q"], x["k"], v, **options)
    u = jnp.cos(jnp.arange(B * T * H * E, dtype=float)).reshape(B, T, H, E)
    (got,), (wanted,) = jax.linear_transpose(fn, x["v"])(u), jax.vjp(fn, x["v"])[1](u)
    assert_close(got, wanted, 1e-12)
    with pytest.raises(NotImplementedError, match="linear in the values alone"):
        jax.linear_transpose(lambda q: jattn.attention(q, x["k"], x["v"]), x["q"])(u)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("around", [lambda fn: fn, jax.jit, jax.checkpoint], ids=["plain", "jit", "checkpoint"])
def test_what_is_made_of_lse_is_linear_in_the_values(around):
    x = floats(1)

    def fn(v):
        out, lse = jattn.attention(x["q"], x["k"], v, sinks=x["sinks"], return_lse=True, implementation="blockwise")
        return out * jnp.sin(lse)[..., None]

    u = jnp.cos(jnp.arange(B * T * H * E, dtype=float)).reshape(B, T, H, E)
    (got,), (wanted,) = jax.linear_transpose(around(fn), x["v"])(u), jax.vjp(fn, x["v"])[1](u)
    assert_close(got, wanted, 1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("normalizer", [normalizers.sigmoid(), normalizers.sparsemax(), normalizers.entmax15()])
def test_jet_of_whole_rows(normalizer):
    x = floats(1)
    w = jnp.eye(x["q"].shape[-1])

    def fn(y, implementation=None):
        score = scores.additive(w * y, w, w[0])
        out = jattn.attention(
            x["q"] * y, x["k"], x["v"], score=score, normalizer=normalizer, implementation=implementation
        )
        return jnp.sum(out**2)

    _, terms = jet.jet(fn, (1.1,), ((1.0, 0.0),))
    first = jax.grad(functools.partial(fn, implementation="reference"))
    for term, derivative in zip(terms, (first, jax.grad(first)), strict=True):
        assert_close(term, derivative(1.1), 1e-9)


@pytest.mark.usefixtures("x64")
def test_jet():
    """Taylor coefficients of attention along a curve are the derivatives along it."""
    x, dx = floats(1), floats(2)
    fn: Any = lambda q, k, v, implementation: jattn.attention(
        q, k, v, mask=masks.causal(1), implementation=implementation
    )
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
