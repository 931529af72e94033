"""What a query or a key has to say of a relative position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jattn._terms import FieldValue, operand, term, wide
from jattn._terms.rows import finite_rows
from jattn.mods._buckets import Bucketed
from jattn.mods._mod import Mod


@term
class RelativeContent(Bucketed):
    """score + content . table[bucket(j - i)], the content a query's or a key's."""

    name = "mods.relative_content"

    content: FieldValue = None  # [bt, 1, m] or [1, bs, m]
    of_keys: bool = False

    def __call__(self, score: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        # every row is multiplied with the entries of all diagonals of the tile, since that is one product, and what is
        # its own pairs' is then sheared out; where the content is the keys', the tile is turned, so that rows are keys
        rows, columns = i.shape[0], j.shape[1]
        lead, n = j[0, 0] - i[0, 0], jnp.arange(rows + columns, dtype=jnp.int32)
        at = lead + columns - 1 - n if self.of_keys else lead - (rows - 1) + n
        content, flaw = finite_rows(self.content[0] if self.of_keys else self.content[:, 0])
        # float32 is not rounded, as in the product of queries and keys
        product = jnp.matmul(content, self.entries(at).T, precision=jax.lax.Precision.HIGHEST) + flaw
        return score + (_shear_rows(product, rows).T if self.of_keys else _shear_rows(product, columns))

    def at_columns(self, columns: jax.Array) -> jax.Array:
        content, table = wide(self.content.array), wide(self.table.array)  # [.., h, t or s, m], [.., n, m]
        product = jnp.matmul(content, table.swapaxes(-1, -2), precision=jax.lax.Precision.HIGHEST)
        columns = (columns.swapaxes(1, 2) if self.of_keys else columns)[:, None]
        product, columns = (
            jnp.broadcast_to(x, (len(columns), content.shape[-3], *x.shape[-2:])) for x in (product, columns)
        )
        found = jnp.take_along_axis(product, columns, -1)
        return found.swapaxes(2, 3) if self.of_keys else found


def _shear_rows(rows: jax.Array, columns: int) -> jax.Array:
    """[r, r + columns] -> [r, columns], with [x, c] = rows[x, c - x + r - 1]."""
    r, n = rows.shape
    # row x of a view that is one shorter starts x places earlier
    return rows.reshape(-1)[r - 1 : r - 1 + r * (n - 1)].reshape(r, n - 1)[:, :columns]


def relative_content(
    content: ArrayLike,
    table: ArrayLike,
    bucket: Callable[[jax.Array], jax.Array] | None = None,
    of: Literal["query", "key"] = "query",
) -> Mod:
    """score + content[b, i, h] . table[h, bucket(j - i)]: what a query has to say of a relative position; with
    `of="key"` score + content[b, j, h] . table[h, bucket(j - i)], what a key has.

    Memory is that of the content and of the table: a tile is multiplied with the relative positions that it has, and no
    `[t, buckets]` or `[t, s]` array is made.  DeBERTa has one of each, Shaw's and Transformer-XL's the first, with the
    query or the query and a learned vector as its content.

    Args:
      content: `[b, t, h, m]`, or `[b, s, h, m]` of keys, as queries are laid out; the batch axis may be absent.  It is
        not scaled: give it the factor that the score has.
      table: `[buckets, m]` or `[h, buckets, m]`.  Both get gradients.
      bucket: maps int32 arrays of j - i to entries of the table; None takes the middle one for j = i, its neighbours
        for the positions beside, and the first and the last for all beyond.
      of: "query" or "key".

    Raises:
      ValueError: `content` or `table` has other axes, or other widths m; `of` is neither.
      TypeError: `bucket` is not a function; when `attention` is called: it does not map integers to as many.

    >>> import jax, jax.numpy as jnp, jattn
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 4))
    >>> table = jax.random.normal(jax.random.key(1), (2 * 3 + 1, 4))  # 3 positions before and after
    >>> shaw = jattn.mods.relative_content(q / 2, table)
    >>> jattn.attention(q, k, v, mods=shaw).shape
    (1, 6, 2, 4)

    Positions in two dimensions, as SAM's: of 2 by 3 patches each query has something to say of each row and column.

    >>> y = jattn.operand(jax.random.normal(jax.random.key(2), (1, 2, 6, 2)), "bht")
    >>> x = jattn.operand(jax.random.normal(jax.random.key(3), (1, 2, 6, 3)), "bht")
    >>> look_up = lambda content, n: jnp.take(content[:, 0], n[0], axis=1, mode="clip")
    >>> def decomposed(score, i, j, y, x):
    ...     return score + look_up(y, j // 3) + look_up(x, j % 3)
    >>> jattn.attention(q, k, v, mods=jattn.mods.function(decomposed, y, x)).shape
    (1, 6, 2, 4)

    Source: Shaw et al. 2018, equation 4; Dai et al. 2019 (Transformer-XL), section 3.3; He et al. 2021 (DeBERTa),
    equation 4; of two dimensions: Li et al. 2022 (MViTv2), section 4.1.
    """
    if of not in ("query", "key"):
        raise ValueError(f'of must be "query" or "key", got {of!r}')
    contents, entries = (x if isinstance(x, (jax.Array, np.ndarray)) else jnp.asarray(x) for x in (content, table))
    if contents.ndim not in (3, 4):
        raise ValueError(f"content must be [b, t, h, m], or without b, got shape {contents.shape}")
    if entries.ndim not in (2, 3) or entries.shape[-1] != contents.shape[-1]:
        raise ValueError(
            f"table must be [buckets, m] or [h, buckets, m], of the content's width m = {contents.shape[-1]}, got shape"
            f" {entries.shape}"
        )
    last = entries.shape[-2] - 1
    bucket = (lambda relative: jnp.clip(relative + last // 2, 0, last)) if bucket is None else bucket
    axes = ("b" if contents.ndim == 4 else "") + ("hs" if of == "key" else "ht")
    named = operand(entries, "h" if entries.ndim == 3 else ""), operand(contents.swapaxes(-3, -2), axes)
    return RelativeContent(named[0], *RelativeContent.parts(bucket), named[1], of == "key")
