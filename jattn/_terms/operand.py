"""Operands: arrays that say which axes of a call they have."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_pytree_node
from jax.typing import DTypeLike
from numpy.typing import ArrayLike

AXES = "bhts"
if TYPE_CHECKING:
    Size = int
else:
    Size = Any  # a length may be a symbol of `jax.export`, which has no public type

AnyArray = jax.Array | np.ndarray
"""An array of JAX, or one of NumPy, which is known while tracing."""


@runtime_checkable
class Shaped(Protocol):
    """An array, or its shape and dtype where no more is asked of it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...


@dataclasses.dataclass(frozen=True)
class Operand:
    """An array and the names of its leading axes: a subset of `b h t s`, in that order.

    Axes of the array beyond the named ones are handed to the term whole.  Made by `jattn.operand`.

    >>> import jax.numpy as jnp, jattn
    >>> tables = jattn.operand(jnp.zeros((4, 32)), "h")  # of each head one with 32 entries
    >>> tables.axes, tables.array.shape
    ('h', (4, 32))
    """

    array: Any  # an array, but JAX's transformations of pytrees put all kinds of things in its place
    axes: str

    def __eq__(self, other: object) -> bool:
        """Arrays are equal where they are one: of what is in them a traced one knows nothing."""
        if not isinstance(other, Operand):
            return NotImplemented
        arrays, kinds = (self.array, other.array), (jax.Array, np.ndarray)
        same = arrays[0] is arrays[1] or (not any(isinstance(x, kinds) for x in arrays) and arrays[0] == arrays[1])
        return self.axes == other.axes and same


register_pytree_node(Operand, lambda x: ((x.array,), x.axes), lambda axes, children: Operand(children[0], axes))


def operand(array: ArrayLike, axes: str = "") -> Operand:
    """Names the axes of an array that a mask, mod or gate takes.

    The term gets the array cut to its tile and broadcastable to `[bt, bs]`: `[bt, 1]` for `"t"`, `[1, bs]` for `"s"`,
    `[]` where it has neither.  Further axes of the array follow, whole: a table `[h, buckets]` named `"h"` arrives as
    `[buckets]`.  Floating-point numbers arrive in float32 or wider, and get gradients.

    Args:
      array: numbers of any dtype, with the axes that `axes` names in front.
      axes: a subset of `"bhts"` in that order: `b` batch, `h` query head, `t` query position, `s` key position.

    Returns:
      What the functions of `jattn.masks`, `jattn.mods` and `jattn.gates` take as an operand.

    Raises:
      ValueError: `axes` is not such a subset, the array has fewer axes, or it holds integers beyond 32 bits while x64
        is off.
      TypeError: `array` is not an array.

    >>> import jax.numpy as jnp, jattn
    >>> tilt = jattn.mods.function(lambda score, i, j, slope: score - slope * (i - j), jattn.operand(jnp.ones(2), "h"))
    >>> q = jnp.ones((1, 3, 2, 4))
    >>> jattn.attention(q, q, q, mods=(tilt,)).shape
    (1, 3, 2, 4)
    """
    if not isinstance(axes, str) or "".join(a for a in AXES if a in axes) != axes:
        raise ValueError(f'axes must name a subset of "bhts" in that order, got {axes!r}')
    array = as_array(array, "an operand")
    if array.ndim < len(axes):
        raise ValueError(f"an operand with axes {axes!r} needs {len(axes)} or more axes, got shape {array.shape}")
    return Operand(array, axes)


def plain(x: Any) -> Any:
    """The array that `x` holds, as a variable of Flax does, or `x` itself."""
    # a class has the method of its instances, and a traced array None in its place
    method = None if isinstance(x, type) else getattr(x, "__jax_array__", None)
    return x if method is None else method()


def as_array(x: Any, name: str) -> AnyArray:
    """`x` as an array.  Raises where JAX would wrap its integers around, as ids of 64 bits where x64 is off."""
    x = plain(x)
    if not isinstance(x, (jax.Array, np.ndarray)):
        try:
            x = np.asarray(x) if isinstance(x, (list, tuple, bool, int, float, np.generic)) else jnp.asarray(x)
        except (TypeError, ValueError):
            raise TypeError(f"{name} must be an array, got {type(x).__name__}") from None
    if isinstance(x, np.ndarray) and not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))  # JAX knows the order of bytes of this machine alone
    if isinstance(x, np.ndarray) and jnp.issubdtype(x.dtype, jnp.integer) and x.size:
        kept = jnp.iinfo(jax.dtypes.canonicalize_dtype(x.dtype))
        if x.min() < kept.min or x.max() > kept.max:
            raise ValueError(
                f"{name} holds integers that {kept.dtype} cannot (from {x.min()} to {x.max()}), and x64 is off:"
                " renumber them, or turn on jax_enable_x64"
            )
    return x


def indices(n: Size, axis: str, first: int | Operand = 0) -> Operand:
    """first, first + 1, .. along an axis, for terms that depend on which batch element or head they are of.

    They are NumPy's unless how many they are, or where they begin, is known at run time alone.
    """
    own = (np if isinstance(n, int) else jnp).arange(n, dtype=np.int32)
    return Operand(own + (first.array if isinstance(first, Operand) else np.int32(first)), axis)


def broadcast_operand(array: ArrayLike, sizes: dict[str, int], name: str, shares: int = 1) -> Operand:
    """An array broadcastable to `[b, h, t, s]` as an operand that has only the axes along which it varies.

    `shares`: how many times as many keys it has where it varies along t.
    """
    array = as_array(array, name)
    shape = (1,) * (4 - array.ndim) + array.shape
    full = tuple(sizes[a] * (shares if a == "s" and shape[2:3] != (1,) else 1) for a in AXES)
    if array.ndim > 4 or any(n not in (1, want) for n, want in zip(shape, full, strict=True)):
        raise ValueError(
            f"{name} must be broadcastable to [b, h, t, s] = {list(full)}, got shape {list(array.shape)};"
            f" give missing axes size 1{_padding_hint(array.shape, sizes, name)}"
        )
    axes = "".join(a for a, n in zip(AXES, shape, strict=True) if n != 1)
    return Operand(array.reshape([n for n in shape if n != 1]), axes)


def _padding_hint(shape: tuple[int, ...], sizes: dict[str, int], name: str) -> str:
    padding = shape == (sizes["b"], sizes["s"])
    return f": {name}[:, None, None, :] where [b, s] says which keys are real" if padding else ""


def working(array: AnyArray | jax.ShapeDtypeStruct, dtype: DTypeLike) -> np.dtype:
    """The dtype in which an operand takes part where queries are of `dtype`: float32 or wider, but never wider than
    what the query is computed in."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array.dtype
    own, computed = _raised(array.dtype), _raised(dtype)
    return computed if own.itemsize > computed.itemsize else own


def _raised(dtype: DTypeLike) -> np.dtype:
    """float32 or wider; JAX promotes no floating-point numbers of 8 bits by itself."""
    return jnp.dtype(dtype if jnp.dtype(dtype).itemsize > 4 else jnp.float32)


def wide(array: ArrayLike) -> jax.Array:
    """Floating operands reach a term in float32 or wider: positions times a bfloat16 slope would skip integers."""
    array = jnp.asarray(array)
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(_raised(array.dtype)) if floating else array


def repeated(x: jax.Array, n: int, axis: int) -> jax.Array:
    """Each entry of an axis n times: what `jnp.repeat` gives, which asks how that is sharded along Explicit axes."""
    axis %= x.ndim
    shape = list(x.shape)
    spread = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), (*shape[: axis + 1], n, *shape[axis + 1 :]))
    return spread.reshape(*shape[:axis], shape[axis] * n, *shape[axis + 1 :])


def is_whole(x: object) -> TypeGuard[int | np.integer]:
    """Whether it is a whole number of Python or NumPy; a bool is none."""
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool)


def number(value: Any, name: str) -> float | Operand:
    """A Python number stays static; an array becomes an operand without axes, and gets a gradient."""
    value = plain(value)
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number, np.ndarray, jax.Array)):
        raise TypeError(f"{name} must be a number or a scalar array, got {value!r}")
    if isinstance(value, (np.ndarray, jax.Array)):
        if value.ndim:
            raise ValueError(f"{name} must be a scalar, got shape {value.shape}")
        return Operand(value, "")
    if isinstance(value, np.complexfloating):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    return value if isinstance(value, (int, float)) else value.item()
