"""Drafts that are a tree: each comes after its parent, and sees its ancestors alone (Miao et al. 2024, "SpecInfer")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int

from jattn import masks, operand
from jattn._terms import Size
from jattn._terms.placed import placed
from jattn._terms.reach import span
from jattn.nn._options import Options, join

_BITS = 32


class DraftTree(NamedTuple):
    """What is known of drafts from their parents.

    Attributes:
      depth: `[.., t]`, how many ancestors each has.
      sees: `[.., t, t]`, which drafts each sees: its ancestors and itself.
    """

    depth: Int[Array, "*b t"]
    sees: Bool[Array, "*b t t"]

    def keys(self, start: Int[Array, "b"], rows: Int[Array, "b s"]) -> Int[Array, "b s"]:
        """Where the keys in these rows of the cache stand: a draft `start` and its depth, all others in their row."""
        t, draft = self.depth.shape[-1], rows - start[:, None]
        depth = jnp.broadcast_to(self.depth.reshape(-1, t), (start.shape[0], t))
        found = jnp.take_along_axis(depth, jnp.clip(draft, 0, t - 1), 1)
        return start[:, None] + jnp.where((draft >= 0) & (draft < t), found, draft)

    def mask(self, start: Int[Array, "b"]) -> masks.Mask:
        """Of each query the keys before `start`, its ancestors and itself, by their rows in the cache."""
        t = self.depth.shape[-1]
        words = [operand(jnp.broadcast_to(x.reshape(-1, t), (start.shape[0], t)), "bt") for x in _words(self.sees)]
        return masks.function(_seen, operand(start, "b"), *words)

    def options(self, options: Options, start: Int[Array, "b"], i: Int[Array, "b t"], j: Int[Array, "b s"]) -> Options:
        """Options of `jattn.attention`, for queries that stand at i and keys at j, and that see what drafts see."""
        around = span(options.get("mask"))
        drafts = self.mask(start)
        if around.exact and around.left == math.inf and around.right >= 0:
            options = {**options, "mask": None}  # drafts see nothing that comes after them anyway
        elif around.left < math.inf:
            # A row is at most t - 1 after its draft's position: this hides nothing, and has whole blocks skipped.
            drafts &= masks.window(max(0, int(around.left)) + i.shape[-1] - 1, 0)
        return join(placed(options, i, j), drafts)


def _seen(i: Array, j: Array, start: Array, *words: Array) -> Array:
    """Whether drafts i with these words see the keys in rows j."""
    del i
    draft = j - start
    visible = draft < 0
    for n, word in enumerate(words):
        bit = draft - _BITS * n
        inside = (bit >= 0) & (bit < _BITS)
        visible |= inside & (((word >> jnp.clip(bit, 0, _BITS - 1)) & 1) == 1)
    return visible


def _words(sees: Bool[Array, "*b t t"]) -> list[Int[Array, "*b t"]]:
    """Of 32 drafts each, `[.., t]`: in which bits is said which of them a draft sees."""
    words = []
    for first in range(0, sees.shape[-1], _BITS):
        part = sees[..., first : first + _BITS].astype(jnp.uint32)
        bits = jnp.left_shift(jnp.uint32(1), jnp.arange(part.shape[-1], dtype=jnp.uint32))
        words.append(jax.lax.bitcast_convert_type((part * bits).sum(-1, dtype=jnp.uint32), jnp.int32))
    return words


def tree(parents: ArrayLike | Sequence[int], lead: tuple[Size, ...], t: int) -> DraftTree:
    """The tree of t drafts whose parents are these, `[t]` or `[.., t]`, -1 for what comes right after the cache.

    Raises:
      TypeError: they are no integers.
      ValueError: there are not t of them, or a draft stands before its parent, as far as is known.
    """
    array = parents if isinstance(parents, Tracer) else np.asarray(parents)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"parents must be integers [t] or [.., t], got {array.dtype}{list(array.shape)}")
    if array.shape not in ((t,), (*lead, t)):
        raise ValueError(f"parents must be [t] = [{t}] or {[*lead, t]}, one for each draft, got {list(array.shape)}")
    if not isinstance(array, Tracer) and ((array < -1) | (array >= np.arange(t))).any():
        raise ValueError("parents must be -1 or an earlier draft: put each draft after its parent")
    array = jnp.broadcast_to(jnp.asarray(array), (*lead, t))
    sees = jnp.eye(t, dtype=bool) | (array[..., None] == jnp.arange(t))
    for _ in range(max(1, (t - 1).bit_length())):  # each product reaches ancestors twice as far
        sees = jnp.matmul(sees.astype(jnp.float32), sees.astype(jnp.float32)) > 0
    return DraftTree(sees.sum(-1, dtype=jnp.int32) - 1, sees)
