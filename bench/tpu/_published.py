"""Times that tokamax publishes of its splash attention on TPUs: the tuning cache in the installed package.

The cache is read whenever it is asked for, so that a newer tokamax brings its own settings and times. An entry is a
call on `[b, t, h, d]` with the setting that was fastest, transposes and scaling of the query included, and the device
times of that call.
"""

import functools
import importlib.util
import json
import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.tpu._cases import Case

_FILES = ("pallas_mosaic_tpu_flash_attention.json", "pallas_mosaic_tpu_flash_attention_vjp.json")
_FOLDERS = {"tpu_v5_lite": "v5e", "tpu_v5": "v5p", "tpu_v6_lite": "v6e", "tpu7x": "tpu7x"}
PLAIN = ("bias", "logits_soft_cap", "dropout_mask", "paging_info", "q_indices", "k_indices")  # None in a plain call


@dataclass(frozen=True)
class Published:
    """An entry of the cache.

    Attributes:
        case: chip, mask and shape. Its direction is `fwd`, `lse` for a forward that returns what a backward needs, or
            `bwd` for a backward alone.
        group: query heads that share a key head.
        config: the fields of tokamax's configuration.
        milliseconds: the median of the published times.
    """

    case: Case
    group: int
    config: Mapping[str, Any]
    milliseconds: float

    @property
    def setting(self) -> dict[str, Any]:
        """What the contender `tokamax` is asked to compile."""
        return {"group": self.group, "config": dict(self.config)}


@functools.cache
def published() -> tuple[Published, ...]:
    """Every entry for a plain call in bfloat16 that has a time; none if tokamax is not installed."""
    spec = importlib.util.find_spec("tokamax")
    if spec is None or not spec.submodule_search_locations:
        return ()
    return read(Path(spec.submodule_search_locations[0]) / "data" / "autotuning")


def read(cache: Path) -> tuple[Published, ...]:
    """The entries of a folder, which has one for each chip."""
    return tuple(
        entry
        for folder, chip in _FOLDERS.items()
        for name in _FILES
        if (path := cache / folder / name).exists()
        for entry in _entries(chip, json.loads(path.read_text() or "{}"))
    )


def _entries(chip: str, cache: Mapping[str, Mapping[str, Any]]) -> Iterator[Published]:
    for key, configs in cache.items():
        call = json.loads(key)
        query, keys = (re.fullmatch(r"bf16\[(\d+),(\d+),(\d+),(\d+)\]", str(call[name])) for name in "qk")
        mask = dict(call["mask"])
        causal = mask.pop("is_causal")
        if not query or not keys or any(call[name] is not None for name in PLAIN) or any(mask.values()):
            continue
        b, t, h, d = map(int, query.groups())
        direction = "bwd" if "residuals" in call else "lse" if call["return_residuals"] else "fwd"
        case = Case(chip, "causal" if causal else "full", b, h, t, d, direction)
        for config, times in configs.items():
            if milliseconds := times["evaluation_times_ms"]:
                yield Published(case, h // int(keys.group(3)), json.loads(config), statistics.median(milliseconds))
