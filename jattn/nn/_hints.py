"""Arguments of layers by the names that other libraries have for them: the error says ours."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from jattn._call.hints import CAUSAL, SCALE, by_name

Method = TypeVar("Method", bound=Callable[..., Any])

_FEATURES = "features, the width of x and of the output, and head_dim for another width inside"
_CONTEXT = "context_features, the width of what keys and values are made of"
_ROTARY = "rotary=jattn.nn.Rotary(base, fraction=, interleaved=, scaling=)"
_DECODE = "a method: out, cache = layer.decode(x, cache), from cache = layer.cache(n, batch)"
_WINDOW = "mask=jattn.masks.window(left, right), with & jattn.masks.causal()"
_PADDING = (
    "mask=jattn.masks.lengths(lengths), lengths [b]; or a boolean mask [b, s], True where a key is real, as"
    " mask[:, None, None, :]"
)

OF_LAYERS = {
    **by_name(heads="heads", kv_heads="kv_heads", dropout="dropout, a rate in [0, 1)"),
    **by_name(causal=CAUSAL, window=_WINDOW, scale=SCALE, softcap="mods=jattn.mods.softcap(cap)"),
    **dict.fromkeys(
        ("in_features", "out_features", "qkv_features", "embed_dim", "d_model", "dim", "model_dim"), _FEATURES
    ),
    "hidden_size": "hidden, the width of a state or inside an MLP, where there is one; the width of x is features",
    **dict.fromkeys(("key_dim", "key_size", "size_per_head"), "head_dim"),
    **dict.fromkeys(("kdim", "in_kv_features"), _CONTEXT),
    "vdim": "value_features, the width of what values are made of; value_dim is that of a head's values",
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim"), "latent=jattn.nn.Latent(rank, rotary_dim)"),
    "broadcast_dropout": "dropout, which draws for every head and batch element",
    "decode": _DECODE,
    **dict.fromkeys(("normalize_qk", "use_qk_norm"), "qk_norm=True"),
    **dict.fromkeys(("rope_theta", "rope_base", "use_rope"), "rotary_base=10_000.0"),
    **dict.fromkeys(
        ("rope_scaling", "rope_parameters", "partial_rotary_factor", "rotary_dim", "rope_interleaved"), _ROTARY
    ),
    "bias": "use_bias for the projections; for the scores it is mods=jattn.mods.bias(array, axes), or bias= in a call",
    **dict.fromkeys(("mlp_dim", "ffn_dim", "dim_feedforward", "intermediate_size"), "hidden, the width inside the MLP"),
    "attention_fn": "implementation, one of jattn.attention's",
    "batch_first": "none: the layout is always [.., t, features]",
    **dict.fromkeys(("seed", "key"), "rngs=nnx.Rngs(0)"),
}

OF_CALLS = {
    **by_name(mask="mask, booleans broadcastable to [.., h, t, s], True = attend", padding=_PADDING, causal=CAUSAL),
    **by_name(weights="a method: layer.weights(...)", dropout_rng="rngs=nnx.Rngs(dropout=key)"),
    **by_name(bias="bias, broadcastable to [.., h, t, s]", segments="mask=jattn.masks.segments(q_ids, kv_ids)"),
    **dict.fromkeys(("inputs", "inputs_q", "query"), "x, the first argument"),
    **dict.fromkeys(("inputs_k", "inputs_v", "inputs_kv", "key"), "context, the second argument"),
    "value": "context, the second argument; values= where values are made of something else",
    "decode": _DECODE,
    **dict.fromkeys(("training", "train"), "deterministic, its opposite"),
}


def translated(answers: dict[str, str], handed_on: Collection[str] = ()) -> Callable[[Method], Method]:
    """Makes a method of a layer name our argument where it is given another library's, which it has not itself, nor
    hands on."""

    def wrap(method: Method) -> Method:
        own = frozenset((*inspect.signature(method).parameters, *handed_on))

        @functools.wraps(method)
        def called(self, *args, **kwargs):
            for name in kwargs:
                if name in answers and name not in own:
                    raise TypeError(f"{type(self).__name__} takes no {name}: here it is {answers[name]}")
            return method(self, *args, **kwargs)

        return called  # type: ignore[return-value]

    return wrap


of_layers, of_calls = translated(OF_LAYERS), translated(OF_CALLS)
