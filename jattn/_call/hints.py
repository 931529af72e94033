"""Errors for those who come from elsewhere: what an argument of another library is called here."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_CAUSAL, _MASK = "mask=jattn.masks.causal()", "mask=, a mask or a boolean array broadcastable to [b, h, t, s]"
_SCALE, _CAP = "score=jattn.scores.dot(scale)", "mods=(jattn.mods.softcap(cap),)"
_LENGTHS, _WINDOW = "mask=jattn.masks.lengths(kv, q)", "mask=jattn.masks.window(left, right)"
_DROPOUT, _SEGMENTS = "dropout=jattn.gates.dropout(rate, seed)", "mask=jattn.masks.segments(q_ids, kv_ids)"
_HEADS = "no argument: the heads are an axis of query [b, t, h, d] and key [b, s, g, d]"
_OURS = {
    **dict.fromkeys(("is_causal", "causal"), _CAUSAL),
    **dict.fromkeys(("scale", "sm_scale", "softmax_scale", "qk_scale"), _SCALE),
    **dict.fromkeys(("attn_mask", "attention_mask", "masks"), _MASK),
    **dict.fromkeys(("key_padding_mask", "padding_mask", "lengths"), _LENGTHS),
    **dict.fromkeys(("query_seq_lengths", "key_value_seq_lengths", "q_seqlen", "kv_seqlen"), _LENGTHS),
    **dict.fromkeys(("local_window_size", "window_size", "sliding_window", "window"), _WINDOW),
    **dict.fromkeys(("segment_ids", "q_segment_ids", "kv_segment_ids"), _SEGMENTS),
    **dict.fromkeys(("dropout_rate", "dropout_p", "dropout_rng"), _DROPOUT),
    **dict.fromkeys(("logits_soft_cap", "attn_logits_soft_cap", "soft_cap", "softcap"), _CAP),
    **dict.fromkeys(("num_heads", "num_kv_heads", "num_query_heads", "enable_gqa"), _HEADS),
    "score_mod": "mods=(jattn.mods.function(fn),)",
    "mask_mod": "mask=jattn.masks.function(fn)",
    "block_mask": "mask=, from jattn.masks: blocks that it leaves empty are skipped",
    "alibi_slopes": "mods=(jattn.mods.alibi(slopes),)",
    "return_residual": "return_lse=True",
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
