"""Flax layers: attention with its projections, and the way to use jattn inside Flax's own layers."""

from jattn.nn._cache import Cache
from jattn.nn._frozen import frozen
from jattn.nn._rotary import rotary
from jattn.nn.abcnn import ABCNN
from jattn.nn.flax_adapter import attention_fn
from jattn.nn.hierarchical import HierarchicalAttention
from jattn.nn.local import LocalAttention
from jattn.nn.multi_head import MultiHeadAttention
from jattn.nn.pooling import AttentionPooling
from jattn.nn.recurrent import RecurrentAttention
from jattn.nn.seq2seq import Seq2SeqAttention
from jattn.nn.transformer import BlockCache, TransformerBlock

__all__ = [
    "ABCNN",
    "AttentionPooling",
    "BlockCache",
    "Cache",
    "HierarchicalAttention",
    "LocalAttention",
    "MultiHeadAttention",
    "RecurrentAttention",
    "Seq2SeqAttention",
    "TransformerBlock",
    "attention_fn",
    "frozen",
    "rotary",
]
