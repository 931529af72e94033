"""What a call over many devices may be, and which strategy it takes; or an error that says how to mend it."""

from __future__ import annotations

from jax.sharding import AbstractMesh, Mesh

from jattn._call import dispatch
from jattn._call.layouts import Order
from jattn._call.problem import Problem
from jattn.parallel._sharded_call import MeshAxes, Strategy


def check_choices(strategy: object, order: object) -> None:
    """Raises unless there are such a strategy and such an order."""
    known = (None, "ring", "all_to_all", "gather")
    if strategy not in known:
        raise ValueError(f"parallel.attention: strategy must be one of {known}, got {strategy!r}")
    check_order(order, "parallel.attention")


def check_order(order: object, where: str) -> None:
    """Raises, in the name of the function `where`, unless there is such an order."""
    known = ("contiguous", "zigzag")
    if order not in known:
        raise ValueError(f"{where}: order must be one of {known}, got {order!r}")


def mesh_axes(mesh: Mesh | AbstractMesh, batch: str | None, head: str | None, sequence: str) -> MeshAxes:
    """The axes by their names; raises unless the mesh has them, each for one thing."""
    sizes = dict(mesh.shape)
    if not sizes:
        raise ValueError("parallel.attention needs a mesh: give mesh=, or call it inside jax.set_mesh(mesh)")
    for name, axis in (("batch_axis", batch), ("head_axis", head), ("sequence_axis", sequence)):
        if axis is not None and axis not in sizes:
            raise ValueError(
                f"parallel.attention: {name}={axis!r} is no axis of the mesh, which has {', '.join(sizes)}"
            )
    given = [x for x in (batch, head, sequence) if x is not None]
    if len(set(given)) < len(given):
        raise ValueError(f"parallel.attention: each axis of the mesh can be of one kind, got {', '.join(given)}")
    return MeshAxes(batch, head, sequence, tuple(sizes.items()))


def check_sizes(sizes: dict[str, int], axes: MeshAxes, order: Order, inside: bool) -> None:
    """Raises unless what lies along an axis divides by its devices."""
    n = axes.devices
    chunks = (1 if inside else n) * (2 if order == "zigzag" else 1)
    for a in "ts":
        if sizes[a] % chunks or not sizes[a]:
            whole = max(1, -(-sizes[a] // chunks)) * chunks
            raise ValueError(
                f"parallel.attention: {a} = {sizes[a]} does not divide in the {chunks} chunks of {n} devices along"
                f" {axes.sequence!r}{' in zig-zag order' if order == 'zigzag' else ''}: pad it to {whole}, and hide the"
                " padding by masks.lengths"
            )
    if sizes["b"] % axes.count(axes.batch):
        raise ValueError(
            f"parallel.attention: b = {sizes['b']} does not divide by the {axes.count(axes.batch)} devices along"
            f" {axes.batch!r}"
        )
    heads = axes.count(axes.head)
    if sizes["h"] % heads or (sizes["g"] % heads and heads % sizes["g"]):
        raise ValueError(
            f"parallel.attention: heads h = {sizes['h']} and g = {sizes['g']} do not divide by the {heads} devices"
            f" along {axes.head!r}"
        )


def _heads(problem: Problem, axes: MeshAxes, inside: bool) -> tuple[int, int]:
    """Query and key heads of a device."""
    n = 1 if inside else axes.count(axes.head)
    return problem.sizes["h"] // n, max(1, problem.sizes["g"] // n)


def default_strategy(problem: Problem, axes: MeshAxes, inside: bool) -> Strategy:
    """The one that a call takes where it does not say."""
    if problem.normalizer.is_softmax:
        return "ring"
    return "gather" if any(x % axes.devices for x in _heads(problem, axes, inside)) else "all_to_all"


def check_strategy(problem: Problem, axes: MeshAxes, strategy: Strategy, inside: bool) -> None:
    """Raises unless the strategy can do what is asked."""
    if strategy == "ring" and not problem.normalizer.is_softmax:
        name = type(problem.normalizer).__name__.lower()
        raise dispatch.UnsupportedError(
            f"parallel.attention: a ring joins softmaxes over parts of the keys, and normalizer {name} sees whole rows:"
            " strategy='all_to_all' and strategy='gather' can"
        )
    h, g = _heads(problem, axes, inside)
    if strategy == "all_to_all" and (h % axes.devices or g % axes.devices):
        raise ValueError(
            f"parallel.attention: all_to_all gives each of the {axes.devices} devices along {axes.sequence!r} some of"
            f" the heads, and h = {h}, g = {g} on a device do not divide by them: ring and gather can"
        )
