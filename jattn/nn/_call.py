"""What the layers share: options fixed beforehand joined with those of a call, and any number of batch axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jattn import masks

Options = dict[str, Any]


def check_names(options: Options, known: tuple[str, ...], where: str) -> Options:
    """The options, their mask as a `Mask`; raises on any that is not known."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"{where} takes no option {', '.join(unknown)}; the options are {', '.join(known)}")
    if options.get("mask") is not None:
        options = {**options, "mask": as_mask(options["mask"])}
    return options


def join(fixed: Options, mask: Any, mods: Any = (), gates: Any = (), lead: tuple[int, ...] = ()) -> Options:
    """Options of `jattn.attention`: the masks both hold; the mods and gates of the call come after the fixed ones."""
    both = [as_mask(x, lead) for x in (fixed.get("mask"), mask) if x is not None]
    return {
        **fixed,
        "mask": both[0] & both[1] if len(both) == 2 else both[0] if both else None,
        "mods": (*sequence(fixed.get("mods", ())), *sequence(mods)),
        "gates": (*sequence(fixed.get("gates", ())), *sequence(gates)),
    }


class Held(NamedTuple):
    """What is static about options that a layer keeps: their structure, with None where an array belongs."""

    structure: Any
    leaves: tuple[Any, ...]

    def fill(self, arrays: nnx.List) -> Options:
        """The options with the arrays where they belong."""
        values = iter(arrays)
        return jax.tree.unflatten(self.structure, [next(values)[...] if x is None else x for x in self.leaves])


def hold(options: Options) -> tuple[nnx.List, Held]:
    """The arrays of options as variables, in pytree order, and the rest."""
    leaves, structure = jax.tree.flatten(options)
    arrays = nnx.List([_variable(x) for x in leaves if _is_array(x)])
    return arrays, Held(structure, tuple(None if _is_array(x) else x for x in leaves))


def _is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray))


def _variable(array: Any) -> nnx.Variable:
    """Floating-point arrays learn; ids, lengths and seeds do not."""
    array = jnp.asarray(array)
    return nnx.Param(array) if jnp.issubdtype(array.dtype, jnp.floating) else nnx.Variable(array)


def as_mask(mask: Any, lead: tuple[int, ...] = ()) -> masks.Mask:
    """A mask, or a boolean array broadcastable to `[*lead, h, t, s]`, as a mask of one batch axis."""
    return mask if isinstance(mask, masks.Mask) else masks.dense(merge_lead(mask, lead, "mask"))


def as_lengths(lengths: Any, lead: tuple[int, ...]) -> jax.Array:
    """Integers of the shape `lead`."""
    lengths = jnp.asarray(lengths)
    if lengths.shape != lead or not jnp.issubdtype(lengths.dtype, jnp.integer):
        wanted = f"integers with the batch axes {list(lead)}"
        raise ValueError(f"lengths must be {wanted}, got {lengths.dtype}{list(lengths.shape)}")
    return lengths


def sequence(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def batched(fn: Callable, query: jax.Array, key: jax.Array, value: jax.Array, options: Options) -> Any:
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
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), out)


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


def check_sequence(x: Any, mask: Any, features: int, axes: str = "s", name: str = "x") -> None:
    """Raises unless x is `[.., s, features]` and the mask, if any, booleans `[.., s]` with the same axes."""
    shape = jnp.shape(x)
    if len(shape) < 2 + axes.count(",") or shape[-1] != features:
        raise ValueError(f"{name} must be [.., {axes}, {features}], got shape {list(shape)}")
    if mask is None:
        return
    mask = jnp.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(f"mask must be booleans, True where {name} is real, got {mask.dtype}")
    if mask.shape != shape[:-1]:
        raise ValueError(f"mask must be [.., {axes}] = {list(shape[:-1])}, as {name} is, got shape {list(mask.shape)}")
