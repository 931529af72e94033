"""A jaxpr replayed on a tile: calls inlined, short loops unrolled, branches computed and chosen between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import jax.extend
import numpy as np

from jattn_kernels.gpu.lowering import look_ups, moving, reductions
from jattn_kernels.gpu.lowering.arrays import Evaluated, TileArithmetic, Value, ValueIndex, known
from jattn_kernels.gpu.lowering.elementwise import elementwise
from jattn_kernels.gpu.lowering.equations import Abstract, Equation, Jaxpr, Literal, Variable
from jattn_kernels.gpu.lowering.tagged import NotLowered

_INLINED = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # where the primitives that call a function hold it
_CALLS = {
    "pjit", "jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "remat",
    "remat2", "checkpoint", "eval_jaxpr", "custom_lin",
}  # fmt: skip
_SAME = {
    "copy", "copy_p", "stop_gradient", "optimization_barrier", "name", "pvary", "reshard", "sharding_constraint",
    "mesh_cast",
}  # fmt: skip
_MOST_STEPS = 64  # a loop of so many is still unrolled


def run(
    tile: TileArithmetic,
    jaxpr: Jaxpr,
    consts: Sequence[Evaluated],
    args: Sequence[Evaluated],
    wanted: Sequence[bool] | None = None,
) -> list[Any]:
    """The results of a jaxpr, None in the place of those that nobody wants."""
    wanted = [True] * len(jaxpr.outvars) if wanted is None else wanted
    needed = _needed(jaxpr, wanted)
    env: dict[Any, Evaluated] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(v: Variable) -> Evaluated:
        return known(v.val, v.aval.dtype) if _is_literal(v) else env[v]

    multiples: dict[Any, tuple[Evaluated, float]] = {}
    for eqn, some in zip(jaxpr.eqns, needed, strict=True):
        if any(some):
            inputs = [read(v) if _is_literal(v) else env.get(v) for v in eqn.invars]
            inputs = _one_product(eqn, inputs, multiples)
            results = _equation(tile, eqn, inputs, some)
            env.update((v, x) for v, x, n in zip(eqn.outvars, results, some, strict=True) if n)
    return [read(v) if w else None for v, w in zip(jaxpr.outvars, wanted, strict=True)]


def _one_product(eqn: Equation, inputs: Sequence[Any], multiples: dict[Any, tuple[Evaluated, float]]) -> Sequence[Any]:
    """The inputs, with a number times a number in the place of both where an array is multiplied by one and then by
    another: a scale and a cap's inverse, say.  `multiples`: of what, and by which, a variable is."""
    literals = [(n, float(v.val)) for n, v in enumerate(eqn.invars) if _is_literal(v)]
    if eqn.primitive.name != "mul" or len(literals) != 1 or eqn.outvars[0].aval.dtype != np.float32:
        return inputs
    ((n, factor),) = literals
    array = eqn.invars[1 - n]
    base, before = multiples.get(array, (inputs[1 - n], 1.0))
    product, limits = before * factor, np.finfo(np.float32)
    if not float(limits.tiny) <= abs(product) <= float(limits.max):
        return inputs
    multiples[eqn.outvars[0]] = base, product
    merged: list[Any] = [base, base]
    merged[n] = known(np.float32(product), np.dtype(np.float32))
    return merged


def _closed(
    tile: TileArithmetic, jaxpr: Any, args: Sequence[Evaluated], wanted: Sequence[bool] | None = None
) -> list[Any]:
    """`run` of a jaxpr with or without its constants."""
    inner, consts = (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "jaxpr") else (jaxpr, ())
    return run(tile, inner, [tile.constant(c) for c in consts], args, wanted)


def _equation(tile: TileArithmetic, eqn: Equation, inputs: Sequence[Any], wanted: Sequence[bool]) -> list[Any]:
    name = eqn.primitive.name
    if name in _CALLS:
        inner = next(eqn.params[p] for p in _INLINED if p in eqn.params)
        return _closed(tile, inner, inputs, wanted)
    if name in _SAME:
        return list(inputs)
    if name == "split":
        return moving.split(tile, eqn, *inputs)
    if name in _CONTROL:
        return _CONTROL[name](tile, eqn, inputs, wanted)
    return [_RULES[name](tile, eqn, *inputs) if name in _RULES else elementwise(tile, eqn, inputs)]


def _cond(tile: TileArithmetic, eqn: Equation, inputs: Sequence[Evaluated], wanted: Sequence[bool]) -> list[Any]:
    """All branches, and a choice of their results: they are functions without effects."""
    which, branches = tile.at(inputs[0], ()), eqn.params["branches"]
    if which.known:
        return _closed(tile, branches[int(np.clip(which.x, 0, len(branches) - 1))], inputs[1:], wanted)
    results = [_closed(tile, b, inputs[1:], wanted) for b in branches]
    which = tile.convert(which, np.int32)

    def choose(n: int) -> Evaluated:
        out = eqn.outvars[n].aval

        def at(index: ValueIndex) -> Value:
            value = tile.at(results[-1][n], index)
            for k in reversed(range(len(branches) - 1)):
                value = tile.fold(
                    "select_n", tile.fold("le", which, known(k, np.int32)), value, tile.at(results[k][n], index)
                )
            return value

        return tile.make(out.shape, out.dtype, at)

    return [choose(n) if w else None for n, w in enumerate(wanted)]


def _scan(tile: TileArithmetic, eqn: Equation, inputs: Sequence[Evaluated], wanted: Sequence[bool]) -> list[Any]:
    del wanted  # later steps want parts of a carry that nobody else does
    p, length = eqn.params, eqn.params["length"]
    if length > _MOST_STEPS:
        raise NotLowered(f"takes loops of up to {_MOST_STEPS} steps, not {length}")
    consts, carried = _scan_counts(p)
    first, held = consts, consts + carried
    carry, stacks = list(inputs[first:held]), []
    order = range(length - 1, -1, -1) if p["reverse"] else range(length)
    inner = getattr(p["jaxpr"], "jaxpr", p["jaxpr"]).invars[held:]

    def entry(x: Evaluated, v: Variable, n: int) -> Evaluated:
        return tile.make(v.aval.shape, v.aval.dtype, lambda i: tile.at(x, (known(n, np.int32), *i)))

    for n in order:
        slices = [entry(x, v, n) for x, v in zip(inputs[held:], inner, strict=True)]
        results = _closed(tile, p["jaxpr"], [*inputs[:first], *carry, *slices])
        carry, stack = results[:carried], results[carried:]
        stacks.append(stack)
    stacks = stacks[::-1] if p["reverse"] else stacks
    outs = eqn.outvars[carried:]
    return [*carry, *(_stacked(tile, [s[n] for s in stacks], v.aval) for n, v in enumerate(outs))]


def _stacked(tile: TileArithmetic, entries: Sequence[Evaluated], out: Abstract) -> Evaluated:
    def at(index: ValueIndex) -> Value:
        if index[0].known:
            return tile.at(entries[int(index[0].x)], index[1:])
        value = tile.at(entries[0], index[1:])
        for n, entry in enumerate(entries[1:], 1):
            here = tile.fold("eq", index[0], known(n, np.int32))
            value = tile.fold("select_n", here, value, tile.at(entry, index[1:]))
        return value

    return tile.make(out.shape, out.dtype, at)


def _while(tile: TileArithmetic, eqn: Equation, inputs: Sequence[Evaluated], wanted: Sequence[bool]) -> list[Any]:
    del wanted
    p = eqn.params
    a, b = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    carry = list(inputs[b:])
    for _ in range(_MOST_STEPS + 1):
        (more,) = _closed(tile, p["cond_jaxpr"], [*inputs[:a], *carry])
        if not (isinstance(more, Value) and more.known):
            raise NotLowered("has no loops whose length depends on values")
        if not more.x:
            return carry
        carry = _closed(tile, p["body_jaxpr"], [*inputs[a:b], *carry])
    raise NotLowered(f"takes loops of up to {_MOST_STEPS} steps")


_CONTROL = {"cond": _cond, "scan": _scan, "while": _while}
_RULES = {**moving.RULES, **look_ups.RULES, **reductions.RULES}


def _scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """How many constants and carries a scan has, which jax 0.12 holds as trees."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def _is_literal(v: Variable) -> TypeGuard[Literal]:
    return isinstance(v, jax.extend.core.Literal)


def _needed(jaxpr: Jaxpr, wanted: Sequence[bool]) -> list[list[bool]]:
    """Of each equation, which results something that is wanted needs."""
    live = {v for v, w in zip(jaxpr.outvars, wanted, strict=True) if w and not _is_literal(v)}
    needed = []
    for eqn in reversed(jaxpr.eqns):
        some = [v in live for v in eqn.outvars]
        needed.append(some)
        if any(some):
            live |= {v for v in eqn.invars if not _is_literal(v)}
    return needed[::-1]
