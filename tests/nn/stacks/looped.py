"""Stacks as their blocks one after the other, each run by itself."""

import jax
from flax import nnx

from jattn import masks
from jattn.nn import RelativeBias

B, T, S, H, F = 2, 5, 7, 2, 8
window = {"mask": masks.causal() & masks.window(1)}


def blocks_of(stack):
    """Its blocks in the order of the layers, each by itself."""
    kinds, turns = len(stack.blocks), stack.layers - len(stack.rest)
    for n in range(turns):
        graph, state = nnx.split(stack.blocks[n % kinds])
        yield nnx.merge(graph, jax.tree.map(lambda x, n=n: x[n // kinds], state))
    yield from stack.rest


def looped(stack, x, context=None, **call):
    shared = () if stack.positional is None else stack.positional()
    for block in blocks_of(stack):
        x = block(x, context, mods=shared, **call)
    return x if stack.norm is None else stack.norm(x)


def bias(**options):
    return RelativeBias(H, buckets=4, max_distance=6, rngs=nnx.Rngs(3), **options)
