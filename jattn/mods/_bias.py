"""An array that is added to the scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from jattn._terms import FieldValue, operand, term
from jattn.mods._mod import Mod


@term
class Bias(Mod):
    """score + array."""

    hides = True
    finite = affine = True

    array: FieldValue

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        del i, j
        return score + self.array


def bias(array: ArrayLike, axes: str) -> Mod:
    """score + array: any numbers, without `[t, s]` memory that the array does not have itself.

    `attention(bias=array)` is short for it where the array is broadcastable to `[b, h, t, s]`.

    Args:
      array: numbers with one axis for each letter of `axes`, which get gradients.  -inf hides a pair.
      axes: a subset of `"bhts"` in that order, `""` for a scalar.

    Raises:
      ValueError: `axes` is not such a subset, or the array has not so many axes.
      TypeError: `array` is not an array.

    >>> import jax.numpy as jnp, jattn
    >>> q = jnp.ones((2, 3, 2, 4))
    >>> per_key = jattn.mods.bias(jnp.array([[0.0, 0.0, -jnp.inf]] * 2), "bs")
    >>> jattn.weights(q, q, q, mods=per_key)[0, 0, 0].tolist()
    [0.5, 0.5, 0.0]
    """
    named = operand(array, axes)
    if jnp.issubdtype(named.array.dtype, jax.dtypes.extended):
        raise TypeError(f"bias must be numbers, got {named.array.dtype}{list(named.array.shape)}")
    if named.array.ndim != len(axes):
        raise ValueError(f"bias with axes {axes!r} needs {len(axes)} axes, got shape {named.array.shape}")
    return Bias(named)
