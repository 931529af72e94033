"""The plan of a call: which backend, why not the others, how the work is cut, what it costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jattn_kernels import tables
from jax.core import Tracer

from jattn import _terms
from jattn._call import dispatch, layouts, pages, places, scales, targets
from jattn._call.problem import Problem, reduce, tile_width
from jattn._terms import Terms
from jattn._terms.moved import moved
from jattn.backends import whole_rows
from jattn.backends.contract import Cut, Fused, Spec


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `attention` would do with the same arguments; prints as a table.

    >>> import jax, jattn
    >>> x = jax.ShapeDtypeStruct((1, 4096, 8, 64), "float32")
    >>> plan = jattn.explain(x, x, x, mask=jattn.masks.causal(), blocks=(512, 512))
    >>> plan.backend, plan.tile, plan.blocks
    ('blockwise', (512, 512), (224, 64, 224))
    >>> plan.others["cudnn"]
    'runs on GPU, not cpu'
    """

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
    """Floating-point operations of the two products, forward, of all pairs in the blocks that are visited."""
    bytes: int
    """Bytes of query, key, value, operands and outputs: the least that must move."""
    peak_memory: int | None
    """Bytes in use beyond inputs and outputs, forward, as the compiler laid them out; None for a device not here."""
    tuned: str | None = None
    """Where the tile sizes come from, where a backend has tables of them."""
    milliseconds: float | None = None
    """Estimated time of the forward pass, at least what moving the bytes takes.  On TPU from the cycles that were
    counted when the tile sizes were chosen, on GPU from those that its products and instructions take."""
    evidence: str | None = None
    """Of a backend for GPU: the recorded run that confirms it on the chip, or what is known of it without one."""

    gradients: str | None = None
    """Which gradients are not computed by the backend itself, by which they are, and why; None where it has all."""
    gathered: str | None = None
    """Of queries or keys that are sharded: along which mesh axes, and so gathered."""
    copied: int | None = None
    """Of keys and values in pages: how many bytes are copied to have them in a row, forward."""

    def __str__(self) -> str:
        rows = [
            ("backend", self.backend),
            *((f"  not {name}", reason) for name, reason in self.others.items()),
            ("shapes", self.shape),
            ("tile", "none" if self.tile is None else f"{self.tile[0]} x {self.tile[1]}"),
            ("blocks", self._blocks()),
            ("flops", "known at run time" if self.flops is None else f"{_short(self.flops, 1000)} forward"),
            ("bytes", f"{_short(self.bytes, 1024)}B in and out"),
            ("peak memory", self._memory()),
        ]
        if self.tuned is not None:
            rows.append(("tile sizes", self.tuned))
        if self.milliseconds is not None:
            source = "counted cycles" if self.evidence is None else "its products and instructions"
            rows.append(("estimate", f"{self.milliseconds:.3g} ms forward, from {source}"))
        if self.evidence is not None:
            rows.append(("evidence", self.evidence))
        if self.gradients is not None:
            rows.append(("gradients", self.gradients))
        if self.gathered is not None:
            rows.append(("gathered", f"queries and keys, sharded along {self.gathered}: see jattn.parallel.attention"))
        if self.copied is not None:
            rows.append(("pages", f"gathered, a copy of {_short(self.copied, 1024)}B"))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _memory(self) -> str:
        if self.peak_memory is None:
            return "known once compiled for that device"
        return f"{_short(self.peak_memory, 1024)}B beyond that, forward"

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


def plan(
    problem: Problem,
    implementation: object,
    override: tuple[int, int] | None,
    device: str | None,
    confirmed: Sequence[tables.Confirmed] | None = None,
) -> Plan:
    """The plan of a checked problem.  Arrays may be `jax.ShapeDtypeStruct`s; `confirmed` as in `dispatch.choose`."""
    target = targets.current() if device is None else targets.named(device)
    chosen, others, evidence = dispatch.choose(problem, implementation, target, confirmed)
    sizes = problem.sizes
    run = jax.jit(lambda p: dispatch.run(p, chosen, override, target))
    shapes_of = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    memory = None
    if device is None:
        memory = getattr(run.lower(shapes_of(problem)).compile().memory_analysis(), "temp_size_in_bytes", None)
    copied = None if dispatch.reads_pages(problem, chosen, override, target) else pages.bytes_copied(problem)
    problem = scales.outlined(pages.outlined(problem))
    size_of = lambda tree: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    found = None
    pairs: int | None = sizes["b"] * sizes["h"] * sizes["t"] * sizes["s"]
    if isinstance(chosen, Fused) and not problem.empty:
        found = _cut(problem, chosen, override, target)
    cut = Cut((0, 0), None) if found is None else found
    if found is not None:
        pairs = cut.pairs
        if pairs is None and cut.blocks is not None:
            pairs = (cut.blocks[1] + cut.blocks[2]) * cut.tile[0] * cut.tile[1]
    return Plan(
        backend=chosen.name,
        others=others,
        shape=", ".join(f"{a} {n}" for a, n in sizes.items()) + f", {problem.query.dtype}",
        tile=None if found is None else cut.tile,
        blocks=cut.blocks,
        flops=None if pairs is None else 2 * pairs * (sizes["d"] + sizes["e"]),
        bytes=size_of(problem) + size_of(jax.eval_shape(run, shapes_of(problem))),
        peak_memory=memory,
        tuned=cut.tuned,
        milliseconds=cut.milliseconds,
        evidence=evidence,
        copied=copied,
        gradients=cut.gradients,
        gathered=layouts.named(along) if (along := places.sequence(problem)) else None,
    )


def _cut(problem: Problem, backend: Fused, override: tuple[int, int] | None, target: targets.Target) -> Cut | None:
    """How a call is cut, None where rows are whole or the backend does not say."""
    softmax, signature = problem.normalizer.is_softmax, []
    if backend.cut is None if softmax else not problem.normalizer.elementwise:
        return None

    def arrays(problem: Problem) -> list[Any]:
        *reduced, static = reduce(problem)
        signature.append(static)
        return reduced

    q, k, v, operands = jax.eval_shape(arrays, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), problem))
    spec = Spec(backend, signature[0], problem.query.dtype, problem.precision, override, target)
    mask = _terms.bind(problem.mask, *problem.origin.indices(q.shape[0], q.shape[2]))
    mask = moved(Terms(None, mask=mask, offsets=problem.origin.offsets))
    known = not any(isinstance(x, (Tracer, jax.ShapeDtypeStruct)) for x in jax.tree.leaves(mask))
    if not softmax:
        (b, t, h, _), s = q.shape, k.shape[1]
        return whole_rows.cut(b, h, t, s, tile_width(spec.terms(operands), q), mask, known)
    assert backend.cut is not None
    return backend.cut(spec, q, k, v, operands, mask, known)
