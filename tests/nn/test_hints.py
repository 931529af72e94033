"""Arguments of layers by the names that other libraries have for them: the error says ours."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest
from flax import nnx

import jattn
from jattn._call import hints
from jattn.nn import (
    MultiHeadAttention,
    _hints,
)
from tests.nn.makers import MAKERS, rngs

B, T, S, F, H = 2, 6, 9, 16, 4


@pytest.mark.parametrize(
    ("layer", "name", "ours"),
    [
        ("MultiHeadAttention", "num_heads", "heads"),
        ("MultiHeadAttention", "in_features", "features, the width of x"),
        ("MultiHeadAttention", "qkv_features", "head_dim"),
        ("MultiHeadAttention", "embed_dim", "features"),
        ("MultiHeadAttention", "dropout_rate", r"dropout, a rate in \[0, 1\)"),
        ("MultiHeadAttention", "decode", r"layer.decode\(x, cache\)"),
        ("MultiHeadAttention", "is_causal", r"mask=jattn.masks.causal\(\)"),
        ("MultiHeadAttention", "bias", "use_bias"),
        ("MultiHeadAttention", "scale", r"score=jattn.scores.dot\(scale\)"),
        ("LocalAttention", "dropout_rate", "dropout"),
        ("TransformerBlock", "d_model", "features"),
        ("TransformerBlock", "mlp_dim", "hidden"),
        ("TransformerBlock", "num_kv_heads", "kv_heads"),
        ("Seq2SeqAttention", "num_heads", "heads"),
        ("AttentionPooling", "num_heads", "heads"),
        ("RecurrentAttention", "hidden_size", "hidden"),
        ("HierarchicalAttention", "seed", r"rngs=nnx.Rngs\(0\)"),
        ("ABCNN", "out_features", "features"),
    ],
)
def test_names_of_other_libraries(layer, name, ours):
    with pytest.raises(TypeError, match=f"^{layer} takes no {name}: here it is .*{ours}"):
        MAKERS[layer](**{name: 4})


def test_names_of_other_libraries_in_place_of_ours():
    """Where the arguments that have no default are missing."""
    with pytest.raises(TypeError, match="MultiHeadAttention takes no num_heads: here it is heads"):
        MultiHeadAttention(num_heads=4, in_features=16, rngs=rngs())  # pyright: ignore[reportCallIssue]  # wrong on purpose


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("inputs_q", "x, the first argument"),
        ("inputs_kv", "context"),
        ("attn_mask", "mask, booleans"),
        ("key_padding_mask", r"jattn.masks.lengths\(lengths\)"),
        ("is_causal", r"mask=jattn.masks.causal\(\)"),
        ("need_weights", "layer.weights"),
        ("decode", "layer.decode"),
        ("training", "deterministic"),
    ],
)
@pytest.mark.parametrize("layer", ["MultiHeadAttention", "TransformerBlock", "LocalAttention"])
def test_names_of_other_libraries_in_calls(layer, name, ours):
    with pytest.raises(TypeError, match=f"^{layer} takes no {name}: here it is .*{ours}"):
        MAKERS[layer]()(jnp.ones((B, T, F)), **{name: True})


def test_functions_and_layers_share_the_names_of_other_libraries():
    functions = set(hints._OURS)
    layers = _hints.OF_LAYERS.keys() | _hints.OF_CALLS.keys()
    for word, theirs in hints.NAMES.items():
        assert functions.issuperset(theirs), word
        assert layers.issuperset(theirs), word


@pytest.mark.parametrize("name", ["sm_scale", "logits_soft_cap", "window"])
def test_layers_know_the_names_of_other_libraries_that_functions_know(name):
    given: dict[str, Any] = {name: 1.0}
    with pytest.raises(TypeError, match=f"MultiHeadAttention takes no {name}: here it is "):
        jattn.nn.MultiHeadAttention(8, 2, rngs=nnx.Rngs(0), **given)
