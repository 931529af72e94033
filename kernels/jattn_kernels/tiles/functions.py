"""The terms of a call as a kernel evaluates them: functions of one tile."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

LOG2E = math.log2(math.e)


class TileFunctions(NamedTuple):
    """What happens to a tile between the two products, as functions of it, its positions and the operands' parts."""

    scores: Callable  # (score, i, j, masked, live, parts) -> score, -inf where masked or not `live`
    weights: Callable | None  # (weight, i, j, parts) -> weight
    natural: bool  # scores are natural logarithms, of any size; else log2(e) is a factor of the query or of `scale`
    scale: float | None  # of the product of query and key; None: it is a factor of the query
    reach: tuple[int, int]  # the first key that a query may see, and the first after the last
    sees: Callable | None = None  # (i, j, parts) -> which pairs see; None: each key in `reach` is seen by some query
    blind: bool = False  # queries may see nothing
