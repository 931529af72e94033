"""A ring of devices: what goes round, and how each computes its pieces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jattn_kernels.tiles.work import EMPTY, FULL, PARTIAL, kind_of
from jax import lax

from jattn import _terms
from jattn._terms import AnyArray, Offsets, Operand, block_tables
from jattn._terms.block_tables import Tiling
from jattn._terms.moved import moved
from jattn.backends.contract import Fused, Spec
from jattn.parallel._ring.pieces import Extent, Group, Piece, Pieces, Way
from jattn.parallel._shares import Shares

LEAD, _FIRST = -1, -2  # in the place of an operand's number: what a piece adds to the call's own offsets


@dataclasses.dataclass(frozen=True)
class RingSettings:
    """How the sequence lies over devices, and who computes on each of them."""

    axis: str
    devices: int
    zigzag: bool
    inner: Fused


class Ring:
    """A call as one of its devices sees it."""

    def __init__(self, spec: Spec, q: jax.Array, k: jax.Array, operands: Sequence[AnyArray]):
        settings: RingSettings = spec.backend.settings
        self.settings, self.spec, self.axes = settings, spec, spec.signature.axes
        self.n, self.me = settings.devices, lax.axis_index(settings.axis)
        self.shares = Shares(settings.devices, settings.zigzag)
        self.t, self.s = q.shape[1], k.shape[1]
        self.traveller = ["s" in a and "t" not in a for a in self.axes]
        self.terms = spec.terms([n for n, _ in enumerate(operands)])
        self.pieces = Pieces(self.terms, self.t, self.s, self.shares)

    # What goes round

    def send(self, tree: Any) -> Any:
        """Sends the arrays to the next device, and gives those of the one before."""
        pairs = [(i, (i + 1) % self.n) for i in range(self.n)]
        return jax.tree.map(lambda x: lax.ppermute(x, self.settings.axis, pairs), self.vary(tree))

    def vary(self, tree: Any) -> Any:
        """The arrays marked as varying over the axis.  While lowering, JAX knows that only of what permutes and
        `axis_index` give."""
        axis = self.settings.axis
        varies = lambda x: axis in jax.typeof(x).manual_axis_type.varying
        return jax.tree.map(lambda x: x if varies(x) else lax.pcast(x, (axis,), to="varying"), tree)

    def travellers(self, values: Sequence[Any]) -> list[Any]:
        """Of what belongs to the operands, that of those which go round with the keys."""
        return [x for x, y in zip(values, self.traveller, strict=True) if y]

    def residents(self, values: Sequence[Any]) -> list[Any]:
        """Of what belongs to the operands, that of those which stay, since keys go round without them."""
        return [x for x, y in zip(values, self.traveller, strict=True) if not y]

    def joined(self, travellers: Sequence[Any], residents: Sequence[Any]) -> list[Any]:
        """Both, in the order of the operands."""
        moving, staying = iter(travellers), iter(residents)
        return [next(moving) if y else next(staying) for y in self.traveller]

    def round(self, step: Callable, carry: Any) -> Any:
        """carry = step(carry, i, source) of every step; the first is apart, since there more is known while tracing."""
        carry = self.vary(step(self.vary(carry), 0, self.me))
        if self.n == 1:
            return carry
        body = lambda carry, i: (self.vary(step(carry, i, (self.me - i) % self.n)), None)
        return lax.scan(body, carry, jnp.arange(1, self.n, dtype=jnp.int32))[0]

    # Which pieces are computed, and how

    def visit(self, i: Any, source: Any, body: Callable[[Piece, Any], Any], carry: Any) -> Any:
        """carry = body(piece, carry) of every piece of step i that may have something to compute."""
        first = isinstance(i, int)
        if first and self.pieces.in_order:
            return body(self._whole(source, PARTIAL), carry)
        if not first and (choices := self.pieces.rectangles()) is not None:
            which, rectangles = choices
            branch = lambda x: lambda carry: carry if x is None else self.vary(body(self._rectangle(source, *x), carry))
            return lax.switch(jnp.asarray(which)[self.me, source], [branch(x) for x in rectangles], self.vary(carry))
        for group in self.pieces.groups(first):
            if len(group.pairs) == 1:
                carry = body(self._piece(group, source, *group.pairs[0]), carry)
                continue
            pairs = jnp.asarray(group.pairs, jnp.int32)
            one = lambda n, carry, group=group, pairs=pairs: self.vary(
                body(self._piece(group, source, pairs[n, 0], pairs[n, 1]), carry)
            )
            carry = lax.fori_loop(0, len(group.pairs), one, self.vary(carry))
        return carry

    def _piece(self, group: Group, source: Any, a: Any, b: Any) -> Piece:
        t, s = self.pieces.chunk
        row, column = self.shares.chunk(self.me, a), self.shares.chunk(source, b)
        return Piece((a * t, t), (b * s, s), row, column, source, group.level, group.kinds)

    def _rectangle(self, source: Any, rows: Extent, columns: Extent) -> Piece:
        return Piece(rows, columns, self.me, source, source, False, (FULL,))

    def _whole(self, source: Any, kind: int) -> Piece:
        return Piece((0, self.t), (0, self.s), self.me, source, source, True, (kind,))

    def choose(self, piece: Piece, operands: Sequence[Any], run: Callable[[Way], Any], idle: Any) -> Any:
        """run(way) of a piece that has something to compute, idle of one that has not."""
        ways = {FULL: Way(False, piece.level), PARTIAL: Way(True, piece.level)}
        branch = lambda kind: (lambda: self.vary(idle)) if kind == EMPTY else (lambda: self.vary(run(ways[kind])))
        branches = [branch(x) for x in piece.kinds]
        if len(branches) == 1:
            return branches[0]()
        kind = self._kind(piece, operands)
        return lax.switch(sum((kind > x).astype(jnp.int32) for x in piece.kinds[:-1]), branches)

    def _kind(self, piece: Piece, operands: Sequence[Any]) -> jax.Array:
        """The kind of a piece, known at run time."""
        if self.pieces.table is not None:
            return jnp.asarray(self.pieces.table)[piece.row, piece.column]
        spec, order = self.inner(Way(True, piece.level), self.spec.dtype)
        mask = moved(spec.terms(self.cut_all(order, operands, piece)))
        some, every = block_tables.answers(mask, *(Tiling(x, x) for x in self.pieces.chunk))
        some, every = jnp.any(jnp.asarray(some)), jnp.all(jnp.asarray(every & some))
        return kind_of(some, every)

    def inner(self, way: Way, dtype: jnp.dtype) -> tuple[Spec, list[int]]:
        """The spec of a piece's call, and the numbers of its operands."""
        terms = self.spec.terms([n for n, _ in enumerate(self.axes)])
        mask, own = terms.mask if way.masked else None, terms.offsets
        at = lambda number, own: Operand(number, own.axes if isinstance(own, Operand) else "")
        offsets = Offsets(own.lead if way.level else at(LEAD, own.lead), at(_FIRST, own.first))
        if mask is None and not terms.mods and not terms.gates:
            offsets = Offsets()
        order, signature = _terms.split(dataclasses.replace(terms, mask=mask, offsets=offsets))
        return dataclasses.replace(self.spec, backend=self.settings.inner, signature=signature, dtype=dtype), order

    @property
    def wide(self) -> jnp.dtype:
        """The dtype of a piece's output."""
        own = self.settings.inner.out_as_query
        return self.spec.dtype if own else jnp.promote_types(self.spec.dtype, jnp.float32)

    # Parts of arrays

    def _window(self, axes: str, piece: Piece) -> list[tuple[int, Any, int]]:
        """(dimension, start, size) of the axes t and s of an operand."""
        extents = {"t": piece.rows, "s": piece.columns}
        if "t" in axes:  # an operand along queries stays, with all of s
            extents["s"] = (piece.source * self.s + piece.columns[0], piece.columns[1])
        return [(n, *extents[a]) for n, a in enumerate(axes) if a in "ts"]

    def cut(self, x: Any, axes: str, piece: Piece) -> Any:
        """What a piece needs of an array with such axes."""
        for dim, start, size in self._window(axes, piece):
            x = x if x.shape[dim] == size else lax.dynamic_slice_in_dim(x, start, size, dim)
        return x

    def cut_all(self, order: Sequence[int], operands: Sequence[Any], piece: Piece) -> list[Any]:
        """The operands of a piece's call."""
        t, s = self.pieces.chunk
        i, j = (jnp.asarray(x, jnp.int32) for x in (piece.row * t, piece.column * s))
        own, value = self.terms.offsets, lambda x: operands[x.array] if isinstance(x, Operand) else jnp.int32(x)
        moved_by = {LEAD: lambda: value(own.lead) + i - j, _FIRST: lambda: value(own.first) + j}
        return [moved_by[n]() if n < 0 else self.cut(operands[n], self.axes[n], piece) for n in order]

    def add(self, whole: jax.Array, part: jax.Array, axes: str, piece: Piece) -> jax.Array:
        """The sums of a gradient with those of a piece."""
        first = {dim: start for dim, start, _ in self._window(axes, piece)}
        # Of one dtype, as JAX asks: under 64-bit types Python's ints are not of the others'.
        start = [jnp.asarray(first.get(n, 0), jnp.int32) for n in range(whole.ndim)]
        old = lax.dynamic_slice(whole, start, part.shape)
        return lax.dynamic_update_slice(whole, old + part.astype(whole.dtype), start)


def of_rows(tree: Any, rows: Extent) -> Any:
    """Some query rows of arrays `[b, t, ..]`."""
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, *rows, 1), tree)


def with_rows(tree: Any, rows: Extent, part: Any) -> Any:
    """The arrays with other numbers in these rows."""
    return jax.tree.map(lambda x, y: lax.dynamic_update_slice_in_dim(x, y, rows[0], 1), tree, part)
