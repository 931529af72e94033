"""vmap of the three primitives: the new axis joins the batch axis, in front.

Arrays that it leaves alone keep their length: element b of the call uses their entry b % length.  Where a gradient is
wanted for each element, its array is made full length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.interpreters import batching

from jattn._derivatives.primitives import attend_backward, attend_p, attend_tangent, chosen, parts, placed
from jattn._terms import AnyArray
from jattn.backends.contract import Spec


class _Fold:
    def __init__(self, args: Sequence[AnyArray], dims: Sequence[int | None], spec: Spec):
        self.size = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
        self.args = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)]
        self.batched = [d is not None for d in dims]
        self.spec = spec
        self.axes = ["b"] * 3 + list(spec.signature.axes)
        n = len(self.axes)
        self.b = max(
            x.shape[1 if y else 0]
            for x, y, a in zip(self.args[:n], self.batched[:n], self.axes, strict=True)
            if "b" in a
        )

    def new_spec(self, wide: Sequence[bool]) -> Spec:
        """The spec in which the operands that `wide` says have a batch axis."""
        axes = tuple("b" + a if w and "b" not in a else a for a, w in zip(self.axes[3:], wide[3:], strict=True))
        return dataclasses.replace(self.spec, signature=self.spec.signature._replace(axes=axes))

    def fold(self, n: int, axes: str, full: bool = False) -> jax.Array:
        """Argument n with the new axis joined to its batch axis; `full`: even if it does not have the new axis."""
        x, batched = jnp.asarray(self.args[n]), self.batched[n]
        if not batched and not full:
            return x
        if "b" not in axes:
            x = x[:, None] if batched else x[None]
        if not batched:
            x = jnp.broadcast_to(x, (self.size, *x.shape))
        x = jnp.tile(x, (1, self.b // x.shape[1], *[1] * (x.ndim - 2)))
        return x.reshape(self.size * self.b, *x.shape[2:])

    def unfold(self, x: jax.Array, axes: str = "b", length: int | None = None) -> jax.Array:
        """The inverse; what did not have all of the batch axis is summed over it."""
        x = x.reshape(self.size, self.b, *x.shape[1:])
        if "b" not in axes:
            return x.sum(1)
        if length not in (None, self.b):
            x = x.reshape(self.size, self.b // length, length, *x.shape[2:]).sum(1)
        return x


def _attend_batch(args: Sequence[AnyArray], dims: Sequence[int | None], *, spec: Spec):
    f = _Fold(args, dims, spec)
    folded = [f.fold(n, axes) for n, axes in enumerate(f.axes)]
    result = attend_p.bind(*folded, spec=f.new_spec(f.batched))
    return [f.unfold(x) for x in result], [0] * len(result)


def _attend_tangent_batch(
    flat: Sequence[AnyArray], dims: Sequence[int | None], *, spec: Spec, active: tuple[bool, ...]
):
    f = _Fold(flat, dims, spec)
    _, held, tangents = parts(range(len(flat)), active)
    tangent_at = placed(tangents, active)
    wide = [f.batched[m] or (at is not None and f.batched[at]) for m, at in enumerate(tangent_at)]
    folded = [f.fold(m, axes, w) for m, (axes, w) in enumerate(zip(f.axes, wide, strict=True))]
    folded += [f.fold(m, "b", True) for m in held]
    folded += [f.fold(at, f.axes[m], wide[m]) for m, at in enumerate(tangent_at) if at is not None]
    out = attend_tangent.bind(*folded, spec=f.new_spec(wide), active=active)
    return [f.unfold(x) for x in out], [0, 0]


def _attend_backward_batch(
    flat: Sequence[AnyArray], dims: Sequence[int | None], *, spec: Spec, active: tuple[bool, ...]
):
    f, n = _Fold(flat, dims, spec), len(active)
    wide = [f.batched[m] or active[m] for m in range(n)]
    folded = [f.fold(m, axes, w) for m, (axes, w) in enumerate(zip(f.axes, wide, strict=True))]
    folded += [f.fold(m, "b", True) for m in range(n, len(flat))]
    grads = attend_backward.bind(*folded, spec=f.new_spec(wide), active=active)
    lengths = [x.shape[1 if y else 0] if "b" in a else None for x, y, a in zip(f.args, f.batched, f.axes, strict=False)]
    own = zip(grads, chosen(f.axes, active), chosen(lengths, active), strict=True)
    return [f.unfold(*x) for x in own], [0] * len(grads)


batching.primitive_batchers[attend_p] = _attend_batch
batching.primitive_batchers[attend_tangent] = _attend_tangent_batch
batching.primitive_batchers[attend_backward] = _attend_backward_batch
