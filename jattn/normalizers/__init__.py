"""Normalisers: how a row of scores becomes weights.

Each is a frozen dataclass pytree called with rows of scores `[.., s]`, -inf where the mask forbids; a row that may
attend to nothing gets weights 0.  Only `softmax` (and `gumbel`, which is one) has the online form of the fused
backends; those that are elementwise are computed a tile at a time all the same, and all others in whole rows.
"""

from jattn import _names
from jattn.mods import Mod  # noqa: F401  # in annotations of `Normalizer`, which are looked up here
from jattn.normalizers._function import Function as Function
from jattn.normalizers._function import function as function
from jattn.normalizers._gumbel import Gumbel as Gumbel
from jattn.normalizers._gumbel import GumbelNoise as GumbelNoise
from jattn.normalizers._gumbel import gumbel as gumbel
from jattn.normalizers._hard import Hard as Hard
from jattn.normalizers._hard import hard as hard
from jattn.normalizers._normalizer import Normalizer as Normalizer
from jattn.normalizers._sigmoid import Sigmoid as Sigmoid
from jattn.normalizers._sigmoid import sigmoid as sigmoid
from jattn.normalizers._softmax import Softmax as Softmax
from jattn.normalizers._softmax import softmax as softmax
from jattn.normalizers._sparse import Entmax15 as Entmax15
from jattn.normalizers._sparse import Sparsemax as Sparsemax
from jattn.normalizers._sparse import entmax15 as entmax15
from jattn.normalizers._sparse import sparsemax as sparsemax

__all__ = ["Normalizer", "entmax15", "function", "gumbel", "hard", "sigmoid", "softmax", "sparsemax"]


def __dir__() -> list[str]:
    return __all__


_names.of_package(__name__)
