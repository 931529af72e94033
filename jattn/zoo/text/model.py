"""A Transformer that guesses the next byte: a stack of `jattn.nn.TransformerBlock`, scanned."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jattn import masks, mods
from jattn.nn import BlockCache, TransformerBlock, generate
from jattn.zoo.text.data import BYTES, Array


@dataclasses.dataclass(frozen=True)
class Sizes:
    """width: of a byte inside.  layers, heads: of the stack."""

    width: int = 128
    layers: int = 3
    heads: int = 4


class LanguageModel(nnx.Module):
    """window: how many bytes back each layer looks, None for all.  positions: "rotary", "alibi" or "none".
    remat: computes a block again for its gradient, so that a long context costs one `[b, t, width]` a layer.
    """

    remat: bool
    embed: nnx.Embed
    blocks: TransformerBlock
    norm: nnx.RMSNorm
    out: nnx.Linear

    def __init__(
        self,
        sizes: Sizes,
        window: int | None,
        positions: str,
        implementation: str | None,
        rngs: nnx.Rngs,
        remat: bool = False,
    ):
        self.remat = remat
        mask = masks.causal() if window is None else masks.window(left=window)

        def block(rngs: nnx.Rngs) -> TransformerBlock:
            return TransformerBlock(
                sizes.width,
                sizes.heads,
                norm=nnx.RMSNorm,
                use_bias=False,
                mask=mask,
                rotary_base=10_000.0 if positions == "rotary" else None,
                mods=(mods.alibi(mods.alibi_slopes(sizes.heads)),) if positions == "alibi" else (),
                implementation=implementation,
                rngs=rngs,
            )

        # as large as what the blocks add to it: at nnx.Embed's own 1 / sqrt(width) the bytes themselves drown
        self.embed = nnx.Embed(BYTES, sizes.width, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)
        self.blocks = nnx.split_rngs(splits=sizes.layers)(nnx.vmap(block))(rngs)
        self.norm = nnx.RMSNorm(sizes.width, rngs=rngs)
        self.out = nnx.Linear(sizes.width, BYTES, use_bias=False, rngs=rngs)

    def __call__(self, source: Array) -> jax.Array:
        """source `[b, t]` -> logits `[b, t, 256]` of the byte after each."""

        def through(x: jax.Array, block: TransformerBlock) -> jax.Array:
            return block(x)

        run = nnx.scan(nnx.remat(through) if self.remat else through, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.out(self.norm(run(self.embed(jnp.asarray(source)), self.blocks)))

    def weights(self, source: Array) -> jax.Array:
        """source `[b, t]` -> the attention weights `[layers, b, h, t, t]`."""

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
        def through(x: jax.Array, block: TransformerBlock) -> tuple[jax.Array, jax.Array]:
            return block(x), block.attention.weights(block.attention_norm(x))

        return through(self.embed(jnp.asarray(source)), self.blocks)[1]

    def cache(self, n: int, batch: int) -> BlockCache:
        """Room for n bytes of as many sources, in every block."""
        return nnx.vmap(lambda block: block.cache(n, batch))(self.blocks)

    def decode(
        self, source: jax.Array, caches: BlockCache, *, lengths: jax.Array | None = None
    ) -> tuple[jax.Array, BlockCache]:
        """The next bytes `[b, t]`, of which `lengths` are real -> logits `[b, t, 256]` of the byte after each, and the
        caches with them."""
        graph, blocks = nnx.split(self.blocks)  # `jax.lax.scan` inside another takes arrays, and no modules

        def through(x, layer):
            block, cache = layer
            return nnx.merge(graph, block).decode(x, cache, lengths=lengths)

        x, caches = jax.lax.scan(through, self.embed(source), (blocks, caches))
        return self.out(self.norm(x)), caches

    def write(self, source: Array, count: int, key: jax.Array, temperature: float = 1.0) -> jax.Array:
        """source `[b, t]` -> the next bytes `[b, count]`, each drawn from what the model makes of those before.

        The source is read once, and each byte written looks at the keys and values kept of those before it.
        """
        return generate(self, source, count, temperature=temperature, seed=key).tokens
