"""Where the parameters of models of Hugging Face's transformers are in a stack of `jattn.nn`.

Each function takes arrays by the names of a state dict and returns the parameters of a `TransformerBlock`, or of what
stands around a stack.  All of it is linear but for Gemma's norms, whose scale is 1 + weight: `one` says what 1 is, so
that gradients are mapped by the same functions with 0.

A weight of PyTorch is `[out, in]`, a kernel of Flax `[in, out]`; heads have an axis of their own here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

State: TypeAlias = Mapping[str, np.ndarray]
Tree: TypeAlias = dict[Any, Any]


def under(state: State, prefix: str) -> State:
    """What is under a prefix, without it."""
    return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}


def linear(state: State, name: str) -> Tree:
    """`nnx.Linear`."""
    bias = state.get(f"{name}.bias")
    kernel = {"kernel": state[f"{name}.weight"].T}
    return kernel if bias is None else {**kernel, "bias": bias}


def norm(state: State, name: str, one: float = 0.0) -> Tree:
    """`nnx.LayerNorm` or `nnx.RMSNorm`."""
    scale = {"scale": one + state[f"{name}.weight"]}
    return {**scale, "bias": state[f"{name}.bias"]} if f"{name}.bias" in state else scale


def heads(state: State, name: str, n: int) -> Tree:
    """The projection to n heads of a `MultiHeadAttention`."""
    return split(state[f"{name}.weight"], state.get(f"{name}.bias"), n)


def split(weight: np.ndarray, bias: np.ndarray | None, n: int) -> Tree:
    """The same, of arrays."""
    kernel = {"kernel": weight.T.reshape(weight.shape[1], n, -1)}
    return kernel if bias is None else {**kernel, "bias": bias.reshape(n, -1)}


def merged(state: State, name: str, n: int) -> Tree:
    """The projection of n heads to the output."""
    weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
    kernel = {"kernel": weight.T.reshape(n, -1, weight.shape[0])}
    return kernel if bias is None else {**kernel, "bias": bias}


def attention(state: State, h: int, g: int, names: Iterable[str] = ("q_proj", "k_proj", "v_proj", "o_proj")) -> Tree:
    """`MultiHeadAttention` of h query heads and g key and value heads."""
    q, k, v, o = names
    tree = {
        "query": heads(state, q, h),
        "key": heads(state, k, g),
        "value": heads(state, v, g),
        "out": merged(state, o, h),
    }
    if "q_norm.weight" in state:
        tree |= {"query_norm": norm(state, "q_norm"), "key_norm": norm(state, "k_norm")}
    return {**tree, "sinks": state["sinks"]} if "sinks" in state else tree


def fused(state: State, h: int, name: str, out: str) -> Tree:
    """`MultiHeadAttention` of one weight `[h, 3, d, features]` for all three."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    parts = weight.reshape(h, 3, -1, weight.shape[1]), bias.reshape(h, 3, -1)
    three = (split(parts[0][:, n].reshape(-1, weight.shape[1]), parts[1][:, n].reshape(-1), h) for n in range(3))
    return {**dict(zip(("query", "key", "value"), three, strict=True)), "out": merged(state, out, h)}


def latent(state: State, h: int, d: int) -> Tree:
    """`MultiHeadAttention` with a `Latent`; d is the width of a head's key without its turned part."""
    up = state["kv_b_proj.weight"]
    up = up.reshape(h, -1, up.shape[1])
    of = lambda part: {"kernel": np.moveaxis(part, 2, 0)}
    down = lambda name, norm_name: {"down": linear(state, name), "norm": norm(state, norm_name)}
    return {
        "query_latent": down("q_a_proj", "q_a_layernorm"),
        "latent": down("kv_a_proj_with_mqa", "kv_a_layernorm"),
        "query": heads(state, "q_b_proj", h),
        "key": of(up[:, :d]),
        "value": of(up[:, d:]),
        "out": merged(state, "o_proj", h),
    }


def gated(state: State, gate: str = "gate_proj", into: str = "up_proj", out: str = "down_proj") -> Tree:
    """A gated MLP of a `TransformerBlock`."""
    return {"mlp_gate": linear(state, gate), "mlp_in": linear(state, into), "mlp_out": linear(state, out)}


def stack(layers: list[Tree], kinds: int = 1) -> Tree:
    """Parameters of the blocks of an `Encoder` or `Decoder`, of those of its layers; `kinds` as its pattern has."""
    turns = len(layers) // kinds
    whole = {k: jax.tree.map(lambda *xs: np.stack(xs), *layers[k : turns * kinds : kinds]) for k in range(kinds)}
    rest = dict(enumerate(layers[turns * kinds :]))
    return {"blocks": whole, **({"rest": rest} if rest else {})}


def layers(state: State, prefix: str, of: Callable[[State], Tree]) -> list[Tree]:
    """What `of` makes of each layer under a prefix, in order."""
    count = 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix))
    return [of(under(state, f"{prefix}{n}.")) for n in range(count)]
