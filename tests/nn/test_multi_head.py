"""`MultiHeadAttention`: against plain jnp with the same parameters, its dropout, under Flax's transformations, its errors."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jattn
from jattn import gates, masks, mods, normalizers, scores
from jattn.nn import L2Norm, MultiHeadAttention
from tests.layers import LOOSE, TIGHT, compare, normal, pure, randomised, traced_once, turn
from tests.tolerances import TOLERANCES, assert_close

B, T, S, H, D, F, C = 2, 6, 9, 4, 4, 16, 5  # F and C: widths of x and of the context


# The layer, written down


def dense(
    p, x, context=None, *, values=None, base=None, positions=None, context_positions=None, compare=None, mod=lambda s, p: s,
    unit=lambda y: y / jnp.sqrt(jnp.mean(y * y, axis=-1, keepdims=True) + 1e-6), mask=True, weigh=lambda s, p: jax.nn.softmax(s, axis=-1), gate=lambda w: w,
):  # fmt: skip
    """The layer with parameters `p`, any number of batch axes; scores and weights are `[.., h, t, s]`."""
    context = x if context is None else context
    project = lambda name, y: jnp.einsum("...tf,fhd->...thd", y, p[name]["kernel"]) + p[name].get("bias", 0)
    query, key, value = (
        project("query", x),
        project("key", context),
        project("value", context if values is None else values),
    )
    if "query_norm" in p:
        query, key = (
            unit(y) * p[name]["scale"] + p[name].get("bias", 0)
            for name, y in (("query_norm", query), ("key_norm", key))
        )
    if base is not None:
        query = turn(query, np.arange(x.shape[-2]) if positions is None else positions, base)
        key = turn(key, np.arange(context.shape[-2]) if context_positions is None else context_positions, base)
    key, value = (jnp.repeat(y, query.shape[-2] // y.shape[-2], axis=-2) for y in (key, value))
    if compare is None:
        score = jnp.einsum("...thd,...shd->...hts", query, key) / np.sqrt(query.shape[-1])
    else:
        score = compare(jnp.swapaxes(query, -3, -2), jnp.swapaxes(key, -3, -2), p)
    weight = gate(weigh(jnp.where(mask, mod(score, p), -1e30), p))
    out = jnp.einsum("...hts,...shd->...thd", weight, value)
    return jnp.einsum("...thd,hdf->...tf", out, p["out"]["kernel"]) + p["out"].get("bias", 0)


def sunk(score, p):
    sink = jnp.broadcast_to(p["sinks"][:, None, None], (*score.shape[:-1], 1))
    return jax.nn.softmax(jnp.concatenate([score, sink], axis=-1), axis=-1)[..., :-1]


def cosine(query, key, p):
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    return p["arrays"][0] * jnp.einsum("...td,...sd->...ts", unit(query), unit(key))


def additive(query, key, p):
    v, w_k, w_q = (p["arrays"][n] for n in (2, 1, 0))
    return jnp.einsum("m,...tsm->...ts", v, jnp.tanh((query @ w_q)[..., :, None, :] + (key @ w_k)[..., None, :, :]))


class Case(NamedTuple):
    layer: dict[str, Any]  # how it is made
    call: dict[str, Any]  # how it is called
    dense: dict[str, Any]  # the same in jnp
    cross: bool = False


i, j = np.arange(T)[:, None], np.arange(T)[None]
causal = j <= i
slopes = np.array([0.5, 0.25, 0.125, 0.0625])
holes = np.random.default_rng(5).random((B, H, T, T)) < 0.7
bias = np.random.default_rng(6).standard_normal((H, T, S))
steps = np.cumsum(np.random.default_rng(7).integers(1, 4, (B, T)), axis=1)
weights = {n: np.random.default_rng(8 + n).standard_normal(shape) for n, shape in enumerate([(D, 3), (D, 3), (3,)])}

# fmt: off
CASES = {
    "plain": Case({}, {}, {}),
    "cross": Case({"kv_heads": 2, "head_dim": 3, "context_features": C, "use_bias": False}, {}, {}, cross=True),
    "rotary": Case(
        {"rotary_base": 1e4, "kv_heads": 1},
        {"positions": steps},
        {"base": 1e4, "positions": steps, "context_positions": steps},
    ),
    "rotary_cross": Case(
        {"rotary_base": 100.0, "context_features": C},
        {"context_positions": np.arange(S)[::-1]},
        {"base": 100.0, "context_positions": np.arange(S)[::-1]},
        cross=True,
    ),
    "qk_norm": Case({"qk_norm": True, "rotary_base": 1e4, "kv_heads": 2}, {}, {"base": 1e4}),
    "layer_norm": Case({"qk_norm": nnx.LayerNorm}, {}, {"unit": lambda y: (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-6)}),
    "l2_norm": Case({"qk_norm": L2Norm, "score": scores.dot(np.array(9.0))}, {}, {"unit": lambda y: y / jnp.linalg.norm(y, axis=-1, keepdims=True), "compare": lambda q, k, p: p["arrays"][0] * jnp.einsum("...td,...sd->...ts", q, k)}),
    "biases": Case({"use_bias": ("query", "value", "out")}, {}, {}),
    "widths": Case({"value_dim": 3, "out_features": 7, "head_dim": 5, "kv_heads": 2, "use_bias": ("key",)}, {}, {}),
    "values": Case({"value_dim": 2}, {"values": normal((B, T, F), 3)}, {"values": normal((B, T, F), 3)}),
    "values_cross": Case(
        {"context_features": C, "value_features": 3, "kv_heads": 1},
        {"values": normal((B, S, 3), 3)}, {"values": normal((B, S, 3), 3)}, cross=True,
    ),
    "sinks": Case({"sinks": True, "implementation": "reference"}, {}, {"weigh": sunk}),
    "masks": Case({"mask": masks.causal()}, {"mask": holes | (i == j)}, {"mask": causal & (holes | (i == j))}),
    "mods": Case(
        {"mods": (mods.alibi(slopes),), "mask": causal},
        {"mods": mods.softcap(1.0), "mask": masks.window(2)},
        {"mod": lambda s, p: jnp.tanh(s - p["arrays"][1][:, None, None] * abs(i - j)), "mask": causal & (i - j <= 2)},
    ),
    "gates": Case(
        {"gates": gates.function(lambda w, i, j: w * (1 + j)), "context_features": C},
        {"gates": (gates.function(lambda w, i, j: w / (1 + i)),), "bias": bias},
        {"gate": lambda w: w * (1 + np.arange(S)) / (1 + i), "mod": lambda s, p: s + bias},
        cross=True,
    ),
    "cosine": Case({"score": scores.cosine(np.array(5.0))}, {}, {"compare": cosine}),
    "additive": Case({"score": scores.additive(*weights.values())}, {}, {"compare": additive}),
    "sigmoid": Case({"normalizer": normalizers.sigmoid(-1.0)}, {}, {"weigh": lambda s, p: jax.nn.sigmoid(s - 1)}),
}
# fmt: on


def compare_with_dense(layer, inputs, call, tolerance, **options):
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    compare(
        lambda p, *xs: nnx.merge(graph, p, rest)(*xs, **call),
        lambda p, *xs: dense(nnx.to_pure_dict(p), *xs, **options),
        params,
        inputs,
        tolerance,
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("x64")
def test_layer_is_what_is_written(name):
    case = CASES[name]
    layer = randomised(MultiHeadAttention(F, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0), **case.layer))
    inputs = (normal((B, T, F), 1), normal((B, S, C), 2))[: 2 if case.cross else 1]
    compare_with_dense(layer, inputs, case.call, TIGHT, **case.dense)


def test_float32():
    layer = randomised(MultiHeadAttention(F, H, kv_heads=2, rotary_base=1e4, qk_norm=True, rngs=nnx.Rngs(0)))
    compare_with_dense(layer, (normal((B, T, F), 1),), {}, LOOSE, base=1e4)


@pytest.mark.parametrize("lead", [(), (2, 3), (2, 1, 3)])
@pytest.mark.usefixtures("x64")
def test_batch_axes(lead):
    layer = randomised(
        MultiHeadAttention(F, H, context_features=C, rotary_base=1e4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    )
    x, context = normal((*lead, T, F), 1), normal((*lead, S, C), 2)
    some = lead[-1:]  # broadcast over the other batch axes
    mask = np.random.default_rng(3).random((*lead, 1, T, S)) < 0.7
    bias = normal((*some, H, 1, S), 4)
    positions = np.random.default_rng(5).integers(0, 50, (*lead, T))
    options = {"mask": mask, "positions": positions}
    out = jax.jit(lambda *xs: layer(*xs, bias=bias, **options))(x, context)
    want = jax.jit(lambda *xs: dense(pure(layer), *xs, base=1e4, mod=lambda s, p: s + bias, **options))(x, context)
    assert_close(out, want, TIGHT)


def test_pieces_see_the_batch_axes_as_one():
    layer = MultiHeadAttention(F, H, rngs=nnx.Rngs(0))
    x, lengths = normal((2, 3, T, F)), jnp.array([1, 2, 3, 4, 5, 6])
    out = layer(x, mask=masks.lengths(lengths))
    for n in range(6):
        alone = layer(x[n // 3, n % 3], mask=masks.prefix(n + 1))
        assert_close(out[n // 3, n % 3], alone, LOOSE)


def test_a_row_that_sees_nothing_gives_the_bias_of_out():
    layer = randomised(MultiHeadAttention(F, H, rngs=nnx.Rngs(0)))
    x = normal((B, T, F))
    out = layer(x, mask=masks.lengths(jnp.array([0, T])))
    assert_close(out[0], jnp.broadcast_to(layer.out.bias[...], (T, F)), LOOSE)
    assert_close(out[1], layer(x)[1], LOOSE)


def test_shapes_of_the_parameters():
    options = {"kv_heads": 2, "head_dim": 6, "context_features": C, "qk_norm": True, "sinks": True}
    layer = MultiHeadAttention(
        F, H, **options, mods=(mods.alibi(slopes),), mask=masks.segments(np.zeros(T, int)), rngs=nnx.Rngs(0)
    )
    assert jax.tree.map(jnp.shape, pure(layer)) == {
        "query": {"kernel": (F, H, 6), "bias": (H, 6)},
        "key": {"kernel": (C, 2, 6), "bias": (2, 6)},
        "value": {"kernel": (C, 2, 6), "bias": (2, 6)},
        "out": {"kernel": (H, 6, F), "bias": (F,)},
        "query_norm": {"scale": (6,)},
        "key_norm": {"scale": (6,)},
        "sinks": (H,),
        "arrays": {2: (H,)},  # the slopes; the ids of the segments are no parameters
    }


def test_initialisers():
    ones, zeros = nnx.initializers.ones, nnx.initializers.zeros
    layer = MultiHeadAttention(F, H, kernel_init=ones, out_kernel_init=zeros, rngs=nnx.Rngs(0))
    got = pure(layer)
    assert {name: float(got[name]["kernel"].mean()) for name in got} == {"query": 1, "key": 1, "value": 1, "out": 0}
    assert float(MultiHeadAttention(F, H, kernel_init=ones, rngs=nnx.Rngs(0)).out.kernel[...].min()) == 1


def test_dtypes():
    x = normal((B, T, F))
    layer = MultiHeadAttention(F, H, qk_norm=True, rotary_base=1e4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    wide = MultiHeadAttention(F, H, qk_norm=True, rotary_base=1e4, rngs=nnx.Rngs(0))
    out, want = layer(x), wide(x)
    assert out.dtype == jnp.bfloat16
    assert want.dtype == jnp.float32
    assert {y.dtype for y in jax.tree.leaves(pure(layer))} == {jnp.dtype("float32")}
    assert_close(out, want, 4 * TOLERANCES["bfloat16"].gradient)
    narrow = MultiHeadAttention(F, H, sinks=True, qk_norm=True, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert {y.dtype for y in jax.tree.leaves(pure(narrow))} == {jnp.dtype("bfloat16")}
    assert narrow(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert narrow(x).dtype == jnp.float32


def test_precision_reaches_every_product():
    layer = MultiHeadAttention(F, H, precision="highest", rngs=nnx.Rngs(0))
    text = str(jax.make_jaxpr(lambda x: layer(x))(normal((B, T, F))))
    assert "HIGHEST" in text
    assert "precision=None" not in text


def test_kernels_are_sharded_as_annotated():
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    annotate = lambda *axes: nnx.with_partitioning(nnx.initializers.lecun_normal(), axes)
    with jax.set_mesh(mesh):
        layer = MultiHeadAttention(
            F, H, kernel_init=annotate(None, "model", None), out_kernel_init=annotate("model"), rngs=nnx.Rngs(0)
        )
        out = nnx.jit(lambda m, x: m(x))(layer, normal((B, T, F)))
    for name in ("query", "key", "value"):
        assert getattr(layer, name).kernel[...].sharding.shard_shape((F, H, D)) == (F, H // 2, D)
    assert layer.out.kernel[...].sharding.shard_shape((H, D, F)) == (H // 2, D, F)
    whole = jax.device_put(nnx.state(layer), jax.devices()[0])
    nnx.update(layer, whole)
    assert_close(out, layer(normal((B, T, F))), LOOSE)


# Rotary embedding and norms of queries and keys


@pytest.mark.usefixtures("x64")
def test_layer_with_rotary_does_not_see_a_shift_of_all_positions():
    layer = MultiHeadAttention(F, H, rotary_base=1e4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    x = normal((B, T, F))
    assert_close(layer(x, positions=np.arange(T) + 50), layer(x), TIGHT)
    assert float(abs(layer(x, positions=2 * np.arange(T)) - layer(x)).max()) > 1e-3


def test_qk_norm_does_not_see_the_scale_of_the_projections():
    layer = MultiHeadAttention(F, H, qk_norm=True, use_bias=False, rngs=nnx.Rngs(0))
    x = normal((B, T, F))
    before = layer(x)
    layer.query.kernel[...] *= 10.0
    layer.key.kernel[...] *= 0.5
    assert_close(layer(x), before, LOOSE)
    assert layer.query_norm is not None and layer.query_norm.scale is not None
    layer.query_norm.scale[...] *= 2.0
    assert float(abs(layer(x) - before).max()) > 1e-3


def test_biases_by_name():
    layer = MultiHeadAttention(F, H, use_bias=("query", "value"), rngs=nnx.Rngs(0))
    assert {name for name, x in pure(layer).items() if "bias" in x} == {"query", "value"}
    with pytest.raises(ValueError, match="use_bias must name some of query, key, value, out, got 'q'"):
        MultiHeadAttention(F, H, use_bias=("q",), rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="use_bias must be True or False, or some of"):
        MultiHeadAttention(F, H, use_bias="query", rngs=nnx.Rngs(0))


def test_l2_norm_of_zeros():
    norm = L2Norm(3, rngs=nnx.Rngs(0))
    assert (norm(jnp.zeros(3)) == 0).all()
    assert jnp.isfinite(jax.grad(lambda x: norm(x).sum())(jnp.zeros(3))).all()
    assert norm(jnp.ones(3, jnp.bfloat16)).dtype == jnp.float32
    assert L2Norm(3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))(jnp.ones(3)).dtype == jnp.bfloat16


def test_values_decoded_and_read():
    """Keys say where things are, values do not; the cache holds both."""
    layer = randomised(
        MultiHeadAttention(F, H, value_dim=3, value_features=C, kv_heads=2, mask=masks.causal(), rngs=nnx.Rngs(0))
    )
    x, values = normal((B, T, F), 1), normal((B, T, C), 2)
    want = layer(x, values=values)
    first, cache = layer.decode(x[:, :4], layer.cache(T, B), values=values[:, :4])
    last, cache = layer.decode(x[:, 4:], cache, values=values[:, 4:])
    assert_close(jnp.concatenate([first, last], 1), want, LOOSE)
    assert cache.value.shape == (B, T, 2, 3)
    assert_close(layer(x, layer.read(x, values=values)), want, LOOSE)
    assert_close(layer.weights(x, values=values), layer.weights(x, x, values=values), LOOSE)
    for call in (lambda: layer(x), lambda: layer.decode(x, layer.cache(T, B)), lambda: layer.read(x)):
        with pytest.raises(
            ValueError, match=r"values must be given, \[.., [ts], 5\]: the layer was made with value_features"
        ):
            call()
    with pytest.raises(ValueError, match=r"values must have the axes \[.., t\] of x, got values \[2, 2, 5\]"):
        layer(x, values=values[:, :2])
    with pytest.raises(ValueError, match="values was given with a cache"):
        layer(x, cache, values=values)


# Dropout


def dropping(**options: Any) -> MultiHeadAttention:
    options = {"dropout": 0.5, "rngs": nnx.Rngs(0), **options}
    return MultiHeadAttention(F, H, **options)


def test_dropout_in_training_only():
    layer, x = dropping(), normal((B, T, F))
    kept = MultiHeadAttention(F, H, rngs=nnx.Rngs(0))(x)
    first, second = layer(x), layer(x)
    assert float(abs(first - second).max()) > 1e-3
    assert float(abs(first - kept).max()) > 1e-3
    layer.eval()
    assert (layer(x) == kept).all()
    assert float(abs(layer(x, deterministic=False) - kept).max()) > 1e-3
    layer.train()
    assert (layer(x, deterministic=True) == kept).all()
    assert float(abs(layer(x) - kept).max()) > 1e-3
    assert (nnx.view(layer, deterministic=True)(x) == kept).all()
    assert (dropping(deterministic=True)(x) == kept).all()


def test_dropout_repeats_with_the_seed():
    x = normal((B, T, F))
    runs = [[layer(x), layer(x)] for layer in (dropping(), dropping(), dropping(rngs=nnx.Rngs(0, dropout=1)))]
    assert (runs[0][0] == runs[1][0]).all()
    assert (runs[0][1] == runs[1][1]).all()
    assert float(abs(runs[0][0] - runs[2][0]).max()) > 1e-3


@pytest.mark.parametrize("stream", [lambda: nnx.Rngs(dropout=7), lambda: nnx.Rngs(dropout=7).dropout])
def test_dropout_drops_what_the_gate_drops(stream):
    layer, x = dropping(dropout=0.25), normal((B, T, F))
    gate = gates.dropout(0.25, jax.random.bits(nnx.Rngs(dropout=7).dropout(), dtype=jnp.uint32))
    want = layer(x, gates=gate, deterministic=True)
    assert (layer(x, rngs=stream()) == want).all()
    assert float(abs(layer(x) - want).max()) > 1e-3


def test_layers_made_of_one_stream_drop_apart():
    rngs = nnx.Rngs(params=0, dropout=1)
    x = normal((B, T, F))
    layers = [dropping(rngs=rngs) for _ in range(2)]
    nnx.update(layers[1], nnx.state(layers[0], nnx.Param))
    assert float(abs(layers[0](x) - layers[1](x)).max()) > 1e-3


# Flax's transformations


def loss_of(m, x):
    return jnp.sum(m(x) ** 2)


def assert_same_trees(got, want, tolerance=LOOSE):
    jax.tree.map(lambda x, y: assert_close(x, y, tolerance), nnx.to_pure_dict(got), nnx.to_pure_dict(want))


def test_jit_grad_and_the_stream_of_dropout():
    x = normal((B, T, F))

    @nnx.jit
    @traced_once
    def step(m, x):
        return nnx.value_and_grad(loss_of)(m, x)

    inside, outside = dropping(rotary_base=1e4, sinks=True), dropping(rotary_base=1e4, sinks=True)
    losses = []
    for _ in range(3):
        loss, grads = step(inside, x)
        want, want_grads = nnx.value_and_grad(loss_of)(outside, x)
        assert_close(loss, want, LOOSE)
        assert_same_trees(grads, want_grads)
        losses.append(float(loss))
    assert len(set(losses)) == 3


def test_remat_drops_the_same_weights_again():
    x = normal((B, T, F))
    plain, again = dropping(), dropping()
    want = nnx.grad(loss_of)(plain, x)
    got = nnx.grad(lambda m, x: jnp.sum(nnx.remat(lambda m, x: m(x))(m, x) ** 2))(again, x)
    assert_same_trees(got, want)


def stacked(n, **options):
    make = nnx.split_rngs(splits=n)(nnx.vmap(lambda rngs: MultiHeadAttention(F, H, rngs=rngs, **options)))
    return make(nnx.Rngs(0))


def one(layers, n):
    graph, state = nnx.split(layers)
    return nnx.merge(graph, jax.tree.map(lambda x: x[n], state))


def test_scan_over_a_stack_of_layers():
    layers = stacked(3, dropout=0.5, mods=(mods.alibi(slopes),), mask=masks.causal())
    x = normal((B, T, F))

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def scanned(x, layer):
        return x + layer(x)

    def looped(layers, x):
        for n in range(3):
            x = x + one(layers, n)(x)
        return x

    want_loss, want = nnx.value_and_grad(lambda m: jnp.sum(looped(m, x) ** 2))(layers)
    loss, got = nnx.value_and_grad(lambda m: jnp.sum(scanned(x, m) ** 2))(layers)
    assert_close(loss, want_loss, LOOSE * B * T * F)
    assert jax.tree.leaves(got)[0].shape[0] == 3
    assert_same_trees(got, want, 10 * LOOSE)
    assert float(abs(one(layers, 0)(x) - one(layers, 1)(x)).max()) > 1e-3


def test_vmap_over_inputs_and_over_layers():
    x = normal((3, B, T, F))
    layer = MultiHeadAttention(F, H, kv_heads=2, qk_norm=True, rngs=nnx.Rngs(0))
    assert_close(nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(layer, x), layer(x), LOOSE)
    ensemble = stacked(3, sinks=True)
    out = nnx.vmap(lambda m, x: m(x), in_axes=(0, None))(ensemble, x[0])
    assert_close(out, jnp.stack([one(ensemble, n)(x[0]) for n in range(3)]), LOOSE)


def test_split_and_merge():
    layer = dropping(score=scores.cosine(np.array(5.0)), mask=masks.segments(np.repeat([0, 1], 3)), qk_norm=True)
    graph, state = nnx.split(layer)
    assert hash(graph) == hash(nnx.split(layer)[0])
    x = normal((B, T, F))
    twin = nnx.merge(graph, state)
    first, second = twin(x), layer(x)  # they share the stream of dropout
    assert float(abs(first - second).max()) > 1e-3
    assert (nnx.clone(layer)(x) == layer(x)).all()
    assert (twin.eval() or twin(x) == layer(x, deterministic=True)).all()


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 4, "kv_heads": 3}, "heads = 4, kv_heads = 3"),
        ({"heads": 3}, "features = 16, heads = 3"),
        ({"dropout": 1.0}, r"dropout must be a rate in \[0, 1\), got 1.0"),
        ({"rotary_base": True}, "rotary_base must be a number > 0, like 10_000.0, got True"),
        ({"rotary_base": 1e4, "head_dim": 3}, "rotary_base needs an even head_dim, got 3"),
    ],
)
def test_errors_of_making(options, message):
    given: dict[str, Any] = {"features": F, "heads": H, "rngs": nnx.Rngs(0), **options}
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(**given)


def test_unknown_option():
    with pytest.raises(TypeError, match=r"no option masks, sinks_; the options are score, normalizer, mask"):
        MultiHeadAttention(F, H, masks=True, sinks_=1, rngs=nnx.Rngs(0))  # pyright: ignore[reportCallIssue]  # wrong on purpose


@pytest.mark.parametrize(
    ("x", "context", "call", "message"),
    [
        ((T, F + 1), None, {}, r"x must be \[.., t, 16\], got shape \[6, 17\]"),
        ((F,), None, {}, r"x must be \[.., t, 16\], got shape \[16\]"),
        ((T, F), (S, F), {}, r"context must be \[.., s, 5\], got shape \[9, 16\]"),
        ((2, 3, T, F), (3, 2, S, C), {}, r"same batch axes, got x \[2, 3, 6, 16\], context \[3, 2, 9, 5\]"),
        (
            (T, F),
            (S, C),
            {"positions": np.arange(S)},
            r"positions must be broadcastable to \[.., t\] = \[6\].*got \[9\]",
        ),
        ((T, F), (S, C), {"context_positions": np.zeros((2, S))}, r"= \[9\] and have its t, got \[2, 9\]"),
        (
            (2, 3, T, F),
            (2, 3, S, C),
            {"mask": np.ones((2, 1, 1, 1), bool)},
            r"mask must be .* axes \[2, 3\], got \[2, 1",
        ),
        (
            (2, 3, T, F),
            (2, 3, S, C),
            {"bias": np.ones((1, 2, 3, 1, 1, 1))},
            r"bias must be .* axes \[2, 3\], got \[1, 2",
        ),
        ((T, F), (S, C), {"mask": np.ones((T, T), bool)}, r"mask must be broadcastable .*, got shape \[6, 6\]"),
    ],
)
def test_errors_of_calling(x, context, call, message):
    layer = MultiHeadAttention(F, H, context_features=C, rotary_base=1e4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        layer(jnp.ones(x), None if context is None else jnp.ones(context), **call)


def test_positions_without_use():
    layer, x = MultiHeadAttention(F, H, rngs=nnx.Rngs(0)), jnp.ones((T, F))
    with pytest.raises(ValueError, match="make the layer with rotary_base"):
        layer(x, positions=np.arange(T))
    layer = MultiHeadAttention(F, H, rotary_base=1e4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="context_positions was given without a context"):
        layer(x, context_positions=np.arange(T))


def test_dropout_without_random_keys():
    layer, x = dropping(rngs=nnx.Rngs(params=0)), jnp.ones((T, F))
    with pytest.raises(ValueError, match=r"dropout = 0.5 needs a stream of random keys"):
        layer(x)
    with pytest.raises(ValueError, match=r"dropout = 0.5 needs a stream of random keys"):
        layer(x, rngs=nnx.Rngs(params=0))
    assert layer(x, deterministic=True).shape == (T, F)
    assert layer(x, rngs=nnx.Rngs(dropout=0)).shape == (T, F)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("cudnn", jattn.UnsupportedError, "'cudnn': .*; blockwise and reference can"),
        ("nonsense", ValueError, "implementation must be None or one of .* got 'nonsense'"),
    ],
)
def test_insisting_on_a_backend_that_cannot_or_is_not(name, error, message):
    layer = MultiHeadAttention(F, H, implementation=name, rngs=nnx.Rngs(0))
    with pytest.raises(error, match=message):
        layer(jnp.ones((T, F)))


def test_weights_are_looked_at_whatever_runs_the_attention():
    x = jnp.ones((2, 5, 8))
    of = lambda **options: MultiHeadAttention(8, 2, mask=masks.causal(), rngs=nnx.Rngs(0), **options).weights(x)
    assert_close(of(implementation="blockwise", blocks=(2, 2)), of(), 1e-6)
