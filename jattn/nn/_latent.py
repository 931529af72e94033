"""Multi-head latent attention: keys and values of all heads are made of one short vector, all that a cache keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jattn import scores
from jattn.nn import _checks
from jattn.nn._checks import AnyArray
from jattn.nn._frozen import Frozen
from jattn.nn._projections import Norm, Projections
from jattn.nn.cache._record import Cache


@dataclasses.dataclass(frozen=True)
class Latent:
    """Latent keys and values, for `latent=` of `MultiHeadAttention` (MLA): with a context c and its latent l,

        [l, r] = c W_down,  l = norm(l)                           l: [.., s, rank],  r: [.., s, rotary_dim]
        key = [l W_key, rotary(r)],  value = l W_value            of each head; r is the same for all
        query = [a, rotary(b)],  [a, b] = x W_query               or of norm(x W_query_down), with a query_rank

    A cache keeps l and rotary(r) alone.  To attend to it, W_key goes to the queries and W_value to the output, so that
    keys and values of heads are never made ("absorbed"): [a W_key^T, rotary(b)] . [l, rotary(r)].

    Args:
      rank: width of the latent.  `head_dim` of the layer is that of a, `value_dim` that of values.
      rotary_dim: width of r and b, which the layer's rotary embedding turns; 0 for neither.
      query_rank: width of a latent that queries are made of; None for queries made of x.
      norm: of latents: `nnx.RMSNorm`, or what is made like it.

    Raises:
      ValueError, TypeError: a size that is none, or a norm that is no function.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> latent = jattn.nn.Latent(16, rotary_dim=4, query_rank=24)
    >>> rotary = jattn.nn.Rotary(interleaved=True)
    >>> layer = jattn.nn.MultiHeadAttention(
    ...     32, 4, head_dim=8, latent=latent, rotary=rotary, mask=jattn.masks.causal(), rngs=nnx.Rngs(0)
    ... )
    >>> layer.cache(100).key.shape
    (100, 1, 20)

    Source: DeepSeek-AI 2024, "DeepSeek-V2", section 2.1; as DeepSeek et al. 2024 have it in "DeepSeek-V3".
    """

    rank: int
    rotary_dim: int = 0
    query_rank: int | None = None
    norm: Norm = nnx.RMSNorm

    def __post_init__(self) -> None:
        _checks.check_sizes(rank=self.rank, query_rank=1 if self.query_rank is None else self.query_rank)
        if not _checks.is_whole(self.rotary_dim) or self.rotary_dim < 0:
            raise ValueError(f"rotary_dim must be an int >= 0, got {self.rotary_dim!r}")
        if not callable(self.norm):
            raise TypeError(f"norm must be made like nnx.RMSNorm, got {self.norm!r}")

    def biases(self, bias: dict[str, bool]) -> dict[str, bool]:
        """Of the projections of a layer, those that have a bias: none from latents, which could not be absorbed."""
        return {**bias, "query": bias["query"] and self.query_rank is None, "key": False, "value": False}

    def make(
        self, features: int, source: int, bias: dict[str, bool], product: dict[str, Any]
    ) -> tuple[Down, Down | None]:
        """What makes the latents of a layer: of the context, and of x or None, as `nnx` takes them for attributes."""
        latent = Down(source, self.rank, self.rotary_dim, self.norm, use_bias=bias["key"], **product)
        if self.query_rank is None:
            return latent, nnx.data(None)
        return latent, Down(features, self.query_rank, 0, self.norm, use_bias=bias["query"], **product)


class Down(nnx.Module):
    """x `[.., features]` to its latent `[.., rank]`, normalised, and what stands beside it, `[.., beside]`."""

    rank: int
    down: nnx.Linear
    norm: Callable[[Array], Array]

    def __init__(self, features: int, rank: int, beside: int, norm: Norm, **product: Any):
        self.rank = rank
        self.down = nnx.Linear(features, rank + beside, **product)
        self.norm = norm(rank, **{name: product[name] for name in ("dtype", "param_dtype", "rngs")})

    def __call__(self, x: Float[Array, "*b f"]) -> tuple[Float[Array, "*b r"], Float[Array, "*b p"]]:
        latent, beside = jnp.split(self.down(x), [self.rank], axis=-1)
        return self.norm(latent), beside


@dataclasses.dataclass(frozen=True)
class LatentProjections(Projections):
    """The parts of a layer with latents: `key` and `value` are of the context's latent, `query` of x or its latent.

    Attributes:
      latent: of the context.
      query_latent: of x, or None.
    """

    latent: Down
    query_latent: Down | None

    def queries(self, x: Float[AnyArray, "*b t f"], positions: ArrayLike | None) -> Float[Array, "*b t h d"]:
        x = jnp.asarray(x)
        query = self.query(x if self.query_latent is None else self.query_latent(x)[0])
        a, b = jnp.split(query, [self.key.out_features[1]], axis=-1)
        return jnp.concatenate([a, self._placed(b, None, positions)], axis=-1)

    def keys_values(
        self, context: Float[AnyArray, "*b s f"], values: AnyArray | None, positions: ArrayLike | None
    ) -> tuple[Float[Array, "*b s h d"], Float[Array, "*b s h e"]]:
        latent, turned = self._latent(context, positions)
        key = self.key(latent)
        turned = jnp.broadcast_to(turned[..., None, :], (*key.shape[:-1], turned.shape[-1]))
        return jnp.concatenate([key, turned.astype(key.dtype)], axis=-1), self.value(latent)

    def kept(
        self, context: Float[AnyArray, "*b s f"], values: AnyArray | None, positions: ArrayLike | None
    ) -> tuple[Float[Array, "*b s 1 r"], Float[Array, "*b s 1 0"]]:
        kept = jnp.concatenate(self._latent(context, positions), axis=-1)[..., None, :]
        return kept, kept[..., :0]

    def to_cache(self, query: Float[Array, "*b t h d"], cache: Cache) -> tuple[Array, Array, Array]:
        a, b = jnp.split(query, [self.key.out_features[1]], axis=-1)
        kernel = self.key.kernel[...].astype(a.dtype)
        absorbed = jnp.einsum("...thd,rhd->...thr", a, kernel, precision=self.key.precision)
        return jnp.concatenate([absorbed, b], axis=-1), cache.key, cache.key[..., : self.latent.rank]

    def cache_scales(self, cache: Cache) -> tuple[Array, Array] | None:
        return None if cache.key_scale is None else (cache.key_scale, cache.key_scale)

    def from_cache(self, out: Float[Array, "*b t h r"]) -> Float[Array, "*b t h e"]:
        kernel = self.value.kernel[...].astype(out.dtype)
        return jnp.einsum("...thr,rhe->...the", out, kernel, precision=self.value.precision)

    def cache_widths(self) -> tuple[int, int, int]:
        return 1, self.latent.down.out_features, 0

    def in_features(self) -> tuple[int, int, int]:
        x = self.query if self.query_latent is None else self.query_latent.down
        features = x.in_features[0] if isinstance(x, nnx.LinearGeneral) else x.in_features
        return features, self.latent.down.in_features, self.latent.down.in_features

    def check_values(self, values: AnyArray | None, beside: AnyArray, name: str, axis: str) -> None:
        if values is not None:
            raise ValueError("values was given to a layer with latents, which makes keys and values of one")

    def _latent(self, context: AnyArray, positions: ArrayLike | None) -> tuple[Array, Array]:
        """The latent `[.., s, rank]`, and what is turned, `[.., s, rotary_dim]`."""
        latent, turned = self.latent(jnp.asarray(context))
        return latent, self._placed(turned[..., None, :], None, positions)[..., 0, :]


def score_of(score: scores.Score | Frozen | None, width: int) -> scores.Score | Frozen:
    """The score with the scale of queries of that width: those that meet a cache are wider.

    Raises:
      ValueError: it is no scaled dot product, which alone can be absorbed.
    """
    term = score.term if isinstance(score, Frozen) else scores.dot() if score is None else score
    if not isinstance(term, scores.Dot):
        raise ValueError(f"latent keys and values need score=jattn.scores.dot(scale), got {score!r}")
    return scores.dot(width**-0.5) if term.scale is None or score is None else score  # type: ignore[return-value]


def check_latent(latent: object, heads: int, kv_heads: int, norm: Norm | None, value_features: int | None) -> None:
    """Raises unless latents, where there are some, go with the other arguments of a layer."""
    if latent is None:
        return
    if not isinstance(latent, Latent):
        raise TypeError(f"latent must be a jattn.nn.Latent, got {latent!r}")
    if kv_heads != heads or norm is not None or value_features is not None:
        raise ValueError("latent makes keys and values of every head: leave out kv_heads, qk_norm and value_features")
