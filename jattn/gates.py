"""Gates: multipliers of the weights after normalising; the weights are not renormalised.

A gate must be linear in the weight, so that a backend may apply it before it knows the normaliser's denominator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jattn._terms import Operand, Term, counter_hash, indices, number, operand, term
from jattn._terms.closures import Closure
from jattn.mods import function_parts


class Gate(Term):
    """What `attention(gates=...)` takes.  Make one with the functions of this module, or a subclass of your own."""

    def __call__(self, weight: Any, i: Any, j: Any) -> Any:
        raise NotImplementedError


@term
class Dropout(Gate):
    rate: float
    seed: Any
    b: Any = None
    h: Any = None

    def bound(self, b, h):
        return dataclasses.replace(self, b=indices(b, "b"), h=indices(h, "h"))

    def __call__(self, weight, i, j):
        if self.rate == 0:
            return weight
        keep = counter_hash.bits(self.seed, self.b, self.h, i, j) >= np.uint32(min(round(self.rate * 2**32), 2**32 - 1))
        return jnp.where(keep, weight * (1 / (1 - self.rate)), 0)


def dropout(rate: float, seed: Any) -> Gate:
    """weight * keep / (1 - rate): attention dropout (Srivastava et al. 2014; Vaswani et al. 2017).

    `rate` is static, in [0, 1); `seed` an int in [0, 2^32) or a traced uint32 scalar: a new seed does not recompile.
    `keep` is `bits(seed, b, h, i, j) >= rate * 2^32` with the hash specified in `jattn._terms.counter_hash.bits`:
    the same seed gives the same bits on every backend and for every tiling.

    >>> import jattn
    >>> gate = jattn.gates.dropout(0.1, seed=0)
    """
    if not isinstance(rate, (int, float, np.number)) or not 0 <= rate < 1:
        raise ValueError(f"rate must be a static number in [0, 1), got {rate!r}")
    return Dropout(float(rate), seed_operand(seed))


def seed_operand(seed: Any) -> Operand:
    """A seed as a uint32 operand."""
    if isinstance(seed, (int, np.integer)):
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must be in [0, 2^32), got {seed}")
        return Operand(np.asarray(seed, np.uint32), "")
    if not isinstance(seed, (jax.Array, np.ndarray)) or seed.shape != () or not jnp.issubdtype(seed.dtype, jnp.integer):
        raise TypeError(
            f"seed must be an int or an integer scalar array, got {type(seed).__name__}:"
            " of a key, take jax.random.bits(key)"
        )
    return Operand(jnp.asarray(seed).astype(jnp.uint32), "")


@term
class Gaussian(Gate):
    center: Any
    sigma: Any

    def __call__(self, weight, i, j):
        del i
        distance = (j - self.center) / self.sigma
        return weight * jnp.exp(-0.5 * distance * distance)


def gaussian(center: Any, sigma: Any) -> Gate:
    """weight * exp(-(j - center[b, i])^2 / (2 sigma^2)): Luong's local-p attention (Luong et al. 2015, eq. 10).

    `center` `[b, t]` or `[b, h, t]`, in positions, learnable; `sigma` > 0, a number or a learnable scalar array (the
    paper takes half the window).
    """
    center = center if isinstance(center, (jax.Array, np.ndarray)) else jnp.asarray(center)
    if center.ndim not in (2, 3):
        raise ValueError(f"center must be [b, t] or [b, h, t], got shape {center.shape}")
    sigma = number(sigma, "sigma")
    if not isinstance(sigma, Operand) and not sigma > 0:
        raise ValueError(f"sigma must be > 0, got {sigma}")
    return Gaussian(operand(center, "bt" if center.ndim == 2 else "bht"), sigma)


@term
class Function(Gate):
    closure: Closure
    operands: tuple[Operand, ...]
    held: tuple[Operand, ...] = ()

    def __call__(self, weight, i, j):
        return jnp.asarray(self.closure.build(self.held)(weight, i, j, *self.operands), weight.dtype)


def function(fn: Callable, *operands: Operand) -> Gate:
    """fn(weight, i, j, *operands), elementwise and linear in weight; see `jattn.mods.function` for the arguments."""
    return Function(*function_parts("gates.function", fn, operands, 3))
