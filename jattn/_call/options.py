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


class _OfScores(TypedDict, total=False):
    score: Score
    mask: Mask | ArrayLike | None
    mods: Mod | Sequence[Mod]
    bias: ArrayLike | None
    precision: jax.lax.Precision | str | None
    positions: Mapping[str, ArrayLike] | ArrayLike | None


class _OfWeights(TypedDict, total=False):
    normalizer: Normalizer
    gates: Gate | Sequence[Gate]
    sinks: ArrayLike | None
    dropout: Gate | None


class ScoreOptions(_OfScores, total=False):
    """What makes the scores, of which `sample` draws.

    Attributes:
      pages, scales: those of `explain` may be shapes, as its keys may.
    """

    pages: ArrayLike | jax.ShapeDtypeStruct | None
    scales: tuple[ArrayLike | jax.ShapeDtypeStruct, ArrayLike | jax.ShapeDtypeStruct] | None


class WeightOptions(ScoreOptions, _OfWeights, total=False):
    """What makes the weights."""


class PlanOptions(WeightOptions, total=False):
    """What `explain` takes beside its own arguments."""

    return_lse: bool


class ShardedOptions(_OfScores, _OfWeights, total=False):
    """What makes the weights where a sequence lies over many devices: its keys are in no pages and have no scales."""


class ShardedPlanOptions(ShardedOptions, total=False):
    """What `parallel.explain` takes beside its own arguments."""

    return_lse: bool
