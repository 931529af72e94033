"""Along which axes of a mesh batch elements and heads lie, said once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from jax.sharding import AbstractMesh, Mesh

from jattn._call import layouts


def layout(
    batch: str | Sequence[str] | None = None,
    heads: str | Sequence[str] | None = None,
    mesh: Mesh | AbstractMesh | None = None,
) -> AbstractContextManager[layouts.Layout]:
    """Says along which mesh axes the batch axis and the heads of all calls inside lie.

    Arrays say it themselves where a mesh has Explicit axes, and on CPU and GPU with Auto axes.  It is needed

    - on TPU with Auto axes, where JAX cannot ask kernels how they are sharded;
    - inside `jax.shard_map`, for what depends on which batch element and head a device has: dropout, Gumbel noise,
      `masks.blocks` with a layout for each head.  All of them are then numbered as on one device, by
      `jax.lax.axis_index`; so a mask's layout has all heads.

    Heads lie along `heads` as far as g divides; a device then has whole key heads.  Where g is smaller each has some
    query heads of one key head.  A function that `jax.jit` has
    traced under another layout is traced once more.

    Args:
      batch: the axis, or axes, of the mesh along which b lies; None for none.
      heads: likewise of h.
      mesh: the mesh; by default that of `jax.set_mesh` where attention is called.

    Returns:
      A context manager.

    Raises:
      TypeError: `batch` or `heads` is not made of names.
      ValueError: an axis is named twice.  When attention is called or compiled: the mesh has no axis of such a name, or
        there is none, or b or the heads do not divide by the devices along theirs.

    >>> import jax, jattn
    >>> x = jax.numpy.ones((2, 16, 4, 8))
    >>> mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    >>> with jax.set_mesh(mesh), jattn.parallel.layout(batch="data", heads="model"):
    ...     jax.jit(jattn.attention)(x, x, x).shape
    (2, 16, 4, 8)

    Source: Shoeybi et al. 2019, "Megatron-LM", section 3 (heads along an axis of their own).
    """
    named = _names("batch", batch), _names("heads", heads)
    both = [*named[0], *named[1]]
    twice = [x for n, x in enumerate(both) if x in both[:n]]
    if twice:
        raise ValueError(f"layout: {twice[0]!r} is named twice, in batch={batch!r}, heads={heads!r}")
    return layouts.using(layouts.Layout(*named, mesh.abstract_mesh if isinstance(mesh, Mesh) else mesh))


def _names(argument: str, value: str | Sequence[str] | None) -> layouts.Axes:
    axes = layouts.as_axes(value) if value is None or isinstance(value, (str, tuple, list)) else None
    if axes is None or not all(isinstance(x, str) for x in axes):
        raise TypeError(f"layout: {argument} must name axes of a mesh, got {value!r}")
    return axes
