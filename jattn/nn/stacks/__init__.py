"""Stacks of Transformer blocks: an encoder, a decoder, and both."""

from jattn.nn.stacks._decoder import Decoder as Decoder
from jattn.nn.stacks._encoder import Encoder as Encoder
from jattn.nn.stacks._encoder_decoder import EncoderDecoder as EncoderDecoder
