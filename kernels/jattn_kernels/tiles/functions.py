"""The terms of a call as a kernel evaluates them: functions of one tile."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jattn_kernels.tiles.two_parts import times

LOG2E = math.log2(math.e)


class TileFunctions(NamedTuple):
    """What happens to a tile between the two products, as functions of it, its positions and the operands' parts."""

    scores: Callable  # (score, i, j, masked, live, parts) -> score, -inf where masked or not `live`
    weights: Callable | None  # (weight, i, j, masked, parts) -> weight, 0 at pairs of a `masked` tile that have none
    natural: bool  # scores are natural logarithms, of any size; else log2(e) is a factor of the query or of `scale`
    scale: float | None  # a factor of the product of query and key; None: it is one of the query
    reach: tuple[int, int]  # the first key that a query may see, and the first after the last
    sees: Callable | None = None  # (i, j, parts) -> which pairs see; None: each key in `reach` is seen by some query
    blind: bool = False  # whether queries may see nothing
    scaled: bool = (
        False  # on GPU: `scale` comes before the terms, and with log2(e) alone in the exponent; if natural, too
    )
    small: bool = False  # on GPU: exponentials of scores, and their sums, are numbers without a maximum taken off
    finite: bool = True  # mods have a finite derivative at every pair, hidden and padded ones included

    def natural_lse(self, lse: jax.Array, rest: jax.Array) -> tuple[jax.Array, jax.Array]:
        """lse and what rounding took from it as natural logarithms, from the units of the scores."""
        return (lse, rest) if self.natural else times(lse, rest, 1 / LOG2E)

    def lse_and_share(self, lse: jax.Array, rest: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Natural logarithms lse in the units of the scores, and the factor of weights that their rounding costs."""
        if self.natural:
            return lse, jnp.exp(-rest)
        lse, rest = times(lse, rest, LOG2E)
        return lse, jnp.exp2(-rest)
