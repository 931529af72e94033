"""Gates: multipliers of the weights after normalising; the weights are not renormalised.

A gate must be linear in the weight, so that a backend may apply it before it knows the normaliser's denominator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jattn._terms import FieldValue, Operand, Term, counter_hash, number, operand, plain, term
from jattn._terms.of_user import OfUser
from jattn._terms.operand import as_array

__all__ = ["Gate", "dropout", "function", "gaussian"]


def __dir__() -> list[str]:
    return __all__


class Gate(Term):
    """What `attention(gates=...)` takes.  Make one with the functions of this module, or a subclass of your own, whose
    attributes may be numbers, and arrays, which get gradients.  One that is not linear in the weight, like
    `weight * f(i, j)`, is refused when `attention` is called.

    >>> import jax.numpy as jnp, jattn
    >>> class Half(jattn.gates.Gate):
    ...     def __call__(self, weight, i, j):
    ...         return weight / 2
    >>> q = jnp.ones((1, 2, 1, 4))
    >>> jattn.weights(q, q, q, gates=Half()).tolist()
    [[[[0.25, 0.25], [0.25, 0.25]]]]
    """

    finite: bool = False
    """Whether it is finite at every pair, of finite weights and operands; if not, what it gives at hidden pairs is made
    0, which costs a selection."""

    def __call__(self, weight: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        """The new weight `[bt, bs]`, linear in the old, of one head: positions i `[bt, 1]`, j `[1, bs]`, int32."""
        raise NotImplementedError


@term
class Dropout(Gate):
    """weight * keep / (1 - rate)."""

    finite = True

    rate: float
    seed: FieldValue
    b: FieldValue = None
    h: FieldValue = None

    def bound(self, b: Operand, h: Operand) -> Dropout:
        return dataclasses.replace(self, b=b, h=h)

    def __call__(self, weight: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        if self.rate == 0:
            return weight
        return self.drop(weight, counter_hash.bits(self.seed, self.b, self.h, i, j))

    def drop(self, weight: jax.Array, bits: jax.Array) -> jax.Array:
        """The new weight, of random bits."""
        keep = bits >= np.uint32(min(round(self.rate * 2**32), 2**32 - 1))
        return weight * jnp.where(keep, jnp.asarray(1 / (1 - self.rate), weight.dtype), 0)


def dropout(rate: float, seed: ArrayLike) -> Gate:
    """weight[b, h, i, j] * keep[b, h, i, j] / (1 - rate): attention dropout.

    `keep` is `bits(seed, b, h, i, j) >= rate * 2^32` with the hash specified in `jattn._terms.counter_hash.bits`:
    the same seed gives the same bits on every backend and for every tiling.

    Args:
      rate: a static number in [0, 1).
      seed: an int in [0, 2^32), or an integer scalar array: a new seed does not compile anew.

    Raises:
      ValueError: `rate` or a static `seed` is out of range.
      TypeError: `seed` is not an integer; a `jax.random` key is not: take `jax.random.bits(key)`.

    >>> import jax.numpy as jnp, jattn
    >>> q = jnp.ones((1, 6, 2, 4))
    >>> jattn.attention(q, q, q, dropout=jattn.gates.dropout(0.1, seed=0)).shape
    (1, 6, 2, 4)

    Source: Srivastava et al. 2014; of attention weights: Vaswani et al. 2017 (their code).
    """
    rate = plain(rate)
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)) or not 0 <= rate < 1:
        raise ValueError(f"rate must be a static number in [0, 1), got {rate!r}")
    return Dropout(float(rate), counter_hash.seed(seed))


@term
class Gaussian(Gate):
    """weight * exp(-(j - center)^2 / (2 sigma^2))."""

    finite = True

    center: FieldValue
    sigma: FieldValue

    def __call__(self, weight: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        del i
        distance = (j - self.center) * (1 / self.sigma)
        return weight * jnp.exp(-0.5 * distance * distance)


def gaussian(center: ArrayLike, sigma: ArrayLike) -> Gate:
    """weight * exp(-(j - center[b, i])^2 / (2 sigma^2)): keys count for less the farther from a centre they are.

    Args:
      center: `[b, t]` or `[b, h, t]`, floating-point numbers in positions of the keys, which get gradients.
      sigma: a number > 0, or a scalar array that gets a gradient; the paper takes half the window.

    Raises:
      ValueError: `center` has other axes, `sigma` is a number <= 0 or an array with axes.
      TypeError: `sigma` is not a number.

    >>> import jax.numpy as jnp, jattn
    >>> q = jnp.ones((1, 3, 1, 4))
    >>> gate = jattn.gates.gaussian(jnp.array([[0.0, 1.0, 2.0]]), sigma=1.0)
    >>> weight = jattn.weights(q, q, q, gates=gate)[0, 0]
    >>> bool(weight[0, 0] > weight[0, 1] > weight[0, 2])
    True

    Source: Luong et al. 2015, equation 10 ("local-p").
    """
    center = as_array(center, "center")
    if center.ndim not in (2, 3):
        raise ValueError(f"center must be [b, t] or [b, h, t], got shape {center.shape}")
    width = number(sigma, "sigma")
    if not isinstance(width, Operand) and not width > 0:
        raise ValueError(f"sigma must be > 0, got {width}")
    return Gaussian(operand(center, "bt" if center.ndim == 2 else "bht"), width)


@term
class Function(OfUser, Gate):
    """A user's function."""

    def __call__(self, weight: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        return self.result(weight, i=i, j=j).astype(weight.dtype)


def function(fn: Callable[..., ArrayLike], *operands: ArrayLike | Operand) -> Gate:
    """fn(weight, i, j, *operands), or fn(weight, b, h, i, j, *operands): any multiplier that you can write in JAX.

    Args:
      fn: takes the weight `[bt, bs]` in float32 or wider, int32 positions i `[bt, 1]` and j `[1, bs]`, and an array for
        each operand; returns weights `[bt, bs]`.  It is elementwise, and linear in the weight: `weight * f(i, j)`.
        At pairs that the mask hides f may be NaN; the gradient of an array in it is 0 there only if its derivative is
        defined.
        With two arguments more it is told b and h before the positions, as in `jattn.mods.function`.
      *operands: made with `jattn.operand`; each reaches `fn` broadcastable to `[bt, bs]`.  See `jattn.mods.function`
        for arrays that `fn` closes over.

    Raises:
      TypeError: `fn` is not callable with that many arguments.  When `attention` is called, TypeError or ValueError:
        it returns no floating-point numbers, is not elementwise or not linear, or draws random numbers.

    >>> import jax.numpy as jnp, jattn
    >>> near = jattn.gates.function(lambda weight, i, j: weight / (1 + abs(i - j)))
    >>> q = jnp.ones((1, 2, 1, 4))
    >>> jattn.weights(q, q, q, gates=near).tolist()
    [[[[0.5, 0.25], [0.25, 0.5]]]]
    """
    return Function.of("gates.function", fn, operands, "weight")
