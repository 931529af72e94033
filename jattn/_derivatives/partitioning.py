"""Where in a mesh a call lies, and what each device does of it.

Batch elements and heads do not meet in attention: a device computes those that it has, by the kernel of one device, and
adds up gradients of what it shares with others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jattn._call.layouts import Axes, as_axes, named
from jattn._derivatives.mapped import lengths
from jattn._terms import Operand, Size
from jattn.backends.contract import Spec
from jattn.masks import Blocks, Function

MeshSizes = Mapping[str, int]
"""How many devices lie along each axis of a mesh."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Mesh axes along which the axes of a call lie."""

    batch: tuple[Axes, ...]
    """The mesh axes of each mapped axis, and last those of the batch."""
    heads: Axes


def _devices(sizes: MeshSizes, axes: Axes) -> int:
    return math.prod(sizes[x] for x in axes)


@dataclasses.dataclass(frozen=True)
class Roles:
    """The axes of a primitive's arrays, after the mapped ones."""

    inputs: Sequence[str]
    outputs: Sequence[str]
    sums: bool = False
    """Whether results are gradients, which are summed over devices that have a part of them."""


def read(
    specs: Sequence[PartitionSpec], axes: Sequence[str], shapes: Sequence[Sequence[Size]], lengths: Sequence[Size]
) -> Placement:
    """Where arrays lie: each axis as in the first of them that is split along it, by what no other axis lies along."""
    n, used = len(lengths) - 1, set[str]()

    def find(at: int, has: Callable[[str], bool]) -> Axes:
        for spec, own, shape in zip(specs, axes, shapes, strict=True):
            split = as_axes(spec[at]) if has(own) and at < len(spec) else ()
            if split and (at > n or shape[at] == lengths[at]) and not used & {*split}:
                used.update(split)
                return split
        return ()

    batch = tuple(find(m, lambda own, m=m: m < n or "b" in own) for m in range(n + 1))
    return Placement(batch, find(n + 2, lambda own: own in ("bth", "bsg")))


class PrimitiveCall:
    """What partitioning knows of one call of a primitive: `shapes` are those of its arrays, `results` of its results.

    `compute(*arrays, spec=..)` is what one device does.
    """

    def __init__(
        self, compute: Callable, spec: Spec, roles: Roles, shapes: Sequence[Sequence[Size]], results: Sequence[Any]
    ):
        self.compute, self.spec, self.roles, self.shapes, self.results = compute, spec, roles, shapes, results
        n = self.n = len(spec.mapped)
        self.lengths = lengths(shapes, roles.inputs, n)
        self.h, self.g = shapes[0][n + 2], shapes[1][n + 2]

    def misfit(self, sizes: MeshSizes, placement: Placement) -> str | None:
        """Why the call cannot lie so, None if it can."""
        for length, axes in zip(self.lengths, placement.batch, strict=True):
            if length % _devices(sizes, axes):
                return f"b = {length} does not divide by the {_devices(sizes, axes)} devices along {named(axes)}"
        m = _devices(sizes, placement.heads)
        if self.h % m or (self.g % m and m % self.g):
            return f"heads h = {self.h}, g = {self.g} do not divide by the {m} devices along {named(placement.heads)}"
        return None

    def fitted(self, sizes: MeshSizes, placement: Placement) -> Placement:
        """The placement without the mesh axes that lengths or heads do not divide by."""

        def longest(axes: Axes, place: Callable[[Axes], Placement]) -> Axes:
            return next(x for n in range(len(axes), -1, -1) if self.misfit(sizes, place(x := axes[:n])) is None)

        nowhere = ((),) * len(self.lengths)
        batch = tuple(
            longest(axes, lambda x, n=n: Placement((*nowhere[:n], x, *nowhere[n + 1 :]), ()))
            for n, axes in enumerate(placement.batch)
        )
        return Placement(batch, longest(placement.heads, lambda x: Placement(nowhere, x)))

    def read(self, specs: Sequence[PartitionSpec]) -> Placement:
        """Where the arrays lie."""
        return read(specs, self.roles.inputs, self.shapes, self.lengths)

    def sequence(self, specs: Sequence[PartitionSpec]) -> Axes:
        """Mesh axes along which the queries or keys of q, k or v lie."""
        along = [as_axes(x[self.n + 1]) for x in specs[:3] if len(x) > self.n + 1]
        return next(filter(None, along), ())

    def splits_keys(self, sizes: MeshSizes, heads: Axes) -> bool:
        """Whether each device has key heads of its own; else it has some of the query heads of one."""
        return self.g % _devices(sizes, heads) == 0

    def specs(
        self, sizes: MeshSizes, placement: Placement, axes: Sequence[str], shapes: Sequence[Sequence[int]]
    ) -> tuple[PartitionSpec, ...]:
        """How arrays with these axes and shapes lie in the mesh."""
        keys = placement.heads if self.splits_keys(sizes, placement.heads) else ()

        def one(axes: str, shape: Sequence[int]) -> PartitionSpec:
            own = [{"b": placement.batch[-1], "h": placement.heads, "g": keys}.get(a, ()) for a in axes]
            entries = [*placement.batch[:-1], *own]
            lacks = [
                at <= self.n and "b" in (*["b"] * self.n, *axes)[at] and shape[at] != self.lengths[at]
                for at in range(len(entries))
            ]
            return PartitionSpec(*(None if y or not x else x for x, y in zip(entries, lacks, strict=True)))

        return tuple(map(one, axes, shapes))

    def body(self, sizes: MeshSizes, placement: Placement) -> Callable:
        """The call on what a device has of its arrays."""
        spec = _with_heads_picked(self.spec) if placement.heads else self.spec
        whole = self.splits_keys(sizes, placement.heads)
        at, each = self.n + 2, max(1, _devices(sizes, placement.heads) // self.g)

        def own(x: jax.Array, axes: str) -> jax.Array:
            """The keys or values of this device: where devices share a key head, the one of its query heads."""
            if whole or axes != "bsg":
                return x
            return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(placement.heads) // each, 1, at)

        def summed(x: jax.Array, axes: str, shape: Sequence[int]) -> jax.Array:
            """A gradient, from those of all devices that have a part of it."""
            over = [
                x
                for n, x in enumerate(placement.batch)
                if (n == self.n and "b" not in axes) or shape[n] != self.lengths[n]
            ]
            if axes == "bsg" and not whole:
                room = jnp.zeros((*x.shape[:at], self.g, *x.shape[at + 1 :]), x.dtype)
                x = jax.lax.dynamic_update_slice_in_dim(room, x, jax.lax.axis_index(placement.heads) // each, at)
            if not {*"hg"} & {*axes} or (axes == "bsg" and not whole):
                over.append(placement.heads)
            names = tuple(name for axes in over for name in axes)
            return jax.lax.psum(x, names) if names else x

        def fn(*args: jax.Array) -> list[jax.Array]:
            results = self.compute(*map(own, args, self.roles.inputs), spec=spec)
            if not self.roles.sums:
                return list(results)
            return [summed(x, a, y.shape) for x, a, y in zip(results, self.roles.outputs, self.results, strict=True)]

        return fn


def _with_heads_picked(spec: Spec) -> Spec:
    """The spec for a device with some of the heads: of a layout for each head it picks those that it has, and of a
    function of the head it knows at run time alone which they are."""

    def picked(x: Any) -> Any:
        if isinstance(x, Blocks) and x.head is not None:
            return dataclasses.replace(x, picked=True)
        return dataclasses.replace(x, heads=None) if isinstance(x, Function) else x

    numbered = spec.terms(range(len(spec.signature.axes)))
    terms = jax.tree.map(picked, numbered, is_leaf=lambda x: isinstance(x, (Blocks, Function, Operand)))
    tree = jax.tree.structure(terms, is_leaf=lambda x: isinstance(x, Operand))
    return dataclasses.replace(spec, signature=spec.signature._replace(tree=tree))
