"""Flax layers: attention with its projections, and the way to use jattn inside Flax's own layers."""

from jattn.nn._cache import Cache as Cache
from jattn.nn._frozen import frozen as frozen
from jattn.nn._rotary import rotary as rotary
from jattn.nn.abcnn import ABCNN as ABCNN
from jattn.nn.flax_adapter import attention_fn as attention_fn
from jattn.nn.hierarchical import HierarchicalAttention as HierarchicalAttention
from jattn.nn.local import LocalAttention as LocalAttention
from jattn.nn.multi_head import MultiHeadAttention as MultiHeadAttention
from jattn.nn.pooling import AttentionPooling as AttentionPooling
from jattn.nn.recurrent import RecurrentAttention as RecurrentAttention
from jattn.nn.seq2seq import Seq2SeqAttention as Seq2SeqAttention
from jattn.nn.transformer import BlockCache as BlockCache
from jattn.nn.transformer import TransformerBlock as TransformerBlock
