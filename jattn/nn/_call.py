"""What the layers share: options fixed beforehand joined with those of a call, and any number of batch axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jattn import api, masks
from jattn.nn._frozen import Frozen, thawed

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
    apart = lambda x: isinstance(x, (masks.Mask, Frozen))
    variables, leaves = [], []
    for part in jax.tree.leaves(options, is_leaf=apart):
        for x in jax.tree.leaves(_whole(part)):
            if _is_array(x):
                variables.append(_variable(x, learns=not apart(part)))
            leaves.append(None if _is_array(x) else x)
    structure = jax.tree.structure(jax.tree.map(_whole, options, is_leaf=apart))
    return nnx.List(variables), Held(structure, tuple(leaves))


def _whole(part: Any) -> Any:
    return part.term if isinstance(part, Frozen) else part


def _is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray))


def _variable(array: Any, learns: bool) -> nnx.Variable:
    """Floating-point arrays learn, but for those of masks and frozen terms; ids, lengths and seeds do not."""
    array = jnp.asarray(array)
    return nnx.Param(array) if learns and jnp.issubdtype(array.dtype, jnp.floating) else nnx.Variable(array)


def as_mask(mask: Any, lead: tuple[int, ...] = ()) -> masks.Mask:
    """A mask, or a boolean array broadcastable to `[*lead, h, t, s]`, as a mask of one batch axis."""
    if isinstance(mask, masks.Mask):
        return mask
    if _is_array(mask) and mask.dtype != bool:
        raise TypeError(
            f"mask must be boolean, True = attend, got {mask.dtype}{list(mask.shape)}; {_PADDING}, and numbers to add"
            " to the score go in bias="
        )
    return masks.dense(merge_lead(mask, lead, "mask"))


_PADDING = (
    "a padding mask [.., s] of numbers, 1 where a key is real, is mask=jattn.masks.lengths(mask.sum(-1)), or"
    " mask=(mask != 0)[..., None, None, :]"
)


def check_padding(mask: Any, t: int, s: int, lead: tuple[int, ...]) -> None:
    """Raises where booleans are `[.., s]`, of batch axes and keys, and cannot be `[t, s]`."""
    padding = _is_array(mask) and mask.dtype == bool and mask.shape == (*lead, s)
    if padding and mask.shape[-2:-1] not in ((), (1,), (t,)):
        raise ValueError(
            f"mask must be broadcastable to [.., h, t, s], with t = {t} and s = {s}, got {list(mask.shape)}; a padding"
            " mask [.., s] is mask[..., None, None, :], or jattn.masks.lengths(lengths)"
        )


def as_lengths(lengths: Any, lead: tuple[int, ...]) -> jax.Array:
    """Integers of the shape `lead`."""
    lengths = jnp.asarray(lengths)
    if lengths.shape != lead or not jnp.issubdtype(lengths.dtype, jnp.integer):
        wanted = f"integers with the batch axes {list(lead)}"
        raise ValueError(f"lengths must be {wanted}, got {lengths.dtype}{list(lengths.shape)}")
    return lengths


def sequence(value: Any) -> tuple[Any, ...]:
    """Mods or gates, one or several, as `jattn.attention` takes them."""
    return tuple(thawed(x) for x in (value if isinstance(value, (tuple, list)) else (value,)))


def batched(fn: Callable, query: jax.Array, key: jax.Array, value: jax.Array, options: Options) -> Any:
    """`fn` of `[.., t, h, d]`, `[.., s, g, d]`, `[.., s, g, e]`, its leading axes as one `b` and back."""
    lead = query.shape[:-3]
    if not lead == key.shape[:-3] == value.shape[:-3]:
        raise ValueError(
            "query, key and value must have the same batch axes,"
            f" got query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}"
        )
    if fn is api.weights:  # what is looked at is the definition's, whatever runs the attention
        options = {name: x for name, x in options.items() if name not in ("implementation", "blocks")}
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


def check_sizes(**sizes: Any) -> None:
    """Raises unless every size is an int of at least 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)):
            raise TypeError(f"{name} must be an int, got {size!r}")
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_flags(**flags: Any) -> None:
    """Raises unless every flag is True or False."""
    for name, flag in flags.items():
        if not isinstance(flag, (bool, np.bool_)):
            raise TypeError(f"{name} must be True or False, got {flag!r}")


def check_rate(rate: Any) -> None:
    """Raises unless it is a rate of dropout."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.integer, np.floating)) or not 0 <= rate < 1:
        raise ValueError(f"dropout must be a rate in [0, 1), got {rate!r}")


def check_rngs(rngs: Any) -> None:
    """Raises unless it holds streams of random keys.

    A seed is not taken for one: layers that were each made with rngs=0 would all start alike.
    """
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(f"rngs must be an nnx.Rngs, like nnx.Rngs(0), one for all the layers of a model, got {rngs!r}")


def check_call_rngs(rngs: Any) -> None:
    """Raises unless a call's dropout can draw from it."""
    if not (rngs is None or isinstance(rngs, (nnx.Rngs, nnx.RngStream))):
        raise TypeError(f"rngs must be an nnx.Rngs, like nnx.Rngs(dropout=0), or a stream of one, got {rngs!r}")


def check_array(x: Any, name: str, axes: str, width: int) -> None:
    """Raises unless x is an array `[.., axes, width]`."""
    if is_mask(x):
        raise TypeError(f"{name} must be [.., {axes}, {width}], got a mask: give it by name, as mask=")
    if not hasattr(x, "shape"):
        raise TypeError(f"{name} must be an array [.., {axes}, {width}], got {type(x).__name__}")
    if len(x.shape) < 2 or x.shape[-1] != width:
        raise ValueError(f"{name} must be [.., {axes}, {width}], got shape {list(x.shape)}")


def is_mask(x: Any) -> bool:
    """Whether it is a mask, or an array of booleans."""
    return isinstance(x, masks.Mask) or (_is_array(x) and x.dtype == bool)


def batch_axes(batch: Any) -> tuple[int, ...]:
    """The batch axes of a cache: an int for one axis."""
    lead = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    if not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n >= 0 for n in lead):
        raise ValueError(f"batch must be the batch axes of x, an int or a tuple of ints, got {batch!r}")
    return tuple(int(n) for n in lead)


def check_sequence(x: Any, mask: Any, features: int, axes: str = "s", name: str = "x") -> None:
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
