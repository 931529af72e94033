"""A case as the problem that backends get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jattn import normalizers, scores
from jattn._call import checks
from jattn._call.problem import Problem


def problem(arrays: tuple[Any, ...], options: Mapping[str, Any]) -> Problem:
    """Of the arrays and the options of `jattn.attention`."""
    given = {"score": scores.dot(), "normalizer": normalizers.softmax(), **options}
    return checks.problem(*arrays, mods_=given.pop("mods", ()), **given)
