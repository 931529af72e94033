"""What a mod is."""

from __future__ import annotations

import jax

from jattn._terms import Term


class Mod(Term):
    """What `attention(mods=...)` takes.  Make one with the functions of this module, or a subclass of your own, whose
    attributes may be numbers, and arrays, which get gradients.

    >>> import dataclasses, jax, jax.numpy as jnp, jattn
    >>> @dataclasses.dataclass(frozen=True)
    ... class Tilt(jattn.mods.Mod):
    ...     slope: jax.Array
    ...
    ...     def __call__(self, score, i, j):
    ...         return score - self.slope * (i - j)
    >>> q = jnp.ones((1, 3, 2, 4))
    >>> jattn.attention(q, q, q, mods=Tilt(jnp.float32(0.5))).shape
    (1, 3, 2, 4)
    """

    hides: bool = False
    """Whether it may give -inf: such a score is hidden from the mods that follow."""
    finite: bool = False
    """Whether it has a finite derivative at every pair, of finite scores and operands; if not, what it has at hidden
    pairs is kept from the gradients, which costs a selection."""
    affine: bool = False
    """Whether that derivative is the same whatever the score is.  If not, it is finite of finite scores alone, and what
    a mod before it adds may not be."""

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        """The new score `[bt, bs]`, of one head: score in float32 or wider, positions i `[bt, 1]`, j `[1, bs]`."""
        raise NotImplementedError
