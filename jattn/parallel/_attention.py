"""Attention over many devices, the sequence along an axis of their mesh."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Required, Unpack, overload

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jattn import api
from jattn._call import checks, modes, targets
from jattn._call.layouts import Order
from jattn._call.options import ShardedOptions
from jattn.backends.contract import Backend
from jattn.parallel._checks import check_choices, check_sizes, check_strategy, default_strategy, mesh_axes
from jattn.parallel._on_device import on_device
from jattn.parallel._over_mesh import over_mesh
from jattn.parallel._sharded_call import MeshAxes, ShardedCall, Strategy

Lse = Float[Array, "*b t h"]


@overload
def attention(
    query: Float[ArrayLike, "*b t h d"],
    key: Float[ArrayLike, "*b s g d"],
    value: Float[ArrayLike, "*b s g e"],
    *,
    mesh: Mesh | AbstractMesh | None = ...,
    batch_axis: str | None = ...,
    head_axis: str | None = ...,
    sequence_axis: str,
    strategy: Strategy | None = ...,
    order: Order = ...,
    return_lse: Literal[False] = ...,
    implementation: str | Backend | None = ...,
    blocks: tuple[int, int] | None = ...,
    **options: Unpack[ShardedOptions],
) -> Float[Array, "*b t h e"]: ...
@overload
def attention(
    query: Float[ArrayLike, "*b t h d"],
    key: Float[ArrayLike, "*b s g d"],
    value: Float[ArrayLike, "*b s g e"],
    *,
    mesh: Mesh | AbstractMesh | None = ...,
    batch_axis: str | None = ...,
    head_axis: str | None = ...,
    sequence_axis: str,
    strategy: Strategy | None = ...,
    order: Order = ...,
    return_lse: Literal[True],
    implementation: str | Backend | None = ...,
    blocks: tuple[int, int] | None = ...,
    **options: Unpack[ShardedOptions],
) -> tuple[Float[Array, "*b t h e"], Lse]: ...
@overload
def attention(
    query: Float[ArrayLike, "*b t h d"],
    key: Float[ArrayLike, "*b s g d"],
    value: Float[ArrayLike, "*b s g e"],
    *,
    mesh: Mesh | AbstractMesh | None = ...,
    batch_axis: str | None = ...,
    head_axis: str | None = ...,
    sequence_axis: str,
    strategy: Strategy | None = ...,
    order: Order = ...,
    return_lse: bool,
    implementation: str | Backend | None = ...,
    blocks: tuple[int, int] | None = ...,
    **options: Unpack[ShardedOptions],
) -> Float[Array, "*b t h e"] | tuple[Float[Array, "*b t h e"], Lse]: ...
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
    **options: Unpack[ShardedOptions],
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
    check_choices(strategy, order)
    here = jax.sharding.get_abstract_mesh()
    inside = sequence_axis in getattr(here, "manual_axes", ())
    mesh = here if mesh is None else mesh
    axes = mesh_axes(mesh, batch_axis, head_axis, sequence_axis)
    named = api._named("parallel.attention", options, ("pages", "scales"))
    if inside:
        named["positions"] = _shard_positions(named.get("positions"), axes, query)
    shares = axes.devices if inside else 1
    problem = checks.problem(query, key, value, return_lse=return_lse, shares=shares, **named)
    if problem.query.ndim != jnp.ndim(query):
        raise ValueError("parallel.attention takes [b, t, h, d] with the batch axis: add one with [None]")
    every = axes if not inside else dataclasses.replace(axes, batch=None, head=None)
    check_sizes(problem.sizes, every, order, inside)
    chosen = strategy or default_strategy(problem, axes, inside)
    check_strategy(problem, axes, chosen, inside)
    call = ShardedCall(
        axes, chosen, order == "zigzag", implementation, checks.blocks(blocks), return_lse, targets.current()
    )
    return on_device(problem, call) if inside else over_mesh(problem, mesh, call)


class StrategyOptions(ShardedOptions, total=False):
    """What `ring`, `all_to_all` and `gather` hand on to `attention`."""

    mesh: Mesh | AbstractMesh | None
    batch_axis: str | None
    head_axis: str | None
    sequence_axis: Required[str]
    order: Order
    implementation: str | Backend | None
    blocks: tuple[int, int] | None


Attended = Float[Array, "*b t h e"] | tuple[Float[Array, "*b t h e"], Lse]


@overload
def ring(
    query: Float[ArrayLike, "*b t h d"],
    key: Float[ArrayLike, "*b s g d"],
    value: Float[ArrayLike, "*b s g e"],
    *,
    return_lse: Literal[False] = ...,
    **options: Unpack[StrategyOptions],
) -> Float[Array, "*b t h e"]: ...
@overload
def ring(
    query: Float[ArrayLike, "*b t h d"],
    key: Float[ArrayLike, "*b s g d"],
    value: Float[ArrayLike, "*b s g e"],
    *,
    return_lse: Literal[True],
    **options: Unpack[StrategyOptions],
) -> tuple[Float[Array, "*b t h e"], Lse]: ...
@overload
def ring(
    query: Float[ArrayLike, "*b t h d"],
    key: Float[ArrayLike, "*b s g d"],
    value: Float[ArrayLike, "*b s g e"],
    *,
    return_lse: bool,
    **options: Unpack[StrategyOptions],
) -> Attended: ...
def ring(
    query: Float[ArrayLike, "*b t h d"],
    key: Float[ArrayLike, "*b s g d"],
    value: Float[ArrayLike, "*b s g e"],
    *,
    return_lse: bool = False,
    **options: Unpack[StrategyOptions],
) -> Attended:
    """`attention` by a ring: keys and values go from device to device, and each attends to what it holds just then.

    What is sent hides behind what is computed: on TPU along a closed loop of neighbours (`mesh`); on GPU if XLA sends
    all of a step at once, for which it has to be told how much that may be:
    `XLA_FLAGS=--xla_gpu_collective_permute_combine_threshold_bytes=8589934592`.

    Args:
      query: as in `attention`.
      key: likewise.
      value: likewise.
      return_lse: likewise.
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
    return attention(query, key, value, strategy="ring", return_lse=return_lse, **options)


@overload
def all_to_all(
    query: Float[ArrayLike, "*b t h d"],
    key: Float[ArrayLike, "*b s g d"],
    value: Float[ArrayLike, "*b s g e"],
    *,
    return_lse: Literal[False] = ...,
    **options: Unpack[StrategyOptions],
) -> Float[Array, "*b t h e"]: ...
@overload
def all_to_all(
    query: Float[ArrayLike, "*b t h d"],
    key: Float[ArrayLike, "*b s g d"],
    value: Float[ArrayLike, "*b s g e"],
    *,
    return_lse: Literal[True],
    **options: Unpack[StrategyOptions],
) -> tuple[Float[Array, "*b t h e"], Lse]: ...
@overload
def all_to_all(
    query: Float[ArrayLike, "*b t h d"],
    key: Float[ArrayLike, "*b s g d"],
    value: Float[ArrayLike, "*b s g e"],
    *,
    return_lse: bool,
    **options: Unpack[StrategyOptions],
) -> Attended: ...
def all_to_all(
    query: Float[ArrayLike, "*b t h d"],
    key: Float[ArrayLike, "*b s g d"],
    value: Float[ArrayLike, "*b s g e"],
    *,
    return_lse: bool = False,
    **options: Unpack[StrategyOptions],
) -> Attended:
    """`attention` by exchanged heads: each device gets the whole sequence for some of its heads.

    Args:
      query: as in `attention`.
      key: likewise.
      value: likewise.
      return_lse: likewise.
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
    return attention(query, key, value, strategy="all_to_all", return_lse=return_lse, **options)


@overload
def gather(
    query: Float[ArrayLike, "*b t h d"],
    key: Float[ArrayLike, "*b s g d"],
    value: Float[ArrayLike, "*b s g e"],
    *,
    return_lse: Literal[False] = ...,
    **options: Unpack[StrategyOptions],
) -> Float[Array, "*b t h e"]: ...
@overload
def gather(
    query: Float[ArrayLike, "*b t h d"],
    key: Float[ArrayLike, "*b s g d"],
    value: Float[ArrayLike, "*b s g e"],
    *,
    return_lse: Literal[True],
    **options: Unpack[StrategyOptions],
) -> tuple[Float[Array, "*b t h e"], Lse]: ...
@overload
def gather(
    query: Float[ArrayLike, "*b t h d"],
    key: Float[ArrayLike, "*b s g d"],
    value: Float[ArrayLike, "*b s g e"],
    *,
    return_lse: bool,
    **options: Unpack[StrategyOptions],
) -> Attended: ...
def gather(
    query: Float[ArrayLike, "*b t h d"],
    key: Float[ArrayLike, "*b s g d"],
    value: Float[ArrayLike, "*b s g e"],
    *,
    return_lse: bool = False,
    **options: Unpack[StrategyOptions],
) -> Attended:
    """`attention` by gathered keys: each device gets all keys and values, and computes its own queries.

    Args:
      query: as in `attention`.
      key: likewise.
      value: likewise.
      return_lse: likewise.
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
    return attention(query, key, value, strategy="gather", return_lse=return_lse, **options)


def _shard_positions(given: Any, axes: MeshAxes, query: ArrayLike) -> dict[str, Any]:
    """`positions` of a device inside `jax.shard_map`, of which the sequence's are left to the strategy."""
    positions = dict(given) if isinstance(given, dict) else {} if given is None else {"t": given}
    b, _, h, _ = jnp.shape(query) if jnp.ndim(query) == 4 else (1, 1, *jnp.shape(query)[-2:])
    for a, axis, size in (("b", axes.batch, b), ("h", axes.head, h)):
        if axis is not None:
            positions[a] = positions.get(a, 0) + lax.axis_index(axis).astype(jnp.int32) * jnp.int32(size)
    return positions
