"""Products on Blackwell: what they add up to stands in tensor memory, 128 rows of 512 columns of 32 bits.

Each warpgroup computes a tile of all 128 rows, and issues its own products: the matrix unit takes one after the other,
so that those of one warpgroup are computed while another is at its exponentials.  Where a product takes weights from
tensor memory, they stand where scores did.

That two warpgroups do not race is argued here and shown by no tool: the simulator looks for races in whole arrays, and
takes the tiles of two, which stand in one array beside each other, for one place.  It finds none with one warpgroup,
and with two the numbers are right; nothing has run on a GPU yet.  Two warpgroups share the following and nothing else.

- Slots of keys and values, or of queries.  They are copied to once all that read them have arrived at `free`, and each
  arrives when the products that read the slot are computed and its own reads have come to registers.
- The sums of `backward_keys`.  Only products write to them.  A warpgroup issues its own after it has waited for
  `added` of the other, which arrives there when its products are computed; the first waits for nothing, and clears the
  sums before.  In the end both wait for `written` before either reads them.

Tiles and the barriers of their products are each warpgroup's own.  All its threads have read a tile before one of them
issues what overwrites it: `wait_load_tmem` and `commit_tmem` end with a barrier of the warpgroup.
"""

# The type checker sees jax 0.10, and Mosaic is that of 0.11 and later.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jattn_kernels.gpu.gradients import Held
from jattn_kernels.gpu.layout import stretch
from jattn_kernels.gpu.machine import Warpgroup
from jattn_kernels.gpu.sizes import TileSizes

ROWS, COLUMNS = 128, 512
_PIECE = 32  # columns that are in registers at once where a sum is changed or read


def check(columns: int) -> None:
    """Raises ValueError if there are fewer than so many columns."""
    if columns > COLUMNS:
        raise ValueError(
            f"tensor memory has {COLUMNS} columns, and these tiles take {columns}: ask for fewer rows or columns"
        )


def tiles_of_scores(n: int, columns: int, dtype: jnp.dtype) -> Any:
    """Tensor memory for n tiles of products, and, at the same place, of what becomes of them, in 16 bits.

    Those are half as wide, and begin where the products do: they are the first half of tiles of twice the columns.
    """
    products = plgpu.TMEM((n, ROWS, columns), jnp.float32)
    return plgpu.RefUnion(products, plgpu.TMEM((n, ROWS, 2 * columns), dtype, packed=True))


def sums(width: int, *n: int) -> Any:
    """Tensor memory for a sum over tiles, or for n of them."""
    return plgpu.TMEM((*n, ROWS, width), jnp.float32)


def done() -> Any:
    """For each of two warpgroups a barrier that says its product is computed."""
    return plgpu.Barrier(num_barriers=2, orders_tensor_core=True)


class TensorMemoryTile(NamedTuple):
    """A tile in tensor memory, of which as many columns come to registers as are asked for, `tile[:, columns]`."""

    machine: Warpgroup
    ref: jax.Ref

    def __getitem__(self, at: tuple[slice, slice]) -> jax.Array:
        _, columns = at
        return load(self.machine, self.ref.at[:, pl.ds(columns.start, columns.stop - columns.start)])


class BackwardTiles(NamedTuple):
    """Tiles of scores and of the weights' gradients, and when their products are done."""

    scores: Any
    weights: Any
    scores_done: Any
    weights_done: Any

    @classmethod
    def scratch(cls, n: int, columns: int, dtype: jnp.dtype) -> BackwardTiles:
        """Tensor memory and barriers of n warpgroups."""
        tiles = tiles_of_scores(n, columns, dtype)
        return cls(tiles, tiles, done(), done())

    def products(
        self, machine: Warpgroup, wg: jax.Array, *operands: tuple[jax.Ref, jax.Ref]
    ) -> tuple[TensorMemoryTile, TensorMemoryTile]:
        """The products of the first pair of operands and of the second, each a `[128, d]` times b `[n, d]` transposed.

        With one pair alone its product stands for both.
        """
        places = (self.scores, self.scores_done), (self.weights, self.weights_done)
        places = [(tiles[0].at[wg], done.at[wg]) for tiles, done in places[: len(operands)]]
        for (a, b), (to, done) in zip(operands, places, strict=True):
            plgpu.tcgen05_mma(to, a, b.transpose((1, 0)), done, accumulate=False)
        for _, done in places:
            plgpu.barrier_wait(done)
        return TensorMemoryTile(machine, places[0][0]), TensorMemoryTile(machine, places[-1][0])

    def keep(self, wg: jax.Array, columns: slice, weight: jax.Array | None, ds: jax.Array | None) -> tuple[Held, Held]:
        """Puts some columns of the weights and of the scores' gradients in 16 bits where their products were read, so
        that no registers hold them until the tile is whole: `KEPT` for each, None where there are none.

        What is half as wide ends before the products that are still to be read begin.
        """

        def put(tiles: Sequence[jax.Ref], x: jax.Array | None) -> Held:
            if x is None:
                return None
            ref = tiles[1].at[wg]
            plgpu.async_store_tmem(ref.at[:, pl.ds(columns.start, columns.stop - columns.start)], x.astype(ref.dtype))
            return KEPT

        return put(self.scores, weight), put(self.weights, ds)


KEPT = ()
"""What `keep` returns in the place of a tile that stands in tensor memory."""


def kept(ref: jax.Ref, columns: int) -> jax.Ref:
    """The tile that `BackwardTiles.keep` put there, once it is committed."""
    return ref.at[:, pl.ds(0, columns)]


def multiply(to: jax.Ref, a: jax.Ref, b: jax.Ref, barrier: jax.Ref, accumulate: bool = False) -> None:
    """a `[128, m]` times b `[m, n]` in shared memory, or that and what stands there; waits until it is computed."""
    plgpu.tcgen05_mma(to, a, b, barrier, accumulate=accumulate)
    plgpu.barrier_wait(barrier)


def load(machine: Warpgroup, ref: jax.Ref) -> jax.Array:
    """A tile in registers; its place may be written to afterwards."""
    x = machine.tile(plgpu.async_load_tmem(ref))
    plgpu.wait_load_tmem()
    return x


def store(ref: jax.Ref, x: jax.Array) -> jax.Ref:
    """What became of a tile's products, in 16 bits, to its place, which a product may take it from."""
    there = kept(ref, x.shape[1])
    plgpu.async_store_tmem(there, x)
    plgpu.commit_tmem()
    return there


def clear(machine: Warpgroup, ref: jax.Ref) -> None:
    """Fills tensor memory with zeros."""
    for columns in pieces(ref.shape[-1]):
        plgpu.async_store_tmem(ref.at[:, columns], machine.zeros(ROWS, columns.size))
    plgpu.commit_tmem()


def scale(machine: Warpgroup, ref: jax.Ref, factor: jax.Array) -> None:
    """A sum times a factor for each row."""
    for columns in pieces(ref.shape[-1]):
        x = load(machine, ref.at[:, columns])
        plgpu.async_store_tmem(ref.at[:, columns], x * machine.broadcast(factor, 0, x.shape))
    plgpu.commit_tmem()


def write(
    machine: Warpgroup, ref: jax.Ref, to: jax.Ref, sizes: TileSizes, finish: Callable[[jax.Array], jax.Array]
) -> None:
    """A sum to a tile in shared memory, as `block.tiles_in` makes them, after `finish`."""
    width = ref.shape[-1]
    for columns in pieces(width, stretch(width, to.dtype.itemsize, sizes.columns)):
        to.at[:, columns][...] = finish(load(machine, ref.at[:, columns])).astype(to.dtype)


def pieces(width: int, size: int = _PIECE) -> Iterator[Any]:
    """Slices of at most `size` columns, which together are all of them."""
    for at in range(0, width, size):
        yield pl.ds(at, min(size, width - at))
