"""What the kernels of both directions share: terms on the tile of a warpgroup, and who does what in a block."""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jattn_kernels.gpu.layout import Staging, swizzle
from jattn_kernels.gpu.lowering import Column, Row, lowered
from jattn_kernels.gpu.machine import Simulated, Warpgroup
from jattn_kernels.gpu.sizes import TileSizes, by_eights
from jattn_kernels.tiles.functions import LOG2E, TileFunctions
from jattn_kernels.tiles.place import Index

REGISTERS = 240, 24  # for a thread that computes, and one that copies: with two warpgroups that compute they are all


def tiles_in(n: int, rows: int, width: int, dtype: jnp.dtype, columns: int) -> Any:
    """Shared memory for n tiles of queries, keys or values."""
    return plgpu.SMEM((n, rows, width), dtype, transforms=swizzle(width, dtype.itemsize, columns))


def entry(b: Index, batch: int) -> Index:
    """Which entry of an array with a batch axis of that length belongs to element b."""
    return b % batch if batch > 1 else 0


def launch(
    kind: type[ThreadBlock],
    name: str,
    grid: dict[str, int],
    *,
    interpret: plgpu.InterpretGPUParams | None,
    computing: int = 2,
    **options: Any,
) -> Callable:
    """A kernel with a block of that kind at every place of the grid.

    `name` is what profiles and dumps show; of each block `computing` warpgroups compute, and one more copies if the
    kind has one that does; `options` are `plgpu.kernel`'s `out_type` and `scratch_types`, and beyond those what the
    block takes.
    """
    of_kernel = {x: options.pop(x) for x in ("out_type", "scratch_types")}

    def body(*refs: jax.Ref | None) -> None:
        # Each role makes its own: what both had read before they part would stand in registers of both.
        block = functools.partial(kind, refs, interpret=interpret, **options)
        if not kind.copies:
            block().compute(0)
            return
        wg = lax.axis_index("wg")
        pl.when(wg == computing)(lambda: block().copy())
        pl.when(wg != computing)(lambda: block().compute(wg))

    body.__name__ = name
    if kind.copies:
        of_kernel |= {"num_threads": computing + 1, "thread_name": "wg"}
    return plgpu.kernel(
        body,
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        compiler_params=plgpu.CompilerParams(approx_math=True, **kind.parameters),
        interpret=interpret,
        **of_kernel,
    )


class ThreadBlockOptions(TypedDict):
    """What every block takes; see `ThreadBlock`."""

    functions: TileFunctions
    staging: Staging
    sizes: TileSizes
    lengths: tuple[int, int]
    interpret: plgpu.InterpretGPUParams | None


class ThreadBlock:
    """A block of threads: its tile of rows, and the columns that go by.

    `lengths`: t and s.
    """

    layout = plgpu.Layout.WGMMA  # of a tile of scores over the registers of a warpgroup
    machines: tuple[type[Warpgroup], type[Warpgroup]] = Warpgroup, Simulated
    copies = True  # whether a warpgroup does nothing else; if not, there is one in all
    needed: int | None = None  # warpgroups of a block that compute, if not one for each `height` of its rows
    parameters: Mapping[str, Any] = MappingProxyType({"lowering_semantics": plgpu.LoweringSemantics.Warpgroup})
    operands: Sequence[jax.Ref]
    staged: Sequence[Any]
    b: jax.Array

    def __init__(
        self,
        functions: TileFunctions,
        staging: Staging,
        sizes: TileSizes,
        lengths: tuple[int, int],
        interpret: plgpu.InterpretGPUParams | None,
    ):
        self.functions, self.staging, self.sizes = functions, staging, sizes
        self.t, self.s = lengths
        assert functions.scale is not None  # on GPU the scale is never a factor of the query
        self.scale = functions.scale
        self.machine = self.machines[interpret is not None](self.layout)

    @classmethod
    def scratch(cls, d: int, e: int, dtype: jnp.dtype, sizes: TileSizes, simulated: bool) -> Any:
        """What `own` is: the scratch that is the machine's alone, for keys of width d and values of width e."""
        del d, e, dtype, sizes, simulated

    @classmethod
    def warpgroups(cls, sizes: TileSizes) -> int:
        """How many of a block compute; a tile has rows for each of them.

        Raises:
          ValueError: if it has not.
        """
        computing = cls.needed or sizes.rows // sizes.height
        if sizes.rows != computing * sizes.height:
            what = f"a tile has {computing * sizes.height} rows, {sizes.height} for each warpgroup"
            raise ValueError(f"{what}, not {sizes.rows}")
        return computing

    @classmethod
    def barrier(cls, **options: Any) -> Any:
        """The scratch of barriers; who copies what it needs itself has none."""
        return plgpu.Barrier(**options) if cls.copies else None

    @classmethod
    def length(cls, n: int) -> int:
        """The length of an axis of queries or keys in global memory; threads that copy for themselves look at ends."""
        return by_eights(n) if cls.copies else n

    @classmethod
    def filled_up(cls, x: jax.Array) -> jax.Array:
        """`[b, n, heads, width]` of that length, with zeros past the end: a copy, where eights do not divide n."""
        missing = cls.length(x.shape[1]) - x.shape[1]
        return jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) if missing else x

    @classmethod
    def stretch(cls, sizes: TileSizes) -> int:
        """How many columns of a tile in shared memory stand together at most."""
        return sizes.columns  # a product takes no more at once

    def copy(self) -> None:
        """What the warpgroup that copies does."""
        raise NotImplementedError

    def compute(self, wg: Index) -> None:
        """What a warpgroup that computes does."""
        raise NotImplementedError

    # Terms

    def positions(self, row: Index, column: Index, columns: int) -> tuple[Row | Column, Row | Column]:
        """i and j of a warpgroup's tile whose first row and column stand there, made if a term asks for them."""
        rows = Row(functools.cache(lambda: self.machine.count_rows(self.sizes.height) + row))
        across = Column(functools.cache(lambda: self.machine.count_columns(columns) + column))
        return (rows, across) if self.staging.rows == "t" else (across, rows)

    def parts(
        self, place: Index, slot: Index, resident: Sequence[Any], columns: slice, first: tuple[Index, Index]
    ) -> list[Any]:
        """The operands' parts of some columns of a tile, of the rows of the block's first warpgroup or of its second.

        `first`: the first row of the block and the first column of its tile.
        """
        return self.staging.read(self.machine, resident, self.staged, slot, place, columns, first)

    def evaluate(
        self,
        fn: Callable,
        tiles: Sequence[Any],
        given: Callable[[slice], Any],
        keep: Callable[[slice, Any], Any] = lambda columns, piece: piece,
    ) -> Any:
        """fn(*tiles, *given), a piece of the columns at a time: tiles of results stand side by side, rows add up.

        Tiles are arrays, or give one for `tile[:, columns]`.  `keep` says what is held of a piece until all are there.
        """
        machine, piece = self.machine, self.sizes.piece
        results: list[Any] = []
        for at in range(0, self.sizes.columns, piece):
            columns = slice(at, at + piece)
            before = jax.tree.leaves(results[-1]) if results else []
            cut = machine.after([x[:, columns] for x in tiles], before)
            results.append(keep(columns, lowered(fn, cut[0].shape, machine)(*cut, *given(columns))))
        return jax.tree.map(self._together, *results, is_leaf=lambda x: isinstance(x, Row))

    def _together(self, *pieces: Row | jax.Array) -> Row | jax.Array:
        if isinstance(pieces[0], Row):
            return Row(sum(x.x for x in pieces))
        return self.machine.join(pieces)

    def scores(
        self,
        score: jax.Array,
        i: jax.Array,
        j: jax.Array,
        parts: Sequence[Any],
        masked: bool,
        real: jax.Array | bool = True,
    ) -> jax.Array:
        """The scores of a tile from its products, -inf where a pair does not attend or is not `real`."""
        if self.functions.scaled:
            score = score * self.scale
        live = j < self.s if masked and self.s % self.sizes.keys(self.staging.rows) else True
        return self.functions.scores(score, i, j, masked, live & real, parts)

    def unit(self) -> float:
        """log2(e) where products were made scores before, else what makes scores of them, log2(e) included."""
        return LOG2E if self.functions.scaled else self.scale

    # Copies

    def copier(self, arrived: jax.Ref) -> Callable[[jax.Ref, Any, jax.Ref], None]:
        """How operands are copied, where a barrier counts what has arrived."""
        return lambda ref, at, to: plgpu.copy_gmem_to_smem(ref.at[at], to, arrived)

    def stream(self, count: Index, free: Sequence[jax.Ref], bring: Sequence[Callable[[Index, Index], None]]) -> None:
        """Brings the n-th tile to its slot once what was there is used up; `free` and `bring` go together."""

        def one(n: jax.Array, _: None) -> None:
            slot = lax.rem(n, jnp.int32(self.sizes.steps))
            for used, copy in zip(free, bring, strict=True):
                pl.when(n >= self.sizes.steps)(lambda used=used: plgpu.barrier_wait(used.at[slot]))
                copy(n, slot)

        lax.fori_loop(0, count, one, None)
