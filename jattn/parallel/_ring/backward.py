"""Gradients, those of the keys on their way home."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jattn._derivatives import primitives
from jattn._derivatives.primitives import attend_backward
from jattn.backends.contract import Gradients, Key, Lse, Out, Query, Result, Spec, Value
from jattn.parallel._ring.pieces import Piece, Way
from jattn.parallel._ring.ring import Ring


def backward(
    spec: Spec,
    q: Query,
    k: Key,
    v: Value,
    operands: list[jax.Array],
    result: Result,
    dout: Out,
    dlse: Lse,
    active: Sequence[bool],
) -> Gradients:
    """Gradients; see `jattn.backends.contract.Fused.backward`.

    Those of the keys go round one step behind: the sums so far arrive while this step's share is computed.
    """
    ring = Ring(spec, q, k, operands)
    rows_of = (*primitives.without_infinity(result), dout, dlse)
    zeros = lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
    own = [zeros(x) if y else None for x, y in zip(operands, active, strict=True)]

    def step(carry: tuple, i: Any, source: Any) -> tuple:
        (k, v, moving), of_keys, (dq, staying) = carry
        ahead, before = ((k, v, moving), of_keys)
        if ring.n > 1:
            ahead = ring.send(ahead)
            before = of_keys if isinstance(i, int) else ring.send(of_keys)
        held = ring.joined(moving, ring.residents(operands))
        dk, dv, dmoving = jax.tree.map(jnp.zeros_like, of_keys)

        def visit(piece: Piece, sums: Any) -> Any:
            def run(way: Way) -> Any:
                inner, order = ring.inner(way, spec.dtype)
                rows, columns = (lambda x, a=a: ring.cut(x, a, piece) for a in ("bt", "bs"))
                learns = tuple(n >= 0 and bool(active[n]) for n in order)
                args = [rows(q), columns(k), columns(v), *ring.cut_all(order, held, piece), *map(rows, rows_of)]
                gradients = attend_backward.bind(*ring.vary(args), spec=inner, active=(True,) * 3 + learns)
                axes = ("bt", "bs", "bs")
                dq, dk, dv = (ring.add(x, y, a, piece) for x, y, a in zip(sums[:3], gradients[:3], axes, strict=True))
                of_operands = list(sums[3])
                for n, x in zip((n for n, y in zip(order, learns, strict=True) if y), gradients[3:], strict=True):
                    of_operands[n] = ring.add(of_operands[n], x, ring.axes[n], piece)
                return dq, dk, dv, of_operands

            return ring.choose(piece, held, run, sums)

        sums = dq, dk, dv, ring.joined(dmoving, staying)
        dq, dk, dv, of_operands = ring.visit(i, source, visit, sums)
        share = dk, dv, ring.travellers(of_operands)
        return ahead, jax.tree.map(jnp.add, before, share), (dq, ring.residents(of_operands))

    start = (
        (k, v, ring.travellers(operands)),
        (zeros(k), zeros(v), ring.travellers(own)),
        (zeros(q), ring.residents(own)),
    )
    _, of_keys, (dq, staying) = ring.round(step, start)
    # after the last step the sums lie one device before that whose keys they are of, so they go one further
    dk, dv, moving = ring.send(of_keys) if ring.n > 1 else of_keys
    every = ring.joined(moving, staying)
    like = lambda x, y: x.astype(y.dtype)
    return Gradients(
        like(dq, q), like(dk, k), like(dv, v),
        [None if x is None else like(x, y) for x, y in zip(every, operands, strict=True)],
    )  # fmt: skip
