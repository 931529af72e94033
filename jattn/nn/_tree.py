"""Drafts that are a tree: each comes after its parent, and sees its ancestors alone (Miao et al. 2024, "SpecInfer")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int

from jattn import masks, mods, operand
from jattn._terms.reach import span
from jattn.nn._options import Options, several

_BITS = 32
_WHEREVER = (mods.SoftCap,)  # what is the same wherever a query and a key stand


class DraftTree(NamedTuple):
    """What is known of drafts from their parents.

    Attributes:
      depth: `[.., t]`, how many ancestors each has.
      sees: `[.., t, t]`, which drafts each sees: its ancestors and itself.
    """

    depth: Int[Array, "*b t"]
    sees: Bool[Array, "*b t t"]

    def mask(self, start: Int[Array, "b"], left: int | None) -> masks.Mask:
        """Of the keys before `start` and of the ancestors of each query and itself, those at most `left` positions
        before its own, None for all: a draft's position is `start` and its depth, whichever row it stands in."""
        t, depth, sees = self.depth.shape[-1], self.depth, self.sees
        if left is not None:
            sees &= depth[..., None] - depth[..., None, :] <= left

        def seen(i: Array, j: Array, start: Array, depth: Array, *words: Array) -> Array:
            del i
            draft = j - start
            visible = draft < 0
            if left is not None:
                visible &= depth - draft <= left
            for n, word in enumerate(words):
                bit = draft - _BITS * n
                inside = (bit >= 0) & (bit < _BITS)
                visible |= inside & (((word >> jnp.clip(bit, 0, _BITS - 1)) & 1) == 1)
            return visible

        rows = [operand(jnp.broadcast_to(x.reshape(-1, t), (len(start), t)), "bt") for x in (depth, *_words(sees))]
        mask = masks.function(seen, operand(start, "b"), *rows)
        # A row is at most t - 1 after its draft's position: this window hides nothing, and has whole blocks skipped.
        return mask if left is None else mask & masks.window(left + t - 1, 0)


def _words(sees: Bool[Array, "*b t t"]) -> list[Int[Array, "*b t"]]:
    """Of 32 drafts each, `[.., t]`: in which bits is said which of them a draft sees."""
    words = []
    for first in range(0, sees.shape[-1], _BITS):
        part = sees[..., first : first + _BITS].astype(jnp.uint32)
        bits = jnp.left_shift(jnp.uint32(1), jnp.arange(part.shape[-1], dtype=jnp.uint32))
        words.append(jax.lax.bitcast_convert_type((part * bits).sum(-1, dtype=jnp.uint32), jnp.int32))
    return words


def tree(parents: ArrayLike | Sequence[int], lead: tuple[int, ...], t: int) -> DraftTree:
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


def without_rows(options: Options) -> Options:
    """The options without their mask, whose place `DraftTree.mask` takes.

    Raises:
      ValueError: a term would take a draft's row in the cache for its position: a mask other than `masks.causal()` and
        windows, or a mod or gate that may look at positions.
    """
    around = span(options.get("mask"))
    plain = around.full or (around.exact and around.right == 0)
    terms = [*several(options.get("mods", ())), *several(options.get("gates", ()))]
    if not plain or options.get("bias") is not None or not all(isinstance(x, _WHEREVER) for x in terms):
        raise ValueError(
            "parents need a layer whose mask is masks.causal(), with a window or without, and whose mods are"
            " mods.softcap alone: other terms would take the row of a draft for its position; decode chains of drafts"
            " without parents"
        )
    return {**options, "mask": None}
