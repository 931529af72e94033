"""What the kernels of a call share: arrays in their layout, and what stands in keys that nobody sees."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jattn_kernels.gpu.layout import OperandLayout
from jattn_kernels.gpu.lists import LineLists
from jattn_kernels.gpu.sizes import Lengths, TileSizes
from jattn_kernels.tiles.functions import TileFunctions

from jattn import _terms
from jattn._call.targets import Target
from jattn._terms import AnyArray
from jattn._terms.block_tables import Tiling
from jattn._terms.moved import moved
from jattn._terms.reach import SeenRun, seen_run, span
from jattn.backends.contract import Shaped, Spec
from jattn.backends.pallas_gpu.lists import Lines, lists_of
from jattn.backends.pallas_gpu.sizes import Kernel, tile_sizes
from jattn.backends.pallas_gpu.terms import GpuTerms
from jattn.backends.steps import Step

_PAIRS = 2**22  # the mask is looked at for so many pairs in one go
_MULTIPLE = 16  # the matrix unit takes so many numbers of a head at once: widths are filled up to a multiple


class Call:
    """What one kernel is given of a call: tile sizes, terms, and lists of the tiles that it visits."""

    sizes: TileSizes
    terms: GpuTerms
    lists: LineLists
    listed: list[jax.Array]
    interpret: Any

    def __init__(
        self,
        spec: Spec,
        k: jax.Array,
        v: jax.Array,
        operands: Sequence[AnyArray],
        t: int,
        kernel: Kernel,
        lines: Lines = "t",
    ):
        s = k.shape[1]
        self.sizes = tile_sizes(spec, k, v, operands, kernel)[0]
        self.terms = GpuTerms(spec, Lengths(t, s), "s" if lines == "s" else "t")
        self.lists, listed = lists_of(moved(spec.terms(operands)), t, s, self.sizes, lines)
        self.listed = [jnp.asarray(x) for x in listed]
        self.interpret = simulator(spec.target)

    @property
    def functions(self) -> TileFunctions:
        return self.terms.functions()

    @property
    def given(self) -> tuple[TileFunctions, LineLists, list[jax.Array], TileSizes]:
        """What every kernel takes after its operands."""
        return self.functions, self.lists, self.listed, self.sizes

    def operands(self, operands: Sequence[AnyArray]) -> tuple[list[jax.Array], tuple[OperandLayout, ...]]:
        """The arrays as the kernel takes them, and how they lie."""
        arrays = self.terms.arrays(operands)
        return [x for x, _ in arrays], tuple(y for _, y in arrays)


def simulator(target: Target) -> Any:
    """How the simulator is to run, as the target says or by default; None on a GPU."""
    if not target.interpret:
        return None
    from jax.experimental.pallas import mosaic_gpu as plgpu

    params: Any = plgpu.InterpretGPUParams  # type: ignore[attr-defined]  # of jax 0.11 and later
    return params() if target.interpret is True else target.interpret


def in_tiles(spec: Spec, x: jax.Array) -> jax.Array:
    """An array with heads as the matrix unit takes them: in 16 bits, which products of queries and a matrix may not be,
    and of a width that it multiplies at once, filled up with zeros.  Most are both, and are left as they are."""
    x, missing = x.astype(spec.dtype), -x.shape[-1] % _MULTIPLE
    return jnp.pad(x, ((0, 0),) * 3 + ((0, missing),)) if missing else x


def without_unseen(
    spec: Spec, operands: Sequence[AnyArray], q: Shaped, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Keys and values, 0 where no query of the call sees them, if not all that stands there is finite: 0 * NaN is NaN.

    Of many masks every key is seen, and nothing is to be done.  Where windows and lengths alone hide keys, what is seen
    is a run.  Of the others keys and values are read once to know whether all is finite, and only if it is not every
    pair is looked at; that the program waits for.
    """
    if shows_all(spec, operands, q, k):
        return k, v
    if run := seen_run(moved(spec.terms(operands)), q.shape[1], k.shape[1]):
        seen = in_run(run, jnp.arange(k.shape[1], dtype=jnp.int32))[..., None, None]
        return _shown(k, seen), _shown(v, seen)
    finite = jnp.all(jnp.isfinite(k)) & jnp.all(jnp.isfinite(v))
    return jax.lax.cond(finite, lambda k, v: (k, v), functools.partial(cleaned, spec, operands, q), k, v)


def shows_all(spec: Spec, operands: Sequence[AnyArray], q: Shaped, k: Shaped) -> bool:
    """Whether it is certain that every key is seen by some query of the call."""
    return span(moved(spec.terms(operands))).shows_all(q.shape[1], k.shape[1])


def in_run(run: SeenRun, j: jax.Array) -> jax.Array:
    """Which keys j, `[..]` or `[b, ..]`, are in the run, `[b or 1, ..]`."""
    wide = [jnp.asarray(x, jnp.int32).reshape(-1, *[1] * max(1, j.ndim - 1)) for x in run]
    return (wide[0] <= j) & (j < wide[1])


def _shown(x: jax.Array, seen: jax.Array) -> jax.Array:
    """Keys or values `[b, s, g, d]`, 0 where they are not `seen`, `[b, s, g, 1]`: of those that elements of the batch
    share, where none of them sees them."""
    every = seen if len(x) >= len(seen) else jnp.any(seen.reshape(-1, len(x), *seen.shape[1:]), axis=0)
    every = jnp.tile(every, (len(x) // len(every), 1, 1, 1))
    return jnp.where(every, x, jnp.zeros_like(x))


def cleaned(
    spec: Spec, operands: Sequence[AnyArray], q: Shaped, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Keys and values, 0 where no query of the call sees them; every pair is looked at."""
    (t, h), (s, g) = q.shape[1:3], k.shape[1:3]
    b = max([1, *(x.shape[0] for x, axes in zip(operands, spec.signature.axes, strict=True) if "b" in axes)])
    query = Tiling(t, min(t, max(1, _PAIRS // (b * h * s))))

    def more(n: jax.Array, seen: jax.Array) -> jax.Array:
        at = {"b": (0, b), "h": (0, h), "s": (0, s), "t": (query.start(n), query.block)}
        step = Step(at, h // g)
        tiles = [step.operand(x, axes) for x, axes in zip(operands, spec.signature.axes, strict=True)]
        sees = lambda tiles: jnp.any(spec.signature.fill(tiles).attends(*step.positions()), axis=0)
        some = _terms.lift(sees, spec.signature.axes, ())(tiles)
        has = [any(a in axes for axes in spec.signature.axes) for a in "bhh"]
        some = some.reshape(*(n if y else 1 for n, y in zip((b, g, h // g), has, strict=True)), -1)
        return seen | jnp.moveaxis(jnp.any(some, axis=2), 1, 2)[..., None]

    seen = jax.lax.fori_loop(0, query.count, more, jnp.zeros((b, s, g, 1), bool))
    return _shown(k, seen), _shown(v, seen)
