"""`jax.nn.dot_product_attention`, computed by `attention`."""

from __future__ import annotations

import functools
import inspect
import operator
from typing import Literal, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jattn import api, masks, scores
from jattn._call import modes
from jattn._terms import positions


@overload
def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | masks.Mask | None = None,
    *,
    scale: ArrayLike | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | None = None,
    return_residual: Literal[False] = False,
) -> Float[Array, "*b t h e"]: ...


@overload
def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | masks.Mask | None = None,
    *,
    scale: ArrayLike | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | None = None,
    return_residual: Literal[True],
) -> tuple[Float[Array, "*b t h e"], Float[Array, "*b t h"]]: ...


@overload
def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | masks.Mask | None = None,
    *,
    scale: ArrayLike | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | None = None,
    return_residual: bool,
) -> Float[Array, "*b t h e"] | tuple[Float[Array, "*b t h e"], Float[Array, "*b t h"]]: ...


@modes.ordinary
def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | masks.Mask | None = None,
    *,
    scale: ArrayLike | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | None = None,
    return_residual: bool = False,
) -> Float[Array, "*b t h e"] | tuple[Float[Array, "*b t h e"], Float[Array, "*b t h"]]:
    """A drop-in for `jax.nn.dot_product_attention`, with the signature of the installed one.

    Results and gradients agree to rounding, with these differences:

    - A query that may attend to nothing gives 0, lse -inf and zero gradients; there it gives the mean of the values,
      and a lse near the least number of float32.  (Rows past `query_seq_lengths` give 0 in both.)
    - What a mask hides stays hidden however low the bias of the rest; there a bias below -2.4e38 is lower still.
    - The softmax of float64 is computed in float64, there in float32; of bfloat16 and float16 the weights are not
      rounded before they meet the values.
    - `implementation` takes jattn's names.  None and "xla", jax.nn's name for what it writes out in XLA, choose.
    - It takes more: a mask from `jattn.masks`, a value of another width than the key's, any integers as lengths.

    As there, arrays of fewer axes than `[b, t, h, d]` stand for ones that have size 1 in front, and the residual, lse
    `[b, t, h]`, has the key's dtype and no gradient; `jattn.attention(..., return_lse=True)` gives it in float32 with
    one.

    Args:
      query: `[b, t, h, d]`, or fewer axes.
      key: `[b, s, g, d]`, likewise.
      value: `[b, s, g, e]`, likewise.
      bias: numbers broadcastable to `[b, h, t, s]`, added to the scaled score.
      mask: booleans broadcastable to `[b, h, t, s]`, True = attend, or from `jattn.masks`.
      scale: of the scores, a number or a scalar array; None is 1/sqrt(d).
      is_causal: j <= i.
      query_seq_lengths: integers `[b]`: queries past them give 0.
      key_value_seq_lengths: integers `[b]`: keys past them are not seen.
      local_window_size: how many keys a query sees on either side, or (left, right).
      implementation: None, "xla", or a name that `jattn.attention` takes.
      return_residual: also return lse.

    Returns:
      out `[b, t, h, e]` in the query's dtype, of as many axes as the query; or (out, lse).

    Raises:
      ValueError, TypeError: input that does not fit, as in `jattn.attention`.
      UnsupportedError: `implementation` cannot do what was asked.

    >>> import jax, jattn
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 16, 4, 8))
    >>> jattn.dot_product_attention(q, k, v, is_causal=True).shape
    (2, 16, 4, 8)
    """
    query = jnp.asarray(query)
    arrays = [_four_axes(x) for x in (query, key, value)]
    parts: list[masks.Mask] = []
    if mask is not None:
        parts.append(mask if isinstance(mask, masks.Mask) else masks.dense(mask))
    if is_causal:
        parts.append(masks.causal())
    if local_window_size is not None:
        sides = local_window_size if isinstance(local_window_size, (tuple, list)) else (local_window_size,) * 2
        if len(sides) != 2:
            raise ValueError(f"local_window_size must be an int or (left, right), got {local_window_size!r}")
        parts.append(masks.window(*sides))
    for name, lengths, axis in (
        ("query_seq_lengths", query_seq_lengths, "t"),
        ("key_value_seq_lengths", key_value_seq_lengths, "s"),
    ):
        if lengths is not None:
            parts.append(masks.Before(positions.lengths(_lengths(lengths, arrays[0].shape[0], name), name), axis))
    result = api.attention(
        *arrays,
        score=scores.dot(scale),
        mask=functools.reduce(operator.and_, parts) if parts else None,
        bias=None if bias is None else _bias(bias),
        return_lse=return_residual,
        implementation=None if implementation == "xla" else implementation,
    )
    shape = query.shape[:-1]
    if not isinstance(result, tuple):
        return result.reshape(*shape, result.shape[-1])
    out, lse = result
    lse = jax.lax.stop_gradient(lse.astype(arrays[1].dtype))
    return out.reshape(*shape, out.shape[-1]), lse.reshape(shape)


def _four_axes(x: ArrayLike) -> Array:
    """The array with as many axes of size 1 in front as it takes to have `[b, t, h, d]`."""
    x = jnp.asarray(x)
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def _bias(bias: ArrayLike) -> Array:
    """The bias as numbers to add: integers and booleans count too."""
    bias = jnp.asarray(bias)
    return bias if jnp.issubdtype(bias.dtype, jnp.inexact) else bias.astype(jnp.float32)


def _lengths(lengths: ArrayLike, b: int, name: str) -> Array:
    """The lengths of a batch of b."""
    lengths = jnp.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer) or lengths.shape != (b,):
        raise ValueError(f"{name} must be integers [b] = [{b}], got {lengths.dtype}{list(lengths.shape)}")
    return lengths


dot_product_attention.__signature__ = inspect.signature(jax.nn.dot_product_attention)  # type: ignore[attr-defined]
