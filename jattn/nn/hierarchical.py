"""Hierarchical attention: words to sentences, sentences to a document."""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jattn import normalizers
from jattn._call import modes
from jattn.backends.contract import Backend
from jattn.nn import _checks
from jattn.nn._checks import AnyArray
from jattn.nn._hints import of_calls, of_layers
from jattn.nn._recurrent import Summary, read


class _Level(nnx.Module):
    """A bidirectional GRU over the parts, if any, and their sum as one vector of width 2 hidden."""

    forward: nnx.GRUCell | None
    backward: nnx.GRUCell | None
    summary: Summary

    def __init__(
        self, features: int, hidden: int, gru: bool, summary: str, attention: int | None, options: dict[str, Any]
    ):
        common = {name: options[name] for name in ("dtype", "param_dtype", "rngs")}
        self.forward = nnx.data(nnx.GRUCell(features, hidden, **common) if gru else None)
        self.backward = nnx.data(nnx.GRUCell(features, hidden, **common) if gru else None)
        self.summary = Summary(summary, ("attention", "mean"), 2 * hidden, attention, **options)

    def states(self, x: Array, mask: AnyArray | None) -> Array:
        """`[.., s, 2 hidden]`: each part, in the light of those before and after it where there is a GRU."""
        if self.forward is None or self.backward is None:
            return x
        return jnp.concatenate([read(self.forward, x, mask), read(self.backward, x, mask, reverse=True)], axis=-1)


class HierarchicalAttention(nnx.Module):
    """The hierarchical attention network, HAN (Yang et al. 2016): one vector for a document of sentences of words.

        words:      h_ij = [GRU forward, GRU backward] of x_ij along j,    s_i = AttentionPooling_j(h_ij)
        sentences:  h_i  = [GRU forward, GRU backward] of s_i along i,     out = AttentionPooling_i(h_i)

    Each level has its own GRUs and its own `jattn.nn.AttentionPooling`.  With `summary="mean"` the mean takes its place
    at both levels, the paper's HN-AVE, to compare with.  Without `sentence_gru` the sentences are a set, h_i = s_i,
    whose order says nothing.

    Args:
      features: width of x.
      hidden: width of each GRU.
      sentence_gru: whether there are GRUs over the sentences, as in the paper, or over the words alone.
      summary: "attention" or "mean".
      attention: width of u in `AttentionPooling`, 2 hidden by default.
      normalizer: of `AttentionPooling`.
      implementation: of `AttentionPooling`.
      dtype: of the computation; by default what x and the parameters promote to.
      param_dtype: of the parameters.
      rngs: stream `params` for the parameters.

    Parameters (`nnx.Param`), in `words`, of width f = features, and again in `sentences`, of width f = 2 hidden:
      `forward` and `backward`, if any, each an `nnx.GRUCell` (gates r, z, n): `dense_i.kernel` `[f, 3 hidden]`,
      `dense_i.bias` `[3 hidden]`, `dense_h.kernel` `[hidden, 3 hidden]`; `summary.attention`, if any, those of
      `AttentionPooling`.

    Raises:
      ValueError, TypeError: a size below 1, no such summary, or a size, flag or rngs of another type.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> layer = jattn.nn.HierarchicalAttention(32, 16, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((8, 5, 20, 32))  # eight documents of up to five sentences of up to twenty words
    >>> mask = jnp.ones((8, 5, 20), bool).at[:, 3:].set(False)  # three sentences each
    >>> layer(x, mask).shape
    (8, 32)
    >>> words, sentences = layer.weights(x, mask)
    >>> words.shape, sentences.shape
    ((8, 5, 20), (8, 5))

    Source: Yang et al. 2016, section 2.
    """

    features: int
    words: _Level
    sentences: _Level

    @of_layers
    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        sentence_gru: bool = True,
        summary: Literal["attention", "mean"] = "attention",
        attention: int | None = None,
        normalizer: normalizers.Normalizer = normalizers.softmax(),  # noqa: B008
        implementation: str | Backend | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _checks.check_rngs(rngs)
        _checks.check_sizes(features=features, hidden=hidden)
        _checks.check_flags(sentence_gru=sentence_gru)
        self.features = features
        options = {
            "normalizer": normalizer, "implementation": implementation,
            "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs,
        }  # fmt: skip
        self.words = _Level(features, hidden, True, summary, attention, options)
        self.sentences = _Level(2 * hidden, hidden, sentence_gru, summary, attention, options)

    @of_calls
    @modes.ordinary
    def __call__(
        self, x: Float[AnyArray, "*b n m features"], mask: Bool[AnyArray, "*b n m"] | None = None
    ) -> Float[Array, "*b out"]:
        """Reads documents.

        Args:
          x: `[.., n, m, features]`: n sentences of m words, with any number of batch axes, or none.
          mask: booleans `[.., n, m]`, True where a word is real; None for everywhere.  A sentence without a word is
            none, wherever it stands.

        Returns:
          `[.., 2 hidden]`; 0 where no word is real.

        Raises:
          ValueError, TypeError: x or the mask does not fit.
        """
        _, sentences, real = self._states(x, mask)
        return self.sentences.summary(sentences, real)

    @modes.ordinary
    def weights(
        self, x: Float[AnyArray, "*b n m features"], mask: Bool[AnyArray, "*b n m"] | None = None
    ) -> tuple[Float[Array, "*b n m"], Float[Array, "*b n"]]:
        """The weight of each word in its sentence and of each sentence in its document, for looking at.

        Args:
          x: `[.., n, m, features]`, as in a call.
          mask: booleans `[.., n, m]`, likewise.

        Returns:
          `[.., n, m]` of the words and `[.., n]` of the sentences; 0 where one is not real.

        Raises:
          ValueError, TypeError: x or the mask does not fit.
        """
        words, sentences, real = self._states(x, mask)
        return self.words.summary.weights(words, mask), self.sentences.summary.weights(sentences, real)

    def _states(self, x: AnyArray, mask: AnyArray | None) -> tuple[Array, Array, Array | None]:
        """States of words `[.., n, m, 2 hidden]` and of sentences `[.., n, 2 hidden]`; which of these are real."""
        _checks.check_sequence(x, mask, self.features, axes="n, m")
        mask = None if mask is None else jnp.asarray(mask)
        words = self.words.states(_checks.real_steps(x, mask), mask)
        real = None if mask is None else mask.any(axis=-1)
        return words, self.sentences.states(self.words.summary(words, mask), real), real
