"""The Pallas kernels for TPU as a backend: both directions of a call, and its plan."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jattn_kernels import chips, tables
from jattn_kernels.tpu.backward import backward as _backward
from jattn_kernels.tpu.forward import forward as _forward
from jattn_kernels.tpu.operands import Frame
from jax.lax import Precision

from jattn import _blocks
from jattn._problem import Cut, Result, Spec
from jattn.backends import blockwise
from jattn.backends._tpu_terms import Pieces, heads_first
from jattn.backends._tpu_terms import unfit as unfit
from jattn.backends._tpu_work import case_of, lengths, tile_sizes, work_of

tangent = blockwise.tangent  # plain XLA, tiled


class _Call:
    """One call: sizes, work, and what both directions share."""

    def __init__(self, spec: Spec, q: Any, k: Any, v: Any, operands: Any, upright: bool):
        self.frame = Frame(q.shape[1], k.shape[1], tile_sizes(spec, q, k, v, upright)[0])
        self.pieces = Pieces(spec, self.frame, upright)
        self.work = work_of(spec.terms(operands).mask, self.frame, upright)
        self.chip = chips.tpu(spec.target.chip)
        self.options = {
            "precision": Precision.DEFAULT if spec.precision == Precision.DEFAULT else Precision.HIGHEST,
            "memory": None if self.chip is None else self.chip.granted,
            "interpret": spec.target.interpret,
        }
        self.windows = self.pieces.windows(operands)


def forward(spec: Spec, q: Any, k: Any, v: Any, operands: Any) -> Result:
    """Softmax attention of q `[b, t, h, d]`, k `[b, s, g, d]`, v `[b, s, g, e]`."""
    operands = [_of_32_bits(x) for x in operands]
    with jax.enable_x64(False):  # kernels have no 64 bits, even where the code around has
        return _run_forward(spec, q, k, v, operands)


def backward(
    spec: Spec, q: Any, k: Any, v: Any, operands: Any, result: Result, dout: Any, dlse: Any, learn: Any
) -> Any:
    """Gradients of q, k, v and of the operands, None for those that do not `learn`."""
    narrow = [_of_32_bits(x) for x in operands]
    with jax.enable_x64(False):
        *found, doperands = _run_backward(spec, q, k, v, narrow, result, dout, dlse, learn)
    return (*found, [None if x is None else x.astype(y.dtype) for x, y in zip(doperands, operands, strict=True)])


def _of_32_bits(x: Any) -> Any:
    narrow = {"float64": jnp.float32, "int64": jnp.int32, "uint64": jnp.uint32}
    return x.astype(narrow[x.dtype.name]) if x.dtype.name in narrow else x


def _run_forward(spec: Spec, q: Any, k: Any, v: Any, operands: Any) -> Result:
    call = _Call(spec, q, k, v, operands, upright=True)
    out, *of_rows = _forward(
        call.pieces.query(q), heads_first(k), heads_first(v),
        call.pieces.arrays(operands), call.windows,
        call.pieces.terms(), call.work, call.frame.sizes, dtype=spec.dtype, **call.options,
    )  # fmt: skip
    return Result(heads_first(out), *(jnp.swapaxes(x[:, :, 0], 1, 2) for x in of_rows))


def _run_backward(
    spec: Spec, q: Any, k: Any, v: Any, operands: Any, result: Result, dout: Any, dlse: Any, learn: Any
) -> Any:
    call = _Call(spec, q, k, v, operands, upright=False)
    pieces, (out, lse, remainder) = call.pieces, result
    wide = lambda x: x.astype(jnp.float32)
    delta, share = jnp.sum(wide(dout) * wide(out), -1) - dlse, jnp.exp(-remainder)
    if not pieces.has_gates:  # all gradients are linear in these: the kernel need not multiply each weight
        dout, delta, share = wide(dout) * share[..., None], delta * share, None
    rows = q
    if pieces.blind:  # what stands in rows that see nothing reaches nothing: it would as 0 * NaN
        rows, dout, delta = (_of_rows_that_see(x, lse) for x in (q, dout, delta))
    flat = lambda x: jnp.swapaxes(x, 1, 2)
    arrays, pull = jax.vjp(pieces.arrays, operands)
    wanted = pieces.learned(learn)
    dq, dk, dv, found = _backward(
        pieces.query(rows), heads_first(k), heads_first(v), heads_first(dout.astype(v.dtype)),
        flat(lse), flat(delta), None if share is None else flat(share),
        arrays, call.windows, wanted, pieces.terms(), call.work, call.frame.sizes,
        dq_dtype=q.dtype, factor=pieces.scale, **call.options,
    )  # fmt: skip
    dq, dk, dv = (heads_first(x) for x in (dq, dk, dv))
    rest = iter(found)
    cotangents = [_cotangent(x, next(rest) if y else None) for x, y in zip(arrays, wanted, strict=True)]
    (doperands,) = pull(cotangents)
    doperands = [x if y else None for x, y in zip(doperands, learn, strict=True)]
    fold = lambda x, like: x if x.shape[0] == like.shape[0] else wide(x).reshape(-1, *like.shape).sum(0)
    return (*(fold(x, like).astype(like.dtype) for x, like in ((dq, q), (dk, k), (dv, v))), doperands)


def _of_rows_that_see(x: jax.Array, lse: jax.Array) -> jax.Array:
    """`[b, t, h, ..]` with 0 in the place of rows that see nothing."""
    x = jnp.tile(x, (lse.shape[0] // x.shape[0], *(1,) * (x.ndim - 1)))
    return jnp.where(jnp.isneginf(lse).reshape(lse.shape + (1,) * (x.ndim - 3)), jnp.zeros_like(x), x)


def _cotangent(x: jax.Array, gradient: jax.Array | None) -> Any:
    """A gradient in the shape and dtype of its array; zeros where there is none."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return np.zeros(x.shape, jax.dtypes.float0)
    return jnp.zeros_like(x) if gradient is None else gradient[tuple(map(slice, x.shape))].astype(x.dtype)


def cut(spec: Spec, q: Any, k: Any, v: Any, operands: Any, mask: Any, known: bool) -> Cut:
    """How the call is cut, forward; blocks are counted where the mask is `known`."""
    sizes, source = tile_sizes(spec, q, k, v, upright=True)
    tile = sizes.query, sizes.key
    if not known:
        return Cut(tile, None, source)
    (b, t, h, d), (s, e) = q.shape, (v.shape[1], v.shape[-1])
    query, key = (_blocks.Tiling(n, x, overhang=True) for n, x in lengths(Frame(t, s, sizes)))
    answer = _blocks.answers(mask, query, key)
    some, every = (np.asarray(x) for x in (answer.some, answer.every & answer.some))
    times = b * h // math.prod(some.shape[:2])  # batch elements and heads whose answers are the same
    rows, columns = (np.diff(np.minimum(np.arange(x.count + 1) * x.block, x.length)) for x in (query, key))
    full, pairs = times * int(every.sum()), times * int((some @ columns @ rows).sum())
    partial, empty = times * int(some.sum()) - full, times * int((~some).sum())
    entry = tables.find("tpu", spec.target.chip, max(d, e), max(t, s), *case_of(spec, t, s, True)).entry
    worked_off = (full + partial / 2) * tile[0] * tile[1]  # with rows that fill a tile up; of a partial tile about half
    seconds = 1e-3 * entry.milliseconds * worked_off / entry.pairs * (d + e) / (2 * entry.d)
    moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in (q, k, v, *operands))
    moved += b * t * h * (e * np.dtype(spec.dtype).itemsize + 4)  # out, and lse in float32
    chip = chips.tpu(spec.target.chip)
    seconds = seconds if chip is None else max(seconds, moved / chip.bandwidth)
    return Cut(tile, (empty, partial, full), source, 1e3 * seconds, pairs)
