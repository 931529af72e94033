"""Attention in plain XLA, a tile at a time: the fast path on CPU and the fallback everywhere.

`walk` says which tiles are visited and what is cut for them, `products` how they are multiplied, `sizes` how large they
are; memory is the output and one tile for each loop.
"""

from __future__ import annotations

from jattn._call.problem import Problem
from jattn._call.targets import Target
from jattn.backends.blockwise.backward import backward
from jattn.backends.blockwise.cut import cut
from jattn.backends.blockwise.forward import forward, forward_in_pages, takes_pages
from jattn.backends.blockwise.sizes import Limits
from jattn.backends.blockwise.tangent import tangent
from jattn.backends.contract import Fused, InPages


def unfit(problem: Problem, target: Target) -> None:
    del problem, target


BLOCKWISE = Fused(
    "blockwise", unfit, forward, tangent, backward, cut, Limits(), in_pages=InPages(takes_pages, forward_in_pages)
)
