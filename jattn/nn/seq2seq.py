"""The attention between an encoder and a decoder, for Flax NNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, Unpack, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import PrecisionLike
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from jattn import api, masks, scores
from jattn._call import modes
from jattn.nn import _checks
from jattn.nn._batching import batched
from jattn.nn._checks import AnyArray
from jattn.nn._frozen import Frozen, thawed
from jattn.nn._hints import of_calls, of_layers
from jattn.nn._options import (
    AnyMask,
    CallOptions,
    Gates,
    Held,
    Mods,
    ReadOptions,
    as_mask,
    checked,
    hold,
    join,
)
from jattn.nn.cache import _kinds
from jattn.nn.cache._record import Cache

ScoreName: TypeAlias = Literal["dot", "general", "cosine", "concat", "additive"]
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)
_OPTIONS = ("normalizer", "mask", "mods", "gates", "implementation", "blocks")


class Seq2SeqAttention(nnx.Module):
    """What a decoder reads of an encoder's states (Bahdanau et al. 2015; Luong et al. 2015):

        q_i = Wq x_i + bq,  k_j = Wk m_j + bk,  v_j = Wv m_j + bv        for each head
        weight[i, j] = normalizer over j of score(q_i, k_j)
        c_i = sum over j of weight[i, j] v_j

    Dynamic attention, as written, has a summary c_i of its own for each state x_i of the decoder.  Static attention has
    one query q, learned, in the place of all q_i, and so one summary c for all steps.  (Where the query is something
    else that all steps share, such as the encoder's last state, call dynamic attention with it once.)

    The memory is projected once, by `read`, and serves every step.

    Hard attention reads one place for each query, by the normaliser: `normalizers.hard()` passes no gradient to query,
    key and score, `hard(straight_through=True)` passes softmax's, `gumbel(key)` draws and passes its own.  `sample`
    draws from the softmax and returns the log of the probability, for REINFORCE (Xu et al. 2015).

    Args:
      features: width of the decoder's states x.
      heads: h.
      head_dim: width d of a head, features / heads by default.
      memory_features: width of the encoder's states m, `features` by default.
      score: "dot", "general", "cosine", "concat", "additive", or any from `jattn.scores`; its floating-point arrays are
        parameters and learn.  Those of a name are drawn from a normal distribution of variance 1 / d; the scale of
        "cosine" starts at 10, for a cosine alone is too flat for a softmax.
      static: whether one query serves all steps.
      use_bias: whether the projections add bq, bk and bv.
      kernel_init: initialiser of Wq, Wk and Wv.
      dtype: of the computation; by default what states and parameters promote to.
      param_dtype: of the parameters.
      precision: a `jax.lax.Precision` for all products.
      rngs: stream `params` for the parameters.
      **options: options of `jattn.attention` for every call: normalizer, mask, mods, gates, implementation, blocks.
        Floating-point arrays in them become parameters and learn, but for those of masks and of what `jattn.nn.frozen`
        marks.

    Parameters (`nnx.Param`):
      `query.kernel` `[features, h, d]`, `key.kernel` and `value.kernel` `[memory_features, h, d]`, `query.bias`,
      `key.bias` and `value.bias` `[h, d]`; of static attention `query` `[h, d]`, from a normal distribution, in the
      place of both of the query's; `arrays[n]`, those of score and options in pytree order: of the names, `[h, d, d]`
      of "general", a scalar of "cosine", `[h, d]` twice of "concat", `[h, d, d]` twice and `[h, d]` of "additive".

    Raises:
      ValueError: sizes that do not go together, or a name that is no score.
      TypeError: an unknown option, or a size, flag or rngs of another type.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> attention = jattn.nn.Seq2SeqAttention(32, memory_features=48, score="additive", rngs=nnx.Rngs(0))
    >>> memory = attention.read(jnp.ones((8, 50, 48)), lengths=jnp.arange(8))
    >>> attention(jnp.ones((8, 5, 32)), memory).shape  # all steps at once, or one after the other
    (8, 5, 32)

    Source: Bahdanau et al. 2015; Luong et al. 2015.
    """

    features: int
    heads: int
    head_dim: int
    memory_features: int
    static: bool
    precision: PrecisionLike
    query: nnx.LinearGeneral | nnx.Param[Array]
    key: nnx.LinearGeneral
    value: nnx.LinearGeneral
    arrays: nnx.List[nnx.Variable[Array]]
    held: Held

    @of_layers
    def __init__(
        self,
        features: int,
        heads: int = 1,
        *,
        head_dim: int | None = None,
        memory_features: int | None = None,
        score: ScoreName | scores.Score | Frozen = "dot",
        static: bool = False,
        use_bias: bool = True,
        kernel_init: nnx.Initializer = nnx.initializers.lecun_normal(),  # noqa: B008
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: PrecisionLike = None,
        rngs: nnx.Rngs,
        **options: Unpack[ReadOptions],
    ):
        _checks.check_rngs(rngs)
        _checks.check_flags(static=static, use_bias=use_bias)
        _checks.check_sizes(features=features, heads=heads)
        if head_dim is None:
            _checks.check_divides(features, heads)
        self.features, self.heads, self.static, self.precision = features, heads, static, precision
        self.memory_features = features if memory_features is None else memory_features
        self.head_dim = features // heads if head_dim is None else head_dim
        _checks.check_sizes(memory_features=self.memory_features, head_dim=self.head_dim)
        shape = heads, self.head_dim

        def project(source: int) -> nnx.LinearGeneral:
            return nnx.LinearGeneral(
                source, shape, use_bias=use_bias, kernel_init=kernel_init,
                dtype=dtype, param_dtype=param_dtype, precision=precision, rngs=rngs,
            )  # fmt: skip

        if static:
            self.query = nnx.Param(jax.random.normal(rngs.params(), shape, param_dtype))
        else:
            self.query = project(features)
        self.key, self.value = project(self.memory_features), project(self.memory_features)
        if isinstance(score, str):
            score = _drawn(score, shape, rngs, param_dtype)
        arrays, self.held = hold({"score": score, **checked(options, _OPTIONS, "Seq2SeqAttention")})
        self.arrays = nnx.List(arrays)

    @modes.ordinary
    def read(
        self, states: Float[AnyArray, "*b s memory_features"], lengths: Int[ArrayLike, "*b"] | None = None
    ) -> Cache:
        """Projects the encoder's states, once for all that reads them.

        Args:
          states: `[.., s, memory_features]`, with any number of batch axes, or none.
          lengths: integers `[..]`, how many states of each example are real; no other is attended to.  None for all.

        Returns:
          The memory: keys and values `[.., s, h, d]` and the lengths.

        Raises:
          ValueError, TypeError: states or lengths do not fit.
        """
        _checks.check_array(states, "states", "s", self.memory_features)
        lead, s = states.shape[:-2], states.shape[-2]
        states = _checks.real_rows(states, lengths)
        lengths = jnp.full(lead, s, jnp.int32) if lengths is None else _checks.as_lengths(lengths, lead, s)
        return Cache(self.key(states), self.value(states), lengths)

    @of_calls
    @modes.ordinary
    def __call__(
        self, x: Float[AnyArray, "*b t features"], memory: Cache, **call: Unpack[CallOptions]
    ) -> Float[Array, "*b t hd"]:
        """What each step of the decoder reads.

        Args:
          x: the decoder's states `[.., t, features]`, with the memory's batch axes.
          memory: from `read`.
          **call: of `jattn.attention`: normalizer, in the place of the layer's own; mask, from `jattn.masks` or a
            boolean array broadcastable to `[.., h, t, s]`, mods and gates, which come after the layer's own.

        Returns:
          `[.., t, h d]`: the heads side by side, 0 where nothing may be attended to.

        Raises:
          ValueError, TypeError: input that does not fit.
        """
        return self._of_each_step(x, _side_by_side(self._attend(api.attention, x, memory, **call)))

    @modes.ordinary
    def weights(
        self, x: Float[AnyArray, "*b t features"], memory: Cache, **call: Unpack[CallOptions]
    ) -> Float[Array, "*b h t s"]:
        """The weights with which a call with the same arguments reads, for looking at: O(t * s) memory.

        Args:
          x: `[.., t, features]`, as in a call.
          memory: from `read`.
          **call: as in a call.

        Returns:
          `[.., h, t, s]`.

        Raises:
          ValueError, TypeError: input that does not fit.
        """
        return self._of_each_step(x, self._attend(api.weights, x, memory, **call))

    @modes.ordinary
    def sample(
        self, random_key: Array, x: Float[AnyArray, "*b t features"], memory: Cache, **call: Unpack[CallOptions]
    ) -> tuple[Float[Array, "*b t hd"], Int[Array, "*b t h"], Float[Array, "*b t h"]]:
        """Reads one place drawn from the softmax for each step and head, as `jattn.sample` (Xu et al. 2015).

        Args:
          random_key: a key of `jax.random`; the same key draws the same places.
          x: `[.., t, features]`, as in a call.
          memory: from `read`.
          **call: mask and mods, as in a call.

        Returns:
          What was read, `[.., t, h d]`; the place, `[.., t, h]`; the log of its probability, `[.., t, h]`, which is
          differentiable.  Static attention draws one place for all steps.

        Raises:
          ValueError, TypeError: input that does not fit, or a normaliser or gates, which a draw does not take.
        """
        draw = lambda *arrays, **options: api.sample(random_key, *arrays, **options)
        out, index, log_prob = self._attend(draw, x, memory, **call)
        out, index, log_prob = (self._of_each_step(x, y) for y in (_side_by_side(out), index, log_prob))
        return out, index, log_prob

    def _attend(
        self,
        fn: Callable[..., Any],
        x: AnyArray,
        memory: Cache,
        *,
        mask: AnyMask = None,
        mods: Mods = (),
        gates: Gates = (),
        **call: Any,
    ) -> Any:
        """`fn` of query, key and value; static attention has one query.  `call` is the rest of the `CallOptions`."""
        call = checked(call, ("normalizer",), "Seq2SeqAttention")
        _checks.check_array(x, "x", "t", self.features)
        lead = x.shape[:-2]
        _kinds.check(memory, lead, self.heads, self.head_dim, self.head_dim)
        _checks.check_padding(mask, x.shape[-2], memory.room, lead)
        real = masks.prefix(memory.length.reshape(-1))
        mask = real if mask is None else real & as_mask(mask, lead)
        if isinstance(self.query, nnx.Param):
            query = jnp.broadcast_to(self.query[...].astype(memory.key.dtype), (*lead, 1, self.heads, self.head_dim))
        else:
            query = self.query(jnp.asarray(x))
        options = join(self.held.fill(self.arrays), mask, mods, gates, lead)
        options |= {"precision": self.precision, **{name: thawed(x) for name, x in call.items()}}
        return batched(fn, query, memory.key, memory.value, options)

    def _of_each_step(self, x: AnyArray, array: Array) -> Array:
        """`[.., 1, n]`, of all steps, as `[.., t, n]`."""
        return jnp.broadcast_to(array, (*array.shape[:-2], x.shape[-2], array.shape[-1]))


def _side_by_side(heads: Float[Array, "*b t h d"]) -> Float[Array, "*b t hd"]:
    *lead, h, d = heads.shape
    return heads.reshape(*lead, h * d)  # no -1, which is not known where another axis is 0


def _drawn(name: ScoreName, shape: tuple[int, int], rngs: nnx.Rngs, dtype: DTypeLike) -> scores.Score:
    """A score by name, with parameters for each head."""
    if name not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, or made like jattn.scores.dot(), got {name!r}")
    heads, d = shape
    draw = lambda *axes: d**-0.5 * jax.random.normal(rngs.params(), (heads, *axes), dtype)
    return {
        "dot": lambda: scores.dot(),
        "general": lambda: scores.general(draw(d, d), scale=d**-0.5),
        "cosine": lambda: scores.cosine(jnp.asarray(10.0, dtype)),
        "concat": lambda: scores.concat(draw(d), draw(d)),
        "additive": lambda: scores.additive(draw(d, d), draw(d, d), draw(d)),
    }[name]()
