"""What the layers of `jattn.nn` say of themselves is what they are: attributes, options handed on, public names."""

import inspect

import pytest
from flax import nnx

import jattn
from jattn.nn import _options, multi_head, seq2seq

MAKERS = {
    "ABCNN": lambda rngs: jattn.nn.ABCNN(8, 8, 3, before=True, length=5, rngs=rngs),
    "Alibi": lambda rngs: jattn.nn.Alibi(2),
    "AttentionPooling": lambda rngs: jattn.nn.AttentionPooling(8, rngs=rngs),
    "Decoder": lambda rngs: jattn.nn.Decoder(8, 2, 1, rngs=rngs),
    "Encoder": lambda rngs: jattn.nn.Encoder(8, 2, 1, rngs=rngs),
    "EncoderDecoder": lambda rngs: jattn.nn.EncoderDecoder(8, 2, 1, rngs=rngs),
    "HierarchicalAttention": lambda rngs: jattn.nn.HierarchicalAttention(8, 4, rngs=rngs),
    "L2Norm": lambda rngs: jattn.nn.L2Norm(8, rngs=rngs),
    "LocalAttention": lambda rngs: jattn.nn.LocalAttention(8, 2, 3, center="predicted", rngs=rngs),
    "MultiHeadAttention": lambda rngs: jattn.nn.MultiHeadAttention(8, 2, qk_norm=True, sinks=True, rngs=rngs),
    "RecurrentAttention": lambda rngs: jattn.nn.RecurrentAttention(8, 4, rngs=rngs),
    "RelativeBias": lambda rngs: jattn.nn.RelativeBias(2, rngs=rngs),
    "Seq2SeqAttention": lambda rngs: jattn.nn.Seq2SeqAttention(8, 2, rngs=rngs),
    "TransformerBlock": lambda rngs: jattn.nn.TransformerBlock(8, 2, gated=True, context_features=4, rngs=rngs),
}


def names(function) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {x.name for x in parameters if x.kind is not x.VAR_KEYWORD} - {"self"}


def test_every_layer_has_a_maker():
    layers = {x for x in jattn.nn.__all__ if isinstance(getattr(jattn.nn, x), type(nnx.Module))}
    assert layers == set(MAKERS)


@pytest.mark.parametrize("name", MAKERS)
def test_attributes_are_declared(name):
    """A type checker knows every attribute of a layer, and no attribute that it has not."""
    layer = MAKERS[name](nnx.Rngs(0))
    own = {x for x in vars(layer) if not x.startswith("_")}
    kinds = [x for x in type(layer).__mro__ if x.__module__.startswith("jattn.")]
    assert own == set().union(*(inspect.get_annotations(x) for x in kinds))


def test_options_handed_on_are_those_of_the_attention():
    made = names(jattn.nn.MultiHeadAttention.__init__)
    assert set(_options.AttentionOptions.__annotations__) == set(multi_head._OPTIONS)
    assert set(_options.ReadOptions.__annotations__) == set(seq2seq._OPTIONS)
    handed = {
        jattn.nn.LocalAttention: _options.LayerOptions,
        jattn.nn.TransformerBlock: _options.BlockOptions,
    }
    for layer, options in handed.items():
        own, more = names(layer.__init__), set(options.__annotations__)
        assert not own & more, layer
        kept = {"out_features", "value_features"} if layer is jattn.nn.TransformerBlock else set()  # x comes out again
        assert made | set(multi_head._OPTIONS) == (own & made) | more | kept, layer
    block = names(jattn.nn.TransformerBlock.__init__) | set(_options.BlockOptions.__annotations__)
    stack = names(jattn.nn.Encoder.__init__)
    assert block <= stack | set(_options.StackOptions.__annotations__)


def test_local_attention_takes_what_a_call_of_multi_head_attention_takes():
    assert names(jattn.nn.MultiHeadAttention.__call__) < names(jattn.nn.LocalAttention.__call__)


def test_public_names():
    assert set(jattn.nn.__all__) <= set(dir(jattn.nn))
    assert list(jattn.nn.__all__) == sorted(jattn.nn.__all__)
