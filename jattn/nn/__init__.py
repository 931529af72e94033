"""Flax layers: attention with its projections, and the way to use jattn inside Flax's own layers."""

from jattn.nn import cache as cache
from jattn.nn._frozen import frozen
from jattn.nn._generate import Generated, generate
from jattn.nn._latent import Latent
from jattn.nn._projections import L2Norm
from jattn.nn._rotary import Rotary, rotary, segment_positions
from jattn.nn._scaling import DynamicScaling, LinearScaling, Llama3Scaling, YarnScaling
from jattn.nn.abcnn import ABCNN
from jattn.nn.cache import BlockCache, Cache, StackCache
from jattn.nn.flax_adapter import attention_fn
from jattn.nn.hierarchical import HierarchicalAttention
from jattn.nn.local import LocalAttention
from jattn.nn.multi_head import MultiHeadAttention
from jattn.nn.pooling import AttentionPooling
from jattn.nn.positional import Alibi, RelativeBias
from jattn.nn.recurrent import RecurrentAttention
from jattn.nn.seq2seq import Seq2SeqAttention
from jattn.nn.stacks import Decoder, Encoder, EncoderDecoder
from jattn.nn.transformer import Residual, TransformerBlock

__all__ = [
    "ABCNN",
    "Alibi",
    "AttentionPooling",
    "BlockCache",
    "Cache",
    "Decoder",
    "DynamicScaling",
    "Encoder",
    "EncoderDecoder",
    "Generated",
    "HierarchicalAttention",
    "L2Norm",
    "Latent",
    "LinearScaling",
    "Llama3Scaling",
    "LocalAttention",
    "MultiHeadAttention",
    "RecurrentAttention",
    "RelativeBias",
    "Residual",
    "Rotary",
    "Seq2SeqAttention",
    "StackCache",
    "TransformerBlock",
    "YarnScaling",
    "attention_fn",
    "cache",
    "frozen",
    "generate",
    "rotary",
    "segment_positions",
]


def __dir__() -> list[str]:
    return __all__
