"""Along which axes of a mesh batch elements, heads and sequences lie, said once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from jax.sharding import AbstractMesh, Mesh

from jattn._call import layouts
from jattn._call.layouts import Order
from jattn.parallel._attention import attention
from jattn.parallel._checks import check_order


def layout(
    batch: str | Sequence[str] | None = None,
    heads: str | Sequence[str] | None = None,
    mesh: Mesh | AbstractMesh | None = None,
    *,
    sequence: str | None = None,
    order: Order = "contiguous",
) -> AbstractContextManager[layouts.Layout]:
    """Says along which mesh axes the batch axis, the heads and the sequence of all calls inside lie.

    Arrays say it themselves where a mesh has Explicit axes, and on CPU and GPU with Auto axes.  It is needed

    - on TPU with Auto axes, where JAX cannot ask kernels how they are sharded;
    - inside `jax.shard_map`, for what depends on which batch element and head a device has: dropout, Gumbel noise,
      `masks.blocks` with a layout for each head.  All of them are then numbered as on one device, by
      `jax.lax.axis_index`; so a mask's layout has all heads;
    - for a sequence that is to stay sharded: with `sequence` every `jattn.attention` inside is
      `jattn.parallel.attention` along these axes.  So layers of `jattn.nn`, and whole models, need no change.  t and s
      of every call are then to divide by its devices: one token of `decode` does not.  `weights` and `sample` gather.

    Heads lie along `heads` as far as g divides; a device then has whole key heads.  Where g is smaller each has some
    query heads of one key head.  A function that `jax.jit` has
    traced under another layout is traced once more.

    Args:
      batch: the axis, or axes, of the mesh along which b lies; None for none.
      heads: likewise of h.
      mesh: the mesh; by default that of `jax.set_mesh` where attention is called.
      sequence: the axis of the mesh along which t and s lie; None for none.  `batch` and `heads` are then an axis each.
      order: how the sequence lies, as in `attention`: in "zigzag" order all that goes with positions is in it too, such
        as tokens, and the `positions` that layers have for their rotary embeddings.

    Returns:
      A context manager.

    Raises:
      TypeError: `batch`, `heads` or `sequence` is not made of names.
      ValueError: an axis is named twice, several beside a sequence, or there is no such order.  When attention is
        called or compiled: the mesh has no axis of such a name, or there is none, or b, the heads, or t and s do not
        divide by the devices along theirs.

    >>> import jax, jattn
    >>> x = jax.numpy.ones((2, 16, 4, 8))
    >>> mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    >>> with jax.set_mesh(mesh), jattn.parallel.layout(batch="data", heads="model"):
    ...     jax.jit(jattn.attention)(x, x, x).shape
    (2, 16, 4, 8)

    A layer whose sequence goes round a ring:

    >>> from flax import nnx
    >>> layer = jattn.nn.TransformerBlock(32, 4, mask=jattn.masks.causal(), rotary_base=1e4, rngs=nnx.Rngs(0))
    >>> with jax.set_mesh(jattn.parallel.mesh(sequence=1, devices=jax.devices()[:1])):
    ...     with jattn.parallel.layout(sequence="sequence"):
    ...         nnx.jit(lambda layer, x: layer(x))(layer, jax.numpy.ones((2, 16, 32))).shape
    (2, 16, 32)

    Source: Shoeybi et al. 2019, "Megatron-LM", section 3 (heads along an axis of their own).
    """
    check_order(order, "layout")
    if sequence is not None and not isinstance(sequence, str):
        raise TypeError(f"layout: sequence must name an axis of a mesh, got {sequence!r}")
    there = mesh.abstract_mesh if isinstance(mesh, Mesh) else mesh
    attend = None if sequence is None else attention
    said = layouts.Layout(_names("batch", batch), _names("heads", heads), there, sequence, order, attend)
    if twice := [x for n, x in enumerate(said.axes) if x in said.axes[:n]]:
        others = "" if sequence is None else f", sequence={sequence!r}"
        raise ValueError(f"layout: {twice[0]!r} is named twice, in batch={batch!r}, heads={heads!r}{others}")
    if sequence is not None and max(len(said.batch), len(said.heads)) > 1:
        raise ValueError(f"layout: beside a sequence batch and heads lie along an axis each, got {batch!r}, {heads!r}")
    return layouts.using(said)


def _names(argument: str, value: str | Sequence[str] | None) -> layouts.Axes:
    axes = layouts.as_axes(value) if value is None or isinstance(value, (str, tuple, list)) else None
    if axes is None or not all(isinstance(x, str) for x in axes):
        raise TypeError(f"layout: {argument} must name axes of a mesh, got {value!r}")
    return axes
