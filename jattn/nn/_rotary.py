"""Rotary position embedding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from jattn._call import modes
from jattn._terms import Size, plain
from jattn.nn import _checks
from jattn.nn._scaling import Scaling, geometric

RotaryFn: TypeAlias = Callable[[Array, ArrayLike | None], Array]
"""A rotary embedding: turns the features of queries `[.., t, h, d]` or keys by their positions `[.., t]`."""


@modes.ordinary
def rotary(
    x: Float[_checks.AnyArray, "*b t h d"], positions: ArrayLike | None = None, base: ArrayLike = 10_000.0
) -> Float[Array, "*b t h d"]:
    """Turns each pair of features by an angle proportional to its position (RoFormer, Su et al. 2021, eq. 34):

        (x[m], x[m + d/2])  ->  (x[m] cos a - x[m + d/2] sin a,  x[m] sin a + x[m + d/2] cos a)
        a = position * base^(-2m/d),    m = 0 .. d/2 - 1

    Norms are kept, and the product of a turned query and a turned key depends on the difference of their positions
    alone.  Features m and m + d/2 make a pair, as in Flax, GPT-NeoX and Llama; the paper pairs neighbours, which is the
    same up to the order of the features of the projections.  `Rotary` has neighbours, other frequencies and more.

    Args:
      x: queries `[.., t, h, d]` or keys `[.., s, g, d]`, d even.
      positions: numbers broadcastable to `[.., t]`, 0, 1, 2, ... by default.
      base: a number or a scalar array > 0; the longest wavelength is 2 pi base^(1 - 2/d) positions.

    Returns:
      Of x's shape and dtype; angles are computed in float32 or wider.

    Raises:
      ValueError, TypeError: d is odd, the positions do not fit, or the base is no number > 0.

    >>> import jax.numpy as jnp, numpy as np, jattn
    >>> x = jnp.ones((3, 1, 2))  # three positions, one head, one pair of features
    >>> print(np.asarray(jattn.nn.rotary(x), np.float64)[:, 0].round(2))
    [[ 1.    1.  ]
     [-0.3   1.38]
     [-1.33  0.49]]

    Source: Su et al. 2021, equation 34.
    """
    _check_heads(x)
    d, wide = x.shape[-1], jnp.promote_types(x.dtype, jnp.float32)
    if d % 2:
        raise ValueError(f"rotary turns pairs of features: the width d must be even, got x {list(x.shape)}")
    base = plain(base)
    if _checks.is_array(base):
        if base.ndim or not jnp.issubdtype(base.dtype, jnp.number):
            raise ValueError(f"base must be one number > 0, got {base.dtype}{list(base.shape)}")
        frequencies = jnp.asarray(base, wide) ** (-jnp.arange(0, d, 2, dtype=wide) / d)
    else:
        _checks.check_base(base, "base")
        frequencies = geometric(float(base), d)  # type: ignore[arg-type]  # the check has seen that it is a number
    return _turned(x, _angles(_placed(positions, x.shape[:-2])[..., None], frequencies, wide))


@dataclasses.dataclass(frozen=True)
class Rotary:
    """A rotary position embedding, for `rotary=` of layers and to be called: each pair of features turns by an angle.

        (x[m], x[m'])  ->  factor (x[m] cos a - x[m'] sin a,  x[m] sin a + x[m'] cos a),    a = position frequency[m]
        frequency[m] = base^(-2m/w),    m = 0 .. w/2 - 1,  w = fraction d,  m' = m + w/2

    The features after the first w stay as they are.  `Rotary()` is `jattn.nn.rotary`.

    Args:
      base: of the frequencies; the longest wavelength is 2 pi base^(1 - 2/w) positions.
      fraction: how much of a head is turned, in (0, 1]: GPT-NeoX has 0.25.  w is rounded down.
      interleaved: neighbours are a pair, (x[2m], x[2m + 1]), as in the paper, GPT-J, DeepSeek and Llama 4.
      frequencies: in place of base^(-2m/w), radians for each position, w/2 numbers.
      scaling: of frequencies, for texts longer than those of the training: `LinearScaling`, `DynamicScaling`,
        `Llama3Scaling`, `YarnScaling`, or a function of base, w and the length of the text (1 + the greatest position,
        which may be traced) that returns w/2 frequencies and the factor, which is 1 without one.
      sections: how many of the w/2 frequencies go by each of several positions, as (16, 24, 24) for those in time, up
        and across (M-RoPE, Qwen2-VL).  Positions may then be `[n, .., t]` with n sections; `[.., t]` holds for all.

    Raises:
      ValueError: a base, fraction, frequencies or sections that are none, or frequencies beside a scaling.  When it is
        called: w is odd or 0, or there are more or fewer frequencies than w/2.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> layer_of = lambda rotary: jattn.nn.MultiHeadAttention(64, 4, rotary=rotary, rngs=nnx.Rngs(0))
    >>> gpt_neox = layer_of(jattn.nn.Rotary(fraction=0.25))
    >>> llama3 = layer_of(jattn.nn.Rotary(500_000.0, scaling=jattn.nn.Llama3Scaling(8.0, 8192)))
    >>> turned = jattn.nn.Rotary(sections=(1, 1))(jnp.ones((5, 1, 4)), jnp.zeros((2, 5)))
    >>> turned.shape
    (5, 1, 4)

    Source: Su et al. 2021; of a part of the features: Black et al. 2022 (GPT-NeoX); sections: Wang et al. 2024
    (Qwen2-VL), section 2.1.
    """

    base: float = 10_000.0
    fraction: float = 1.0
    interleaved: bool = False
    frequencies: Sequence[float] | np.ndarray | None = None
    scaling: Scaling | None = None
    sections: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _checks.check_base(self.base, "base")
        _checks.check_flags(interleaved=self.interleaved)
        if not _checks.is_number(self.fraction) or not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be a number in (0, 1], got {self.fraction!r}")
        if self.frequencies is not None:
            given = np.asarray(self.frequencies, np.float64)
            if given.ndim != 1 or self.scaling is not None:
                also = " beside a scaling: give them as they are scaled" if self.scaling is not None else ""
                raise ValueError(f"frequencies must be numbers [w/2], got {list(given.shape)}{also}")
            object.__setattr__(self, "frequencies", tuple(given.tolist()))  # hashable, as what is static must be
        if self.sections is not None:
            object.__setattr__(self, "sections", tuple(self.sections))
            _checks.check_sizes(**{f"sections[{n}]": x for n, x in enumerate(self.sections)})

    def width(self, d: int) -> int:
        """How many features w of a head of d are turned.

        Args:
          d: width of a head.

        Raises:
          ValueError: they make no pairs, or not as many as there are frequencies or sections.
        """
        w = int(d * self.fraction)
        if w % 2 or w < 2:
            raise ValueError(
                f"rotary turns pairs of features: fraction d must be even, got {self.fraction} * {d} -> {w}"
            )
        for name in ("frequencies", "sections"):
            given = getattr(self, name)
            n = w // 2 if given is None else len(given) if name == "frequencies" else sum(given)
            if n != w // 2:
                raise ValueError(f"{name} must be for w/2 = {w // 2} pairs of features, got {n}")
        return w

    @modes.ordinary
    def __call__(
        self, x: Float[_checks.AnyArray, "*b t h d"], positions: ArrayLike | None = None
    ) -> Float[Array, "*b t h d"]:
        """Queries or keys turned by their positions.

        Args:
          x: queries `[.., t, h, d]` or keys `[.., s, g, d]`.
          positions: numbers broadcastable to `[.., t]`, 0, 1, 2, ... by default; with n sections also `[n, .., t]`.

        Returns:
          Of x's shape and dtype; angles are computed in float32 or wider.

        Raises:
          ValueError, TypeError: the width or the positions do not fit.
        """
        _check_heads(x)
        w, wide = self.width(x.shape[-1]), jnp.promote_types(x.dtype, jnp.float32)
        positions = _placed(positions, x.shape[:-2], self.sections)
        factor = 1.0
        if self.frequencies is not None:
            frequencies = np.asarray(self.frequencies)
        elif self.scaling is None:
            frequencies = geometric(self.base, w)
        else:
            frequencies, factor = self.scaling(self.base, w, positions.max(initial=-1).astype(wide) + 1)
        if self.sections is not None and positions.ndim == x.ndim - 1:
            kinds = np.repeat(np.arange(len(self.sections)), self.sections)
            positions = jnp.moveaxis(positions[kinds], 0, -1)
        else:
            positions = positions[..., None]
        angles = _angles(positions, frequencies, wide)
        turned = _turned(x[..., :w], angles, factor, self.interleaved)
        return turned if w == x.shape[-1] else jnp.concatenate([turned, jnp.asarray(x[..., w:])], axis=-1)


def embedding(rotary: RotaryFn | None, base: float | None, d: int) -> RotaryFn | None:
    """What turns heads of width d in a layer made with these arguments, or None.

    Raises:
      ValueError: there are both, a base that is none, or a width that does not go with them.
      TypeError: `rotary` is no function.
    """
    if base is not None:
        if rotary is not None:
            raise ValueError("rotary_base is short for rotary=jattn.nn.Rotary(base): give one of them")
        _checks.check_base(base, "rotary_base")
        if d % 2 or not d:
            raise ValueError(f"rotary_base needs an even head_dim, got {d}")
        return Rotary(float(base))
    if isinstance(rotary, Rotary):
        rotary.width(d)
    elif rotary is not None and not callable(rotary):
        raise TypeError(f"rotary must be a jattn.nn.Rotary or a function of heads and positions, got {rotary!r}")
    return rotary


def segment_positions(ids: Int[ArrayLike, "*b t"]) -> Int[Array, "*b t"]:
    """Positions that start anew with each of the documents that a row packs: 0, 1, .. from where an id changes.

    Masks and mods count along the row; of documents side by side that is all that they need.  An embedding of
    positions may want each document to begin at 0: give it these.

    Args:
      ids: `[.., t]`, those of `jattn.masks.segments`: each document has one of its own, and lies in one piece.

    Returns:
      int32 `[.., t]`.

    Raises:
      ValueError: ids without an axis.

    >>> import jax.numpy as jnp, jattn
    >>> ids = jnp.array([0, 0, 0, 1, 1, 2])
    >>> jattn.nn.segment_positions(ids).tolist()
    [0, 1, 2, 0, 1, 0]

    Source: Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination", section 3.2.
    """
    ids = jnp.asarray(ids)
    if not ids.ndim:
        raise ValueError("ids must be [.., t], got a scalar")
    places = jnp.broadcast_to(jnp.arange(ids.shape[-1], dtype=jnp.int32), ids.shape)
    starts = jnp.concatenate([jnp.ones_like(ids[..., :1], bool), ids[..., 1:] != ids[..., :-1]], axis=-1)
    return places - jax.lax.cummax(jnp.where(starts, places, 0), axis=ids.ndim - 1)


def _check_heads(x: object) -> None:
    """Raises unless x is of queries or keys."""
    shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
    if shape is None or dtype is None or len(shape) < 3 or not jnp.issubdtype(dtype, jnp.floating):
        got = type(x).__name__ if shape is None else f"{dtype}{list(shape)}"
        raise TypeError(f"rotary takes floating-point queries [.., t, h, d] or keys [.., s, g, d], got {got}")


def _placed(positions: ArrayLike | None, lead: tuple[Size, ...], sections: tuple[int, ...] | None = None) -> Array:
    """Positions, counted where none are given; raises unless they belong to rows of those leading axes."""
    if positions is None:
        return jnp.arange(lead[-1])
    positions = jnp.asarray(positions)
    own = positions.shape
    if sections is not None and len(own) == len(lead) + 1 and own[0] == len(sections):
        own = own[1:]
    fits = 1 <= len(own) <= len(lead) and own[-1] == lead[-1]
    if not fits or any(n not in (1, want) for n, want in zip(own[::-1], lead[::-1], strict=False)):
        also = "" if sections is None else f", or [{len(sections)}, .., t]"
        raise ValueError(
            f"positions must be broadcastable to [.., t] = {list(lead)}{also} and have its t,"
            f" got {list(positions.shape)}"
        )
    return positions


def _angles(positions: Array, frequencies: ArrayLike, dtype: jnp.dtype) -> Array:
    """Positions `[.., t, 1 or w/2]` and frequencies `[w/2]` as angles `[.., t, 1, w/2]`."""
    return (positions.astype(dtype) * jnp.asarray(frequencies, dtype))[..., None, :]


def _turned(x: _checks.AnyArray, angles: Array, factor: float = 1.0, interleaved: bool = False) -> Array:
    """x `[.., t, h, w]`, its pairs turned by angles broadcastable to `[.., t, 1, w/2]`, times the factor."""
    x = jnp.asarray(x)
    wide, shape, dtype = x.astype(angles.dtype), x.shape, x.dtype
    angles = angles.reshape((1,) * (x.ndim - angles.ndim) + angles.shape)
    cos, sin = factor * jnp.cos(angles), factor * jnp.sin(angles)
    if interleaved:
        pairs = wide.reshape(*shape[:-1], shape[-1] // 2, 2)
        first, second = pairs[..., 0], pairs[..., 1]
        return jnp.stack([first * cos - second * sin, first * sin + second * cos], axis=-1).reshape(shape).astype(dtype)
    first, second = jnp.split(wide, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(dtype)
