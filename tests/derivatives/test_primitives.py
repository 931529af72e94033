"""The primitives as JAX compiles them: donated arrays, shapes that are symbols, another platform."""

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
