"""What a normaliser is."""

from __future__ import annotations

import jax

from jattn._terms import Term
from jattn.mods import Mod


class Normalizer(Term):
    """What `attention(normalizer=...)` takes.  Make one with the functions of this module, or a subclass of your own,
    whose attributes may be numbers, and arrays, which get gradients.  It is called with whole rows of scores, unless it
    says that it is `elementwise`.

    >>> import dataclasses, jax, jax.numpy as jnp, jattn
    >>> @dataclasses.dataclass(frozen=True)
    ... class Power(jattn.normalizers.Normalizer):
    ...     scale: jax.Array
    ...
    ...     def __call__(self, scores):
    ...         weight = jnp.maximum(scores, 0) ** 2
    ...         return self.scale * weight / (1 + weight.sum(-1, keepdims=True))
    >>> q = jax.random.normal(jax.random.key(0), (1, 6, 2, 4))
    >>> jattn.attention(q, q, q, normalizer=Power(jnp.float32(0.5))).shape
    (1, 6, 2, 4)
    """

    mods: tuple[Mod, ...] = ()
    """What the scores go through first."""
    is_softmax: bool = False
    """Whether it is a softmax of the scores after these mods."""
    elementwise: bool = False
    """Whether a weight depends on its own score alone.  Blocks of keys are then computed apart and added up, and those
    that the mask hides are left out.  One that only says so is refused when `attention` is called."""

    def __call__(self, scores: jax.Array) -> jax.Array:
        """Weights `[.., s]` of rows of scores `[.., s]`, float32 or wider, -inf where the mask forbids.  There weights
        count as 0, whatever they are."""
        raise NotImplementedError
