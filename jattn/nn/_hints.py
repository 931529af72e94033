"""Arguments by the names that other libraries have for them: the error says ours."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])

_HEADS = "heads"
_KV_HEADS = "kv_heads"
_WIDTH = "features, the width of x and of the output, and head_dim for another width inside"
_CONTEXT = "context_features, the width of what keys and values are made of"
_DROPOUT = "dropout, a rate in [0, 1)"
_DECODE = "a method: out, cache = layer.decode(x, cache), from cache = layer.cache(n, batch)"
_CAUSAL = "mask=jattn.masks.causal()"
_WINDOW = "mask=jattn.masks.window(left, right), with & jattn.masks.causal()"
_PADDING = (
    "mask=jattn.masks.lengths(lengths), lengths [b]; or a boolean mask [b, s], True where a key is real, as"
    " mask[:, None, None, :]"
)
_WEIGHTS = "a method: layer.weights(...)"

OF_LAYERS = {
    **dict.fromkeys(("num_heads", "n_heads", "nhead", "n_head", "num_attention_heads", "num_query_heads"), _HEADS),
    **dict.fromkeys(("num_kv_heads", "num_key_value_heads", "n_kv_heads", "num_groups"), _KV_HEADS),
    **dict.fromkeys(
        ("in_features", "out_features", "qkv_features", "embed_dim", "d_model", "dim", "model_dim"), _WIDTH
    ),
    "hidden_size": "hidden, the width of a state or inside an MLP, where there is one; the width of x is features",
    **dict.fromkeys(("key_dim", "value_dim", "key_size", "size_per_head"), "head_dim"),
    **dict.fromkeys(("kdim", "vdim", "in_kv_features"), _CONTEXT),
    **dict.fromkeys(("dropout_rate", "attention_dropout", "dropout_p", "attn_dropout"), _DROPOUT),
    "broadcast_dropout": "dropout, which draws for every head and batch element",
    "decode": _DECODE,
    **dict.fromkeys(("is_causal", "causal"), _CAUSAL),
    **dict.fromkeys(("window_size", "sliding_window", "local_window_size"), _WINDOW),
    **dict.fromkeys(("normalize_qk", "use_qk_norm"), "qk_norm=True"),
    **dict.fromkeys(("rope_theta", "rope_base", "use_rope"), "rotary_base=10_000.0"),
    **dict.fromkeys(("scale", "softmax_scale"), "score=jattn.scores.dot(scale)"),
    **dict.fromkeys(("logit_cap", "softcap", "attn_logits_soft_cap"), "mods=jattn.mods.softcap(cap)"),
    "bias": "use_bias for the projections; for the scores it is mods=jattn.mods.bias(array, axes), or bias= in a call",
    **dict.fromkeys(("mlp_dim", "ffn_dim", "dim_feedforward", "intermediate_size"), "hidden, the width inside the MLP"),
    "attention_fn": "implementation, one of jattn.attention's",
    "batch_first": "none: the layout is always [.., t, features]",
    **dict.fromkeys(("seed", "key"), "rngs=nnx.Rngs(0)"),
}

OF_CALLS = {
    **dict.fromkeys(("inputs", "inputs_q", "query"), "x, the first argument"),
    **dict.fromkeys(("inputs_k", "inputs_v", "inputs_kv", "key", "value"), "context, the second argument"),
    **dict.fromkeys(("attn_mask", "attention_mask"), "mask, booleans broadcastable to [.., h, t, s], True = attend"),
    **dict.fromkeys(("key_padding_mask", "padding_mask"), _PADDING),
    **dict.fromkeys(("is_causal", "causal"), _CAUSAL),
    **dict.fromkeys(("need_weights", "sow_weights", "return_attention_scores", "output_attentions"), _WEIGHTS),
    "decode": _DECODE,
    **dict.fromkeys(("training", "train"), "deterministic, its opposite"),
    "dropout_rng": "rngs=nnx.Rngs(dropout=key)",
    "attn_bias": "bias, broadcastable to [.., h, t, s]",
}


def translated(words: dict[str, str]) -> Callable[[Method], Method]:
    """Makes a method of a layer name our argument where it is given another library's, which it has not itself."""

    def wrap(method: Method) -> Method:
        own = frozenset(inspect.signature(method).parameters)

        @functools.wraps(method)
        def called(self, *args, **kwargs):
            for name in kwargs:
                if name in words and name not in own:
                    raise TypeError(f"{type(self).__name__} takes no {name}: here it is {words[name]}")
            return method(self, *args, **kwargs)

        return called  # type: ignore[return-value]

    return wrap


of_layers, of_calls = translated(OF_LAYERS), translated(OF_CALLS)
