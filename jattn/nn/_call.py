"""What the layers share: options fixed beforehand joined with those of a call, and any number of batch axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jattn import masks

Options = dict[str, Any]


def check_names(options: Options, known: tuple[str, ...], where: str) -> Options:
    """The options, their mask as a `Mask`; raises on any that is not known."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"{where} takes no option {', '.join(unknown)}; the options are {', '.join(known)}")
    if options.get("mask") is not None:
        options = {**options, "mask": _mask(options["mask"])}
    return options


def join(fixed: Options, mask: Any, mods: Any = (), gates: Any = ()) -> Options:
    """Options of `jattn.attention`: the masks both hold; the mods and gates of the call come after the fixed ones."""
    both = [_mask(x) for x in (fixed.get("mask"), mask) if x is not None]
    return {
        **fixed,
        "mask": both[0] & both[1] if len(both) == 2 else both[0] if both else None,
        "mods": (*_sequence(fixed.get("mods", ())), *_sequence(mods)),
        "gates": (*_sequence(fixed.get("gates", ())), *_sequence(gates)),
    }


def _mask(mask: Any) -> masks.Mask:
    return mask if isinstance(mask, masks.Mask) else masks.dense(mask)


def _sequence(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def batched(fn: Callable, query: jax.Array, key: jax.Array, value: jax.Array, options: Options) -> jax.Array:
    """`fn` of `[.., t, h, d]`, `[.., s, g, d]`, `[.., s, g, e]`, its leading axes as one `b` and back."""
    lead = query.shape[:-3]
    if not lead == key.shape[:-3] == value.shape[:-3]:
        raise ValueError(
            "query, key and value must have the same batch axes,"
            f" got query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}"
        )
    if len(lead) < 2:
        return fn(query, key, value, **options)
    out = fn(*(x.reshape(-1, *x.shape[-3:]) for x in (query, key, value)), **options)
    return out.reshape(*lead, *out.shape[1:])


def merge_lead(array: Any, lead: tuple[int, ...], name: str) -> jax.Array:
    """An array broadcastable to `[*lead, h, t, s]` as one broadcastable to `[b, h, t, s]`."""
    array = jnp.asarray(array)
    own = array.shape[:-3]
    if len(lead) < 2 or not own:
        return array
    if len(own) > len(lead) or any(n not in (1, want) for n, want in zip(own[::-1], lead[::-1], strict=False)):
        raise ValueError(
            f"{name} must be broadcastable to [.., h, t, s] with the batch axes {list(lead)}, got {list(array.shape)}"
        )
    if math.prod(own) > 1:
        array = jnp.broadcast_to(array, (*lead, *array.shape[-3:]))
    return array.reshape(-1, *array.shape[-3:])


def check_sizes(**sizes: int) -> None:
    """Raises unless every size is at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_sequence(x: Any, mask: Any, features: int, axes: str = "s") -> None:
    """Raises unless x is `[.., s, features]` and the mask, if any, booleans `[.., s]` with the same axes."""
    shape = jnp.shape(x)
    if len(shape) < 2 + axes.count(",") or shape[-1] != features:
        raise ValueError(f"x must be [.., {axes}, {features}], got shape {list(shape)}")
    if mask is None:
        return
    mask = jnp.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(f"mask must be booleans, True where x is real, got {mask.dtype}")
    if mask.shape != shape[:-1]:
        raise ValueError(f"mask must be [.., {axes}] = {list(shape[:-1])}, as x is, got shape {list(mask.shape)}")
