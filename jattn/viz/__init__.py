"""Pictures of attention: weights, alignments, masks, block tables, positions and caches, as matplotlib figures.

Nothing here touches pyplot: no window, no global state, no figure to close.  Save what comes back with
`figure.savefig(path)`, or end a notebook's cell with it.
"""

from jattn.viz.caches import show_cache as show_cache
from jattn.viz.masks import show_blocks as show_blocks
from jattn.viz.masks import show_mask as show_mask
from jattn.viz.positions import show_positions as show_positions
from jattn.viz.weights import show_alignment as show_alignment
from jattn.viz.weights import show_weights as show_weights

__all__ = ["show_alignment", "show_blocks", "show_cache", "show_mask", "show_positions", "show_weights"]


def __dir__() -> list[str]:
    return __all__
