"""Tangents of out and lse."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jattn._derivatives import primitives
from jattn._derivatives.primitives import attend_tangent
from jattn.backends.contract import Key, Lse, Out, Query, Result, Spec, Tangents, Value
from jattn.parallel._ring.pieces import Piece, Way
from jattn.parallel._ring.ring import Ring, of_rows, with_rows


def tangent(
    spec: Spec, q: Query, k: Key, v: Value, operands: list[jax.Array], result: Result, tangents: Tangents
) -> tuple[Out, Lse]:
    """Tangents of out and lse; see `jattn.backends.contract.Fused.tangent`."""
    ring = Ring(spec, q, k, operands)
    held_result = primitives.without_infinity(result._replace(out=result.out.astype(ring.wide)))
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), (result.out, result.lse))

    def step(carry: tuple, i: Any, source: Any) -> tuple:
        (k, v, moving, dk, dv, dmoving), sums = carry
        ahead = ring.send(carry[0]) if ring.n > 1 else carry[0]
        held = ring.joined(moving, ring.residents(operands))
        dheld = ring.joined(dmoving, ring.residents(tangents.operands))

        def visit(piece: Piece, sums: Any) -> Any:
            past = of_rows(sums, piece.rows)

            def run(way: Way) -> Any:
                inner, order = ring.inner(way, ring.wide)
                rows, columns = (lambda x, a=a: ring.cut(x, a, piece) for a in ("bt", "bs"))
                moves = tuple(n >= 0 and dheld[n] is not None for n in order)
                args = [rows(q), columns(k), columns(v), *ring.cut_all(order, held, piece), *map(rows, held_result)]
                args += [rows(tangents.q), columns(dk), columns(dv)]
                args += [ring.cut(dheld[n], ring.axes[n], piece) for n, y in zip(order, moves, strict=True) if y]
                moved = attend_tangent.bind(*ring.vary(args), spec=inner, active=(True,) * 3 + moves)
                return tuple(x + y.astype(x.dtype) for x, y in zip(past, moved, strict=True))

            return with_rows(sums, piece.rows, ring.choose(piece, held, run, past))

        return ahead, ring.visit(i, source, visit, sums)

    going = k, v, ring.travellers(operands), tangents.k, tangents.v, ring.travellers(tangents.operands)
    _, (dout, dlse) = ring.round(step, (going, sums))
    return dout.astype(result.out.dtype), dlse.astype(result.lse.dtype)
