"""The primitives as JAX compiles them: donated arrays, another platform."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import export

import jattn
from jattn import masks
from tests.derivatives.problem import B, D, G, S, attend, floats, integers
from tests.tolerances import assert_close


def test_donated_arrays():
    x, n = floats(1), integers(2)
    x["v"] = jnp.ones((B, S, G, D))
    fn = lambda q: attend({**x, "q": q}, n, "blockwise")[0]
    wanted = fn(x["q"])
    given = x["q"] + 0
    got = jax.jit(fn, donate_argnums=0)(given)
    assert given.is_deleted()
    assert_close(got, wanted, 1e-5)


AGAIN = {
    "grad of jit": lambda f: jax.grad(jax.jit(f)),
    "vmap of jit": lambda f: lambda q: jax.vmap(jax.jit(f))(q[None])[0],
    "linearize of jit": lambda f: lambda q: jax.linearize(jax.jit(f), q)[1](q),
    "grad of checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
    "grad of cond": lambda f: jax.grad(lambda q: jax.lax.cond(q[0, 0, 0, 0] < 9, f, lambda q: -f(q), q)),
    "grad of scan": lambda f: jax.grad(lambda q: jax.lax.scan(lambda c, _: (f(q) + c, None), f(q), length=2)[0]),
    "hessian of jit": lambda f: jax.hessian(jax.jit(f)),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("name", AGAIN)
def test_a_traced_call_is_bound_again_under_strict_promotion(name, dtype):
    q = jnp.sin(jnp.arange(6.0)).reshape(1, 3, 1, 2).astype(dtype)
    fn = AGAIN[name](lambda q: jattn.attention(q, q, q, mask=masks.causal()).sum())
    wanted = fn(q)
    jax.clear_caches()  # what is already traced would not be traced under other settings
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        got = fn(q)
    assert got.dtype == dtype
    assert_close(got, wanted, 0)


def test_export():
    x = floats(1)
    arrays = x["q"], x["k"], x["v"]
    of = lambda **options: jax.jit(lambda q, k, v: jattn.attention(q, k, v, mask=masks.causal(), **options))
    got = export.export(of())(*arrays).call(*arrays)
    assert_close(got, of()(*arrays), 1e-6)
    with pytest.warns(UserWarning, match=r"traced for cpu and is compiled for tpu.*jax\.set_mesh"):
        export.export(of(), platforms=["tpu"])(*arrays)
    export.export(of(implementation="blockwise"), platforms=["tpu"])(*arrays)
