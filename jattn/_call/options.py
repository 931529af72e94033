"""Options of `attention` by their types, for the functions that hand them on to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import jax
from jax.typing import ArrayLike

from jattn.gates import Gate
from jattn.masks import Mask
from jattn.mods import Mod
from jattn.normalizers import Normalizer
from jattn.scores import Score


class ScoreOptions(TypedDict, total=False):
    """What makes the scores, of which `sample` draws.

    Attributes:
      pages, scales: those of `explain` may be shapes, as its keys may.
    """

    score: Score
    mask: Mask | ArrayLike | None
    mods: Mod | Sequence[Mod]
    bias: ArrayLike | None
    precision: jax.lax.Precision | str | None
    positions: Mapping[str, ArrayLike] | ArrayLike | None
    pages: ArrayLike | jax.ShapeDtypeStruct | None
    scales: tuple[ArrayLike | jax.ShapeDtypeStruct, ArrayLike | jax.ShapeDtypeStruct] | None


class WeightOptions(ScoreOptions, total=False):
    """What makes the weights."""

    normalizer: Normalizer
    gates: Gate | Sequence[Gate]
    sinks: ArrayLike | None
    dropout: Gate | None


class PlanOptions(WeightOptions, total=False):
    """What `explain` takes beside its own arguments."""

    return_lse: bool
