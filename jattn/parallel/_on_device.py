"""What each device does, by one strategy or another, inside `jax.shard_map`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jattn._call import dispatch, targets
from jattn._call.problem import Problem
from jattn._terms import FieldValue, Operand
from jattn.backends.contract import Backend, Fused
from jattn.parallel import _ring
from jattn.parallel._sharded_call import ShardedCall
from jattn.parallel._shares import Shares, unzigzag, zigzag


def on_device(problem: Problem, call: ShardedCall) -> Any:
    """What a device's own queries get: out, or (out, lse) where the call returns both."""
    run: Callable = {"ring": _by_ring, "all_to_all": _by_heads, "gather": _by_gathering}[call.strategy]
    out, lse = run(problem, call)
    return (out, lse) if call.return_lse else out


def _moved(problem: Problem, lead: jax.Array) -> Problem:
    """The problem with its queries further on than its keys by so much."""
    own = problem.origin.offsets
    value = own.lead.array if isinstance(own.lead, Operand) else jnp.int32(own.lead)
    at = Operand(value + lead, own.lead.axes if isinstance(own.lead, Operand) else "")
    return dataclasses.replace(
        problem, origin=dataclasses.replace(problem.origin, offsets=dataclasses.replace(own, lead=at))
    )


def _inner(problem: Problem, call: ShardedCall) -> tuple[Backend, targets.Target]:
    """Who computes on a device."""
    somewhere = _moved(problem, lax.axis_index(call.axes.sequence).astype(jnp.int32))
    chosen = dispatch.choose(somewhere, call.backend, call.target).backend
    return chosen, call.target if call.backend is None else call.target._replace(platform=targets.ANY)


def _by_ring(problem: Problem, call: ShardedCall) -> tuple[Array, Array | None]:
    inner, target = _inner(problem, call)
    if not isinstance(inner, Fused):
        raise dispatch.UnsupportedError(
            f"parallel.attention: implementation={inner.name!r} computes all pairs at once: a ring takes a backend in"
            " tiles, strategy='gather' takes any"
        )
    settings = _ring.RingSettings(call.axes.sequence, call.axes.devices, call.zigzag, inner)
    return dispatch.run(problem, _ring.backend(settings), call.blocks, target)


def _by_gathering(problem: Problem, call: ShardedCall) -> tuple[Array, Array | None]:
    inner, target = _inner(problem, call)
    shares, axis = Shares(call.axes.devices, call.zigzag), call.axes.sequence
    whole = _with_operands(problem, lambda x, axes: _of_all_keys(x, axes, call))
    key, value = (_gathered(x, "bs", "s", call) for x in (problem.key, problem.value))
    whole, t, results = dataclasses.replace(whole, key=key, value=value), problem.sizes["t"], []
    for n, rows in enumerate(shares.slices(t)):
        size = rows.stop - rows.start
        part = _with_operands(whole, lambda x, axes, rows=rows: _rows(x, axes, rows))
        part = dataclasses.replace(part, query=problem.query[:, rows])
        start = shares.chunk(lax.axis_index(axis).astype(jnp.int32), n) * jnp.int32(size)
        results.append(dispatch.run(_moved(part, start), inner, call.blocks, target))
    return jax.tree.map(lambda *x: jnp.concatenate(x, 1), *results)


def _by_heads(problem: Problem, call: ShardedCall) -> tuple[Array, Array | None]:
    axis, n = call.axes.sequence, call.axes.devices
    swap = functools.partial(lax.all_to_all, axis_name=axis, tiled=True)
    contiguous = lambda x, dim: unzigzag(x, n, dim) if call.zigzag else x
    arrays = [contiguous(swap(x, split_axis=2, concat_axis=1), 1) for x in (problem.query, problem.key, problem.value)]
    h = problem.sizes["h"] // n
    first = lax.axis_index(axis).astype(jnp.int32) * jnp.int32(h)

    def of_heads(x: jax.Array, axes: str) -> jax.Array:
        shared = "t" if "t" in axes else "s"  # the one of the two along which it lies over devices
        if "h" in axes and shared in axes:
            x = contiguous(swap(x, split_axis=axes.index("h"), concat_axis=axes.index(shared)), axes.index(shared))
            return contiguous(x, axes.index("s")) if {*"ts"} <= {*axes} else x
        if "h" in axes:
            return lax.dynamic_slice_in_dim(x, first, h, axes.index("h"))
        return _gathered(_of_all_keys(x, axes, call), axes, "t", call)

    own = _with_operands(problem, of_heads)
    origin = dataclasses.replace(own.origin, h=_plus(own.origin.first_head, first))
    own = dataclasses.replace(own, query=arrays[0], key=arrays[1], value=arrays[2], origin=origin)
    inner, target = _inner(own, call)
    out, lse = dispatch.run(own, inner, call.blocks, target)
    back = lambda x: swap(zigzag(x, n) if call.zigzag else x, split_axis=1, concat_axis=2)
    return back(out), None if lse is None else back(lse)


def _plus(first: FieldValue, more: jax.Array) -> Operand:
    return Operand((first.array if isinstance(first, Operand) else jnp.int32(first)) + more, "")


def _with_operands(problem: Problem, change: Callable[[Any, str], Any]) -> Problem:
    """The problem with every operand changed."""
    is_operand = lambda x: isinstance(x, Operand)
    change_one = lambda x: Operand(change(x.array, x.axes), x.axes) if is_operand(x) else x
    return jax.tree.map(change_one, problem, is_leaf=is_operand)


def _rows(x: Any, axes: str, rows: slice) -> Any:
    return x[(slice(None),) * axes.index("t") + (rows,)] if "t" in axes else x


def _of_all_keys(x: Any, axes: str, call: ShardedCall) -> Any:
    """An operand with all of s, in contiguous order; one with t as well has all of it."""
    if "t" not in axes:
        return _gathered(x, axes, "s", call)
    return unzigzag(x, call.axes.devices, axes.index("s")) if call.zigzag and "s" in axes else x


def _gathered(x: Any, axes: str, a: str, call: ShardedCall) -> Any:
    """An array with all of t or s, in contiguous order."""
    if a not in axes:
        return x
    dim = axes.index(a)
    x = lax.all_gather(x, call.axes.sequence, axis=dim, tiled=True)
    return unzigzag(x, call.axes.devices, dim) if call.zigzag else x
