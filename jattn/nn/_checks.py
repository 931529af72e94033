"""The errors of layers: what was given, what was expected, the way out.

What is checked is typed `object`: a check is there for what a user gives that is of no expected type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.typing import ArrayLike

from jattn import masks
from jattn._terms import Size, plain
from jattn._terms import is_whole as is_whole

AnyArray: TypeAlias = jax.Array | np.ndarray

_PADDING = (
    "a padding mask [.., s] of numbers, 1 where a key is real, is mask=jattn.masks.lengths(mask.sum(-1)), or"
    " mask=(mask != 0)[..., None, None, :]"
)


def is_array(x: object) -> TypeGuard[AnyArray]:
    """Whether it is an array of JAX or NumPy."""
    return isinstance(x, (jax.Array, np.ndarray))


def check_mask_dtype(mask: object) -> None:
    """Raises where a mask is an array of anything but booleans."""
    mask = plain(mask)
    if is_array(mask) and mask.dtype != bool:
        raise TypeError(
            f"mask must be boolean, True = attend, got {mask.dtype}{list(mask.shape)}; {_PADDING}, and numbers to add"
            " to the score go in bias="
        )


def is_mask(x: object) -> bool:
    """Whether it is a mask, or an array of booleans."""
    x = plain(x)
    return isinstance(x, masks.Mask) or (is_array(x) and x.dtype == bool)


def check_padding(mask: object, t: int, s: int, lead: tuple[Size, ...]) -> None:
    """Raises where booleans are `[.., s]`, of batch axes and keys, and cannot be `[t, s]`."""
    mask = plain(mask)
    if not is_array(mask) or mask.dtype != bool or mask.shape != (*lead, s):
        return
    if mask.shape[-2:-1] not in ((), (1,), (t,)):
        raise ValueError(
            f"mask must be broadcastable to [.., h, t, s], with t = {t} and s = {s}, got {list(mask.shape)}; a padding"
            " mask [.., s] is mask[..., None, None, :], or jattn.masks.lengths(lengths)"
        )


def as_lengths(given: ArrayLike, lead: tuple[Size, ...], most: int, least: int = 0) -> jax.Array:
    """Integers of the shape `lead`, from `least` to `most` as far as they are known."""
    lengths = jnp.asarray(given)
    if lengths.shape != lead or not jnp.issubdtype(lengths.dtype, jnp.integer):
        expected = f"integers with the batch axes {list(lead)}"
        raise ValueError(f"lengths must be {expected}, got {lengths.dtype}{list(lengths.shape)}")
    check_range(given, "lengths", least, most)
    return lengths


def is_known(given: object) -> bool:
    """Whether its numbers can be looked at: arguments of a function that is traced cannot."""
    return not any(isinstance(x, Tracer) for x in jax.tree.leaves(given))


def check_range(given: ArrayLike | Sequence[int], name: str, least: int, most: int | None = None) -> None:
    """Raises where integers are known to be below `least` or above `most`."""
    if not is_known(given):
        return
    array = np.asarray(given)
    if (array < least).any() or (most is not None and (array > most).any()):
        span = f"{least} or more" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be {span}, got {array.tolist()}")


def is_number(x: object) -> TypeGuard[int | float | np.integer | np.floating]:
    """Whether it is a real number of Python or NumPy; a bool is none."""
    return isinstance(x, (int, float, np.integer, np.floating)) and not isinstance(x, bool)


def check_sizes(**sizes: object) -> None:
    """Raises unless every size is an int of at least 1."""
    for name, size in sizes.items():
        if not is_whole(size):
            raise TypeError(f"{name} must be an int, got {size!r}")
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_divides(features: int, heads: int) -> None:
    """Raises unless the heads share the features evenly."""
    if features % heads:
        raise ValueError(
            f"features must be a multiple of heads, got features = {features}, heads = {heads}; or give head_dim"
        )


def check_flags(**flags: object) -> None:
    """Raises unless every flag is True or False."""
    for name, flag in flags.items():
        if not isinstance(flag, (bool, np.bool_)):
            raise TypeError(f"{name} must be True or False, got {flag!r}")


def check_rate(rate: object) -> None:
    """Raises unless it is a rate of dropout."""
    if not is_number(rate) or not 0 <= rate < 1:
        raise ValueError(f"dropout must be a rate in [0, 1), got {rate!r}")


def check_base(base: object, name: str) -> None:
    """Raises unless the base of a rotary embedding is a Python or NumPy number > 0."""
    if not is_number(base) or not base > 0:
        raise ValueError(f"{name} must be a number > 0, like 10_000.0, got {base!r}")


def check_rngs(rngs: object) -> None:
    """Raises unless it holds streams of random keys.

    A seed is not taken for one: layers that were each made with rngs=0 would all start alike.
    """
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(f"rngs must be an nnx.Rngs, like nnx.Rngs(0), one for all the layers of a model, got {rngs!r}")


def check_call_rngs(rngs: object) -> None:
    """Raises unless a call's dropout can draw from it."""
    if not (rngs is None or isinstance(rngs, (nnx.Rngs, nnx.RngStream))):
        raise TypeError(f"rngs must be an nnx.Rngs, like nnx.Rngs(dropout=0), or a stream of one, got {rngs!r}")


def check_array(x: object, name: str, axes: str, width: int) -> None:
    """Raises unless x is an array `[.., axes, width]`."""
    if is_mask(x):
        raise TypeError(f"{name} must be [.., {axes}, {width}], got a mask: give it by name, as mask=")
    shape = getattr(x, "shape", None)
    if shape is None:
        raise TypeError(f"{name} must be an array [.., {axes}, {width}], got {type(x).__name__}")
    if len(shape) < 2 or shape[-1] != width:
        raise ValueError(f"{name} must be [.., {axes}, {width}], got shape {list(shape)}")


def check_sequence(x: ArrayLike, mask: ArrayLike | None, features: int, axes: str = "s", name: str = "x") -> None:
    """Raises unless x is `[.., s, features]` and the mask, if any, booleans `[.., s]` with the same axes."""
    shape = jnp.shape(x)
    if len(shape) < 2 + axes.count(",") or shape[-1] != features:
        raise ValueError(f"{name} must be [.., {axes}, {features}], got shape {list(shape)}")
    if mask is None:
        return
    mask = jnp.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(f"mask must be booleans, True where {name} is real, got {mask.dtype}: give mask != 0")
    if mask.shape != shape[:-1]:
        raise ValueError(f"mask must be [.., {axes}] = {list(shape[:-1])}, as {name} is, got shape {list(mask.shape)}")


def real_steps(x: ArrayLike, mask: ArrayLike | None) -> jax.Array:
    """x `[.., s, features]` with 0 where a step is not real: what stands there, NaN too, then reaches no gradient, also
    of what is computed of all steps before some are left out."""
    x = jnp.asarray(x)
    return x if mask is None else jnp.where(jnp.asarray(mask)[..., None], x, 0)


def real_rows(x: ArrayLike, lengths: ArrayLike | None) -> jax.Array:
    """x `[.., s, features]` with 0 past the end of each example, as `real_steps` has it."""
    x = jnp.asarray(x)
    if lengths is None:
        return x
    real = as_lengths(lengths, x.shape[:-2], x.shape[-2])
    return real_steps(x, jnp.arange(x.shape[-2]) < real[..., None])
