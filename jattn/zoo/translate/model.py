"""An encoder and a decoder, stacks of `jattn.nn.TransformerBlock`: the decoder's also attend to what was read."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jattn import masks
from jattn.nn import BlockCache, TransformerBlock, generate
from jattn.zoo.translate.data import START, Array


@dataclasses.dataclass(frozen=True)
class Sizes:
    """width: of a token inside.  layers: of the encoder, and of the decoder.  heads: of every attention, kv_heads of
    its keys and values.  dropout: in training."""

    width: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 4
    dropout: float = 0.2


class Translator(nnx.Module):
    """Source and target have the same tokens; both embeddings and the weights of the output are one matrix (Vaswani et
    al. 2017, 3.4), which is 1 / sqrt(width) in size, so that what goes into the blocks is multiplied by sqrt(width)."""

    layers: int
    scale: float
    embed: nnx.Embed
    encoder: TransformerBlock
    decoder: TransformerBlock
    read_norm: nnx.LayerNorm
    write_norm: nnx.LayerNorm

    def __init__(self, tokens: int, sizes: Sizes, implementation: str | None, rngs: nnx.Rngs):
        self.layers, self.scale = sizes.layers, sizes.width**0.5

        def stack(**options: Any) -> TransformerBlock:
            def block(rngs: nnx.Rngs) -> TransformerBlock:
                return TransformerBlock(
                    sizes.width,
                    sizes.heads,
                    kv_heads=sizes.kv_heads,
                    rotary_base=10_000.0,
                    dropout=sizes.dropout,
                    implementation=implementation,
                    rngs=rngs,
                    **options,
                )

            params = nnx.Rngs(params=rngs.params())  # without a stream for dropout: a batch brings its seed
            return nnx.split_rngs(splits=sizes.layers)(nnx.vmap(block))(params)

        self.embed = nnx.Embed(tokens, sizes.width, rngs=rngs)
        self.encoder = stack()
        self.decoder = stack(mask=masks.causal(), context_features=sizes.width)
        self.read_norm, self.write_norm = (nnx.LayerNorm(sizes.width, rngs=rngs) for _ in range(2))

    def __call__(self, source: Array, length: Array, target: Array, seed: Array | None = None) -> jax.Array:
        """source [b, s], length [b], target [b, t] -> logits [b, t, tokens] of each, given those before it.

        With a seed, parts are dropped, as in training.
        """
        keys = None if seed is None else jax.random.split(jax.random.key(seed), (2, self.layers))
        read = self.encode(source, length, None if keys is None else keys[0])

        def through(x, block, key):
            return block(x, read, context_mask=masks.lengths(length), **_drop(key))

        x = self._stacked(through)(self._embed(_before(target)), self.decoder, None if keys is None else keys[1])
        return self._logits(x)

    def encode(self, source: Array, length: Array, keys: jax.Array | None = None) -> jax.Array:
        """[b, s], [b] -> [b, s, width]."""

        def through(x, block, key):
            return block(x, mask=masks.lengths(length), **_drop(key))

        return self.read_norm(self._stacked(through)(self._embed(source), self.encoder, keys))

    def greedy(self, source: Array, length: Array, count: int) -> jax.Array:
        """source [b, s], length [b] -> [b, count]: the most likely token each time.

        The source is read and projected once; each token looks at the keys and values kept of those before it.
        """
        read, b = self.encode(source, length), len(source)
        caches = nnx.vmap(lambda block: block.cache(count, (b,), read))(self.decoder)
        real = jnp.broadcast_to(length, caches.context.length.shape)
        caches = caches._replace(context=caches.context._replace(length=real))
        return generate(self, jnp.full((b, 1), START), count, cache=caches).tokens

    def decode(self, tokens: jax.Array, caches: BlockCache) -> tuple[jax.Array, BlockCache]:
        """The next tokens [b, t] -> logits [b, t, tokens] of the token after each, and the caches with them."""
        graph, blocks = nnx.split(self.decoder)  # `jax.lax.scan` inside another takes arrays, and no modules

        def through(x, layer):
            block, cache = layer
            return nnx.merge(graph, block).decode(x, cache)

        x, caches = jax.lax.scan(through, self._embed(tokens), (blocks, caches))
        return self._logits(x), caches

    def alignment(self, source: Array, length: Array, target: Array) -> jax.Array:
        """The weights [layers, b, h, t, s] with which each token of the target attends to the source."""
        read, seen = self.encode(source, length), masks.lengths(length)

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
        def through(x, block):
            y = x + block.attention(block.attention_norm(x), deterministic=True)
            weights = block.cross_attention.weights(block.cross_norm(y), read, mask=seen)
            return block(x, read, context_mask=seen, deterministic=True), weights

        return through(self._embed(_before(target)), self.decoder)[1]

    def _embed(self, tokens: Array) -> jax.Array:
        return self.scale * self.embed(jnp.asarray(tokens))

    def _logits(self, x: jax.Array) -> jax.Array:
        return self.embed.attend(self.write_norm(x))

    def _stacked(self, through: Any) -> Any:
        return nnx.scan(through, in_axes=(nnx.Carry, 0, 0), out_axes=nnx.Carry)


def _before(target: Array) -> jax.Array:
    """What is known before each token of the target."""
    return jnp.pad(jnp.asarray(target)[:, :-1], ((0, 0), (1, 0)), constant_values=START)


def _drop(key: jax.Array | None) -> dict[str, Any]:
    return {"deterministic": True} if key is None else {"rngs": nnx.Rngs(dropout=key)}
