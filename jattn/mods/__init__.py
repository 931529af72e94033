"""Mods: functions score -> score, applied in order after scaling and before the mask and the normaliser.

Each is a frozen dataclass pytree called with one tile: `score` `[bt, bs]`, positions `i` `[bt, 1]` and `j` `[1, bs]`.
"""

from jattn import _names
from jattn.mods._alibi import Alibi as Alibi
from jattn.mods._alibi import alibi as alibi
from jattn.mods._alibi import alibi_slopes as alibi_slopes
from jattn.mods._bias import Bias as Bias
from jattn.mods._bias import bias as bias
from jattn.mods._buckets import Bucketed as Bucketed
from jattn.mods._buckets import T5Bucket as T5Bucket
from jattn.mods._buckets import t5_bucket as t5_bucket
from jattn.mods._function import Function as Function
from jattn.mods._function import function as function
from jattn.mods._mod import Mod as Mod
from jattn.mods._relative import Relative as Relative
from jattn.mods._relative import relative as relative
from jattn.mods._relative_content import RelativeContent as RelativeContent
from jattn.mods._relative_content import relative_content as relative_content
from jattn.mods._softcap import SoftCap as SoftCap
from jattn.mods._softcap import softcap as softcap

__all__ = [
    "Mod", "T5Bucket", "alibi", "alibi_slopes", "bias", "function", "relative", "relative_content", "softcap",
    "t5_bucket",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__


_names.of_package(__name__)
