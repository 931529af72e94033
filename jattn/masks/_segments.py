"""Segments: sequences packed into one, that attend only to themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from jattn._terms import FieldValue, Operand, as_array, term
from jattn._terms.block_tables import Answer, Range
from jattn.masks._mask import Mask


@term
class Segments(Mask):
    """A query and a key of the same id."""

    query: FieldValue
    key: FieldValue
    own: bool = False
    """Whether both are the same ids: then a query sees the key of its own number."""

    def __call__(self, i: jax.Array, j: jax.Array) -> jax.Array:
        del i, j
        return self.query == self.key

    def blocks(self, i: Range, j: Range) -> Answer:
        del i, j
        q, k = self.query, self.key
        return Answer((q.lo <= k.hi) & (k.lo <= q.hi), (q.lo == k.hi) & (k.lo == q.hi))


def segments(q_ids: ArrayLike, kv_ids: ArrayLike | None = None) -> Mask:
    """q_ids[b, i] == kv_ids[b, j]: packed sequences attend only to themselves.

    Ids that come in runs (packed documents) let whole blocks be skipped, at run time.

    Args:
      q_ids: integers `[b, t]`, or `[t]` for all batch elements.
      kv_ids: integers `[b, s]` or `[s]`; None takes `q_ids`.

    Raises:
      ValueError: ids are no integers, have other axes, need 64 bits while x64 is off, or are of dtypes that no third
        one holds, as uint32 and int32.

    >>> import numpy as np, jattn
    >>> q = np.ones((1, 4, 1, 4), "float32")
    >>> jattn.weights(q, q, q, mask=jattn.masks.segments([[7, 7, 8, 8]]))[0, 0].tolist()[0]
    [0.5, 0.5, 0.0, 0.0]

    Source: Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination".
    """
    own = kv_ids is None
    kv_ids = q_ids if kv_ids is None else kv_ids
    return Segments(*_alike(_ids(q_ids, "q_ids", "t"), _ids(kv_ids, "kv_ids", "s")), own)


def _alike(q_ids: Operand, kv_ids: Operand) -> tuple[Operand, Operand]:
    """Ids in one dtype that holds both: JAX would compare uint32 with int32 as int32, uint64 with int64 as floats."""
    both = q_ids.array.dtype, kv_ids.array.dtype
    common = jax.dtypes.canonicalize_dtype(jnp.promote_types(*both))
    if both[0] == both[1]:
        return q_ids, kv_ids
    ends = [jnp.iinfo(jax.dtypes.canonicalize_dtype(x)) for x in both]
    holds = jnp.issubdtype(common, jnp.integer) and all(
        jnp.iinfo(common).min <= x.min and x.max <= jnp.iinfo(common).max for x in ends
    )
    if not holds:
        raise ValueError(
            f"q_ids and kv_ids must be of one dtype, got {both[0]} and {both[1]}, which no integers hold both"
        )
    q, kv = (x if x.array.dtype == common else Operand(x.array.astype(common), x.axes) for x in (q_ids, kv_ids))
    return q, kv


def _ids(ids: ArrayLike, name: str, axis: str) -> Operand:
    array = as_array(ids, name)
    if array.ndim not in (1, 2) or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"{name} must be integers of shape [b, {axis}] or [{axis}], got {array.dtype}{list(array.shape)}"
        )
    return Operand(array, axis if array.ndim == 1 else "b" + axis)
