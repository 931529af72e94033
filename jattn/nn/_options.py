"""Options of `jattn.attention` that a layer is made with, those of a call, and both as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import PrecisionLike
from jax.typing import ArrayLike
from jaxtyping import Array

from jattn import gates, masks, mods, normalizers, scores
from jattn._terms import Size
from jattn.backends.contract import Backend
from jattn.nn import _checks
from jattn.nn._batching import merge_lead
from jattn.nn._frozen import Frozen, thawed
from jattn.nn._latent import Latent
from jattn.nn._projections import Norm, UseBias
from jattn.nn._rotary import RotaryFn

AnyMask: TypeAlias = masks.Mask | ArrayLike | None
Mods: TypeAlias = mods.Mod | Frozen | Sequence[mods.Mod | Frozen]
Gates: TypeAlias = gates.Gate | Frozen | Sequence[gates.Gate | Frozen]
Options: TypeAlias = dict[str, Any]  # by their names, of as many types


class CallOptions(TypedDict, total=False):
    """Options that a call of `Seq2SeqAttention` may add."""

    normalizer: normalizers.Normalizer | Frozen
    mask: AnyMask
    mods: Mods
    gates: Gates


class ReadOptions(CallOptions, total=False):
    """Options that `Seq2SeqAttention` is made with."""

    implementation: str | Backend | None
    blocks: tuple[int, int] | None


class AttentionOptions(ReadOptions, total=False):
    """Options that `MultiHeadAttention` is made with."""

    score: scores.Score | Frozen


class AdapterOptions(AttentionOptions, total=False):
    """Options of `attention_fn`."""

    sinks: ArrayLike | None


class BlockOptions(AttentionOptions, total=False):
    """Arguments of `MultiHeadAttention` that `TransformerBlock` hands on."""

    kv_heads: int | None
    head_dim: int | None
    value_dim: int | None
    latent: Latent | None
    rotary_base: float | None
    rotary: RotaryFn | None
    qk_norm: bool | Norm
    sinks: bool | ArrayLike
    out_kernel_init: nnx.Initializer | None


class StackOptions(BlockOptions, total=False):
    """Arguments of `TransformerBlock` that stacks hand on."""

    hidden: int | None
    gated: bool
    activation: Callable[[Array], Array]
    mlp: Callable[..., Callable[[Array], Array]] | None
    context_features: int | None
    dropout: float
    deterministic: bool
    use_bias: UseBias
    kernel_init: nnx.Initializer
    precision: PrecisionLike


class LayerOptions(BlockOptions, total=False):
    """Arguments of `MultiHeadAttention` that `LocalAttention` hands on."""

    context_features: int | None
    value_features: int | None
    out_features: int | None
    dropout: float
    deterministic: bool
    use_bias: UseBias
    kernel_init: nnx.Initializer


class Asked(NamedTuple):
    """What a call of a layer asks of the scores and weights, beside what the layer itself does.

    Attributes:
      mask: a mask, or booleans broadcastable to `[.., h, t, s]`.
      mods: one or several.
      gates: one or several.
      bias: broadcastable to `[.., h, t, s]`.
    """

    mask: AnyMask = None
    mods: Mods = ()
    gates: Gates = ()
    bias: ArrayLike | None = None

    def beside(self, own: Options, lead: tuple[Size, ...]) -> Options:
        """Options of `jattn.attention`: the layer's own and these, whose batch axes are `lead`."""
        options = join(own, self.mask, self.mods, self.gates, lead)
        return options if self.bias is None else {**options, "bias": merge_lead(self.bias, lead, "bias")}


def checked(options: Mapping[str, Any], known: Sequence[str], where: str) -> Options:
    """The options, their mask as a `Mask`; raises on any that is not known."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"{where} takes no option {', '.join(unknown)}; the options are {', '.join(known)}")
    mask = options.get("mask")
    return {**options, "mask": as_mask(mask)} if mask is not None else dict(options)


def join(own: Options, mask: AnyMask, mods: Mods = (), gates: Gates = (), lead: tuple[Size, ...] = ()) -> Options:
    """Options of `jattn.attention`: both masks hold; the mods and gates of the call come after the layer's own."""
    both = [as_mask(x, lead) for x in (own.get("mask"), mask) if x is not None]
    return {
        **own,
        "mask": both[0] & both[1] if len(both) == 2 else both[0] if both else None,
        "mods": (*several(own.get("mods", ())), *several(mods)),
        "gates": (*several(own.get("gates", ())), *several(gates)),
    }


def several(terms: Mods | Gates) -> tuple[Any, ...]:
    """Mods or gates, one or several, as `jattn.attention` takes them."""
    return tuple(thawed(x) for x in (terms if isinstance(terms, (tuple, list)) else (terms,)))


def as_mask(mask: object, lead: tuple[Size, ...] = ()) -> masks.Mask:
    """A mask, or a boolean array broadcastable to `[*lead, h, t, s]`, as a mask of one batch axis."""
    if isinstance(mask, masks.Mask):
        return mask
    _checks.check_mask_dtype(mask)
    return masks.dense(merge_lead(mask, lead, "mask"))


class Held(NamedTuple):
    """What is static about the options that a layer keeps.

    Attributes:
      structure: the pytree of the options.
      leaves: its leaves, with None where an array belongs.
    """

    structure: Any  # jax.tree_util.PyTreeDef, which is no type to a type checker
    leaves: tuple[Any, ...]

    def fill(self, arrays: Iterable[nnx.Variable[Array]]) -> Options:
        """The options with the arrays where they belong."""
        values = iter(arrays)
        return jax.tree.unflatten(self.structure, [next(values)[...] if x is None else x for x in self.leaves])


def hold(options: Options) -> tuple[list[nnx.Variable[Array]], Held]:
    """The arrays of options as variables, in pytree order, and the rest."""
    apart = lambda x: isinstance(x, (masks.Mask, Frozen))
    variables, leaves = [], []
    for part in jax.tree.leaves(options, is_leaf=apart):
        for x in jax.tree.leaves(_term(part)):
            if _checks.is_array(x):
                variables.append(_variable(x, learns=not apart(part)))
            leaves.append(None if _checks.is_array(x) else x)
    structure = jax.tree.structure(jax.tree.map(_term, options, is_leaf=apart))
    return variables, Held(structure, tuple(leaves))


def _term(part: Any) -> Any:
    """The term that is frozen, or the part itself."""
    return part.term if isinstance(part, Frozen) else part


def _variable(array: ArrayLike, learns: bool) -> nnx.Variable:
    """Floating-point arrays learn, but for those of masks and frozen terms; ids, lengths and seeds do not."""
    array = jnp.asarray(array)
    return nnx.Param(array) if learns and jnp.issubdtype(array.dtype, jnp.floating) else nnx.Variable(array)
