"""Two verses through the same convolutions, which may attend to each other, and what is left of each compared."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jattn.nn import ABCNN, AttentionPooling
from jattn.zoo.pairs.data import LONGEST, Array


@dataclasses.dataclass(frozen=True)
class Sizes:
    """embedding: of a word.  hidden: of a convolution and of the comparison.  width: of a convolution, in words."""

    embedding: int = 48
    hidden: int = 48
    width: int = 3
    blocks: int = 2
    dropout: float = 0.2


class Reader(nnx.Module):
    """The blocks of Yin et al. (2016).  The words and the output of each block are pooled to one vector for each verse;
    two verses are compared by the products and the distances of their vectors, which know no order of the verses."""

    columns: bool
    width: int
    words: nnx.Embed
    blocks: nnx.List[ABCNN]
    pools: nnx.List[AttentionPooling]
    dropout: nnx.Dropout
    drop_words: nnx.Dropout
    compare: nnx.Linear
    out: nnx.Linear

    def __init__(
        self, tokens: int, attention: str, pooling: str, sizes: Sizes, implementation: str | None, rngs: nnx.Rngs
    ):
        before, after = attention in ("abcnn1", "abcnn3"), attention in ("abcnn2", "abcnn3")
        widths = [sizes.embedding, *[sizes.hidden] * sizes.blocks]
        self.columns, self.width = after and not before, sizes.width
        self.words = nnx.Embed(tokens, sizes.embedding, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)
        self.blocks = nnx.List(
            ABCNN(
                width, sizes.hidden, sizes.width, before=before, after=after, length=LONGEST if before else None,
                implementation=implementation, rngs=rngs,
            )
            for width in widths[:-1]
        )  # fmt: skip
        self.pools = nnx.List(
            AttentionPooling(width, implementation=implementation, rngs=rngs)
            for width in widths
            if pooling == "attention"
        )
        self.dropout = nnx.Dropout(sizes.dropout)
        self.drop_words = nnx.Dropout(sizes.dropout, broadcast_dims=(-2,))
        self.compare = nnx.Linear(sum(2 * width + 1 for width in widths), sizes.hidden, rngs=rngs)
        self.out = nnx.Linear(sizes.hidden, 1, rngs=rngs)

    def __call__(self, left: Array, right: Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """left, right: [b, s] tokens -> [b]: the logit of both being one verse.  rngs: of dropout; None for none."""

        drop = lambda dropout, x: dropout(x, deterministic=rngs is None, rngs=rngs)
        # the same entries of all words of both verses are dropped, so that the same word stays the same
        words = drop(self.drop_words, self.words(jnp.concatenate([left, right], axis=-1)))
        pair = words[..., : left.shape[-1], :], words[..., left.shape[-1] :, :]
        masks = left > 0, right > 0
        compared = [self._compare(0, pair, masks)]
        for level, block in enumerate(self.blocks, 1):
            pair = block(*pair, *masks)
            compared.append(self._compare(level, pair, masks))
        hidden = jax.nn.relu(self.compare(drop(self.dropout, jnp.concatenate(compared, axis=-1))))
        return self.out(drop(self.dropout, hidden))[..., 0]

    def match(self, left: Array, right: Array) -> jax.Array:
        """[b, t, s]: how well the words match, as the first block's convolution is told; with attention after the
        convolution alone, [b, t + width - 1, s + width - 1]: how well its columns do."""
        return self.blocks[0].weights(self.words(left), self.words(right), left > 0, right > 0, columns=self.columns)

    def _compare(self, level: int, pair: tuple[jax.Array, jax.Array], masks: tuple[Array, Array]) -> jax.Array:
        pool = self.pools[level] if self.pools else _largest
        x, y = map(pool, pair, masks)
        cosine = optax.cosine_similarity(x, y, epsilon=1e-6)[..., None]
        return jnp.concatenate([x * y, jnp.abs(x - y), 8 * cosine], axis=-1)


def _largest(x: jax.Array, mask: Array) -> jax.Array:
    return jnp.max(x, axis=-2, where=mask[..., None], initial=-jnp.inf)
