"""Which batch elements and heads a device has inside `jax.shard_map`, where each counts its own from 0.

What depends on which they are, dropout say, would be the same on every device, silently: it is told, or there is an
error.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding

from jattn._call import layouts
from jattn._call.layouts import Axes, named
from jattn._call.problem import Problem
from jattn._terms import Operand, Origin, indices
from jattn.masks import Blocks
from jattn.normalizers import GumbelNoise


def manual() -> Axes:
    """Axes of the mesh that `jax.shard_map` has made manual, where there are several devices along them."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(x for x in mesh.axis_names if x in mesh.manual_axes and mesh.shape[x] > 1)


def of_device(origin: Origin, sizes: dict[str, int]) -> Origin:
    """Where a call stands, with what `jattn.parallel.layout` says of the device; what `positions` says comes first."""
    mine = manual()
    if not mine or (said := layouts.current()) is None:
        return origin

    def first(axes: Axes, length: int) -> Operand | None:
        along = tuple(x for x in axes if x in mine)
        return Operand((jax.lax.axis_index(along) * length).astype(jnp.int32), "") if along else None

    b, h = first(said.batch, sizes["b"]), first(said.heads, sizes["h"])
    if b is not None and isinstance(origin.b, int) and origin.b == 0:
        origin = dataclasses.replace(origin, b=b)
    return dataclasses.replace(origin, h=h) if h is not None and origin.h is None else origin


def check(whole: Problem) -> None:
    """Raises where devices would take their batch elements and heads for the same ones."""
    said = layouts.current() is not None or whole.origin.h is not None or whole.origin.b != 0
    if said or not (mine := manual()) or not (what := _numbered(whole)):
        return
    tracked = jax.typeof(jax.lax.axis_index(mine[0])).manual_axis_type.varying  # nothing is, under check_vma=False
    arrays = whole.query, whole.key, whole.value
    varies = {x for array in arrays for x in jax.typeof(array).manual_axis_type.varying} if tracked else mine
    if over := tuple(x for x in mine if x in varies):
        raise ValueError(
            f"{what} depends on which batch element and head it is of, and inside jax.shard_map each device counts its"
            f" own from 0: say along which of {named(over)} they lie, with jattn.parallel.layout(batch=.., heads=..)"
            " around the call; with layout() all devices do the same"
        )


def sequence(whole: Problem) -> Axes:
    """Mesh axes along which queries or keys lie, which are then gathered."""
    for x in (whole.query, whole.key, whole.value):
        placed = jax.typeof(x).sharding if isinstance(x, Tracer) else getattr(x, "sharding", None)
        if isinstance(placed, NamedSharding) and (along := layouts.as_axes((*placed.spec, None, None)[1])):
            return along
    return ()


def _numbered(whole: Problem) -> str:
    """A term that is told which batch element or head it is of, "" if there is none."""
    b, h = indices(whole.sizes["b"], "b"), indices(whole.sizes["h"], "h")
    for part in (whole.mask, *whole.mods, *whole.normalizer.mods, *whole.gates):
        bound = None if part is None else part.bound(b, h)
        for x in jax.tree.leaves(bound, is_leaf=lambda x: isinstance(x, (Operand, Blocks))):
            if x is b or x is h or (isinstance(x, Blocks) and x.head is not None):
                return "Gumbel noise" if isinstance(part, GumbelNoise) else type(part).__name__.lower()
    return ""
