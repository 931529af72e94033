"""What layers are made and called with: which arrays learn, which errors bad input gets, and JAX's modes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jattn
from jattn import gates, masks, mods, normalizers
from jattn.nn import (
    ABCNN,
    AttentionPooling,
    HierarchicalAttention,
    LocalAttention,
    MultiHeadAttention,
    RecurrentAttention,
    Seq2SeqAttention,
    TransformerBlock,
    rotary,
)
from tests.layers import LOOSE, normal
from tests.nn.makers import MAKERS, rngs
from tests.tolerances import assert_close

B, T, S, F, H = 2, 6, 9, 16, 4


def learnt(layer):
    """Shapes of the options' arrays that are parameters."""
    return [x.shape for x in jax.tree.leaves(nnx.state(layer, nnx.All(nnx.Param, nnx.PathContains("arrays"))))]


# Which arrays learn

GAP = np.array([1.5, 2.5, 0.5, 3.0], np.float32)
FLOATS = {
    "function": masks.function(lambda i, j, gap: i - j < gap, jattn.operand(GAP, "h")),
    "around": masks.around(np.linspace(0, T, T, dtype=np.float32), 1, 1),
    "joined": ~(masks.causal() & masks.function(lambda i, j, gap: i - j > gap, jattn.operand(GAP, "h"))),
}


@pytest.mark.parametrize("name", FLOATS)
def test_arrays_of_masks_do_not_learn(name):
    """Weight decay leaves what a mask hides where it was."""
    layer = MultiHeadAttention(F, H, mask=FLOATS[name], mods=mods.alibi(np.ones(H, np.float32)), rngs=rngs())
    assert learnt(layer) == [(H,)]  # the slopes
    x = normal((B, T, F), dtype="float32")
    before = layer.weights(x) > 0
    optimizer = nnx.Optimizer(layer, optax.adamw(0.1, weight_decay=1.0), wrt=nnx.Param)

    @nnx.jit
    def step(layer, optimizer):
        optimizer.update(layer, nnx.grad(lambda layer: jnp.sum(layer(x) ** 2))(layer))

    slopes = layer.held.fill(layer.arrays)["mods"].slopes.array
    for _ in range(20):
        step(layer, optimizer)
    np.testing.assert_array_equal(layer.weights(x) > 0, before)
    assert abs(layer.held.fill(layer.arrays)["mods"].slopes.array - slopes).max() > 0.1


def test_masks_of_the_other_layers_do_not_learn():
    keys = masks.around(np.linspace(0, S, T, dtype=np.float32), 3, 3)
    assert learnt(Seq2SeqAttention(F, H, mask=keys, rngs=rngs())) == []
    assert learnt(TransformerBlock(F, H, mask=FLOATS["around"], rngs=rngs())) == []
    assert learnt(Seq2SeqAttention(F, H, mask=keys, score="cosine", rngs=rngs())) == [()]


def test_sinks_start_where_an_array_says_or_a_variable():
    start, x = normal((H,), dtype="float32"), normal((B, T, F), dtype="float32")
    layer, zeros = (MultiHeadAttention(F, H, sinks=y, rngs=rngs()) for y in (start, True))
    assert isinstance(layer.sinks, nnx.Param) and isinstance(zeros.sinks, nnx.Param)
    assert abs(layer(x) - zeros(x)).max() > 1e-3
    zeros.sinks[...] = start
    np.testing.assert_array_equal(layer(x), zeros(x))
    logits: Any = nnx.Param(jnp.asarray(start))  # which type checkers do not take for an array
    of_variable = MultiHeadAttention(F, H, sinks=logits, rngs=rngs())
    np.testing.assert_array_equal(of_variable.sinks, layer.sinks)


# Errors


@pytest.mark.parametrize(
    ("layer", "options", "error", "message"),
    [
        ("MultiHeadAttention", {"sinks": np.zeros(3)}, ValueError, r"sinks must be .* \[h\] = \[4\] .* got float64\[3\]"),
        ("MultiHeadAttention", {"sinks": 1.0}, ValueError, r"sinks must be True, False, or an array .* got 1.0"),
        ("MultiHeadAttention", {"rotary_base": np.ones(4)}, ValueError, "rotary_base must be a number > 0"),
        ("MultiHeadAttention", {"rotary_base": "1e4"}, ValueError, "rotary_base must be a number > 0"),
        ("MultiHeadAttention", {"rotary_base": -1.0}, ValueError, "rotary_base must be a number > 0"),
        ("MultiHeadAttention", {"dropout": "0.1"}, ValueError, r"dropout must be a rate in \[0, 1\)"),
        ("MultiHeadAttention", {"dropout": True}, ValueError, r"dropout must be a rate in \[0, 1\)"),
        ("TransformerBlock", {"dropout": 1.5}, ValueError, r"dropout must be a rate in \[0, 1\)"),
        ("TransformerBlock", {"norm": "rms"}, TypeError, "norm must be a function, like nnx.LayerNorm"),
        ("TransformerBlock", {"activation": "gelu"}, TypeError, "activation must be a function, like jax.nn.gelu"),
        ("LocalAttention", {"window": 2.5}, ValueError, "window must be an int >= 0"),
        ("LocalAttention", {"window": True}, ValueError, "window must be an int >= 0"),
        ("LocalAttention", {"pace": "fast"}, ValueError, "pace must be > 0"),
        ("Seq2SeqAttention", {"score": "bilinear"}, ValueError, "score must be one of dot, general"),
        ("RecurrentAttention", {"summary": "max"}, ValueError, "summary must be one of 'attention', 'mean', 'last'"),
        ("ABCNN", {"before": True, "length": 2.0}, TypeError, "length must be an int"),
        ("ABCNN", {"pooling": "attention"}, ValueError, "pooling must be one of window"),
    ],
)  # fmt: skip
def test_errors_of_making(layer, options, error, message):
    with pytest.raises(error, match=message):
        MAKERS[layer](**options)


@pytest.mark.parametrize("layer", ["MultiHeadAttention", "TransformerBlock"])
def test_the_batch_axes_of_a_cache_are_an_int_or_several(layer):
    layer = MAKERS[layer](mask=masks.causal())
    keys = lambda cache: jax.tree.leaves(cache)[0].shape
    assert keys(layer.cache(8, 2)) == keys(layer.cache(8, (2,))) == keys(layer.cache(np.int64(8), [2])) == (2, 8, 4, 4)
    assert keys(layer.cache(8)) == (8, 4, 4)
    assert keys(layer.cache(8, range(2, 4))) == keys(layer.cache(8, (np.int32(2), 3))) == (2, 3, 8, 4, 4)
    assert layer.decode(jnp.ones((2, 3, F)), layer.cache(8, 2))[0].shape == (2, 3, F)
    for bad in (2.0, "2", True, (2, 1.5), -1):
        with pytest.raises(ValueError, match="batch must be the batch axes of x, an int or a tuple of ints, got"):
            layer.cache(8, bad)


def test_the_types_of_a_cache_let_in_what_it_takes():
    """What pyright looks at; a layer made from a table has no type."""
    layer, block = MultiHeadAttention(F, H, rngs=rngs()), TransformerBlock(F, H, rngs=rngs())
    for cache in (layer.cache(np.int64(8), [2]), block.cache(np.int64(8), np.int32(2)).past):
        assert cache.key.shape == (2, 8, H, F // H)


@pytest.mark.parametrize("layer", ["MultiHeadAttention", "TransformerBlock"])
def test_errors_of_calls(layer):
    make = MAKERS[layer]
    with pytest.raises(TypeError, match=r"rngs must be an nnx.Rngs, like nnx.Rngs\(dropout=0\)"):
        make(dropout=0.5)(jnp.ones((T, F)), rngs=0)
    with pytest.raises(TypeError, match=r"x must be an array \[.., t, 16\], got list"):
        make()([[1.0] * F])
    with pytest.raises(ValueError, match=r"x must be \[.., t, 16\], got shape \[6, 3\]"):
        make()(jnp.ones((T, 3)))


def test_the_base_of_rotary_may_be_a_traced_scalar():
    x = normal((T, H, 4), dtype="float32")
    assert_close(jax.jit(lambda base: rotary(x, base=base))(100.0), rotary(x, base=100.0), LOOSE)
    assert_close(rotary(x, base=np.array(100)), rotary(x, base=100), LOOSE)


@pytest.mark.parametrize("x", [np.ones((T, H, 4), int), np.ones((T, 4), np.float32), [[[1.0, 2.0]]]])
def test_rotary_refuses_what_is_no_floating_point_heads(x):
    with pytest.raises(TypeError, match=r"rotary takes floating-point queries \[.., t, h, d\]"):
        rotary(x)


def test_layers_take_arrays_of_numpy():
    """Their types say so too, which the type checker sees here."""
    x = np.asarray(normal((B, T, F)), np.float32)
    options: dict[str, Any] = {"mask": masks.causal(), "rngs": rngs()}
    attention, block = MultiHeadAttention(F, H, **options), TransformerBlock(F, H, context_features=F, **options)
    reader, local = Seq2SeqAttention(F, H, rngs=rngs()), LocalAttention(F, H, 2, center="predicted", rngs=rngs())
    outs = (
        attention(x, x), attention(x, attention.read(x)), attention.decode(x, attention.cache(T, B))[0], attention.weights(x, x),
        block(x, x), block.decode(x, block.cache(T, B, x))[0], reader(x, reader.read(x)), local(x, x), local.centers(x, T),
        AttentionPooling(F, rngs=rngs())(x), RecurrentAttention(F, 8, rngs=rngs())(x),
        HierarchicalAttention(F, 8, rngs=rngs())(x), *ABCNN(F, 8, 3, rngs=rngs())(x, x), rotary(x),
    )  # fmt: skip
    assert {(type(out), out.dtype) for out in outs} == {(type(jnp.ones(1)), jnp.dtype("float32"))}


# JAX's modes

X, CONTEXT, REAL = normal((B, T, F), 1), normal((B, S, F), 2), np.arange(T) < np.array([[4], [6]])
RUNS = {
    "attention": (
        lambda: MAKERS["MultiHeadAttention"](kv_heads=2, rotary_base=1e4, qk_norm=True, sinks=True, mask=masks.causal()),
        lambda layer, x: layer(x, mask=masks.lengths(np.array([4, 6]))),
    ),
    "options": (
        lambda: MAKERS["MultiHeadAttention"](
            mods=(mods.alibi(np.ones(H)), mods.softcap(np.array(5.0))), mask=masks.segments(np.arange(T) // 2),
            gates=gates.dropout(0.1, 0),
        ),
        lambda layer, x: layer(x),
    ),
    "sparsemax": (
        lambda: MAKERS["MultiHeadAttention"](normalizer=normalizers.sparsemax()), lambda layer, x: layer(x, bias=np.ones((T, T)))
    ),
    "monotonic": (lambda: MAKERS["LocalAttention"](pace=1.5), lambda layer, x: layer(x, lengths=np.array([4, 6]))),
    "predicted": (lambda: MAKERS["LocalAttention"](center="predicted"), lambda layer, x: layer(x, lengths=np.array([4, 6]))),
    "block": (
        lambda: MAKERS["TransformerBlock"](mask=masks.causal(), context_features=F, gated=True, rotary_base=1e4),
        lambda layer, x: layer(x, CONTEXT.astype(x.dtype), context_mask=masks.lengths(np.array([9, 3]))),
    ),
    "decode": (
        lambda: MAKERS["TransformerBlock"](mask=masks.causal(), rotary_base=1e4),
        lambda layer, x: layer.decode(x, layer.cache(8, B, dtype=x.dtype))[0],
    ),
    **{
        f"read {score}": (
            lambda score=score: MAKERS["Seq2SeqAttention"](score=score),
            lambda layer, x: layer(x, layer.read(CONTEXT.astype(x.dtype), lengths=np.array([9, 3]))),
        )
        for score in ("dot", "general", "cosine", "concat", "additive")
    },
    "static": (
        lambda: MAKERS["Seq2SeqAttention"](static=True), lambda layer, x: layer(x, layer.read(CONTEXT.astype(x.dtype)))
    ),
    "pooling": (lambda: MAKERS["AttentionPooling"](heads=3), lambda layer, x: layer(x, REAL)),
    "recurrent": (lambda: MAKERS["RecurrentAttention"](), lambda layer, x: layer(x, REAL)),
    "last": (lambda: MAKERS["RecurrentAttention"](summary="last"), lambda layer, x: layer(x, REAL)),
    "documents": (lambda: MAKERS["HierarchicalAttention"](summary="mean"), lambda layer, x: layer(x[None], REAL[None])),
    "pairs": (
        lambda: MAKERS["ABCNN"](before=True, after=True, length=T, pooling="max"),
        lambda layer, x: layer(x, x[:, ::-1], REAL)[0],
    ),
}  # fmt: skip
MODES = {
    "x64": lambda: jax.enable_x64(True),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
}


def values_and_gradients(name):
    make, call = RUNS[name]
    layer, x = make(), jnp.asarray(X, jnp.float32)
    graph, params, rest = nnx.split(layer, nnx.Param, ...)

    def loss(params, x):
        out = call(nnx.merge(graph, params, rest), x)
        return jnp.sum(jnp.sin(out)), out

    gradients, out = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
    return out, nnx.to_pure_dict(gradients[0]), gradients[1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", RUNS)
def test_in_the_modes_of_jax(name, mode):
    want = values_and_gradients(name)
    with MODES[mode]():
        got = values_and_gradients(name)
    jax.tree.map(lambda x, y: assert_close(x, y, LOOSE), got, want)
    assert got[0].dtype == want[0].dtype
