"""What tests of layers share."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.tolerances import TOLERANCES, assert_close

# projections before and after add their own rounding to that of the attention
TIGHT, LOOSE = (10 * TOLERANCES[dtype].gradient for dtype in ("float64", "float32"))


def normal(shape: tuple[int, ...], seed: int = 0, dtype: Any = float) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def randomised(layer: Any) -> Any:
    """The layer with every parameter drawn anew, also those that start at 0 or 1."""
    state = nnx.state(layer, nnx.Param)
    leaves, tree = jax.tree.flatten(state)
    drawn = [x + 0.3 * normal(x.shape, 100 + n, x.dtype) for n, x in enumerate(leaves)]
    nnx.update(layer, jax.tree.unflatten(tree, drawn))
    return layer


def traced_once(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which fails where it is traced again; what chex gives back has no type that `nnx.jit` can read."""
    return chex.assert_max_traces(fn, n=1)


def pure(layer: Any) -> dict[str, Any]:
    return nnx.to_pure_dict(nnx.state(layer, nnx.Param))


def turn(x, positions, base):
    """Rotary embedding with complex numbers."""
    half = x.shape[-1] // 2
    pairs = x[..., :half] + 1j * x[..., half:]
    angles = positions[..., None, None] * base ** (-2 * np.arange(half) / (2 * half))
    turned = pairs * np.exp(1j * angles)
    return jnp.concatenate([turned.real, turned.imag], axis=-1)


def compare(fn, want_fn, params, inputs, tolerance):
    """Values of both, and their gradients to every parameter and input."""

    def result_and_gradients(f):
        out, pull = jax.vjp(lambda p, xs: f(p, *xs), params, inputs)
        return {"out": out, "gradient": pull(normal(out.shape, 9, out.dtype))}

    got, want = jax.jit(lambda: (result_and_gradients(fn), result_and_gradients(want_fn)))()
    jax.tree_util.tree_map_with_path(
        lambda path, x, y: assert_close(x, y, tolerance, jax.tree_util.keystr(path)), got, want
    )
