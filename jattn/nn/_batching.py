"""Any number of batch axes: `jattn.attention` has one, `b`, and layers as many as their inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from jattn import api
from jattn._terms import Size
from jattn.nn._checks import is_whole


def batched(
    fn: Callable[..., Any],
    query: Float[Array, "... t h d"],
    key: Num[Array, "... s g d"],
    value: Num[Array, "... s g e"],
    options: dict[str, Any],
) -> Any:
    """`jattn.attention`, `weights` or `sample` of these arrays, whose leading axes become one `b` and come back.

    Pages are those of `cache._paged.merged`, which count through the pools that these axes have.
    """
    lead = query.shape[:-3]
    if options.get("pages") is None and not lead == key.shape[:-3] == value.shape[:-3]:
        raise ValueError(
            "query, key and value must have the same batch axes,"
            f" got query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}"
        )
    if fn is not api.attention:  # what is looked at or drawn is the definition's, whatever runs the attention
        options = {name: x for name, x in options.items() if name not in ("implementation", "blocks")}
    if len(lead) < 2:
        return fn(query, key, value, **options)
    if options.get("scales") is not None:
        options = {**options, "scales": [x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:]) for x in options["scales"]]}
    out = fn(*(x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:]) for x in (query, key, value)), **options)
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), out)


def merge_lead(array: Any, lead: tuple[Size, ...], name: str) -> Array:
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
    return array.reshape(math.prod(array.shape[:-3]), *array.shape[-3:])


def batch_axes(batch: int | np.integer | Sequence[int | np.integer]) -> tuple[int, ...]:
    """The batch axes of a cache: an int for one axis."""
    lead = tuple(batch) if isinstance(batch, Sequence) else (batch,)
    if not all(is_whole(n) and n >= 0 for n in lead):
        raise ValueError(f"batch must be the batch axes of x, an int or a tuple of ints, got {batch!r}")
    return tuple(int(n) for n in lead)
