"""The contract between a call and who runs it: typed records, and nothing that is not in them.

A backend is a record in a package of its name, as `jattn.backends.blockwise.BLOCKWISE`.  `jattn.backends.BACKENDS` is
all of them in order of preference, and `attention(implementation=)` takes a name or such a record.

Shapes: q `[b, t, h, d]`, k `[b, s, g, d]`, v `[b, s, g, e]`, where h is a multiple of g.  Any of them may have a
shorter batch axis: element b of the call then uses entry b % length.  k and v may be of fewer bits than q
(`jattn._call.scales.NARROW`) where a backend does not refuse it: they are cast a tile at a time.  `operands` are the
arrays of the terms, with the axes that `spec.signature.axes` names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Float, Num

from jattn import _terms
from jattn._call.targets import Target
from jattn._terms import AnyArray, Signature, Terms
from jattn._terms import Shaped as Shaped

if TYPE_CHECKING:
    from jattn._call.problem import Problem
    from jattn.masks import Mask

Precision = jax.lax.Precision | str | None

# Each batch axis may be shorter than the call's, so `_`: nothing is said of how it goes with those of the others.
if TYPE_CHECKING:  # type checkers do not look into shapes
    Query: TypeAlias = jax.Array
    Key: TypeAlias = jax.Array
    Value: TypeAlias = jax.Array
    Out: TypeAlias = jax.Array
    Lse: TypeAlias = jax.Array
else:
    Query = Float[jax.Array, "_ t h d"]
    Key = Num[jax.Array, "_ s g d"]
    Value = Num[jax.Array, "_ s g e"]
    Out = Float[jax.Array, "_ t h e"]
    Lse = Float[jax.Array, "_ t h"]


class Result(NamedTuple):
    """What a backend's forward pass gives, and its derivatives start from.

    A float32 of -1e9 has no place for the log of a sum: the derivatives' weights are exp(score - lse - remainder).
    """

    out: jax.Array
    """`[b, t, h, e]` in the query's dtype; 0 where a query sees nothing."""
    lse: jax.Array
    """`[b, t, h]`, float32 or wider: the log of the sum of exp(score); -inf where a query sees nothing."""
    remainder: jax.Array
    """`[b, t, h]`: what rounding took from lse; 0 where a query sees nothing."""


class Tangents(NamedTuple):
    """Tangents of a call's arrays, each of the shape and dtype of its array."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    operands: list[jax.Array | None]
    """None for an operand that does not move."""


class Gradients(NamedTuple):
    """Gradients of a call's arrays, each of the shape and dtype of its array."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    operands: list[jax.Array | None]
    """None for an operand that is not active."""


class Cut(NamedTuple):
    """How a backend cuts the work of a call, for `explain`."""

    tile: tuple[int, int]
    """Query and key rows of a tile."""
    blocks: tuple[int, int, int] | None
    """Empty, partial and full blocks, over batch and heads; None where they are known only at run time."""
    tuned: str | None = None
    """Where the tile sizes come from: a table, the caller or a rule."""
    milliseconds: float | None = None
    """Estimated time of the forward pass."""
    pairs: int | None = None
    """Pairs of queries and keys in the blocks that are visited, where some hang over the ends."""
    gradients: str | None = None
    """Which gradients are not the backend's own, whose they are and why; None where it has all."""


@dataclasses.dataclass(frozen=True)
class Backend:
    """A way to run attention, or the reason why there is none."""

    name: str
    """As `implementation=` takes it and `explain` prints it."""
    refuses: Callable[[Problem, Target], str | None]
    """(problem, target): the reason why it cannot run the problem there, None if it can.  A clause whose subject is the
    backend: "takes float32 and bfloat16, not float16"."""
    untried: str | None = dataclasses.field(default=None, kw_only=True)
    """Of a backend that is chosen unasked only where a recorded run confirms it (`jattn_kernels.tables.confirmed`):
    what is known of it without, as "compiled and simulated, not yet run on this chip".  None: it needs no such run."""


@dataclasses.dataclass(frozen=True)
class Direct(Backend):
    """A backend that is a function of the problem, which JAX differentiates."""

    compute: Callable[[Problem], tuple[jax.Array, jax.Array | None]]
    """(problem): out `[b, t, h, e]`, and lse `[b, t, h]` where the normaliser is a softmax."""


class InPages(NamedTuple):
    """How a backend reads keys and values from their pages: k `[p, page, g, d]` and v `[p, page, g, e]` are pools, and
    key j of element b is row j % page of page `table[b, j // page]`."""

    takes: Callable[[Spec, Shaped, Shaped, Shaped, Shaped, Sequence[Shaped]], bool]
    """(spec, q, k, v, table, operands): whether it does."""
    forward: Callable[[Spec, jax.Array, jax.Array, jax.Array, jax.Array, list[jax.Array]], Result]
    """(spec, q, k, v, table, operands), of which it takes the pages."""


@dataclasses.dataclass(frozen=True)
class Fused(Backend):
    """A backend that computes a softmax and its first derivatives by itself, with memory linear in t + s.

    Higher derivatives, vmap and sinks are made of these for all backends alike.  Problems whose normaliser has no
    online form never come here: they are computed in whole rows.
    """

    forward: Callable[[Spec, jax.Array, jax.Array, jax.Array, list[jax.Array]], Result]
    """(spec, q, k, v, operands)."""
    tangent: Callable[
        [Spec, jax.Array, jax.Array, jax.Array, list[jax.Array], Result, Tangents], tuple[jax.Array, jax.Array]
    ]
    """(spec, q, k, v, operands, result, tangents): the tangents of out and lse."""
    backward: Callable[
        [Spec, jax.Array, jax.Array, jax.Array, list[jax.Array], Result, jax.Array, jax.Array, Sequence[bool]],
        Gradients,
    ]
    """(spec, q, k, v, operands, result, dout, dlse, active): the gradients, of the operands that are `active`; dout has
    the shape and dtype of out, dlse those of lse."""
    cut: Callable[[Spec, Shaped, Shaped, Shaped, Sequence[Shaped], Mask | None, bool], Cut] | None = None
    """(spec, q, k, v, operands, mask, known): how the forward pass is cut; blocks are counted where the mask is
    `known`.  None: `explain` says nothing of tiles."""
    settings: Any = None  # each backend has a type of its own, whose attributes it reads: of a Hashable it could not
    """What its functions read of `spec.backend`: frozen and hashable, so that other settings are another record."""
    twin: Callable[[Spec, jax.Array, jax.Array, jax.Array, Sequence[AnyArray]], tuple[jax.Array, jax.Array]] | None = (
        dataclasses.field(default=None, kw_only=True)
    )
    """(spec, q, k, v, operands): out and lse in differentiable JAX, of which higher derivatives are made; None where
    whole rows of the arrays themselves are what it computes."""
    in_pages: InPages | None = dataclasses.field(default=None, kw_only=True)
    """None where keys and values that lie in pages are always gathered."""
    calls_back: bool = dataclasses.field(default=False, kw_only=True)
    """Whether what interprets its kernels calls back to Python, which is an effect of the program."""
    out_as_query: bool = dataclasses.field(default=False, kw_only=True)
    """Whether its output has the query's dtype alone; the others write what `Spec.dtype` says, float32 of a bfloat16
    query too."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is static about one fused call."""

    backend: Fused
    signature: Signature
    """Which terms the call has and which axes their operands have: `Terms` without the arrays."""
    dtype: jnp.dtype
    """The dtype of the output."""
    precision: Precision
    """With how many bits both products, scores and output, are computed."""
    blocks: tuple[int, int] | None
    """Query and key rows of a tile, where the caller said so."""
    target: Target
    mapped: tuple[tuple[str, ...], ...] = ()
    """Of each axis that vmap has put in front of every array, of length 1 where it lacks it, the mesh axes that vmap's
    `spmd_axis_name` says it lies along.  Backends see none."""

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of q, k, v and the operands that follow the mapped ones; further axes are whole to every step."""
        return ("bth", "bsg", "bsg", *self.signature.axes)

    def terms(self, operands: Sequence[Any]) -> Terms:
        """The terms with their operands whole."""
        return self.signature.fill([_terms.Operand(*x) for x in zip(operands, self.signature.axes, strict=True)])
