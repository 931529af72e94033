"""Keys and values that lie in pages: pools that examples share, and of each example a table of where its own are.

Key j of example b is row j % page of page `pages[b, j // page]` (Kwon et al. 2023, "PagedAttention").  A problem keeps
pools and table apart, so that a backend may read pages where they lie; all others get them gathered.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jattn._call.problem import Problem
from jattn._terms import Shaped, plain, positions


def checked(pages: ArrayLike | jax.ShapeDtypeStruct, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """The table as int32, of pools and a query that go with it.

    Raises:
      TypeError: it has no integers.
      ValueError: shapes do not go together, or there is no page for what is in the table.
    """
    pages = plain(pages)
    try:
        table = np.asarray(pages) if isinstance(pages, (list, tuple)) else pages
    except ValueError:
        raise ValueError("pages must be integers [b, m], got rows of unequal lengths; any page fills them up") from None
    if not isinstance(table, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)):
        raise TypeError(f"pages must be integers [b, m], got {type(pages).__name__}")
    shape = list(table.shape)
    if not jnp.issubdtype(table.dtype, jnp.integer):
        raise TypeError(f"pages must be integers [b, m], got {table.dtype}{shape}")
    if not key.ndim == value.ndim == 4 or key.shape[:3] != value.shape[:3]:
        raise ValueError(
            "with pages, key and value must be pools [p, page, g, d] and [p, page, g, e] with as many pages, rows and"
            f" heads, got {list(key.shape)} and {list(value.shape)}"
        )
    if query.ndim not in (3, 4) or table.ndim != query.ndim - 2 or table.shape[:-1] != query.shape[:-3]:
        axes = f"[b, m] with b = {query.shape[0]}" if query.ndim == 4 else "[m], as the query has no batch axis"
        raise ValueError(f"pages must be {axes}, got shape {shape}")
    if not key.shape[1] or (not key.shape[0] and math.prod(shape)):  # an empty batch is in no page
        raise ValueError(f"with pages, key and value must have a page and a row in it, got {list(key.shape)}")
    if isinstance(table, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(table.shape, jnp.int32)  # type: ignore[return-value]  # its entries are never asked for
    return jnp.asarray(positions.int32(table))


def flat(pool: Shaped, pages: Shaped) -> jax.ShapeDtypeStruct:
    """What a pool is once gathered: shape `[b, s, g, d]`, or `[s, g, d]`."""
    *lead, m = pages.shape
    _, page, *rest = pool.shape
    return jax.ShapeDtypeStruct((*lead, m * page, *rest), pool.dtype)


def gathered(problem: Problem) -> Problem:
    """The problem with keys and values `[b, s, g, d]`, copied from their pages; a page out of range is the nearest."""
    return problem if problem.pages is None else _in_rows(problem, lambda pool: in_a_row(pool, problem.pages))


def with_scales_gathered(problem: Problem) -> Problem:
    """The problem, of which keys and values stay pools and all else is as if they lay in a row."""
    take = lambda pool: in_a_row(pool, problem.pages)
    return dataclasses.replace(problem, scales=jax.tree.map(take, problem.scales), pages=None)


def in_a_row(pool: jax.Array, table: jax.Array) -> jax.Array:
    """`[b, s, g, ..]`, or without b, copied from pages; one out of range is the nearest."""
    return jnp.take(pool, table, axis=0, mode="clip").reshape(flat(pool, table).shape)


def outlined(problem: Problem) -> Problem:
    """The problem as it would be once gathered, with shapes for its keys and values."""
    return problem if problem.pages is None else _in_rows(problem, lambda pool: flat(pool, problem.pages))


def _in_rows(problem: Problem, take: Callable[[jax.Array], Any]) -> Problem:
    """The problem without pages; `take` says what each pool becomes."""
    key, value, scales = jax.tree.map(take, (problem.key, problem.value, problem.scales))
    return dataclasses.replace(problem, key=key, value=value, scales=scales, pages=None)


def bytes_copied(problem: Problem) -> int | None:
    """How many bytes gathering copies, None where there are no pages."""
    if problem.pages is None:
        return None
    rows = outlined(problem)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves((rows.key, rows.value, rows.scales)))
