"""Ring attention as a backend: keys and values go round the devices, and each attends to what it holds just then.

It binds the primitives of an inner backend, whose kernels compute what one device's queries see of another's keys.  So
every derivative is inherited: gradients need the lse over all keys alone, and nothing is saved for each step.

Device r of n has a chunk of the queries and one of the keys; or, in zig-zag order, the chunks r and 2n - 1 - r of 2n,
so that under a causal mask all have as much to do.  At step i it holds the keys of device r - i.  Those are sent on
before the kernels run that need them, so that the network works while they do.  A piece of queries and keys of which no
pair attends is not computed, and where all do the mask is not looked at.

What has an axis s and no axis t goes round with the keys, and so do its gradients; what has both holds all of s.  Sums
over steps are float32 or wider.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jattn_kernels import online_softmax
from jattn_kernels.online_softmax import State
from jattn_kernels.tiles.work import EMPTY, FULL, PARTIAL, kind_of
from jax import lax

from jattn import _terms
from jattn._derivatives import primitives
from jattn._derivatives.primitives import attend_backward, attend_p, attend_tangent
from jattn._derivatives.twin import attend
from jattn._terms import AnyArray, Offsets, Operand, block_tables
from jattn._terms.block_tables import Tiling
from jattn._terms.moved import moved
from jattn._terms.reach import span
from jattn.backends.contract import Fused, Gradients, Key, Lse, Out, Query, Result, Spec, Tangents, Value
from jattn.masks import Mask
from jattn.mods import Bias, SoftCap
from jattn.parallel._shares import Shares, unzigzag

_LEAD, _FIRST = -1, -2  # in the place of an operand's number: what a piece adds to the call's own offsets


@dataclasses.dataclass(frozen=True)
class RingSettings:
    """How the sequence lies over devices, and who computes on each of them."""

    axis: str
    devices: int
    zigzag: bool
    inner: Fused


class _Way(NamedTuple):
    """How a piece is computed: whether the mask is looked at, and whether its first query and key stand level."""

    masked: bool
    level: bool


Extent = tuple[Any, int]
"""Where a part of an axis begins, and how long it is."""


class _Piece(NamedTuple):
    """A part of a device's queries and a part of the keys that it holds; chunks, or all of them where all is full."""

    rows: Extent
    columns: Extent
    row: Any  # the number of the chunk of all queries
    column: Any
    source: Any  # the device whose keys they are
    level: bool
    kinds: tuple[int, ...]
    """Which of empty, partial and full the piece may be, as far as tracing knows."""


class _Group(NamedTuple):
    """Pieces of one step that are computed alike: one after the other, in a loop that holds their kernels once."""

    pairs: tuple[tuple[int, int], ...]
    """For each piece the number of its chunk among the device's chunks of queries, and among those of keys."""
    level: bool
    kinds: tuple[int, ...]


def kinds(mask: Mask | None, t: int, s: int, shares: Shares) -> np.ndarray | None:
    """The kind of every piece of a call, `[chunks of queries, chunks of keys]`; None where that depends on arrays."""
    if jax.tree.leaves(mask):
        return None
    answer = block_tables.answers(mask, Tiling(t, t // shares.count), Tiling(s, s // shares.count))
    some, every = np.asarray(answer.some).any((0, 1)), np.asarray(answer.every & answer.some).all((0, 1))
    return kind_of(some, every)


class _Ring:
    def __init__(self, spec: Spec, q: jax.Array, k: jax.Array, operands: Sequence[AnyArray]):
        settings: RingSettings = spec.backend.settings
        self.settings, self.spec, self.axes = settings, spec, spec.signature.axes
        self.n, self.me = settings.devices, lax.axis_index(settings.axis)
        self.shares = Shares(settings.devices, settings.zigzag)
        self.t, self.s = q.shape[1], k.shape[1]
        self.traveller = ["s" in a and "t" not in a for a in self.axes]
        self.terms = spec.terms([n for n, _ in enumerate(operands)])
        self.table = kinds(moved(self.terms), self.t * self.n, self.s * self.n, self.shares)

    @property
    def chunk(self) -> tuple[int, int]:
        """How many queries and how many keys a chunk has."""
        return self.t // self.shares.each, self.s // self.shares.each

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
        return [x for x, y in zip(values, self.traveller, strict=True) if y]

    def residents(self, values: Sequence[Any]) -> list[Any]:
        return [x for x, y in zip(values, self.traveller, strict=True) if not y]

    def joined(self, travellers: Sequence[Any], residents: Sequence[Any]) -> list[Any]:
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

    def visit(self, i: Any, source: Any, body: Callable[[_Piece, Any], Any], carry: Any) -> Any:
        """carry = body(piece, carry) of every piece of step i that may have something to compute."""
        first = isinstance(i, int)
        if first and self._in_order:
            return body(self._whole(source, PARTIAL), carry)
        if not first and (choices := self._rectangles()) is not None:
            which, rectangles = choices
            branch = lambda x: lambda carry: carry if x is None else self.vary(body(self._rectangle(source, *x), carry))
            return lax.switch(jnp.asarray(which)[self.me, source], [branch(x) for x in rectangles], self.vary(carry))
        for group in self._groups(first):
            if len(group.pairs) == 1:
                carry = body(self._piece(group, source, *group.pairs[0]), carry)
                continue
            pairs = jnp.asarray(group.pairs, jnp.int32)
            one = lambda n, carry, group=group, pairs=pairs: self.vary(
                body(self._piece(group, source, pairs[n, 0], pairs[n, 1]), carry)
            )
            carry = lax.fori_loop(0, len(group.pairs), one, self.vary(carry))
        return carry

    def _piece(self, group: _Group, source: Any, a: Any, b: Any) -> _Piece:
        t, s = self.chunk
        row, column = self.shares.chunk(self.me, a), self.shares.chunk(source, b)
        return _Piece((a * t, t), (b * s, s), row, column, source, group.level, group.kinds)

    def _rectangle(self, source: Any, rows: Extent, columns: Extent) -> _Piece:
        return _Piece(rows, columns, self.me, source, source, False, (FULL,))

    def _whole(self, source: Any, kind: int) -> _Piece:
        return _Piece((0, self.t), (0, self.s), self.me, source, source, True, (kind,))

    @property
    def _free(self) -> bool:
        """Whether nothing but the mask looks at positions."""
        return not self.terms.gates and all(isinstance(x, (SoftCap, Bias)) for x in self.terms.mods)

    @property
    def _in_order(self) -> bool:
        """Whether a device's own queries and keys may take each other for neighbours: the mask goes by their order."""
        near, same = span(moved(self.terms)), self.t == self.s
        return self._free and same and near.exact and (near.left, near.right) == (np.inf, 0)

    def _rectangles(self) -> tuple[np.ndarray, list[tuple[Extent, Extent] | None]] | None:
        """All of a later step as one part of the queries and one of the keys that are full, if that is what it is:
        which one by the device and the keys' device, and what there are.  So it is in zig-zag order under a causal
        mask: all queries and the keys' first chunk, or the second chunk of queries and all keys."""
        if not self._free or self.table is None:
            return None
        every, each = np.arange(self.n), range(self.shares.each)
        chunks = np.stack([self.shares.chunk(every, a) for a in each])
        full = self.table[chunks[:, None, :, None], chunks[None, :, None, :]]  # [a, b, device, keys' device]
        full[:, :, every, every] = EMPTY
        if (full == PARTIAL).any():
            return None
        patterns, which = np.unique((full == FULL).reshape(len(chunks) ** 2, -1), axis=1, return_inverse=True)
        rectangles = [self._extents(x.reshape(len(chunks), -1)) for x in patterns.T]
        if any(x == "scattered" for x in rectangles):
            return None
        return which.reshape(self.n, self.n).astype(np.int32), rectangles  # type: ignore[return-value]

    def _extents(self, full: np.ndarray) -> tuple[Extent, Extent] | str | None:
        rows, columns = np.flatnonzero(full.any(1)), np.flatnonzero(full.any(0))
        if not rows.size:
            return None
        (t, s), size = self.chunk, int(full.sum())
        if size != rows.size * columns.size:
            return "scattered"
        return (int(rows[0]) * t, rows.size * t), (int(columns[0]) * s, columns.size * s)

    def _groups(self, first: bool) -> list[_Group]:
        each = range(self.shares.each)
        pairs = list(itertools.product(each, each))
        level = first and self.chunk[0] == self.chunk[1]
        apart = [[x for x in pairs if x[0] == x[1]], [x for x in pairs if x[0] != x[1]]] if level else [pairs]
        groups = []
        for n, some in enumerate(apart):
            kinds = {x: self._kinds(*x, first) for x in some}
            busy = tuple(x for x in some if kinds[x] != (EMPTY,))
            every = tuple(sorted({k for x in busy for k in kinds[x]}))
            if busy:
                groups.append(_Group(busy, level and n == 0, every))
        return groups

    def _kinds(self, a: int, b: int, first: bool) -> tuple[int, ...]:
        """Which of empty, partial and full a pair of chunks may be, on any device."""
        if self.terms.mask is None:
            return (FULL,)
        if self.table is None:
            return (EMPTY, PARTIAL, FULL)
        every = np.arange(self.n)
        kinds = self.table[self.shares.chunk(every, a)][:, self.shares.chunk(every, b)]
        own = np.eye(self.n, dtype=bool)
        return tuple(sorted({int(x) for x in kinds[own if first else ~own]}))

    def choose(self, piece: _Piece, operands: Sequence[Any], run: Callable[[_Way], Any], idle: Any) -> Any:
        """run(way) of a piece that has something to compute, idle of one that has not."""
        ways = {FULL: _Way(False, piece.level), PARTIAL: _Way(True, piece.level)}
        branch = lambda kind: (lambda: self.vary(idle)) if kind == EMPTY else (lambda: self.vary(run(ways[kind])))
        branches = [branch(x) for x in piece.kinds]
        if len(branches) == 1:
            return branches[0]()
        kind = self._kind(piece, operands)
        return lax.switch(sum((kind > x).astype(jnp.int32) for x in piece.kinds[:-1]), branches)

    def _kind(self, piece: _Piece, operands: Sequence[Any]) -> jax.Array:
        """The kind of a piece, known at run time."""
        if self.table is not None:
            return jnp.asarray(self.table)[piece.row, piece.column]
        spec, order = self.inner(_Way(True, piece.level), self.spec.dtype)
        mask = moved(spec.terms(self.cut_all(order, operands, piece)))
        tilings = Tiling(self.chunk[0], self.chunk[0]), Tiling(self.chunk[1], self.chunk[1])
        some, every = block_tables.answers(mask, *tilings)
        some, every = jnp.any(jnp.asarray(some)), jnp.all(jnp.asarray(every & some))
        return kind_of(some, every)

    def inner(self, way: _Way, dtype: jnp.dtype) -> tuple[Spec, list[int]]:
        """The spec of a piece's call, and the numbers of its operands."""
        terms = self.spec.terms([n for n, _ in enumerate(self.axes)])
        mask, own = terms.mask if way.masked else None, terms.offsets
        at = lambda number, own: Operand(number, own.axes if isinstance(own, Operand) else "")
        offsets = Offsets(own.lead if way.level else at(_LEAD, own.lead), at(_FIRST, own.first))
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

    def _window(self, axes: str, piece: _Piece) -> list[tuple[int, Any, int]]:
        """(dimension, start, size) of the axes t and s of an operand."""
        extents = {"t": piece.rows, "s": piece.columns}
        if "t" in axes:  # all of s is here
            extents["s"] = (piece.source * self.s + piece.columns[0], piece.columns[1])
        return [(n, *extents[a]) for n, a in enumerate(axes) if a in "ts"]

    def cut(self, x: Any, axes: str, piece: _Piece) -> Any:
        for dim, start, size in self._window(axes, piece):
            x = x if x.shape[dim] == size else lax.dynamic_slice_in_dim(x, start, size, dim)
        return x

    def cut_all(self, order: Sequence[int], operands: Sequence[Any], piece: _Piece) -> list[Any]:
        """The operands of a piece's call."""
        t, s = self.chunk
        i, j = (jnp.asarray(x, jnp.int32) for x in (piece.row * t, piece.column * s))
        own, value = self.terms.offsets, lambda x: operands[x.array] if isinstance(x, Operand) else jnp.int32(x)
        moved_by = {_LEAD: lambda: value(own.lead) + i - j, _FIRST: lambda: value(own.first) + j}
        return [moved_by[n]() if n < 0 else self.cut(operands[n], self.axes[n], piece) for n in order]

    def add(self, whole: jax.Array, part: jax.Array, axes: str, piece: _Piece) -> jax.Array:
        """The sums of a gradient with those of a piece."""
        start = [0] * whole.ndim
        for dim, first, _ in self._window(axes, piece):
            start[dim] = first
        old = lax.dynamic_slice(whole, start, part.shape)
        return lax.dynamic_update_slice(whole, old + part.astype(whole.dtype), start)


def _merged(state: State, part: Result) -> State:
    """The softmax over the keys so far and those of a piece."""
    out, lse, remainder = part
    top = jnp.maximum(state.top, lse)
    safe = online_softmax.finite(top)
    past, share = jnp.exp(state.top - safe), jnp.exp(lse - safe) * jnp.exp(remainder)
    return State(top, state.total * past + share, state.out * past[..., None] + out * share[..., None])


def _of_rows(tree: Any, rows: Extent) -> Any:
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, *rows, 1), tree)


def _with_rows(tree: Any, rows: Extent, part: Any) -> Any:
    return jax.tree.map(lambda x, y: lax.dynamic_update_slice_in_dim(x, y, rows[0], 1), tree, part)


def forward(spec: Spec, q: Query, k: Key, v: Value, operands: list[jax.Array]) -> Result:
    """Softmax attention over all devices' keys; see `jattn.backends.contract.Fused.forward`."""
    ring, wide = _Ring(spec, q, k, operands), jnp.promote_types(q.dtype, jnp.float32)
    batches = [x.shape[0] for x, axes in zip((q, k, v, *operands), ("b",) * 3 + ring.axes, strict=True) if "b" in axes]

    def step(carry: tuple, i: Any, source: Any) -> tuple:
        (k, v, moving), state = carry
        ahead = ring.send((k, v, moving)) if ring.n > 1 else (k, v, moving)
        held = ring.joined(moving, ring.residents(operands))

        def visit(piece: _Piece, state: State) -> State:
            past = _of_rows(state, piece.rows)

            def run(way: _Way) -> State:
                inner, order = ring.inner(way, ring.wide)
                arrays = ring.cut(q, "bt", piece), ring.cut(k, "bs", piece), ring.cut(v, "bs", piece)
                args = ring.vary([*arrays, *ring.cut_all(order, held, piece)])
                return _merged(past, Result(*attend_p.bind(*args, spec=inner)))

            return _with_rows(state, piece.rows, ring.choose(piece, held, run, past))

        return ahead, ring.visit(i, source, visit, state)

    start = online_softmax.start((max(batches), *q.shape[1:3]), v.shape[-1], wide)
    _, state = ring.round(step, ((k, v, ring.travellers(operands)), start))
    out, lse, remainder = online_softmax.finish(state)
    return Result(out.astype(spec.dtype), lse, remainder)


def tangent(
    spec: Spec, q: Query, k: Key, v: Value, operands: list[jax.Array], result: Result, tangents: Tangents
) -> tuple[Out, Lse]:
    """Tangents of out and lse; see `jattn.backends.contract.Fused.tangent`."""
    ring = _Ring(spec, q, k, operands)
    held_result = primitives.without_infinity(result._replace(out=result.out.astype(ring.wide)))
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), (result.out, result.lse))

    def step(carry: tuple, i: Any, source: Any) -> tuple:
        (k, v, moving, dk, dv, dmoving), sums = carry
        ahead = ring.send(carry[0]) if ring.n > 1 else carry[0]
        held = ring.joined(moving, ring.residents(operands))
        dheld = ring.joined(dmoving, ring.residents(tangents.operands))

        def visit(piece: _Piece, sums: Any) -> Any:
            past = _of_rows(sums, piece.rows)

            def run(way: _Way) -> Any:
                inner, order = ring.inner(way, ring.wide)
                rows, columns = (lambda x, a=a: ring.cut(x, a, piece) for a in ("bt", "bs"))
                moves = tuple(n >= 0 and dheld[n] is not None for n in order)
                args = [rows(q), columns(k), columns(v), *ring.cut_all(order, held, piece), *map(rows, held_result)]
                args += [rows(tangents.q), columns(dk), columns(dv)]
                args += [ring.cut(dheld[n], ring.axes[n], piece) for n, y in zip(order, moves, strict=True) if y]
                moved = attend_tangent.bind(*ring.vary(args), spec=inner, active=(True,) * 3 + moves)
                return tuple(x + y.astype(x.dtype) for x, y in zip(past, moved, strict=True))

            return _with_rows(sums, piece.rows, ring.choose(piece, held, run, past))

        return ahead, ring.visit(i, source, visit, sums)

    going = k, v, ring.travellers(operands), tangents.k, tangents.v, ring.travellers(tangents.operands)
    _, (dout, dlse) = ring.round(step, (going, sums))
    return dout.astype(result.out.dtype), dlse.astype(result.lse.dtype)


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
    ring = _Ring(spec, q, k, operands)
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

        def visit(piece: _Piece, sums: Any) -> Any:
            def run(way: _Way) -> Any:
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
    dk, dv, moving = ring.send(of_keys) if ring.n > 1 else of_keys  # home
    every = ring.joined(moving, staying)
    like = lambda x, y: x.astype(y.dtype)
    return Gradients(
        like(dq, q), like(dk, k), like(dv, v),
        [None if x is None else like(x, y) for x, y in zip(every, operands, strict=True)],
    )  # fmt: skip


def twin(spec: Spec, q: Query, k: Key, v: Value, operands: Sequence[AnyArray]) -> tuple[jax.Array, jax.Array]:
    """out and lse in differentiable JAX, from all keys at once: what derivatives of higher order are derivatives of."""
    ring = _Ring(spec, q, k, operands)

    def gathered(x: Any, dim: int) -> jax.Array:
        x = lax.all_gather(ring.vary(x), ring.settings.axis, axis=dim, tiled=True)
        return unzigzag(x, ring.n, dim) if ring.settings.zigzag else x

    def with_all_keys(x: Any, axes: str) -> Any:
        if "s" not in axes:
            return x
        dim = axes.index("s")
        if "t" not in axes:
            return gathered(x, dim)
        return unzigzag(x, ring.n, dim) if ring.settings.zigzag else x

    k, v = gathered(k, 1), gathered(v, 1)
    every = [with_all_keys(x, axes) for x, axes in zip(operands, ring.axes, strict=True)]
    terms, own = spec.terms(list(range(len(operands)))), ring.terms.offsets
    lead = Operand(_LEAD, own.lead.axes if isinstance(own.lead, Operand) else "")
    order, signature = _terms.split(dataclasses.replace(terms, offsets=dataclasses.replace(own, lead=lead)))
    plain = dataclasses.replace(spec, backend=ring.settings.inner, signature=signature)
    results = []
    for n, rows in enumerate(ring.shares.slices(ring.t)):
        start = jnp.asarray(ring.shares.chunk(ring.me, n) * ring.chunk[0], jnp.int32)
        led = start + (operands[own.lead.array] if isinstance(own.lead, Operand) else own.lead)
        of_rows = lambda x, axes, rows=rows: x[(slice(None),) * axes.index("t") + (rows,)] if "t" in axes else x
        args = [led if m == _LEAD else of_rows(every[m], ring.axes[m]) for m in order]
        results.append(attend(plain, [q[:, rows], k, v, *args]))
    return jax.tree.map(lambda *x: jnp.concatenate(x, 1), *results)


def backend(settings: RingSettings) -> Fused:
    """The ring with such settings."""
    refuses = lambda problem, target: None  # who makes it has looked
    return Fused("ring", refuses, forward, tangent, backward, settings=settings, twin=twin)
