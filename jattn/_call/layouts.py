"""Along which axes of a mesh the batch elements, heads and sequences of calls lie, where the user says so."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator
from typing import Any, Literal

import jax
from jax.sharding import AbstractMesh

Axes = tuple[str, ...]
"""Mesh axes along which one axis of an array lies, the first the slowest."""

Order = Literal["contiguous", "zigzag"]
"""How a sequence lies along its axis."""


def as_axes(entry: Any) -> Axes:
    """An entry of a `PartitionSpec` as a tuple."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def named(axes: Axes) -> str:
    """The axes as a message names them."""
    return " and ".join(map(repr, axes)) or "no axis"


@dataclasses.dataclass(frozen=True)
class Layout:
    """What `jattn.parallel.layout` says; static, and part of what a call is compiled for."""

    batch: Axes
    heads: Axes
    mesh: AbstractMesh | None
    """The mesh that has these axes; None for that of `jax.set_mesh` where the call is."""
    sequence: str | None = None
    """The mesh axis along which the sequence lies: with one, `jattn.attention` is `jattn.parallel.attention`."""
    order: Order = "contiguous"
    """In which order the sequence lies over the devices."""
    attend: Callable[..., Any] | None = None
    """`jattn.parallel.attention` where there is a sequence: it stands above whoever calls it by this field."""

    @property
    def axes(self) -> Axes:
        """Every mesh axis that the layout names."""
        return *self.batch, *self.heads, *(() if self.sequence is None else (self.sequence,))


# JAX's, so that a function that was traced under another layout, or none, is traced once more.
_CURRENT = jax.make_user_context(default_value=None)


@contextlib.contextmanager
def using(layout: Layout) -> Generator[Layout, None, None]:
    """Calls inside this context lie as the layout says."""
    with _CURRENT(layout):
        yield layout


def current() -> Layout | None:
    """The layout of calls here, with the mesh of here unless it has one of its own.

    Raises:
      ValueError: there is no mesh, or it has no axis of such a name.
    """
    said = _CURRENT.value
    if said is None:
        return None
    mesh = jax.sharding.get_abstract_mesh() if said.mesh is None else said.mesh
    if mesh.empty and said.axes:
        raise ValueError(
            "jattn.parallel.layout names axes of no mesh: call inside jax.set_mesh(mesh), or give it mesh="
        )
    for name in said.axes:
        if name not in mesh.axis_names:
            raise ValueError(
                f"jattn.parallel.layout: {name!r} is no axis of the mesh, which has {named(mesh.axis_names)}"
            )
    return dataclasses.replace(said, mesh=None if mesh.empty else mesh)
