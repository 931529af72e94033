"""What layers are given that does not fit: the error names the argument, what it was, and what was expected."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import masks
from jattn.nn import (
    rotary,
)
from tests.nn.makers import MAKERS

B, T, S, F, H = 2, 6, 9, 16, 4


SIZES = {
    "MultiHeadAttention": ("features", "heads", "kv_heads", "head_dim", "context_features"),
    "LocalAttention": ("features", "heads", "kv_heads", "head_dim"),
    "TransformerBlock": ("features", "heads", "hidden", "context_features"),
    "Seq2SeqAttention": ("features", "heads", "head_dim", "memory_features"),
    "AttentionPooling": ("features", "hidden", "heads"),
    "RecurrentAttention": ("features", "hidden", "attention"),
    "HierarchicalAttention": ("features", "hidden", "attention"),
    "ABCNN": ("in_features", "features", "width"),
}


FLAGS = {
    "MultiHeadAttention": ("qk_norm", "use_bias", "deterministic"),
    "LocalAttention": ("qk_norm",),
    "TransformerBlock": ("gated", "qk_norm"),
    "Seq2SeqAttention": ("static", "use_bias"),
    "AttentionPooling": ("use_bias",),
    "HierarchicalAttention": ("sentence_gru",),
    "ABCNN": ("before", "after"),
}


@pytest.mark.parametrize(("layer", "name"), [(layer, name) for layer, names in SIZES.items() for name in names])
def test_a_size_is_an_int_of_at_least_1(layer, name):
    for bad in (4.0, "4", True, jnp.float32(4)):
        with pytest.raises(TypeError, match=r"\w+ must be an int, got"):
            MAKERS[layer](**{name: bad})
    for bad in (0, -4):
        with pytest.raises(ValueError, match=r"\w+ must be at least 1, got"):
            MAKERS[layer](**{name: bad})


@pytest.mark.parametrize(("layer", "name"), [(layer, name) for layer, names in FLAGS.items() for name in names])
def test_a_flag_is_true_or_false(layer, name):
    for bad in ("layer", 1, None, np.ones(2)):
        with pytest.raises(TypeError, match=f"{name} must be True or False.* got"):
            MAKERS[layer](**{name: bad})


@pytest.mark.parametrize("layer", MAKERS)
def test_random_keys_come_from_rngs(layer):
    for bad in (0, jax.random.key(0), None):
        with pytest.raises(TypeError, match=r"rngs must be an nnx.Rngs, like nnx.Rngs\(0\)"):
            MAKERS[layer](rngs=bad)


CALLS = {
    "integer padding": ({"mask": np.ones((B, T), int)}, TypeError, r"mask must be boolean.* got int64\[2, 6\].*jattn.masks.lengths\(mask.sum\(-1\)\).*\(mask != 0\)\[..., None, None, :\]"),
    "float padding": ({"mask": jnp.ones((B, T))}, TypeError, r"mask must be boolean.*jattn.masks.lengths.*bias="),
    "padding of a variable": ({"mask": nnx.Variable(np.ones((B, T), bool))}, ValueError, r"a padding mask \[.., s\] is mask\[..., None, None, :\]"),
    "boolean padding": ({"mask": np.ones((B, T), bool)}, ValueError, r"t = 6 and s = 6, got \[2, 6\]; a padding mask \[.., s\] is mask\[..., None, None, :\], or jattn.masks.lengths"),
    "mask by position": ({"context": np.ones((B, T), bool)}, TypeError, "mask"),
    "Mask by position": ({"context": masks.causal()}, TypeError, "mask: give it by name, as mask="),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("layer", ["MultiHeadAttention", "TransformerBlock", "LocalAttention"])
def test_masks_of_other_kinds(layer, name):
    call, error, message = CALLS[name]
    with pytest.raises(error, match=message):
        MAKERS[layer]()(jnp.ones((B, T, F)), **call)


def test_masks_of_other_kinds_where_there_is_a_memory():
    layer = MAKERS["Seq2SeqAttention"]()
    memory = layer.read(jnp.ones((B, S, F)))
    with pytest.raises(TypeError, match=r"mask must be boolean.*jattn.masks.lengths"):
        layer(jnp.ones((B, T, F)), memory, mask=np.ones((B, S), int))
    with pytest.raises(ValueError, match=r"a padding mask \[.., s\]"):
        layer(jnp.ones((B, T, F)), memory, mask=np.ones((B, S), bool))
    with pytest.raises(TypeError, match=r"give mask != 0"):
        MAKERS["AttentionPooling"]()(jnp.ones((B, T, F)), np.ones((B, T), int))


@pytest.mark.parametrize("base", [np.array([1e4, 1e3]), jnp.ones((1,)), "1e4", 0, -2.0, True])
def test_the_base_of_rotary_is_one_number(base):
    with pytest.raises(ValueError, match="base must be"):
        rotary(jnp.ones((T, H, 4)), base=base)
