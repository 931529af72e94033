"""Attention over many devices, the sequence along an axis of their mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jattn import api
from jattn._call import checks, dispatch, modes, targets
from jattn._call.layouts import Order
from jattn._call.problem import Problem
from jattn._terms import FieldValue, Operand
from jattn.backends.contract import Backend, Fused
from jattn.parallel import _ring
from jattn.parallel._shares import Shares, unzigzag, zigzag

Strategy = Literal["ring", "all_to_all", "gather"]
Lse = Float[Array, "*b t h"]


@dataclasses.dataclass(frozen=True)
class MeshAxes:
    """Along which axes of a mesh a call lies, and over how many devices."""

    batch: str | None
    head: str | None
    sequence: str
    sizes: tuple[tuple[str, int], ...]
    """Each axis of the mesh with how many devices lie along it."""

    def count(self, axis: str | None) -> int:
        return 1 if axis is None else dict(self.sizes)[axis]

    @property
    def devices(self) -> int:
        return self.count(self.sequence)

    def spec(self, axes: str, ndim: int, head: bool = True) -> PartitionSpec:
        """Where an array with such axes lies; with both t and s it has all of s."""
        of = {"b": self.batch, "h": self.head if head else None, "t": self.sequence, "s": self.sequence}
        if "t" in axes:
            of["s"] = None
        return PartitionSpec(*(of[a] for a in axes), *[None] * (ndim - len(axes)))


class ShardedCall(NamedTuple):
    """What is static about a call whose sequence lies over devices."""

    axes: MeshAxes
    strategy: Strategy
    zigzag: bool
    backend: str | Backend | None
    blocks: tuple[int, int] | None
    return_lse: bool
    target: targets.Target


@modes.ordinary
def attention(
    query: Float[ArrayLike, "*b t h d"],
    key: Float[ArrayLike, "*b s g d"],
    value: Float[ArrayLike, "*b s g e"],
    *,
    mesh: Mesh | AbstractMesh | None = None,
    batch_axis: str | None = None,
    head_axis: str | None = None,
    sequence_axis: str,
    strategy: Strategy | None = None,
    order: Order = "contiguous",
    return_lse: bool = False,
    implementation: str | Backend | None = None,
    blocks: tuple[int, int] | None = None,
    **options: Any,  # of `jattn.attention`, which has their types
) -> Float[Array, "*b t h e"] | tuple[Float[Array, "*b t h e"], Lse]:
    """`jattn.attention` of a sequence that lies over many devices: the same result, and every derivative.

    Outside of `jax.shard_map` arrays are whole, as in `jattn.attention`, and lie as the axes say.  Inside of one that
    is manual over these axes they are a device's own, those that options hold too; one with t and s, a bias say, has
    its own queries and all keys.  Positions, batch elements and heads
    count over all devices: masks, mods and gates mean what they do on one, and dropout drops the same pairs.

    Args:
      query: `[b, t, h, d]`, t along `sequence_axis`; with a batch axis.
      key: `[b, s, g, d]`, s along it too.  Where there are more devices along `head_axis` than key heads g each has
        some query heads of one.
      value: `[b, s, g, e]`.
      mesh: the mesh; None is that of `jax.set_mesh`.
      batch_axis: the axis of the mesh along which b lies.
      head_axis: likewise of h and g.
      sequence_axis: likewise of t and s.
      strategy: "ring": keys and values go round, and each device attends to what it holds, while the next are on their
        way (Liu et al. 2023).  "all_to_all": each device gets the whole sequence for some of its heads, and sends their
        results back (Jacobs et al. 2023); its heads h and g are to divide by the devices of the sequence.  "gather":
        each device gets all keys and values.  None chooses: the ring for a softmax, whose memory is linear in what a
        device has of the sequence; for other normalisers, which see whole rows, all_to_all where heads divide, else
        gather.
      order: how the sequence lies: "contiguous", or "zigzag" (`jattn.parallel.zigzag`), in which a causal mask gives
        all devices as much to do.
      return_lse: as in `jattn.attention`.
      implementation: who computes on each device, likewise.
      blocks: likewise.
      **options: all else that `jattn.attention` takes; `positions` is where the whole call stands.

    Returns:
      out `[b, t, h, e]`, or (out, lse `[b, t, h]`), along the same axes.

    Raises:
      ValueError: the mesh has no such axis, or one does not divide what lies along it: a sequence is to be padded, and
        its padding hidden by `masks.lengths`.
      ValueError, TypeError: what `jattn.attention` would not take.
      UnsupportedError: the strategy cannot do what was asked.

    >>> import jax, jattn
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 16, 4, 8))
    >>> mesh = jax.make_mesh((1,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> causal = jattn.masks.causal()
    >>> out = jattn.parallel.attention(q, k, v, mask=causal, mesh=mesh, sequence_axis="sequence")
    >>> bool(abs(out - jattn.attention(q, k, v, mask=causal)).max() < 1e-5)
    True

    Source: Liu et al. 2023 (ring attention); Jacobs et al. 2023 (DeepSpeed-Ulysses).
    """
    _check_choices(strategy, order)
    here = jax.sharding.get_abstract_mesh()
    inside = sequence_axis in getattr(here, "manual_axes", ())
    mesh = here if mesh is None else mesh
    axes = _axes(mesh, batch_axis, head_axis, sequence_axis)
    named = api._named("parallel.attention", options, ("pages", "scales"))
    if inside:
        named["positions"] = _shard_positions(named.get("positions"), axes, query)
    shares = axes.devices if inside else 1
    problem = checks.problem(query, key, value, return_lse=return_lse, shares=shares, **named)
    if problem.query.ndim != jnp.ndim(query):
        raise ValueError("parallel.attention takes [b, t, h, d] with the batch axis: add one with [None]")
    every = axes if not inside else dataclasses.replace(axes, batch=None, head=None)
    _check_sizes(problem.sizes, every, order, inside)
    chosen = strategy or _strategy(problem, axes, inside)
    _check_strategy(problem, axes, chosen, inside)
    call = ShardedCall(
        axes, chosen, order == "zigzag", implementation, checks.blocks(blocks), return_lse, targets.current()
    )
    if inside:
        return _results(*_local(problem, call), return_lse)
    return _over(problem, mesh, call)


Result = Float[Array, "*b t h e"] | tuple[Float[Array, "*b t h e"], Lse]


def ring(
    query: Float[ArrayLike, "*b t h d"],
    key: Float[ArrayLike, "*b s g d"],
    value: Float[ArrayLike, "*b s g e"],
    **options: Any,  # of `attention`, which has their types
) -> Result:
    """`attention` by a ring: keys and values go from device to device, and each attends to what it holds just then.

    What is sent hides behind what is computed: on TPU along a closed loop of neighbours (`mesh`); on GPU if XLA sends
    all of a step at once, for which it has to be told how much that may be:
    `XLA_FLAGS=--xla_gpu_collective_permute_combine_threshold_bytes=8589934592`.

    Args:
      query: as in `attention`.
      key: likewise.
      value: likewise.
      **options: all else that it takes but for the strategy.

    Raises:
      ValueError, TypeError, UnsupportedError: as `attention` does.

    >>> import jax, jattn
    >>> mesh = jattn.parallel.mesh(sequence=1, devices=jax.devices()[:1])
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 16, 4, 8))
    >>> def shard(q, k, v):
    ...     return jattn.parallel.ring(q, k, v, sequence_axis="sequence", mask=jattn.masks.causal())
    >>> rows = jax.P(None, "sequence")
    >>> jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=(rows,) * 3, out_specs=rows))(q, k, v).shape
    (2, 16, 4, 8)

    Source: Liu et al. 2023, "Ring Attention with Blockwise Transformers for Near-Infinite Context".
    """
    return attention(query, key, value, strategy="ring", **options)


def all_to_all(
    query: Float[ArrayLike, "*b t h d"],
    key: Float[ArrayLike, "*b s g d"],
    value: Float[ArrayLike, "*b s g e"],
    **options: Any,  # of `attention`, which has their types
) -> Result:
    """`attention` by exchanged heads: each device gets the whole sequence for some of its heads.

    Args:
      query: as in `attention`.
      key: likewise.
      value: likewise.
      **options: all else that it takes but for the strategy.

    Raises:
      ValueError, TypeError, UnsupportedError: as `attention` does.

    >>> import jax, jattn
    >>> mesh = jattn.parallel.mesh(sequence=1, devices=jax.devices()[:1])
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 16, 4, 8))
    >>> jattn.parallel.all_to_all(q, k, v, mesh=mesh, sequence_axis="sequence").shape
    (2, 16, 4, 8)

    Source: Jacobs et al. 2023, "DeepSpeed Ulysses".
    """
    return attention(query, key, value, strategy="all_to_all", **options)


def gather(
    query: Float[ArrayLike, "*b t h d"],
    key: Float[ArrayLike, "*b s g d"],
    value: Float[ArrayLike, "*b s g e"],
    **options: Any,  # of `attention`, which has their types
) -> Result:
    """`attention` by gathered keys: each device gets all keys and values, and computes its own queries.

    Args:
      query: as in `attention`.
      key: likewise.
      value: likewise.
      **options: all else that it takes but for the strategy.

    Raises:
      ValueError, TypeError, UnsupportedError: as `attention` does.

    >>> import jax, jattn
    >>> mesh = jattn.parallel.mesh(sequence=1, devices=jax.devices()[:1])
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 16, 4, 8))
    >>> sparse = jattn.normalizers.sparsemax()
    >>> jattn.parallel.gather(q, k, v, normalizer=sparse, mesh=mesh, sequence_axis="sequence").shape
    (2, 16, 4, 8)

    Source: Grattafiori et al. 2024, "The Llama 3 Herd of Models", section 3.3.2 (context parallelism).
    """
    return attention(query, key, value, strategy="gather", **options)


def _results(out: Array, lse: Array | None, return_lse: bool) -> Any:
    return (out, lse) if return_lse else out


# Checks


def _check_choices(strategy: object, order: object) -> None:
    known = (None, "ring", "all_to_all", "gather")
    if strategy not in known:
        raise ValueError(f"parallel.attention: strategy must be one of {known}, got {strategy!r}")
    check_order(order, "parallel.attention")


def check_order(order: object, where: str) -> None:
    known = ("contiguous", "zigzag")
    if order not in known:
        raise ValueError(f"{where}: order must be one of {known}, got {order!r}")


def _axes(mesh: Mesh | AbstractMesh, batch: str | None, head: str | None, sequence: str) -> MeshAxes:
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


def _check_sizes(sizes: dict[str, int], axes: MeshAxes, order: Order, inside: bool) -> None:
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


def _strategy(problem: Problem, axes: MeshAxes, inside: bool) -> Strategy:
    if problem.normalizer.is_softmax:
        return "ring"
    return "gather" if any(x % axes.devices for x in _heads(problem, axes, inside)) else "all_to_all"


def _check_strategy(problem: Problem, axes: MeshAxes, strategy: Strategy, inside: bool) -> None:
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


# Over a mesh


def _over(problem: Problem, mesh: Mesh | AbstractMesh, call: ShardedCall) -> Any:
    leaves, tree = jax.tree.flatten(problem, is_leaf=lambda x: isinstance(x, Operand))
    arrays = [x.array if isinstance(x, Operand) else x for x in leaves]
    axes = [x.axes if isinstance(x, Operand) else None for x in leaves]
    return _over_mesh(arrays, tree, tuple(axes), mesh, call)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _over_mesh(
    arrays: list[Any], tree: Any, of: tuple[str | None, ...], mesh: Mesh | AbstractMesh, call: ShardedCall
) -> Any:
    axes, whole = call.axes, jax.tree.unflatten(tree, arrays)
    split = whole.sizes["g"] % axes.count(axes.head) == 0  # else each device has query heads of one key head
    explicit = AxisType.Explicit in getattr(mesh, "axis_types", ())  # there arrays are to lie as is said
    at = lambda x, spec: jax.sharding.reshard(x, NamedSharding(mesh, spec)) if explicit else x
    specs = [
        (axes.spec("bth", 4) if x is whole.query else axes.spec("bsh", 4, split)) if a is None else axes.spec(a, x.ndim)
        for x, a in zip(arrays, of, strict=True)
    ]

    def body(*arrays: Any) -> Any:
        local = [x if a is None else Operand(x, a) for x, a in zip(arrays, of, strict=True)]
        problem: Problem = jax.tree.unflatten(tree, local)
        if not split:
            at = lax.axis_index(axes.head) * whole.sizes["g"] // axes.count(axes.head)
            own = lambda x: lax.dynamic_slice_in_dim(x, at, 1, 2)
            problem = dataclasses.replace(problem, key=own(problem.key), value=own(problem.value))
        origin, sizes = problem.origin, problem.sizes
        origin = dataclasses.replace(
            origin,
            b=_further(origin.b, axes.batch, sizes["b"]),
            h=origin.h if axes.head is None else _further(origin.first_head, axes.head, sizes["h"]),
        )
        return _results(*_local(dataclasses.replace(problem, origin=origin), call), call.return_lse)

    rows = axes.spec("bth", 4)
    out_specs = (rows, axes.spec("bth", 3)) if call.return_lse else rows
    return jax.shard_map(body, mesh=mesh, in_specs=tuple(specs), out_specs=out_specs)(*map(at, arrays, specs))


def _further(first: FieldValue, axis: str | None, size: int) -> FieldValue:
    """Where a device's share of an axis begins."""
    if axis is None:
        return first
    value = first.array if isinstance(first, Operand) else jnp.int32(first)
    return Operand(value + lax.axis_index(axis).astype(jnp.int32) * jnp.int32(size), "")


def _shard_positions(given: Any, axes: MeshAxes, query: ArrayLike) -> dict[str, Any]:
    """`positions` of a device inside `jax.shard_map`, of which the sequence's are left to the strategy."""
    positions = dict(given) if isinstance(given, dict) else {} if given is None else {"t": given}
    b, _, h, _ = jnp.shape(query) if jnp.ndim(query) == 4 else (1, 1, *jnp.shape(query)[-2:])
    for a, axis, size in (("b", axes.batch, b), ("h", axes.head, h)):
        if axis is not None:
            positions[a] = positions.get(a, 0) + lax.axis_index(axis).astype(jnp.int32) * jnp.int32(size)
    return positions


# On a device


def _local(problem: Problem, call: ShardedCall) -> tuple[Array, Array | None]:
    """out and lse of a device's own queries."""
    run: Callable = {"ring": _by_ring, "all_to_all": _by_heads, "gather": _by_gathering}[call.strategy]
    return run(problem, call)


def _moved(problem: Problem, lead: jax.Array) -> Problem:
    """The problem with its queries further on than its keys by so much."""
    own = problem.origin.offsets
    value = own.lead.array if isinstance(own.lead, Operand) else jnp.int32(own.lead)
    at = Operand(value + lead, own.lead.axes if isinstance(own.lead, Operand) else "")
    return dataclasses.replace(
        problem, origin=dataclasses.replace(problem.origin, offsets=dataclasses.replace(own, lead=at))
    )


def _inner(problem: Problem, call: ShardedCall) -> tuple[Backend, targets.Target]:
    """Who computes on a device."""
    somewhere = _moved(problem, lax.axis_index(call.axes.sequence).astype(jnp.int32))
    chosen = dispatch.choose(somewhere, call.backend, call.target).backend
    return chosen, call.target if call.backend is None else call.target._replace(platform=targets.ANY)


def _by_ring(problem: Problem, call: ShardedCall) -> tuple[Array, Array | None]:
    inner, target = _inner(problem, call)
    if not isinstance(inner, Fused):
        raise dispatch.UnsupportedError(
            f"parallel.attention: implementation={inner.name!r} computes all pairs at once: a ring takes a backend in"
            " tiles, strategy='gather' takes any"
        )
    settings = _ring.RingSettings(call.axes.sequence, call.axes.devices, call.zigzag, inner)
    return dispatch.run(problem, _ring.backend(settings), call.blocks, target)


def _by_gathering(problem: Problem, call: ShardedCall) -> tuple[Array, Array | None]:
    inner, target = _inner(problem, call)
    shares, axis = Shares(call.axes.devices, call.zigzag), call.axes.sequence
    whole = _with_operands(problem, lambda x, axes: _of_all_keys(x, axes, call))
    key, value = (_gathered(x, "bs", "s", call) for x in (problem.key, problem.value))
    whole, t, results = dataclasses.replace(whole, key=key, value=value), problem.sizes["t"], []
    for n, rows in enumerate(shares.slices(t)):
        size = rows.stop - rows.start
        part = _with_operands(whole, lambda x, axes, rows=rows: _rows(x, axes, rows))
        part = dataclasses.replace(part, query=problem.query[:, rows])
        start = shares.chunk(lax.axis_index(axis).astype(jnp.int32), n) * jnp.int32(size)
        results.append(dispatch.run(_moved(part, start), inner, call.blocks, target))
    return jax.tree.map(lambda *x: jnp.concatenate(x, 1), *results)


def _by_heads(problem: Problem, call: ShardedCall) -> tuple[Array, Array | None]:
    axis, n = call.axes.sequence, call.axes.devices
    swap = functools.partial(lax.all_to_all, axis_name=axis, tiled=True)
    contiguous = lambda x, dim: unzigzag(x, n, dim) if call.zigzag else x
    arrays = [contiguous(swap(x, split_axis=2, concat_axis=1), 1) for x in (problem.query, problem.key, problem.value)]
    h = problem.sizes["h"] // n
    first = lax.axis_index(axis).astype(jnp.int32) * jnp.int32(h)

    def of_heads(x: jax.Array, axes: str) -> jax.Array:
        shared = "t" if "t" in axes else "s"  # the one of the two along which it lies over devices
        if "h" in axes and shared in axes:
            x = contiguous(swap(x, split_axis=axes.index("h"), concat_axis=axes.index(shared)), axes.index(shared))
            return contiguous(x, axes.index("s")) if {*"ts"} <= {*axes} else x
        if "h" in axes:
            return lax.dynamic_slice_in_dim(x, first, h, axes.index("h"))
        return _gathered(_of_all_keys(x, axes, call), axes, "t", call)

    own = _with_operands(problem, of_heads)
    origin = dataclasses.replace(own.origin, h=_plus(own.origin.first_head, first))
    own = dataclasses.replace(own, query=arrays[0], key=arrays[1], value=arrays[2], origin=origin)
    inner, target = _inner(own, call)
    out, lse = dispatch.run(own, inner, call.blocks, target)
    back = lambda x: swap(zigzag(x, n) if call.zigzag else x, split_axis=1, concat_axis=2)
    return back(out), None if lse is None else back(lse)


def _plus(first: FieldValue, more: jax.Array) -> Operand:
    return Operand((first.array if isinstance(first, Operand) else jnp.int32(first)) + more, "")


def _with_operands(problem: Problem, change: Callable[[Any, str], Any]) -> Problem:
    """The problem with every operand changed."""
    is_operand = lambda x: isinstance(x, Operand)
    change_one = lambda x: Operand(change(x.array, x.axes), x.axes) if is_operand(x) else x
    return jax.tree.map(change_one, problem, is_leaf=is_operand)


def _rows(x: Any, axes: str, rows: slice) -> Any:
    return x[(slice(None),) * axes.index("t") + (rows,)] if "t" in axes else x


def _of_all_keys(x: Any, axes: str, call: ShardedCall) -> Any:
    """An operand with all of s, in contiguous order; one with t as well has all of it."""
    if "t" not in axes:
        return _gathered(x, axes, "s", call)
    return unzigzag(x, call.axes.devices, axes.index("s")) if call.zigzag and "s" in axes else x


def _gathered(x: Any, axes: str, a: str, call: ShardedCall) -> Any:
    """An array with all of t or s, in contiguous order."""
    if a not in axes:
        return x
    dim = axes.index(a)
    x = lax.all_gather(x, call.axes.sequence, axis=dim, tiled=True)
    return unzigzag(x, call.axes.devices, dim) if call.zigzag else x
