"""The plan of a call: which backend, why not the others, how the work is cut, what it costs."""

from __future__ import annotations

import dataclasses
import importlib
import math
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jattn import _blocks, _dispatch, _target, _terms
from jattn._geometry import Geometry
from jattn._problem import Problem, Spec, reduce


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `attention` would do with the same arguments; prints as a table."""

    backend: str
    """The backend chosen."""
    others: dict[str, str]
    """Each other backend, and the reason why it was not chosen."""
    shape: str
    tile: tuple[int, int] | None
    """Query and key rows of a tile; None where the backend does not tile."""
    blocks: tuple[int, int, int] | None
    """Empty, partial and full blocks, over batch and heads; None where they are known only at run time."""
    flops: int | None
    """Floating-point operations of the two products, forward, in the blocks that are visited."""
    bytes: int
    """Bytes of query, key, value, operands and outputs: the least that must move."""
    peak_memory: int
    """Bytes in use beyond inputs and outputs, forward, as the compiler laid them out for this machine."""

    def __str__(self) -> str:
        rows = [
            ("backend", self.backend),
            *((f"  not {name}", reason) for name, reason in self.others.items()),
            ("shapes", self.shape),
            ("tile", "none" if self.tile is None else f"{self.tile[0]} x {self.tile[1]}"),
            ("blocks", self._blocks()),
            ("flops", "known at run time" if self.flops is None else f"{_short(self.flops, 1000)} forward"),
            ("bytes", f"{_short(self.bytes, 1024)}B in and out"),
            ("peak memory", f"{_short(self.peak_memory, 1024)}B beyond that, forward"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _blocks(self) -> str:
        if self.tile is None:
            return "none: every pair is computed"
        if self.blocks is None:
            return "known at run time: the mask's arrays are traced"
        empty, partial, full = self.blocks
        return f"{empty:,} empty (skipped), {partial:,} partial (masked), {full:,} full"


def _short(n: int, unit: int) -> str:
    power = 0 if n < unit else int(math.log(n, unit))
    power = min(power, 5)
    suffix = ["", "K", "M", "G", "T", "P"][power] + ("i" if unit == 1024 and power else "")
    return f"{n / unit**power:.3g} {suffix}" if n < 1000 * unit**power else f"{n / unit**power:.0f} {suffix}"


def plan(problem: Problem, implementation: str | None, override: tuple[int, int] | None) -> Plan:
    """The plan of a checked problem.  Arrays may be `jax.ShapeDtypeStruct`s."""
    target = _target.current()
    chosen, others = _dispatch.choose(problem, implementation, target)
    sizes = problem.sizes
    run = jax.jit(lambda p: _dispatch.BACKENDS[chosen].run(p, override, target))
    as_shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), problem)
    memory: Any = run.lower(as_shapes).compile().memory_analysis()
    size_of = lambda tree: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    tile = None
    blocks, pairs = None, sizes["b"] * sizes["h"] * sizes["t"] * sizes["s"]
    if chosen != "reference" and problem.normalizer.is_softmax:
        geo = _geometry(as_shapes, chosen, override, target)
        tile = geo.query.block, geo.key.block
        blocks = _count(problem, geo)
        pairs = None if blocks is None else (blocks[1] + blocks[2]) * tile[0] * tile[1]
    return Plan(
        backend=chosen,
        others=others,
        shape=", ".join(f"{a} {n}" for a, n in sizes.items()) + f", {problem.query.dtype}",
        tile=tile,
        blocks=blocks,
        flops=None if pairs is None else 2 * pairs * (sizes["d"] + sizes["e"]),
        bytes=size_of(as_shapes) + size_of(jax.eval_shape(run, as_shapes)),
        peak_memory=memory.temp_size_in_bytes,
    )


def _geometry(problem: Problem, backend: str, override: Any, target: _target.Target) -> Geometry:
    signature = []

    def arrays(problem):
        *found, static = reduce(problem)
        signature.append(static)
        return found

    q, k, v, operands = jax.eval_shape(arrays, problem)
    spec = Spec(backend, signature[0], problem.query.dtype, problem.precision, override, target)
    return importlib.import_module(f"jattn.backends.{backend}").geometry(spec, q, k, v, operands)


def _count(problem: Problem, geo: Geometry) -> tuple[int, int, int] | None:
    mask = _terms.bind(problem.mask, geo.b, geo.h)
    if any(isinstance(x, (Tracer, jax.ShapeDtypeStruct)) for x in jax.tree.leaves(mask)):
        return None
    heads = geo.heads * geo.group
    found = _blocks.table(mask, geo.query, geo.key, geo.batch, heads)
    full, partial = (np.asarray(x) for x in (found.full, found.partial))
    rows = (geo.b // geo.batch, geo.h // heads, geo.query.count)
    alike = geo.batch * heads  # every row of the table stands for this many batch elements and heads
    full, partial = (int(np.broadcast_to(x, rows).sum()) * alike for x in (full, partial))
    return geo.b * geo.h * geo.query.count * geo.key.count - full - partial, partial, full
