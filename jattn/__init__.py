"""jattn: every attention mechanism for JAX as one function, with every derivative."""

import importlib as _importlib
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING

from jattn import gates as gates
from jattn import masks as masks
from jattn import mods as mods
from jattn import normalizers as normalizers
from jattn import scores as scores
from jattn._call.dispatch import UnsupportedError as UnsupportedError
from jattn._call.drop_in import dot_product_attention as dot_product_attention
from jattn._call.plan import Plan as Plan
from jattn._derivatives import RESIDUAL_NAMES as RESIDUAL_NAMES
from jattn._terms import Operand as Operand
from jattn._terms import operand as operand
from jattn.api import attention as attention
from jattn.api import explain as explain
from jattn.api import merge as merge
from jattn.api import sample as sample
from jattn.api import weights as weights

if TYPE_CHECKING:
    from jattn import nn as nn
    from jattn import parallel as parallel
    from jattn import viz as viz

__all__ = [
    "RESIDUAL_NAMES", "Operand", "Plan", "UnsupportedError", "attention", "dot_product_attention", "explain", "gates",
    "masks", "merge", "mods", "normalizers", "operand", "sample", "scores", "weights",
]  # fmt: skip
__version__ = "0.1.0"
_LAZY = ("nn", "parallel", "viz", "zoo")  # these import Flax or matplotlib, or are for many devices


def __getattr__(name: str) -> _ModuleType:
    if name in _LAZY:
        return _importlib.import_module(f"jattn.{name}")
    raise AttributeError(f"module 'jattn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_LAZY, "__version__"])
