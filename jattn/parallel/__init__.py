"""Many devices: where batch elements and heads lie, and one sequence over all of them."""

from jattn import _names
from jattn._call.plan import Plan  # noqa: F401  # in annotations of `ParallelPlan`, which are looked up here
from jattn.parallel._attention import all_to_all as all_to_all
from jattn.parallel._attention import attention as attention
from jattn.parallel._attention import gather as gather
from jattn.parallel._attention import ring as ring
from jattn.parallel._layout import layout as layout
from jattn.parallel._mesh import mesh as mesh
from jattn.parallel._plan import ParallelPlan as ParallelPlan
from jattn.parallel._plan import explain as explain
from jattn.parallel._shares import unzigzag as unzigzag
from jattn.parallel._shares import zigzag as zigzag

__all__ = [
    "ParallelPlan",
    "all_to_all",
    "attention",
    "explain",
    "gather",
    "layout",
    "mesh",
    "ring",
    "unzigzag",
    "zigzag",
]


def __dir__() -> list[str]:
    return __all__


_names.of_package(__name__)
