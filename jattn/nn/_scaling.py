"""What rotary embeddings do to their frequencies where texts are longer than those of the training."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jattn.nn import _checks

Frequencies: TypeAlias = tuple[np.ndarray | jax.Array, float]


class Scaling(Protocol):
    """What `Rotary(scaling=...)` takes: one of those below, or a hashable function of a user's own."""

    def __call__(self, base: float, width: int, length: ArrayLike, /) -> Frequencies:
        """Frequencies and the attention factor.

        Args:
          base: of the embedding.
          width: how many features of a head are turned.
          length: 1 + the greatest position of the call, which may be traced.

        Returns:
          Radians for each position, `[width / 2]`, and by what turned features are multiplied.
        """
        ...


def geometric(base: float, width: int) -> np.ndarray:
    """base^(-2m/width) for m = 0 .. width/2 - 1: the frequencies of Su et al. 2021, in float64."""
    return float(base) ** (-np.arange(0, width, 2) / width)


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """frequency / factor: positions are interpolated between those of the training.

    Args:
      factor: how many times longer texts are, >= 1.

    Raises:
      ValueError: `factor` is less, or no number.

    >>> import jattn
    >>> rotary = jattn.nn.Rotary(scaling=jattn.nn.LinearScaling(4.0))

    Source: Chen et al. 2023, "Extending Context Window of Large Language Models via Position Interpolation".
    """

    factor: float

    def __post_init__(self) -> None:
        _at_least_one(self.factor)

    def __call__(self, base: float, width: int, length: ArrayLike) -> Frequencies:
        return geometric(base, width) / self.factor, 1.0


@dataclasses.dataclass(frozen=True)
class DynamicScaling:
    """Another base for each length, once it is beyond that of the training ("dynamic NTK"):

        base' = base (factor length / original - (factor - 1))^(width / (width - 2)),    length >= original

    Keys in a cache stay turned as they were when they came, at the length of then.

    Args:
      factor: how fast the base grows, >= 1.
      original: the length of the training.

    Raises:
      ValueError: `factor` is less than 1 or no number.  When it is called: only two features are turned.
      TypeError: `original` is not an int.

    >>> import jattn
    >>> rotary = jattn.nn.Rotary(scaling=jattn.nn.DynamicScaling(2.0, 4096))

    Source: Peng et al. 2023, "YaRN", appendix B.1; the formula is that of Hugging Face's transformers.
    """

    factor: float
    original: int

    def __post_init__(self) -> None:
        _at_least_one(self.factor)
        _checks.check_sizes(original=self.original)

    def __call__(self, base: float, width: int, length: ArrayLike) -> Frequencies:
        if width <= 2:
            raise ValueError(f"DynamicScaling needs more than two turned features, got {width}")
        ratio = self.factor * jnp.maximum(length, self.original) / self.original - (self.factor - 1)
        # base'^(-2m/width) without base', which float32 may not have room for
        return jnp.asarray(geometric(base, width)) * ratio ** (-np.arange(0, width, 2) / (width - 2)), 1.0


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Slow frequencies are divided by a factor, fast ones are not, those between are mixed:

        wavelength = 2 pi / frequency,  s = (original / wavelength - low) / (high - low) within [0, 1]
        frequency' = (1 - s) frequency / factor + s frequency

    Args:
      factor: how many times longer texts are, >= 1.
      original: the length of the training.
      low: frequencies that turn fewer times than this within `original` are divided.
      high: those that turn more often than this stay.

    Raises:
      ValueError: `factor` is less than 1 or no number, or `high` is not greater than `low`.
      TypeError: `original` is not an int.

    >>> import jattn
    >>> rotary = jattn.nn.Rotary(500_000.0, scaling=jattn.nn.Llama3Scaling(8.0, 8192))

    Source: Llama Team 2024, "The Llama 3 Herd of Models", and the code of Llama 3.1.
    """

    factor: float
    original: int
    low: float = 1.0
    high: float = 4.0

    def __post_init__(self) -> None:
        _at_least_one(self.factor)
        _checks.check_sizes(original=self.original)
        if not self.high > self.low:
            raise ValueError(f"high must be greater than low, got low = {self.low}, high = {self.high}")

    def __call__(self, base: float, width: int, length: ArrayLike) -> Frequencies:
        frequencies = geometric(base, width)
        turns = self.original * frequencies / (2 * math.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return frequencies * (kept + (1 - kept) / self.factor), 1.0


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN: slow frequencies are divided by a factor, fast ones are not, with a ramp between; scores are sharpened:

        pair(r) = width ln(original / (2 pi r)) / (2 ln base),  the pair that turns r times within `original`
        s[m] = (m - pair(fast)) / (pair(slow) - pair(fast)) within [0, 1]
        frequency' = s frequency / factor + (1 - s) frequency
        turned features times attention_factor = 0.1 ln(factor) + 1

    Args:
      factor: how many times longer texts are, >= 1.
      original: the length of the training.
      fast: pairs that turn more often than this stay as they are (beta_fast).
      slow: pairs that turn fewer times are divided (beta_slow).
      attention_factor: by what turned queries and keys are multiplied, so that scores are by its square; None for the
        paper's.  DeepSeek has 1.0 here, and its factor in the scale of the scores.
      truncate: whether the ramp starts and ends at whole pairs; gpt-oss has False.

    Raises:
      ValueError: `factor` is less than 1 or no number, or `fast` is not greater than `slow`.
      TypeError: `original` is not an int.

    >>> import jattn
    >>> jattn.nn.YarnScaling(1.0, 4096)(10_000.0, 4, 0)[0].tolist()
    [1.0, 0.01]
    >>> rotary = jattn.nn.Rotary(150_000.0, scaling=jattn.nn.YarnScaling(32.0, 4096, truncate=False))

    Source: Peng et al. 2023, "YaRN: Efficient Context Window Extension of Large Language Models".
    """

    factor: float
    original: int
    fast: float = 32.0
    slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        _at_least_one(self.factor)
        _checks.check_sizes(original=self.original)
        if not self.fast > self.slow:
            raise ValueError(f"fast must be greater than slow, got fast = {self.fast}, slow = {self.slow}")

    def __call__(self, base: float, width: int, length: ArrayLike) -> Frequencies:
        frequencies = geometric(base, width)
        first, last = (
            width * math.log(self.original / (2 * math.pi * turns)) / (2 * math.log(base))
            for turns in (self.fast, self.slow)
        )
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        last = last if last != first else last + 0.001  # a ramp of no width, as the paper's code has it
        divided = np.clip((np.arange(width // 2) - first) / (last - first), 0, 1)
        factor = 0.1 * math.log(self.factor) + 1 if self.attention_factor is None else self.attention_factor
        return frequencies * (1 - divided + divided / self.factor), factor


def _at_least_one(factor: object) -> None:
    if not _checks.is_number(factor) or not factor >= 1:
        raise ValueError(f"factor must be a number >= 1, got {factor!r}")
