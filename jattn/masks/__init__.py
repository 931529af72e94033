"""Masks: which keys a query may attend to.  They compose with `&`, `|` and `~`, and are never stored as `[t, s]`.

Positions: `i` of the query and `j` of the key, both counted from the start.  Each mask is a frozen dataclass pytree
with two methods: `__call__(i, j)`, True where the pair attends, and `blocks(i, j)`, the answer for whole blocks.
"""

from jattn import _names
from jattn._terms import AnyArray  # noqa: F401  # in annotations of `Answer` and `Range`, which are looked up here
from jattn._terms.block_tables import Answer as Answer
from jattn._terms.block_tables import Range as Range
from jattn.masks._blocks import Blocks as Blocks
from jattn.masks._blocks import blocks as blocks
from jattn.masks._dense import Dense as Dense
from jattn.masks._dense import Unplaced as Unplaced
from jattn.masks._dense import dense as dense
from jattn.masks._dilated import Dilated as Dilated
from jattn.masks._dilated import dilated as dilated
from jattn.masks._function import Function as Function
from jattn.masks._function import function as function
from jattn.masks._lengths import Before as Before
from jattn.masks._lengths import lengths as lengths
from jattn.masks._lengths import prefix as prefix
from jattn.masks._mask import And as And
from jattn.masks._mask import Mask as Mask
from jattn.masks._mask import Not as Not
from jattn.masks._mask import Or as Or
from jattn.masks._segments import Segments as Segments
from jattn.masks._segments import segments as segments
from jattn.masks._window import Around as Around
from jattn.masks._window import Window as Window
from jattn.masks._window import around as around
from jattn.masks._window import causal as causal
from jattn.masks._window import window as window

__all__ = [
    "Answer", "Mask", "Range", "around", "blocks", "causal", "dense", "dilated", "function", "lengths", "prefix",
    "segments", "window",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__


_names.of_package(__name__, Answer, Range)
