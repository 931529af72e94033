"""Errors for those who come from elsewhere: what an argument of another library is called here."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# what other libraries call a thing, by our word for it: layers and functions give the same names their own answers
NAMES = {
    "heads": ("num_heads", "n_heads", "nhead", "n_head", "num_attention_heads", "num_query_heads"),
    "kv_heads": ("num_kv_heads", "num_key_value_heads", "n_kv_heads", "num_groups"),
    "causal": ("is_causal", "causal"),
    "window": ("window_size", "sliding_window", "local_window_size", "window"),
    "mask": ("attn_mask", "attention_mask"),
    "padding": ("key_padding_mask", "padding_mask"),
    "segments": ("segment_ids", "q_segment_ids", "kv_segment_ids"),
    "scale": ("scale", "sm_scale", "softmax_scale", "qk_scale"),
    "softcap": ("logit_cap", "logits_soft_cap", "attn_logits_soft_cap", "soft_cap", "softcap"),
    "bias": ("attn_bias",),
    "dropout": ("dropout_rate", "attention_dropout", "dropout_p", "attn_dropout"),
    "dropout_rng": ("dropout_rng",),
    "weights": ("need_weights", "sow_weights", "return_attention_scores", "output_attentions"),
}
CAUSAL, SCALE = "mask=jattn.masks.causal()", "score=jattn.scores.dot(scale)"


def by_name(**answers: str) -> dict[str, str]:
    """Answers by our words for things, as answers by the names that other libraries have for them."""
    return {name: answer for word, answer in answers.items() for name in NAMES[word]}


_LENGTHS, _HEADS = "mask=jattn.masks.lengths(kv, q)", "the heads are an axis of query [b, t, h, d] and key [b, s, g, d]"
_DROPOUT = "dropout=jattn.gates.dropout(rate, seed)"
_OURS = {
    **by_name(heads=f"no argument: {_HEADS}", kv_heads=f"no argument: {_HEADS}", causal=CAUSAL, scale=SCALE),
    **by_name(mask="mask=, a mask or a boolean array broadcastable to [b, h, t, s]", padding=_LENGTHS),
    **by_name(window="mask=jattn.masks.window(left, right)", segments="mask=jattn.masks.segments(q_ids, kv_ids)"),
    **by_name(softcap="mods=(jattn.mods.softcap(cap),)", bias="bias=", dropout=_DROPOUT, dropout_rng=_DROPOUT),
    **by_name(weights="another function: jattn.weights(query, key, value, ...)"),
    **dict.fromkeys(("lengths", "query_seq_lengths", "key_value_seq_lengths", "q_seqlen", "kv_seqlen"), _LENGTHS),
    **dict.fromkeys(("page_indices", "page_table", "block_table", "block_tables"), "pages="),
    "enable_gqa": f"no argument: {_HEADS}",
    "score_mod": "mods=(jattn.mods.function(fn),)",
    "mask_mod": "mask=jattn.masks.function(fn)",
    "block_mask": "mask=, from jattn.masks: blocks that it leaves empty are skipped",
    "alibi_slopes": "mods=(jattn.mods.alibi(slopes),)",
    "return_residual": "return_lse=True",
    "masks": "mask=, a mask or a boolean array broadcastable to [b, h, t, s]",
    "mod": "mods=",
    "gate": "gates=",
    "sink": "sinks=",
}


def hinted(fn: Callable[P, R]) -> Callable[P, R]:
    """The function, whose errors about arguments say what was meant."""
    kinds = inspect.Parameter
    parameters = inspect.signature(fn).parameters.values()
    arrays = [x.name for x in parameters if x.kind == kinds.POSITIONAL_OR_KEYWORD]
    named = [x.name for x in parameters if x.kind == kinds.KEYWORD_ONLY]

    @functools.wraps(fn)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if len(args) > len(arrays):
            raise TypeError(
                f"{fn.__name__} takes {', '.join(arrays)} in place and all else by name, got {len(args)} arguments in"
                " place: write mask=, bias="
            )
        unknown = [x for x in kwargs if x not in named and x not in arrays]
        if unknown:
            raise TypeError(unexpected(fn.__name__, unknown, named))
        return fn(*args, **kwargs)

    return run


def unexpected(where: str, unknown: Sequence[str], known: Iterable[str]) -> str:
    """One line for arguments that there are not."""
    meant = [f"{x} is {_OURS[x]}" for x in unknown if x in _OURS]
    listed = "" if len(meant) == len(unknown) else f"; there are {', '.join(known)}"
    return (
        f"{where} takes no {', '.join(unknown)}"
        + (f": {'; '.join(meant)}" if meant else "")
        + f"{listed} (see jattn.attention)"
    )
