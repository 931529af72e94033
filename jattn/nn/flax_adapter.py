"""jattn inside Flax's own attention layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype as _promote_dtype
from flax.typing import PrecisionLike
from jax.extend.core import Jaxpr, Var
from jax.typing import ArrayLike, DTypeLike

from jattn import _terms, api, gates, masks
from jattn._call import checks, modes
from jattn._call.dispatch import UnsupportedError
from jattn._terms import Operand, Term, term
from jattn.nn._batching import batched
from jattn.nn._frozen import thawed
from jattn.nn._options import AdapterOptions, Asked, Options, checked, join, several

_OPTIONS = ("score", "normalizer", "mask", "mods", "gates", "sinks", "implementation", "blocks")


def attention_fn(**options: Unpack[AdapterOptions]) -> Callable[..., jax.Array]:
    """Makes Flax's `nnx.MultiHeadAttention` and `linen.MultiHeadDotProductAttention` compute attention with jattn.

    It computes what the layer of Flax says (Vaswani et al. 2017), with the options on top.

    Args:
      **options: those of `jattn.attention` that stay the same from call to call: score, normalizer, mask, mods, gates,
        sinks, implementation, blocks.  A mask that the layer is called with holds as well.  Arrays in them are
        constants to the layer: to learn them, take `jattn.nn.MultiHeadAttention`.

    Returns:
      A function of query `[.., t, h, d]`, key `[.., s, g, d]`, value `[.., s, g, e]`, with any number of batch axes,
      and of everything else that Flax's layers pass, to out `[.., t, h, e]`.  It computes what Flax does, except that

      - a query that may attend to nothing gives 0 and no gradient; Flax takes the mean of all values;
      - the softmax is always computed in float32 or wider, whatever `force_fp32_for_softmax` says;
      - dropout drops as often, but not the same weights for the same key.  `broadcast_dropout=True`, Flax's default,
        shares one pattern among all batch elements and heads, as in Flax;
      - `mask` may also be a mask of `jattn.masks`;
      - `sow_weights` sows the weights before dropout, like Flax, and then costs O(t * s) memory.

    Raises:
      TypeError: an unknown option.
      ValueError: a mask, mod or gate of `options` that looks at the query's position, where Flax decodes: Flax shows
        one query (t = 1) and all the keys of its cache, and does not say at which position it is.  Its own mask is
        causal there, so a layer that decodes does without `masks.causal()`; for a window, ALiBi and all else take
        `jattn.nn.MultiHeadAttention`, whose `decode` knows positions.
      ValueError: dropout without a `dropout_rng`, or shapes that do not fit; a precision that is not one for all
        operands, or an algorithm of `jax.lax`.
      UnsupportedError: custom products (`einsum_dot_general`, `qk_attn_weights_einsum`, `attn_weights_value_einsum`),
        or `input_positions`, which ask for a rotary embedding.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> layer = nnx.MultiHeadAttention(
    ...     num_heads=4, in_features=32, decode=False, rngs=nnx.Rngs(0),
    ...     attention_fn=jattn.nn.attention_fn(mask=jattn.masks.causal()),
    ... )
    >>> layer(jnp.ones((2, 5, 32))).shape
    (2, 5, 32)

    Source: Vaswani et al. 2017, as Flax's layers have it.
    """
    fixed = {name: thawed(x) for name, x in checked(options, _OPTIONS, "jattn.nn.attention_fn").items()}

    @modes.ordinary
    def attention(
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        bias: ArrayLike | None = None,
        mask: masks.Mask | ArrayLike | None = None,
        broadcast_dropout: bool = True,
        dropout_rng: jax.Array | None = None,
        dropout_rate: float = 0.0,
        deterministic: bool = False,
        dtype: DTypeLike | None = None,
        precision: PrecisionLike = None,
        module: Any = None,  # the layer, of nnx or of linen, that weights are sown in
        promote_dtype: Callable[..., Any] = _promote_dtype,
        is_causal: bool = False,
        force_fp32_for_softmax: bool = False,
        einsum_dot_general: Callable[..., jax.Array] | None = None,
        qk_attn_weights_einsum: Callable[..., jax.Array] | None = None,
        attn_weights_value_einsum: Callable[..., jax.Array] | None = None,
        input_positions: ArrayLike | None = None,
    ) -> jax.Array:
        _refuse(
            einsum_dot_general=einsum_dot_general,
            qk_attn_weights_einsum=qk_attn_weights_einsum,
            attn_weights_value_einsum=attn_weights_value_einsum,
            input_positions=input_positions,
        )
        query, key, value = promote_dtype((query, key, value), dtype=dtype)
        lead = query.shape[:-3]
        if mask is not None and not isinstance(mask, masks.Mask):
            mask = jnp.asarray(mask).astype(bool)  # Flax makes masks of floats
        if mask is not None and query.shape[-3] == 1 < key.shape[-3]:
            _check_positions({**fixed, **({"is_causal": masks.causal()} if is_causal else {})}, query, key)
        if is_causal:
            mask = join({"mask": masks.causal()}, mask, lead=lead)["mask"]
        asked = {**Asked(mask, bias=bias).beside(fixed, lead), "precision": _same(precision)}
        if module is not None:
            weights = batched(api.weights, query, key, value, asked)
            _sow(module, weights if force_fp32_for_softmax else weights.astype(query.dtype))
        if dropout_rate > 0 and not deterministic:
            asked["dropout"] = _dropout(dropout_rate, dropout_rng, broadcast_dropout)
        return batched(api.attention, query, key, value, asked)

    return attention


def _check_positions(options: Options, query: jax.Array, key: jax.Array) -> None:
    """Raises where a term looks at the position of the one query that Flax decodes."""
    sizes = {"b": math.prod(query.shape[:-3]), "h": query.shape[-2], "t": 1, "s": key.shape[-3]}
    for name in ("mask", "is_causal", "mods", "gates"):
        for x in several(options.get(name) or ()) if name in ("mods", "gates") else (options.get(name),):
            if x is not None and _looks_at_queries(x, sizes):
                raise ValueError(
                    f"jattn.nn.attention_fn: {name} looks at the query's position, which Flax does not tell where it"
                    f" decodes (t = 1, s = {sizes['s']}, and a mask of what its cache holds). That mask is causal"
                    " already: make the layer that decodes without masks.causal(), and for all else take"
                    " jattn.nn.MultiHeadAttention and its decode"
                )


def _looks_at_queries(term: Term, sizes: dict[str, int]) -> bool:
    """Whether a mask, mod or gate depends on i, or has an array for more queries than there are."""
    if isinstance(term, masks.Mask):
        arrays = jax.tree.leaves(term, is_leaf=lambda x: isinstance(x, masks.Unplaced))
        if any(isinstance(x, masks.Unplaced) and x.array.ndim > 1 and x.array.shape[-2] > 1 for x in arrays):
            return True
        term = checks.place(term, sizes)
    arrays, signature = _terms.split(term.bound(*_terms.Origin().indices(sizes["b"], sizes["h"])))
    if any("t" in axes and x.shape[axes.index("t")] != 1 for x, axes in zip(arrays, signature.axes, strict=True)):
        return True
    tiles = [_tile(x, axes, sizes) for x, axes in zip(arrays, signature.axes, strict=True)]
    shapes = ((1, sizes["s"]), "float32"), ((1, 1), "int32"), ((1, sizes["s"]), "int32")
    score, i, j = (jax.ShapeDtypeStruct(*x) for x in shapes)

    def call(i: jax.Array, score: jax.Array, j: jax.Array, tiles: list[Any]) -> jax.Array:
        filled = signature.fill(tiles)
        return filled(i, j) if isinstance(term, masks.Mask) else filled(score, i, j)

    return _depends_on_first(jax.make_jaxpr(call)(i, score, j, tiles).jaxpr)


def _tile(array: jax.Array, axes: str, sizes: dict[str, int]) -> jax.ShapeDtypeStruct:
    """An operand as its term sees it, for one query and all keys."""
    whole = [sizes[a] if a in axes else 1 for a in "ts"] if {"t", "s"} & set(axes) else []
    return jax.ShapeDtypeStruct((*whole, *array.shape[len(axes) :]), jax.eval_shape(_terms.wide, array).dtype)


def _depends_on_first(jaxpr: Jaxpr) -> bool:
    """Whether what a program returns is computed from its first argument."""
    dependent = {jaxpr.invars[0]}
    for equation in jaxpr.eqns:
        if any(isinstance(x, Var) and x in dependent for x in equation.invars):
            dependent.update(equation.outvars)
    return any(isinstance(x, Var) and x in dependent for x in jaxpr.outvars)


_ROTARY = "it applies no rotary embedding; jattn.nn.MultiHeadAttention(rotary_base=...) does"
_PRODUCTS = "both products are computed in tiles by the backend; Flax's own dot_product_attention takes others"


def _refuse(**asked: object) -> None:
    """Raises for what Flax may ask for and jattn does not do."""
    for name, value in asked.items():
        if value is not None:
            reason = _ROTARY if name == "input_positions" else _PRODUCTS
            raise UnsupportedError(f"jattn.nn.attention_fn cannot honour {name}: {reason}")


def _same(precision: PrecisionLike) -> Any:
    """A precision that Flax was given for each operand of a product, as the one that it is of both."""
    return precision[0] if isinstance(precision, tuple) and len(set(precision)) == 1 else precision


def _sow(module: Any, weights: jax.Array) -> None:
    collection = nnx.Intermediate if isinstance(module, nnx.Module) else "intermediates"
    module.sow(collection, "attention_weights", weights)


def _dropout(rate: float, rng: jax.Array | None, shared: bool) -> gates.Gate:
    if rng is None:
        raise ValueError(f"dropout_rate = {rate} needs a dropout_rng, or deterministic=True")
    gate = gates.dropout(rate, jax.random.bits(rng, dtype=jnp.uint32))
    return _SharedDropout(gate.rate, gate.seed) if shared else gate  # type: ignore[attr-defined]


@term
class _SharedDropout(gates.Gate):
    """`gates.dropout` with the pattern of the first head of the first batch element everywhere."""

    rate: float
    seed: Operand

    def __call__(self, weight: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        return gates.Dropout(self.rate, self.seed, 0, 0)(weight, i, j)
