"""The block that Transformers are stacked of, for Flax NNX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, Unpack, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import PrecisionLike
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from jattn._call import modes
from jattn.nn import _checks, _dropout
from jattn.nn._checks import AnyArray
from jattn.nn._hints import of_calls, of_layers
from jattn.nn._options import AnyMask, BlockOptions, Gates, Mods
from jattn.nn._projections import UseBias, biases
from jattn.nn.cache._record import BlockCache, Cache
from jattn.nn.multi_head import MultiHeadAttention

Norms = Literal["pre", "post", "sandwich", "output"]
_NAMES = ("query", "key", "value", "out", "mlp")
_OF_POSITIONS = ("mask", "mods", "gates", "rotary_base", "rotary")


@dataclasses.dataclass(frozen=True)
class Residual:
    """How the parts f of a `TransformerBlock` are added to x, for its `residual=`: attention, cross-attention, MLP.

        "pre"       x = x + f(norm(x))                GPT-2, Llama; the default
        "post"      x = norm(x + f(x))                the Transformer of 2017, BERT
        "sandwich"  x = x + norm'(f(norm(x)))         CogView, Gemma 2
        "output"    x = x + norm(f(x))                Swin V2, OLMo 2
        parallel    x = x + f(norm(x)) + f'(norm'(x)) + ...

    Args:
      norms: where norms stand.
      parallel: every part reads the same x (GPT-NeoX); else each reads what the part before made of it.
      one_norm: of parallel parts, one norm serves all (GPT-J, PaLM, Phi).

    Raises:
      ValueError: norms that are none of these, parallel parts with "post", or one norm for what is not parallel.
      TypeError: a flag that is none.

    >>> from flax import nnx
    >>> import jattn
    >>> of = lambda *args, **options: jattn.nn.TransformerBlock(
    ...     32, 4, residual=jattn.nn.Residual(*args, **options), rngs=nnx.Rngs(0)
    ... )
    >>> gemma, gpt_j = of("sandwich"), of(parallel=True, one_norm=True)

    Source: Xiong et al. 2020 (pre and post); Ding et al. 2021 (sandwich); Liu et al. 2022 (output); Wang & Komatsuzaki
    2021 (parallel).
    """

    norms: Norms = "pre"
    parallel: bool = False
    one_norm: bool = False

    def __post_init__(self) -> None:
        _checks.check_flags(parallel=self.parallel, one_norm=self.one_norm)
        if self.norms not in get_args(Norms):
            raise ValueError(f"norms must be one of {', '.join(map(repr, get_args(Norms)))}, got {self.norms!r}")
        if self.parallel and self.norms == "post":
            raise ValueError('parallel parts have no norm of their sum: take norms "pre", "sandwich" or "output"')
        if self.one_norm and not (self.parallel and self.norms == "pre"):
            raise ValueError(f'one_norm is for parallel parts with norms "pre", got {self}')


class TransformerBlock(nnx.Module):
    """A Transformer block, which normalises first unless told otherwise (Vaswani et al. 2017; Xiong et al. 2020):

        x = x + drop(attention(norm(x)))
        x = x + drop(cross_attention(norm(x), context))           (with context_features)
        x = x + drop(mlp(norm(x)))
        mlp(x) = activation(x W_in) W_out,  gated: (activation(x W_gate) * x W_in) W_out      (+ biases)

    A decoder is made of it with `mask=masks.causal()`, one with a sliding window with `masks.causal() &
    masks.window(left)`, an encoder with neither; `rotary_base`, `rotary` or `mods=mods.alibi(..)` tell positions apart.

    Args:
      features: width of x and of the output.
      heads: query heads of both attentions.
      hidden: width of the MLP inside, 4 * features by default.
      gated: multiplies by a second projection (Shazeer 2020): GeGLU, and with `activation=jax.nn.silu` SwiGLU.
      activation: of the MLP.
      mlp: makes what stands in the MLP's place, such as a mixture of experts: called with features, and by name dtype,
        param_dtype and rngs, it gives a function of `[.., t, features]`.
      norm: `nnx.LayerNorm` or `nnx.RMSNorm`, or what is made like them.
      residual: where norms stand, and whether attention and MLP read the same x.
      context_features: width of the context; None for a block without cross-attention.
      dropout: rate at which attention weights and what each part adds to x are dropped, in [0, 1).
      deterministic: whether dropout is off.  `model.train()` and `model.eval()` set it.
      use_bias: whether projections add a bias; or the names of those that do, "query", "key", "value" and "out" of the
        attentions and "mlp" for all of the MLP.
      kernel_init: initialiser of all kernels.
      dtype: of the computation; by default what x and the parameters promote to.
      param_dtype: of the parameters.
      precision: a `jax.lax.Precision` for all products.
      rngs: stream `params` for the parameters and, with dropout, `dropout`: the block keeps streams forked from it.
      **options: of the self-attention, as `jattn.nn.MultiHeadAttention` takes them: kv_heads, head_dim, rotary_base,
        rotary, qk_norm, sinks, mask, mods, ...  The cross-attention takes the same but for mask, mods, gates,
        rotary_base and rotary, which are about positions within x.

    Parameters (`nnx.Param`):
      `attention` and `cross_attention` as `MultiHeadAttention` says, `attention_norm`, `cross_norm` and `mlp_norm` with
      `scale` (and `bias`) `[features]`, as well as `attention_out_norm`, `cross_out_norm` and `mlp_out_norm`, the norms
      after the parts of a sandwich; `mlp_in.kernel` and `mlp_gate.kernel` `[features, hidden]`, `mlp_out.kernel`
      `[hidden, features]`; `mlp_in.bias` and `mlp_gate.bias` `[hidden]`, `mlp_out.bias` `[features]`.

    Raises:
      ValueError, TypeError: as `MultiHeadAttention` does; hidden < 1, or given beside `mlp`.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> block = jattn.nn.TransformerBlock(32, 4, mask=jattn.masks.causal(), rotary_base=10_000.0, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((8, 5, 32))
    >>> block(x).shape
    (8, 5, 32)

    Source: Vaswani et al. 2017; normalised first: Xiong et al. 2020.
    """

    activation: Callable[[Array], Array]
    residual: Residual
    attention_norm: Callable[[Array], Array]
    attention_out_norm: Callable[[Array], Array] | None
    attention: MultiHeadAttention
    cross_norm: Callable[[Array], Array] | None
    cross_out_norm: Callable[[Array], Array] | None
    cross_attention: MultiHeadAttention | None
    mlp_norm: Callable[[Array], Array] | None
    mlp_out_norm: Callable[[Array], Array] | None
    mlp: Callable[[Array], Array] | None
    mlp_in: nnx.Linear | None
    mlp_gate: nnx.Linear | None
    mlp_out: nnx.Linear | None
    drop: nnx.Dropout

    @of_layers
    def __init__(
        self,
        features: int,
        heads: int,
        *,
        hidden: int | None = None,
        gated: bool = False,
        activation: Callable[[Array], Array] = jax.nn.gelu,
        mlp: Callable[..., Callable[[Array], Array]] | None = None,
        norm: Callable[..., Callable[[Array], Array]] = nnx.LayerNorm,
        residual: Residual = Residual(),
        context_features: int | None = None,
        dropout: float = 0.0,
        deterministic: bool = False,
        use_bias: UseBias = True,
        kernel_init: nnx.Initializer = nnx.initializers.lecun_normal(),  # noqa: B008
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: PrecisionLike = None,
        rngs: nnx.Rngs,
        **options: Unpack[BlockOptions],
    ):
        _checks.check_rngs(rngs)
        _checks.check_sizes(features=features)
        if hidden is not None and mlp is not None:
            raise ValueError("hidden and mlp were both given: what mlp makes has a width of its own")
        hidden = 4 * features if hidden is None else hidden
        _checks.check_sizes(hidden=hidden)
        _checks.check_flags(gated=gated)
        _checks.check_rate(dropout)
        for name, fn in (("activation", activation), ("norm", norm), ("mlp", mlp or norm)):
            if not callable(fn):
                example = "jax.nn.gelu" if name == "activation" else "nnx.LayerNorm or nnx.RMSNorm"
                raise TypeError(f"{name} must be a function, like {example}, got {fn!r}")
        if not isinstance(residual, Residual):
            raise TypeError(f"residual must be a jattn.nn.Residual, got {residual!r}")
        self.activation, self.residual = activation, residual
        bias = biases(use_bias, _NAMES)
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        product = {**types, "kernel_init": kernel_init, "precision": precision}
        attends = {**product, "use_bias": [name for name in _NAMES[:-1] if bias[name]]}
        attends |= {"dropout": dropout, "deterministic": deterministic}
        after = norm if residual.norms == "sandwich" else lambda *_, **__: nnx.data(None)
        self.attention_norm, self.attention_out_norm = norm(features, **types), after(features, **types)
        self.attention = MultiHeadAttention(features, heads, **attends, **options)
        self.cross_norm, self.cross_out_norm, self.cross_attention = (nnx.data(None) for _ in range(3))
        if context_features is not None:
            rest: Any = {name: value for name, value in options.items() if name not in _OF_POSITIONS}
            self.cross_attention = MultiHeadAttention(
                features, heads, context_features=context_features, **attends, **rest
            )
            self.cross_norm = nnx.data(None) if residual.one_norm else norm(features, **types)
            self.cross_out_norm = after(features, **types)
        self.mlp_norm = nnx.data(None) if residual.one_norm else norm(features, **types)
        self.mlp_out_norm = after(features, **types)
        self.mlp, self.mlp_in, self.mlp_gate, self.mlp_out = (nnx.data(None) for _ in range(4))
        if mlp is not None:
            self.mlp = mlp(features, **types)
        else:
            self.mlp_in = nnx.Linear(features, hidden, use_bias=bias["mlp"], **product)
            if gated:
                self.mlp_gate = nnx.Linear(features, hidden, use_bias=bias["mlp"], **product)
            self.mlp_out = nnx.Linear(hidden, features, use_bias=bias["mlp"], **product)
        stream = rngs if dropout > 0 and _dropout.feeds(rngs) else None
        self.drop = nnx.Dropout(dropout, deterministic=deterministic, rngs=stream)

    @of_calls
    @modes.ordinary
    def __call__(
        self,
        x: Float[AnyArray, "*b t features"],
        context: Float[AnyArray, "*b s context_features"] | Cache | None = None,
        *,
        mask: AnyMask = None,
        mods: Mods = (),
        gates: Gates = (),
        bias: ArrayLike | None = None,
        context_mask: AnyMask = None,
        positions: ArrayLike | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> Float[Array, "*b t features"]:
        """One block.

        Args:
          x: `[.., t, features]`, with any number of batch axes, or none.
          context: `[.., s, context_features]`, what the cross-attention reads.
          mask: of the self-attention, beside the block's own: such as `masks.lengths(n)`, where x is padded.
          mods: of the self-attention, after the block's own: a bias of positions that layers share.
          gates: likewise.
          bias: array broadcastable to `[.., h, t, s]`, added to the scaled score of the self-attention.
          context_mask: of the cross-attention, such as `masks.lengths(n)`, where the context is padded.
          positions: for the rotary embedding alone: numbers broadcastable to `[.., t]`, 0, 1, ... by default.
          deterministic: in the place of the block's own.
          rngs: where this call's dropout comes from, in the place of the block's own streams.

        Returns:
          `[.., t, features]`.

        Raises:
          ValueError, TypeError: a block with cross-attention without a context, or the other way round; input that does
            not fit.
        """
        _checks.check_array(x, "x", "t", self.attention.features)
        _checks.check_call_rngs(rngs)
        self._check_context(context, "context")
        options = {"deterministic": deterministic, "rngs": rngs}
        call = {"mask": mask, "mods": mods, "gates": gates, "bias": bias, "positions": positions}
        return self._summed(
            jnp.asarray(x),
            lambda y: self.attention(y, **call, **options),
            self._reads(context, mask=context_mask, **options),
            lambda y: self.drop(y, **options),
        )

    @modes.ordinary
    def cache(
        self,
        n: int | np.integer,
        batch: int | np.integer | Sequence[int | np.integer] = (),
        context: Float[AnyArray, "*b s context_features"] | None = None,
        dtype: DTypeLike | None = None,
        *,
        slack: int | None = None,
        page: int | None = None,
        pages: int | None = None,
    ) -> BlockCache:
        """What `decode` starts from.

        Args:
          n: the most positions that will be decoded.
          batch: the batch axes of x; an int for one axis.
          context: `[.., s, context_features]` for a block with cross-attention, which projects it here, once.
          dtype: in which the keys and values of x are kept; see `MultiHeadAttention.cache`.
          slack: where the block's mask has a window, keeps that and this many positions more, in place of n.
          page: keeps positions in pages of so many, which examples share; see `MultiHeadAttention.cache`.
          pages: how many pages there are.

        Returns:
          Room for n positions, and the keys and values of the context.

        Raises:
          ValueError, TypeError: n or a batch axis is no such number; a block with cross-attention without a context,
            or the other way round.
        """
        self._check_context(context, "context")
        read = None if context is None or self.cross_attention is None else self.cross_attention.read(context)
        return BlockCache(self.attention.cache(n, batch, dtype, slack=slack, page=page, pages=pages), read)

    @of_calls
    @modes.ordinary
    def decode(
        self,
        x: Float[AnyArray, "*b t features"],
        cache: BlockCache,
        *,
        mask: AnyMask = None,
        mods: Mods = (),
        gates: Gates = (),
        bias: ArrayLike | None = None,
        context_mask: AnyMask = None,
        positions: ArrayLike | None = None,
        lengths: Int[ArrayLike, "*b"] | None = None,
        parents: Int[ArrayLike, "*b t"] | Sequence[int] | None = None,
    ) -> tuple[Float[Array, "*b t features"], BlockCache]:
        """The next t positions, as `MultiHeadAttention.decode` has them; nothing is dropped.

        Args:
          x: `[.., t, features]`.
          cache: from `block.cache(n, batch, context)`, or from the call before.
          mask: as in a call of the block, with n in the place of an axis `s`.
          mods: as in a call of the block.
          gates: likewise.
          bias: likewise, with n in the place of an axis `s`.
          context_mask: as in a call of the block.
          positions: for the rotary embedding alone, in the place of those in the cache: numbers broadcastable to
            `[.., t]`.
          lengths: as in `MultiHeadAttention.decode`, as are parents.
          parents: likewise.

        Returns:
          `[.., t, features]`, and the cache with t more positions.

        Raises:
          TypeError: the cache is none that `cache` or `decode` returned.
          ValueError: it is not one of this block and batch, or has no room for t more positions.  Where its length is
            traced, the rows past its end are NaN instead.

        >>> import jax.numpy as jnp, jattn
        >>> from flax import nnx
        >>> block = jattn.nn.TransformerBlock(32, 4, mask=jattn.masks.causal(), context_features=6, rngs=nnx.Rngs(0))
        >>> x, context = jnp.ones((8, 5, 32)), jnp.ones((8, 9, 6))
        >>> first, cache = block.decode(x[:, :2], block.cache(5, (8,), context))
        >>> rest, cache = block.decode(x[:, 2:], cache)
        >>> bool(jnp.allclose(rest, block(x, context)[:, 2:], atol=1e-5))
        True
        """
        if not isinstance(cache, BlockCache):
            raise TypeError(f"cache must be made by the block's cache(), got {type(cache).__name__}")
        _checks.check_array(x, "x", "t", self.attention.features)
        self._check_context(cache.context, "cache.context")
        past = cache.past

        def attend(y: Array) -> Array:
            nonlocal past
            options = {"mask": mask, "mods": mods, "gates": gates, "bias": bias, "positions": positions}
            out, past = self.attention.decode(y, past, lengths=lengths, parents=parents, **options)
            return out

        read = self._reads(cache.context, mask=context_mask, deterministic=True)
        return self._summed(_checks.real_rows(x, lengths), attend, read), BlockCache(past, cache.context)

    def _reads(self, context: AnyArray | Cache | None, **call: Any) -> Callable[[Array], Array] | None:
        """What the cross-attention reads of a context, as a function of x."""
        attention = self.cross_attention
        return None if context is None or attention is None else lambda y: attention(y, context, **call)

    def _summed(
        self,
        x: Array,
        attend: Callable[[Array], Array],
        read: Callable[[Array], Array] | None,
        drop: Callable[[Array], Array] = lambda y: y,
    ) -> Array:
        """x and its parts, normalised and added as `residual` says."""
        norms, parallel = self.residual.norms, self.residual.parallel
        source = x
        for part, norm, out_norm in (
            (attend, self.attention_norm, self.attention_out_norm),
            (read, self.cross_norm, self.cross_out_norm),
            (self._mlp, self.mlp_norm, self.mlp_out_norm),
        ):
            if part is None:
                continue
            norm = self.attention_norm if norm is None else norm  # one norm serves all
            source = source if parallel else x
            y = part(norm(source) if norms in ("pre", "sandwich") else source)
            y = norm(y) if norms == "output" else y if out_norm is None else out_norm(y)
            x = x + drop(y)
            x = norm(x) if norms == "post" else x
        return x

    def _mlp(self, x: Array) -> Array:
        if self.mlp is not None:
            return self.mlp(x)
        assert self.mlp_in is not None
        assert self.mlp_out is not None
        if self.mlp_gate is None:
            return self.mlp_out(self.activation(self.mlp_in(x)))
        return self.mlp_out(self.activation(self.mlp_gate(x)) * self.mlp_in(x))

    def _check_context(self, context: object, name: str) -> None:
        """Raises unless there is a context where the block has cross-attention, and none where it has not."""
        if context is None and self.cross_attention is not None:
            raise ValueError(f"{name} must be an array: this block has cross-attention, from context_features")
        if _checks.is_mask(context):
            raise TypeError(f"{name} must not be a mask: give it by name, as mask= or context_mask=")
        if isinstance(context, (str, type, np.dtype)):
            raise TypeError(f"{name} must be an array, got {context!r}: give a cache's dtype by name, as dtype=")
        if context is not None and self.cross_attention is None:
            raise ValueError(f"{name} must be None: make the block with context_features for cross-attention")
