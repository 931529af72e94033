"""Mods that a user writes in JAX."""

from __future__ import annotations

from collections.abc import Callable

import jax
from numpy.typing import ArrayLike

from jattn._terms import Operand, term
from jattn._terms.of_user import OfUser
from jattn.mods._mod import Mod


@term
class Function(OfUser, Mod):
    """A user's function."""

    hides = True

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        return self.result(score, i=i, j=j).astype(score.dtype)


def function(fn: Callable[..., ArrayLike], *operands: ArrayLike | Operand) -> Mod:
    """fn(score, i, j, *operands), or fn(score, b, h, i, j, *operands): any function of a score that you can write.

    Arrays that `fn` closes over, traced ones too, become operands without axes: they reach it whole.  Operands and
    closed-over arrays get gradients.

    Args:
      fn: takes the score `[bt, bs]` in float32 or wider, int32 positions i `[bt, 1]` and j `[1, bs]`, and an array for
        each operand; returns scores `[bt, bs]`.  It is elementwise: no pair may depend on which others are in its tile.
        At pairs that the mask hides it may be NaN; the gradient of an array in it is 0 there only if its derivative is
        defined.
        Where it has two arguments more, the int32 scalars b and h come before the positions: which batch element and
        which query head the tile is of.
      *operands: made with `jattn.operand`; each reaches `fn` broadcastable to `[bt, bs]`.

    Raises:
      TypeError: `fn` is not callable with that many arguments.  When `attention` is called, TypeError or ValueError:
        it returns no floating-point numbers, is not elementwise, or draws random numbers.

    >>> import jax, jax.numpy as jnp, jattn
    >>> tilt = jattn.mods.function(lambda s, i, j, m: s - m * (i - j), jattn.operand(jnp.ones(4), "h"))
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 4))
    >>> def loss(temperature):
    ...     sharper = jattn.mods.function(lambda s, i, j: s * temperature)
    ...     return jattn.attention(q, k, v, mods=(sharper,)).sum()
    >>> bool(jax.grad(loss)(2.0) != 0)
    True

    Source: Dong et al. 2024, "Flex Attention" (score_mod).
    """
    return Function.of("mods.function", fn, operands, "score")
