"""Softmax attention over all devices' keys."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jattn_kernels import online_softmax
from jattn_kernels.online_softmax import State

from jattn._derivatives.primitives import attend_p
from jattn.backends.contract import Key, Query, Result, Spec, Value
from jattn.parallel._ring.pieces import Piece, Way
from jattn.parallel._ring.ring import Ring, of_rows, with_rows


def _merged(state: State, part: Result) -> State:
    """The softmax over the keys so far and those of a piece."""
    out, lse, remainder = part
    top = online_softmax.highest(state.top, lse)
    past, share = jnp.exp(state.top - top), jnp.exp(lse - top) * jnp.exp(remainder)
    return State(top, state.total * past + share, state.out * past[..., None] + out * share[..., None])


def forward(spec: Spec, q: Query, k: Key, v: Value, operands: list[jax.Array]) -> Result:
    """Softmax attention over all devices' keys; see `jattn.backends.contract.Fused.forward`."""
    ring, wide = Ring(spec, q, k, operands), jnp.promote_types(q.dtype, jnp.float32)
    batches = [x.shape[0] for x, axes in zip((q, k, v, *operands), ("b",) * 3 + ring.axes, strict=True) if "b" in axes]

    def step(carry: tuple, i: Any, source: Any) -> tuple:
        (k, v, moving), state = carry
        ahead = ring.send((k, v, moving)) if ring.n > 1 else (k, v, moving)
        held = ring.joined(moving, ring.residents(operands))

        def visit(piece: Piece, state: State) -> State:
            past = of_rows(state, piece.rows)

            def run(way: Way) -> State:
                inner, order = ring.inner(way, ring.wide)
                arrays = ring.cut(q, "bt", piece), ring.cut(k, "bs", piece), ring.cut(v, "bs", piece)
                args = ring.vary([*arrays, *ring.cut_all(order, held, piece)])
                return _merged(past, Result(*attend_p.bind(*args, spec=inner)))

            return with_rows(state, piece.rows, ring.choose(piece, held, run, past))

        return ahead, ring.visit(i, source, visit, state)

    start = online_softmax.start((max(batches), *q.shape[1:3]), v.shape[-1], wide)
    _, state = ring.round(step, ((k, v, ring.travellers(operands)), start))
    out, lse, remainder = online_softmax.finish(state)
    return Result(out.astype(spec.dtype), lse, remainder)
