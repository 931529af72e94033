"""Many devices: one sequence over all of them."""

from jattn.parallel._attention import all_to_all as all_to_all
from jattn.parallel._attention import attention as attention
from jattn.parallel._attention import gather as gather
from jattn.parallel._attention import ring as ring
from jattn.parallel._shares import unzigzag as unzigzag
from jattn.parallel._shares import zigzag as zigzag

__all__ = ["all_to_all", "attention", "gather", "ring", "unzigzag", "zigzag"]


def __dir__() -> list[str]:
    return __all__
