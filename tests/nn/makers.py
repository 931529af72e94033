"""Layers of every kind, made with the options that a test gives and usual ones for the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx

from jattn.nn import (
    ABCNN,
    AttentionPooling,
    HierarchicalAttention,
    LocalAttention,
    MultiHeadAttention,
    RecurrentAttention,
    Seq2SeqAttention,
    TransformerBlock,
)

B, T, S, F, H = 2, 6, 9, 16, 4


def rngs():
    return nnx.Rngs(0)


def usually(kind: Callable[..., Any], **usual: Any) -> Callable[..., Any]:
    """Makes such layers, with the usual options where a test gives no others."""
    return lambda **options: kind(**{"rngs": rngs(), **usual, **options})


MAKERS = {
    "MultiHeadAttention": usually(MultiHeadAttention, features=F, heads=H),
    "LocalAttention": usually(LocalAttention, features=F, heads=H, window=2),
    "TransformerBlock": usually(TransformerBlock, features=F, heads=H),
    "Seq2SeqAttention": usually(Seq2SeqAttention, features=F, heads=H),
    "AttentionPooling": usually(AttentionPooling, features=F),
    "RecurrentAttention": usually(RecurrentAttention, features=F, hidden=8),
    "HierarchicalAttention": usually(HierarchicalAttention, features=F, hidden=8),
    "ABCNN": usually(ABCNN, in_features=F, features=8, width=3),
}
