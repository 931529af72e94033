"""How the operands of a call whose heads are folded lie, and how a chunk loads them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jattn_kernels.tiles.place import Index
from jattn_kernels.tpu.decode.fold import Fold, divided, entry
from jattn_kernels.tpu.sizes import LANES


@dataclasses.dataclass(frozen=True)
class FoldedLayout:
    """How one operand is laid out for folded heads: `""` a number for each batch element, `rows` `[batch, rows, 1]`,
    `keys` `[batch, n, s]`: for all rows 1, or one for each row."""

    along: str
    batch: int
    boolean: bool
    n: int = 1

    def spec(self, fold: Fold, at: Any, lines: int) -> pl.BlockSpec:
        """`at(*grid)` gives the batch element, of `lines`, and the chunk of a step; numbers of batch elements are there
        ahead of the grid."""

        def index(*grid: Index):
            b, c = at(*grid)
            return entry(b, self.batch, lines), 0, 0 if self.along == "rows" else c

        return pl.BlockSpec((None, *((fold.rows, 1) if self.along == "rows" else (self.n, fold.chunk))), index)

    def load(self, ref: jax.Ref, b: Index, fold: Fold) -> jax.Array:
        """What a chunk needs of it, broadcastable to its scores."""
        if not self.along:
            part = ref[entry(b, self.batch)]
        elif self.along == "rows":
            part = ref[...]
        else:
            part = ref[...]
            if part.dtype.itemsize < 4:
                part = part.astype(jnp.float32 if jnp.issubdtype(part.dtype, jnp.floating) else jnp.int32)
            part = spread_over_columns(part, fold.g)
        return part

    def of_tile(self, part: jax.Array, at: int, size: int) -> jax.Array:
        """What a tile needs of what its chunk does."""
        part = part[:, at : at + size] if self.along == "keys" else part
        return part != 0 if self.boolean else part


def spread_over_columns(x: jax.Array, g: int) -> jax.Array:
    """`[n, keys]` of 32 bits to `[n, keys g]`, each number g times in a row, of as many whole lanes of keys.

    A number moves within the lanes of its vector register alone, which every chip does in one go.
    """
    if g == 1:
        return x
    lane = jax.lax.broadcasted_iota(jnp.int32, (x.shape[0], LANES), 1)
    sources = [divided(lane + LANES * m, g)[0] for m in range(g)]
    blocks = [x[:, at : at + LANES] for at in range(0, x.shape[1], LANES)]
    take = functools.partial(jnp.take_along_axis, axis=1, mode="promise_in_bounds")
    return jnp.concatenate([take(block, source) for block in blocks for source in sources], 1)


def key_scales(x: jax.Array, fold: Fold) -> jax.Array:
    """`[g, keys]` to `[rows, keys g]`: for each row and column the number of the row's key head and the column's key.

    A column of another key head has no weight in a row, so it may get what it likes.
    """
    of_heads = spread_over_columns(x, fold.g)
    return jnp.concatenate([of_heads] * -(-fold.rows // fold.g), 0)[: fold.rows]


def lay_out(x: jax.Array, axes: str, fold: Fold) -> tuple[jax.Array, FoldedLayout]:
    """An array with the axes `axes` of `b h t s` as the kernel takes it, and its layout.

    Where it has keys, and queries or heads, it is repeated along what it lacks of the two.
    """
    boolean = x.dtype == jnp.bool_
    batch = x.shape[0] if "b" in axes else 1
    pairs = "s" in axes and ("h" in axes or "t" in axes)
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = x if pairs else x.astype(jnp.float32)
    elif x.dtype != jnp.uint32:
        x = x.astype(jnp.int8 if boolean and pairs else jnp.int32)
    h, t, s = (x.shape[axes.index(a)] if a in axes else 1 for a in "hts")
    x = jnp.swapaxes(x.reshape(batch, h, t, s), 1, 2)
    if set("ht") & set(axes):
        x = jnp.broadcast_to(x, (batch, fold.t, fold.h, s))
        x = jnp.swapaxes(x.reshape(batch, fold.t, fold.g, -1, s), 2, 3) if fold.turned else x
        x = x.reshape(batch, -1, s)
        x = jnp.pad(x, ((0, 0), (0, fold.rows - x.shape[1]), (0, 0)), mode="edge")
        return x, FoldedLayout("keys" if "s" in axes else "rows", batch, boolean, fold.rows)
    if "s" in axes:
        return x.reshape(batch, 1, s), FoldedLayout("keys", batch, boolean)
    return x.reshape(batch), FoldedLayout("", batch, boolean)
