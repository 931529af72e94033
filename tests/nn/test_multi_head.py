"""The layers: against plain jnp with the same parameters, under Flax's transformations, inside Flax's own layers."""

import inspect
import subprocess
import sys
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jattn
from jattn import gates, masks, mods, normalizers, scores
from jattn.nn import MultiHeadAttention, attention_fn, rotary
from tests.layers import LOOSE, TIGHT, normal, pure, randomised, traced_once
from tests.tolerances import TOLERANCES, assert_close

pytestmark = pytest.mark.usefixtures("quick")

B, T, S, H, D, F, C = 2, 6, 9, 4, 4, 16, 5  # F and C: widths of x and of the context


# The layer, written down


def turn(x, positions, base):
    """Rotary embedding with complex numbers."""
    half = x.shape[-1] // 2
    pairs = x[..., :half] + 1j * x[..., half:]
    angles = positions[..., None, None] * base ** (-2 * np.arange(half) / (2 * half))
    turned = pairs * np.exp(1j * angles)
    return jnp.concatenate([turned.real, turned.imag], axis=-1)


def dense(
    p, x, context=None, *, base=None, positions=None, context_positions=None, compare=None, mod=lambda s, p: s,
    mask=True, weigh=lambda s, p: jax.nn.softmax(s, axis=-1), gate=lambda w: w,
):  # fmt: skip
    """The layer with parameters `p`, any number of batch axes; scores and weights are `[.., h, t, s]`."""
    context = x if context is None else context
    project = lambda name, y: jnp.einsum("...tf,fhd->...thd", y, p[name]["kernel"]) + p[name].get("bias", 0)
    query, key, value = project("query", x), project("key", context), project("value", context)
    if "query_norm" in p:
        unit = lambda y: y / jnp.sqrt(jnp.mean(y * y, axis=-1, keepdims=True) + 1e-6)
        query, key = unit(query) * p["query_norm"]["scale"], unit(key) * p["key_norm"]["scale"]
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


def compare(fn, want_fn, params, inputs, tolerance):
    """Values of both, and their gradients to every parameter and input."""

    def result_and_gradients(f):
        out, pull = jax.vjp(lambda p, xs: f(p, *xs), params, inputs)
        return {"out": out, "gradient": pull(normal(out.shape, 9, out.dtype))}

    got, want = jax.jit(lambda: (result_and_gradients(fn), result_and_gradients(want_fn)))()
    jax.tree_util.tree_map_with_path(
        lambda path, x, y: assert_close(x, y, tolerance, jax.tree_util.keystr(path)), got, want
    )


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
    found = pure(layer)
    assert {name: float(found[name]["kernel"].mean()) for name in found} == {"query": 1, "key": 1, "value": 1, "out": 0}
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


# Rotary embedding


@pytest.mark.usefixtures("x64")
def test_rotary_is_multiplication_by_a_complex_number():
    x, positions = normal((B, T, H, 6)), np.random.default_rng(0).integers(0, 1000, (B, T))
    assert_close(rotary(x, positions, 500.0), turn(x, positions, 500.0), TIGHT)
    assert_close(rotary(x), turn(x, np.arange(T), 1e4), TIGHT)
    assert_close(rotary(x, positions[:1]), turn(x, positions[:1], 1e4), TIGHT)
    assert_close(rotary(x[0]), rotary(x)[0], TIGHT)


@pytest.mark.usefixtures("x64")
def test_rotary_scores_depend_on_the_distance_alone():
    query, key = normal((1, 1, D), 1), normal((1, 1, D), 2)
    at = lambda x, position: rotary(x, jnp.array([position]))
    score = lambda i, j: float(jnp.vdot(at(query, i), at(key, j)))
    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-12)
    assert score(7, 3) == pytest.approx(score(4, 0), abs=1e-12)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-3)
    assert score(7, 3) != pytest.approx(score(3, 7), abs=1e-3)


@pytest.mark.usefixtures("x64")
def test_rotary_keeps_norms_and_the_first_position():
    x = normal((B, T, H, D))
    turned = rotary(x)
    assert_close(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), TIGHT)
    assert (turned[:, 0] == x[:, 0]).all()
    assert float(abs(turned - x)[:, 1:].min()) > 0


def test_rotary_angles_are_float32_in_bfloat16():
    x = jnp.ones((1, 1, 2), jnp.bfloat16)
    turned = rotary(x, jnp.array([1001]))  # bfloat16 has no 1001
    assert turned.dtype == jnp.bfloat16
    assert_close(turned[0, 0], [np.cos(1001) - np.sin(1001), np.sin(1001) + np.cos(1001)], TOLERANCES["bfloat16"].value)


@pytest.mark.skipif(not hasattr(nnx, "RoPE"), reason="this Flax has no RoPE")
def test_rotary_is_that_of_flax():
    x = normal((B, T, H, D))
    assert_close(rotary(x, base=500.0), jax.vmap(nnx.RoPE(theta=500.0), -2, -2)(x), LOOSE)  # pyright: ignore[reportAttributeAccessIssue]  # of newer releases


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


def test_rotary_of_an_odd_width():
    with pytest.raises(ValueError, match=r"d must be even, got x \[6, 4, 3\]"):
        rotary(jnp.ones((T, H, 3)))


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


# Inside Flax's own layers


class Flax(NamedTuple):
    layer: dict[str, Any] = {}  # noqa: RUF012
    call: dict[str, Any] = {}  # noqa: RUF012
    lead: tuple[int, ...] = (B,)
    cross: bool = False

    @property
    def inputs(self) -> tuple[jax.Array, ...]:
        return (normal((*self.lead, T, F), 1), normal((*self.lead, S, F), 2))[: 2 if self.cross else 1]


some = np.random.default_rng(3).random((B, 1, T, T)) < 0.6
some |= np.eye(T, dtype=bool)  # Flax differs in rows that see nothing
FLAX = {
    "self": Flax(call={"mask": some}),
    "cross": Flax(cross=True),
    "no_batch": Flax(lead=(), call={"mask": some[0].astype(np.float32)}),
    "two_batch_axes": Flax(lead=(3, B), call={"mask": np.stack([some] * 3)}),
    "options": Flax({"normalize_qk": True, "precision": "highest", "dropout_rate": 0.5, "deterministic": True}),
}
NNX = {
    "is_causal": Flax(call={"is_causal": True, "mask": some}),
    "grouped": Flax({"num_kv_heads": 2, "in_kv_features": F, "qkv_features": 8}, cross=True),
}
LINEN = {"fp32_softmax": Flax({"force_fp32_for_softmax": True, "use_bias": False})}


@pytest.mark.parametrize("name", [*FLAX, *NNX])
def test_nnx_layer_gives_the_same(name):
    case = {**FLAX, **NNX}[name]

    def function(**options):
        layer = nnx.MultiHeadAttention(
            num_heads=H, in_features=F, decode=False, rngs=nnx.Rngs(0), **case.layer, **options
        )
        graph, params, rest = nnx.split(randomised(layer), nnx.Param, ...)
        return (lambda p, *xs: nnx.merge(graph, p, rest)(*xs, **case.call)), params

    fn, params = function(attention_fn=attention_fn())
    compare(fn, function()[0], params, case.inputs, 10 * LOOSE)


@pytest.mark.parametrize("name", [*FLAX, *LINEN])
def test_linen_layer_gives_the_same(name):
    case = {**FLAX, **LINEN}[name]

    layer = lambda **options: linen.MultiHeadDotProductAttention(num_heads=H, **case.layer, **options)
    params = jax.tree.map(lambda x: x + 0.1, layer().init(jax.random.key(0), *case.inputs))
    function = lambda **options: lambda p, *xs: layer(**options).apply(p, *xs, **case.call)
    compare(function(attention_fn=attention_fn()), function(), params, case.inputs, 10 * LOOSE)


def test_dtypes_are_those_of_flax():
    q, k, v = normal((3, B, T, H, D))
    low, close = jnp.bfloat16, 4 * TOLERANCES["bfloat16"].value
    for arrays, dtype in (((q, k, v), low), ((q.astype(low), k, v), None), ((q.astype(low), k.astype(low), v), low)):
        out, want = (fn(*arrays, dtype=dtype) for fn in (attention_fn(), nnx.dot_product_attention))
        assert out.dtype == want.dtype
        assert_close(out, want, close)


def test_precision_of_flax_reaches_both_products():
    q = jnp.ones((B, T, H, D))
    text = str(jax.make_jaxpr(lambda q: attention_fn()(q, q, q, precision="highest"))(q))
    assert "HIGHEST" in text
    assert "precision=None" not in text


def test_fixed_options_and_the_mask_of_the_call_both_hold():
    layer = lambda **options: nnx.MultiHeadAttention(
        num_heads=H, in_features=F, decode=False, rngs=nnx.Rngs(0), **options
    )
    x = normal((B, T, F))
    out = layer(attention_fn=attention_fn(mask=masks.causal(), mods=mods.alibi(slopes)))(x, mask=jnp.asarray(some))
    add = lambda q, k, v, mask, **options: nnx.dot_product_attention(
        q, k, v, bias=jnp.asarray(-slopes[:, None, None] * abs(i - j), jnp.float32), mask=mask & causal, **options
    )
    assert_close(out, layer(attention_fn=add)(x, mask=jnp.asarray(some)), LOOSE)
    mask: Any = masks.causal() & masks.dense(some)  # Flax says arrays, and hands on whatever it is given
    lazy = layer(attention_fn=attention_fn(mods=mods.alibi(slopes)))(x, mask=mask)
    assert_close(lazy, out, LOOSE)


def test_bias_with_batch_axes():
    q, k, v = normal((3, 2, 3, T, H, D))
    bias = normal((2, 1, H, T, 1), 1) + normal((T,), 2)
    assert_close(
        attention_fn()(q, k, v, bias=bias),
        nnx.dot_product_attention(q, k, v, bias=jnp.broadcast_to(bias, (2, 3, H, T, T))),
        LOOSE,
    )


def test_a_row_that_sees_nothing_gives_zero():
    q, k, v = normal((3, B, T, H, D))
    mask = np.ones((B, 1, T, T), bool)
    mask[:, :, 2] = False
    out = attention_fn()(q, k, v, mask=mask)
    assert (out[:, 2] == 0).all()
    assert_close(out[:, 3:], linen.dot_product_attention(q, k, v, mask=mask)[:, 3:], LOOSE)


def test_nnx_decoding():
    def decoded(**options):
        layer = nnx.MultiHeadAttention(num_heads=H, in_features=F, decode=True, rngs=nnx.Rngs(0), **options)
        layer.init_cache((B, T, F))
        return jnp.concatenate([layer(x[:, n : n + 1]) for n in range(T)], axis=1)

    x = normal((B, T, F))
    out = decoded(attention_fn=attention_fn())
    assert_close(out, decoded(), LOOSE)
    whole = nnx.MultiHeadAttention(
        num_heads=H, in_features=F, decode=False, rngs=nnx.Rngs(0), attention_fn=attention_fn(mask=masks.causal())
    )
    assert_close(out, whole(x), LOOSE)


def test_linen_decoding():
    x = normal((B, T, F))

    def decoded(**options):
        layer = linen.MultiHeadDotProductAttention(num_heads=H, decode=True, **options)
        variables, out = layer.init(jax.random.key(0), x), []
        for n in range(T):
            found, changed = layer.apply(variables, x[:, n : n + 1], mutable=["cache"])
            variables, _ = {**variables, **changed}, out.append(found)
        return jnp.concatenate(out, axis=1)

    assert_close(decoded(attention_fn=attention_fn()), decoded(), LOOSE)


OF_POSITIONS = {
    "causal": {"mask": masks.causal()},
    "window": {"mask": masks.prefix(T) & masks.window(2)},
    "function": {"mask": masks.function(lambda i, j: (i - j) % 2 == 0)},
    "blocks": {"mask": masks.blocks(np.ones((T, T), bool), 1)},
    "array": {"mask": np.tri(T, dtype=bool)},
    "segments": {"mask": masks.segments(np.arange(T) // 2)},
    "around": {"mask": masks.around(np.arange(T), 1, 1)},
    "alibi": {"mods": (mods.softcap(3.0), mods.alibi(slopes))},
    "relative": {"mods": mods.relative(np.ones((H, 32)))},
    "gaussian": {"gates": gates.gaussian(np.ones((B, T)), 1.0)},
}
WITHOUT = {
    "keys": {"mask": masks.lengths(np.array([T, 3])) | masks.prefix(1)},
    "array of keys": {"mask": np.arange(T) != 2},
    "bias of keys": {"mods": (mods.softcap(3.0), mods.bias(normal((T,)), "s"))},
    "function of keys": {"mods": mods.function(lambda s, i, j, x: s - x * j, jattn.operand(slopes, "h"))},
    "gate of keys": {"gates": gates.function(lambda w, i, j: w / (1 + j))},
}  # fmt: skip


def nnx_step(options):
    layer = nnx.MultiHeadAttention(
        num_heads=H, in_features=F, decode=True, rngs=nnx.Rngs(0), attention_fn=attention_fn(**options)
    )
    layer.init_cache((B, T, F))
    return layer(normal((B, 1, F)))


def linen_step(options):
    layer = linen.MultiHeadDotProductAttention(num_heads=H, decode=True, attention_fn=attention_fn(**options))
    variables = layer.init(jax.random.key(0), normal((B, T, F)))
    return layer.apply(variables, normal((B, 1, F)), mutable=["cache"])[0]


@pytest.mark.parametrize("step", [nnx_step, linen_step])
@pytest.mark.parametrize("name", OF_POSITIONS)
def test_flax_cannot_decode_with_what_looks_at_positions(name, step):
    """It does not say at which position its one query is: from 0, the numbers would be wrong."""
    option = next(iter(OF_POSITIONS[name]))
    # linen makes its cache with a call of the whole length, where positions are known
    with pytest.raises(
        ValueError, match=f"{option} looks at the query's position, .*nn.MultiHeadAttention and its decode"
    ):
        step(OF_POSITIONS[name])


def test_flax_cannot_decode_with_is_causal():
    """Newer releases of Flax do not ask for it there."""
    q, k = normal((B, 1, H, D)), normal((B, S, H, D))
    with pytest.raises(ValueError, match=r"is_causal looks at .* That mask is causal already"):
        attention_fn()(q, k, k, mask=np.ones((B, 1, 1, S), bool), is_causal=True)


@pytest.mark.parametrize("name", WITHOUT)
def test_flax_decodes_with_what_looks_at_keys_alone(name):
    def decoded(layer):
        layer.init_cache((B, T, F))
        return jnp.concatenate([layer(x[:, n : n + 1], decode=True) for n in range(T)], axis=1)

    x = normal((B, T, F))
    layer = nnx.MultiHeadAttention(
        num_heads=H, in_features=F, decode=False, rngs=nnx.Rngs(0), attention_fn=attention_fn(**WITHOUT[name])
    )
    assert_close(decoded(layer), layer(x, mask=jnp.asarray(causal)), LOOSE)


def test_a_step_without_a_mask_is_no_decoding_of_flax():
    q, k = normal((B, 1, H, D)), normal((B, S, H, D))
    assert_close(attention_fn(mask=masks.causal(S - 1))(q, k, k), attention_fn()(q, k, k), LOOSE)


def test_weights_are_sown():
    x = normal((3, B, T, F))
    options = {"num_heads": H, "in_features": F, "decode": False, "dropout_rate": 0.5, "deterministic": False}
    call = {"mask": np.stack([some] * 3), "sow_weights": True}
    found = []
    ways: list[dict[str, Any]] = [{}, {"attention_fn": attention_fn()}]
    for fn in ways:
        layer = nnx.MultiHeadAttention(**options, **fn, rngs=nnx.Rngs(0))
        sown = nnx.capture(layer, nnx.Intermediate)(x, **call)[1]
        found.append(nnx.to_pure_dict(sown)["attention_weights"][0])
    assert found[0].shape == (3, B, H, T, T)
    assert_close(found[1], found[0], LOOSE)


@pytest.mark.parametrize("wide", [True, False])
def test_weights_are_sown_in_linen(wide):
    x, found = normal((B, T, F)), []
    ways: list[dict[str, Any]] = [{}, {"attention_fn": attention_fn()}]
    for fn in ways:
        layer = linen.MultiHeadDotProductAttention(num_heads=H, dtype=jnp.bfloat16, force_fp32_for_softmax=wide, **fn)
        variables = layer.init(jax.random.key(0), x)
        sown = layer.apply(variables, x, mask=some, sow_weights=True, mutable="intermediates")[1]
        found.append(sown["intermediates"]["attention_weights"][0])
    assert found[0].dtype == found[1].dtype == (jnp.float32 if wide else jnp.bfloat16)
    assert_close(found[1], found[0], 4 * TOLERANCES["bfloat16"].value)


def dropped(broadcast, **options):
    """The weights [b, t, h, s] that dropout leaves of 1/s each: values are unit vectors."""
    zero = jnp.zeros((2, 3, 32, H, 4))
    value = jnp.broadcast_to(jnp.eye(32)[:, None], (2, 3, 32, H, 32))
    options = {"dropout_rng": jax.random.key(0), "dropout_rate": 0.25, "broadcast_dropout": broadcast, **options}
    return attention_fn()(zero, zero, value, **options).reshape(6, 32, H, 32) * 32


def test_dropout_of_flax():
    for broadcast in (True, False):
        left = dropped(broadcast)
        kept = left > 0
        assert_close(left, kept / 0.75, LOOSE)
        assert abs(float(kept[0, :, 0].mean()) - 0.75) < 5 * np.sqrt(0.25 * 0.75 / 32**2)
        assert bool((kept == kept[:1, :, :1]).all()) == broadcast
        assert (dropped(broadcast) == left).all()
        assert float(abs(dropped(broadcast, dropout_rng=jax.random.key(1)) - left).max()) > 1
        assert_close(dropped(broadcast, deterministic=True), jnp.ones_like(left), LOOSE)
    with pytest.raises(ValueError, match=r"dropout_rate = 0.25 needs a dropout_rng"):
        dropped(True, dropout_rng=None)


@pytest.mark.parametrize("broadcast", [True, False])
def test_flax_layers_train_with_dropout(broadcast):
    x = normal((B, T, F))
    options = {"num_heads": H, "dropout_rate": 0.5, "broadcast_dropout": broadcast, "attention_fn": attention_fn()}
    layer = nnx.MultiHeadAttention(in_features=F, decode=False, deterministic=False, rngs=nnx.Rngs(0), **options)
    first, second = layer(x), layer(x)
    assert float(abs(first - second).max()) > 1e-3
    module = linen.MultiHeadDotProductAttention(deterministic=False, **options)
    variables = module.init(jax.random.key(0), x)
    run = lambda n: jnp.asarray(module.apply(variables, x, rngs={"dropout": jax.random.key(n)}))
    first, second, again = (run(n) for n in (1, 2, 1))
    assert float(abs(first - second).max()) > 1e-3
    assert (first == again).all()


def test_everything_that_flax_passes_has_a_name():
    """linen drops silently what an attention_fn does not name."""
    ours = set(inspect.signature(attention_fn()).parameters)
    for theirs in (nnx.dot_product_attention, linen.dot_product_attention):
        assert set(inspect.signature(theirs).parameters) <= ours


@pytest.mark.parametrize(
    "name", ["einsum_dot_general", "qk_attn_weights_einsum", "attn_weights_value_einsum", "input_positions"]
)
def test_what_cannot_be_honoured_is_refused(name):
    q = jnp.ones((B, T, H, D))
    with pytest.raises(jattn.UnsupportedError, match=f"cannot honour {name}: "):
        attention_fn()(q, q, q, **{name: jnp.einsum})


def test_quantised_products_of_linen_are_refused():
    layer = linen.MultiHeadDotProductAttention(
        num_heads=H, attention_fn=attention_fn(),
        qk_attn_weights_einsum_cls=lambda: jnp.einsum, attn_weights_value_einsum_cls=lambda: jnp.einsum,
    )  # fmt: skip
    with pytest.raises(jattn.UnsupportedError, match="qk_attn_weights_einsum"):
        layer.init(jax.random.key(0), jnp.ones((B, T, F)))


def test_errors_of_the_adapter():
    with pytest.raises(TypeError, match=r"attention_fn takes no option dropout; the options are score, "):
        attention_fn(dropout=gates.dropout(0.1, 0))  # pyright: ignore[reportCallIssue]  # wrong on purpose
    q, k = jnp.ones((2, 3, T, H, D)), jnp.ones((3, 2, T, H, D))
    with pytest.raises(ValueError, match=r"same batch axes, got query \[2, 3, 6, 4, 4\], key \[3, 2"):
        attention_fn()(q, k, k)


def test_flax_is_imported_late():
    script = (
        "import sys, jattn; assert 'flax' not in sys.modules; jattn.nn.MultiHeadAttention; assert 'flax' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_weights_are_looked_at_whatever_runs_the_attention():
    x = jnp.ones((2, 5, 8))
    of = lambda **options: MultiHeadAttention(8, 2, mask=masks.causal(), rngs=nnx.Rngs(0), **options).weights(x)
    assert_close(of(implementation="blockwise", blocks=(2, 2)), of(), 1e-6)
