"""A softmax over keys that arrive a tile at a time (Milakov & Gimelshein 2018), for code that XLA compiles.

The blockwise backend is made of it.  Pallas kernels write it out again: they keep the state in lanes and registers.


The state of a row is its greatest score so far, m, and l = sum of exp(score - m).  A row that has seen nothing has
m = -inf, l = 0, and gives output 0 and lse -inf.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class State(NamedTuple):
    """Greatest score and sum of exponentials of each row, `[..]`, and the weighted sum of values `[.., e]`."""

    top: jax.Array
    total: jax.Array
    out: jax.Array


def start(rows: tuple[int, ...], width: int, dtype: DTypeLike) -> State:
    """The state of rows that have seen nothing."""
    return State(jnp.full(rows, -jnp.inf, dtype), jnp.zeros(rows, dtype), jnp.zeros((*rows, width), dtype))


def highest(past: jax.Array, top: jax.Array) -> jax.Array:
    """The greater of two, and at least the least number: exp(-inf - it) is then 0, not NaN, and no score is less."""
    return jnp.maximum(jnp.maximum(past, top), jnp.finfo(top.dtype).min)


def exponentials(state: State | None, scores: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of a tile of scores `[.., bs]`: the new greatest score, exp(score - it), the factor that the past shrinks by.

    Rows without a state have no past, and this tile is all there is.
    """
    top = jnp.max(scores, axis=-1)
    past = jnp.full_like(top, -jnp.inf) if state is None else state.top
    top = highest(past, top)
    return top, jnp.exp(scores - top[..., None]), jnp.exp(past - top)


def finish(state: State) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Output `[.., e]`, lse `[..]` and what rounding took from lse; NaN, not nothing, for a row that has seen NaN or
    +inf.

    Where all scores are about -1e9, m + log l is m: without the remainder exp(score - lse) would be l times too much.
    """
    unseen = state.total == 0
    total = jnp.where(unseen, 1, state.total)
    lse = state.top + jnp.log(total)
    remainder = (state.top - lse) + jnp.log(total)
    # XLA would take the reciprocals of all rows first, by a kernel of its own, if it saw that a row's numbers have one.
    every = jax.lax.optimization_barrier(jnp.broadcast_to(total[..., None], state.out.shape))
    out, lse = jnp.where(unseen[..., None], 0, state.out / every), jnp.where(unseen, -jnp.inf, lse)
    return out, lse, jnp.where(unseen, 0, remainder)
