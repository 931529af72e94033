"""Decoding through a cache: against the whole sequence at once, under the transformations, at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from jattn import gates, masks, mods, normalizers, operand, scores
from jattn.nn import (
    Cache,
    Decoder,
    DynamicScaling,
    EncoderDecoder,
    Latent,
    LocalAttention,
    MultiHeadAttention,
    Rotary,
    TransformerBlock,
)
from tests.layers import LOOSE, TIGHT, normal, randomised, traced_once
from tests.tolerances import assert_close

B, N, H, F = 2, 7, 4, 16
random = np.random.default_rng(0)
holes = random.random((1, H, N, N)) < 0.7
slopes = np.array([0.5, 0.25, 0.125, 0.0625])
causal = masks.causal()

# options of the layer, whose arrays are made for N positions
CASES = {
    "plain": {"mask": causal},
    "grouped_rotary": {"mask": causal, "kv_heads": 2, "head_dim": 6, "rotary_base": 1e4, "qk_norm": True},
    "multi_query_sinks": {"mask": causal, "kv_heads": 1, "sinks": True},
    "window": {"mask": causal & masks.window(2)},
    "window_gap": {"mask": masks.window(4, -2)},  # the first rows see nothing
    "dilated": {"mask": causal & masks.dilated(2)},
    "segments": {"mask": causal & masks.segments(np.array([[0, 0, 1, 1, 1, 2, 2], [3, 3, 3, 3, 4, 4, 4]]))},
    "segments_for_all": {"mask": causal & masks.segments(np.array([0, 0, 1, 1, 1, 2, 2]))},
    "prefix_and_lengths": {"mask": causal & (masks.prefix(3) | ~masks.lengths(np.array([5, 6]), np.array([4, 7])))},
    "blocks": {"mask": causal & masks.blocks(random.random((H, 3, 3)) < 0.8, 3)},
    "dense": {"mask": causal & masks.dense(holes)},
    "function": {"mask": masks.function(lambda i, j: (j <= i) & ((i + j) % 3 > 0))},
    "function_of_operands": {
        "mask": causal & masks.function(lambda i, j, n, m: (i * n + j) % 5 > m, operand(np.array([2, 3]), "b"), operand(np.arange(N) % 2, "t"))
    },
    "alibi": {"mask": causal, "mods": (mods.alibi(slopes), mods.softcap(2.0))},
    "relative": {"mask": causal, "mods": mods.relative(random.standard_normal((H, 8)), mods.t5_bucket(False, 8, 16))},
    "bias": {"mask": causal, "mods": mods.bias(random.standard_normal((B, H, N, N)), "bhts")},
    "gaussian": {"mask": causal, "gates": gates.gaussian(random.uniform(0, N, (B, N)), 2.0)},
    "gate": {"mask": causal, "gates": gates.function(lambda w, i, j, a: w * (1 + i) * a, operand(random.random((H, N)), "ht"))},
    "gumbel": {"mask": causal, "normalizer": normalizers.gumbel(jax.random.key(3))},
    "sigmoid": {"mask": causal, "normalizer": normalizers.sigmoid(-1.0)},
    "entmax": {"mask": causal, "normalizer": normalizers.entmax15(), "score": scores.cosine(5.0)},
    "additive": {"mask": causal, "score": scores.additive(random.standard_normal((4, 3)), random.standard_normal((4, 3)), np.ones(3))},
}  # fmt: skip


def make(name="plain", dtype=jnp.float32, **options):
    return randomised(MultiHeadAttention(F, H, param_dtype=dtype, rngs=nnx.Rngs(0), **{**CASES[name], **options}))


def decoded(layer, x, cache, steps, **options):
    """x in pieces of so many positions, together again."""

    @jax.jit
    def run(x, cache):
        out = []
        for first, t in zip(np.cumsum((0, *steps)), steps, strict=False):
            y, cache = layer.decode(x[..., first : first + t, :], cache, **options)
            out.append(y)
        return jnp.concatenate(out, axis=-2), cache

    return run(x, cache)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("x64")
def test_decoding_is_the_whole_sequence_at_once(name):
    layer, x = make(name, jnp.float64), normal((B, N, F))

    @jax.jit
    def both(x):
        return layer(x), *decoded(layer, x, layer.cache(N, (B,)), (3, 1, 1, 2))

    want, out, cache = both(x)
    assert_close(out, want, TIGHT)
    assert (cache.length == N).all()
    assert cache.key.shape == (B, N, layer.kv_heads, layer.head_dim)


@pytest.mark.parametrize("lead", [(), (1,), (2, 3)])
def test_batch_axes(lead):
    layer, x = make("grouped_rotary"), normal((*lead, N, F))
    out, cache = decoded(layer, x, layer.cache(N + 4, lead), (1, 1, 5))  # room to spare is not looked at
    assert_close(out, layer(x), LOOSE)
    assert cache.length.shape == lead


def test_what_the_call_asks_for_is_at_absolute_positions_too():
    layer, x = make(mask=None, rotary_base=1e4), normal((B, N, F))
    asked = {
        "mask": causal & masks.window(3),
        "mods": mods.alibi(slopes),
        "gates": gates.function(lambda w, i, j: w * (1 + i)),
    }
    out, _ = decoded(layer, x, layer.cache(N, (B,)), (2, 5), **asked)
    assert_close(out, layer(x, **asked), LOOSE)
    # arrays have the t of x and the s of the cache
    cache = layer.decode(x[:, :4], layer.cache(N, (B,)), mask=causal)[1]
    bias, mask = normal((B, H, N, N)), causal & masks.dense(holes)
    last, _ = layer.decode(x[:, 4:], cache, mask=causal & masks.dense(holes[:, :, 4:]), bias=bias[:, :, 4:])
    assert_close(last, layer(x, mask=mask, bias=bias)[:, 4:], LOOSE)


def test_prompts_of_several_lengths_go_on_from_their_ends():
    layer, x = make("alibi", rotary_base=1e4), normal((B, N, F))
    lengths = jnp.array([2, 4])
    prompt = jnp.where((jnp.arange(4) < lengths[:, None])[..., None], x[:, :4], 9.0)
    _, cache = layer.decode(prompt, layer.cache(N, (B,)))
    cache = cache._replace(length=lengths)
    rest = jnp.stack([x[n, length : length + 3] for n, length in enumerate([2, 4])])
    out, cache = decoded(layer, rest, cache, (1, 2))
    want = layer(x)
    assert_close(out, jnp.stack([want[0, 2:5], want[1, 4:7]]), LOOSE)
    assert cache.length.tolist() == [5, 7]


def test_padding_makes_no_text_longer():
    """To an embedding that scales by the text's length."""
    rotary = Rotary(scaling=DynamicScaling(8.0, 4))
    layer, x = MultiHeadAttention(16, 4, mask=masks.causal(), rotary=rotary, rngs=nnx.Rngs(0)), normal((2, 12, 16))
    got, _ = layer.decode(x, layer.cache(12, 2), lengths=jnp.array([6, 3]))
    want, _ = layer.decode(x[:, :6], layer.cache(12, 2), lengths=jnp.array([6, 3]))
    assert_close(got[0, :6], want[0], LOOSE)
    assert_close(got[1, :3], want[1, :3], LOOSE)


def test_positions_of_the_rotary_embedding():
    layer, x = make("grouped_rotary"), normal((B, N, F))
    at = np.cumsum(random.integers(1, 4, (B, N)), axis=1)
    cache = layer.decode(x[:, :4], layer.cache(N, (B,)), positions=at[:, :4])[1]
    out, _ = layer.decode(x[:, 4:], cache, positions=at[:, 4:])
    assert_close(out, layer(x, positions=at)[:, 4:], LOOSE)


def test_a_row_that_sees_nothing_gives_the_bias_of_out():
    layer, x = make("window_gap"), normal((B, N, F))
    out, _ = layer.decode(x[:, :1], layer.cache(N, (B,)))
    assert_close(out, jnp.broadcast_to(layer.out.bias[...], out.shape), LOOSE)


@pytest.mark.usefixtures("x64")
def test_gradients_are_those_of_the_whole_sequence():
    layer, x = make("alibi", jnp.float64, rotary_base=1e4, kv_heads=2), normal((B, N, F))
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    weight = normal((B, N, F), 1)

    def loss(params, x, steps):
        layer = nnx.merge(graph, params, rest)
        out = layer(x) if steps is None else decoded(layer, x, layer.cache(N, (B,)), steps)[0]
        return jnp.sum(out * weight)

    got, want = (jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)(params, x, steps) for steps in ((4, 1, 2), None))
    jax.tree.map(lambda a, b: assert_close(a, b, TIGHT), got, want)


# Transformations


def test_scan_carries_the_cache_and_compiles_once():
    layer, x = make("grouped_rotary"), normal((B, N, F))

    @nnx.jit
    @traced_once
    def run(layer, x):
        def step(cache, token):
            out, cache = layer.decode(token[:, None], cache)
            return cache, out[:, 0]

        return jax.lax.scan(step, layer.cache(N, (B,)), x.swapaxes(0, 1))[1].swapaxes(0, 1)

    for prompt in (x, 2 * x):
        assert_close(run(layer, prompt), layer(prompt), LOOSE)


def test_vmap_over_caches():
    layer, x = make("window"), normal((3, B, N, F))
    cache = jax.vmap(lambda _: layer.cache(N, (B,)))(jnp.arange(3))
    out, cache = jax.vmap(layer.decode)(x[:, :, :5], cache)
    last, cache = jax.vmap(layer.decode)(x[:, :, 5:], cache)
    assert_close(jnp.concatenate([out, last], axis=2), layer(x), LOOSE)
    assert cache.length.shape == (3, B)


def test_scan_over_a_stack_of_layers_and_their_caches():
    made = nnx.vmap(lambda rngs: MultiHeadAttention(F, H, rngs=rngs, **CASES["alibi"]))
    layers = nnx.split_rngs(splits=3)(made)(nnx.Rngs(0))
    x = normal((B, N, F))
    cache = nnx.vmap(lambda layer: layer.cache(N, (B,)))(layers)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def whole(x, layer):
        return x + layer(x)

    @nnx.scan(in_axes=(nnx.Carry, 0, 0), out_axes=(nnx.Carry, 0))
    def step(x, layer, cache):
        out, cache = layer.decode(x, cache)
        return x + out, cache

    first, cache = step(x[:, :4], layers, cache)
    last, cache = step(x[:, 4:], layers, cache)
    assert_close(jnp.concatenate([first, last], axis=1), whole(x, layers), 10 * LOOSE)


def test_remat():
    layer, x = make(), normal((B, N, F))
    run = lambda layer, x: jnp.sum(layer.decode(x, layer.cache(N, (B,)))[0] ** 2)
    got, want = nnx.grad(nnx.remat(run))(layer, x), nnx.grad(run)(layer, x)
    jax.tree.map(lambda a, b: assert_close(a, b, LOOSE), nnx.to_pure_dict(got), nnx.to_pure_dict(want))


@pytest.mark.parametrize("name", ["alibi", "window", "blocks"])
def test_the_fused_backend_decodes_the_same(name, monkeypatch):
    monkeypatch.setenv("JATTN_INTERPRET", "1")
    x = normal((B, N, F))
    layers = [make(name, kv_heads=2, implementation=backend) for backend in ("pallas_tpu", "reference")]
    out, want = (decoded(layer, x, layer.cache(N, (B,)), (4, 1, 2))[0] for layer in layers)
    assert_close(out, want, LOOSE)


def test_only_blocks_that_hold_something_are_visited():
    layer, x = make(implementation="blockwise", blocks=(1, 2), use_bias=False), normal((1, 1, F))
    nan = jnp.full((1, 8, H, 4), jnp.nan)
    full = Cache(nan, nan, jnp.array([0]))
    out, cache = layer.decode(x, full._replace(key=full.key.at[:, 1].set(0), value=full.value.at[:, 1].set(0)))
    assert_close(out, layer(x), LOOSE)
    assert jnp.isnan(cache.key[:, 2:]).all()


# A context read once


@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_a_context_that_was_read(lead):
    options = {"context_features": 5, "rotary_base": 1e4, "qk_norm": True, "kv_heads": 2}
    layer = randomised(MultiHeadAttention(F, H, rngs=nnx.Rngs(0), **options))
    x, context = normal((*lead, N, F)), normal((*lead, 9, 5), 1)
    at = np.arange(9)[::-1]
    cache = layer.read(context, positions=at)
    mask = random.random((*lead, 1, N, 9)) < 0.7
    assert_close(layer(x, cache, mask=mask), layer(x, context, context_positions=at, mask=mask), LOOSE)
    shorter = layer(x, cache._replace(length=jnp.full(lead, 4)))
    assert_close(shorter, layer(x, context[..., :4, :], context_positions=at[:4]), LOOSE)


# dtypes, errors


def test_dtypes():
    x = normal((B, N, F))
    for options, dtype in (
        ({}, "float32"),
        ({"dtype": jnp.bfloat16}, "bfloat16"),
        ({"param_dtype": jnp.bfloat16}, "bfloat16"),
    ):
        layer = MultiHeadAttention(F, H, **options, rngs=nnx.Rngs(0))
        out, cache = layer.decode(x, layer.cache(N, (B,)))
        assert cache.key.dtype == cache.value.dtype == dtype
        assert out.dtype == layer(x).dtype
    layer = make()
    out, cache = layer.decode(x, layer.cache(N, (B,), jnp.bfloat16))
    assert (out.dtype, cache.value.dtype) == ("float32", "bfloat16")
    assert_close(out, layer(x), 0.02)


def test_a_full_cache_raises_or_gives_nan_where_nobody_can_know():
    layer, x = make(), normal((B, N, F))
    with pytest.raises(ValueError, match=r"room for n = 5 positions and holds 0: 7 more do not fit"):
        layer.decode(x, layer.cache(5, (B,)))
    half = layer.decode(x[:, :4], layer.cache(5, (B,)))[1]
    with pytest.raises(ValueError, match="holds 4: 3 more do not fit"):
        layer.decode(x[:, 4:], half)
    out, cache = jax.jit(layer.decode)(x[:, 4:], half)
    assert_close(out[:, :1], layer(x)[:, 4:5], LOOSE)
    assert jnp.isnan(out[:, 1:]).all()
    assert (cache.key[:, :4] == half.key[:, :4]).all()


@pytest.mark.parametrize("lengths", [[4, 1], [-1, 1]])
@pytest.mark.parametrize(
    "kind", [{}, {"page": 4}, {"dtype": "int8"}, {"slack": 4}], ids=["row", "pages", "int8", "slides"]
)
def test_lengths_out_of_range_raise_or_give_nan_where_nobody_can_know(kind, lengths):
    layer, x = make("window"), normal((B, N, F))
    _, cache = layer.decode(x[:, :3], layer.cache(N, B, **kind))
    step = lambda cache, lengths: layer.decode(x[:, 3:6], cache, lengths=lengths)
    with pytest.raises(ValueError, match=r"lengths must be from 0 to 3, got \[(4|-1), 1\]"):
        step(cache, jnp.array(lengths))
    with pytest.raises(ValueError, match="lengths must be from 0 to 3"):
        jax.jit(lambda cache: step(cache, lengths))(cache)
    near = step(cache, jnp.clip(jnp.array(lengths), 0, 3))
    out, after = jax.jit(step)(cache, jnp.array(lengths))
    assert jnp.isnan(out[0]).all()
    assert_close(out[1], near[0][1], LOOSE)
    jax.tree.map(
        lambda a, b: assert_close(a.astype(float), b.astype(float), 1.0 if a.dtype == "int8" else LOOSE), after, near[1]
    )


@pytest.mark.parametrize(
    "layer",
    [
        lambda rngs: TransformerBlock(F, H, mask=causal, rngs=rngs),
        lambda rngs: Decoder(F, H, 2, rngs=rngs),
        lambda rngs: EncoderDecoder(F, H, 1, rngs=rngs),
        lambda rngs: LocalAttention(F, H, (2, 0), rngs=rngs),
        lambda rngs: LocalAttention(F, H, 2, center="predicted", rngs=rngs),
        lambda rngs: MultiHeadAttention(F, H, mask=causal, latent=Latent(6, 4), rngs=rngs),
    ],
    ids=["block", "stack", "encoder_decoder", "local", "predicted", "latent"],
)
def test_every_layer_says_what_lengths_can_be(layer):
    layer, x = layer(nnx.Rngs(0)), normal((B, 3, F))
    cache = layer.cache(N, x) if isinstance(layer, EncoderDecoder) else layer.cache(N, B)
    with pytest.raises(ValueError, match=r"lengths must be from 0 to 3, got \[4, 1\]"):
        layer.decode(x, cache, lengths=np.array([4, 1]))


@pytest.mark.parametrize(
    "kind", [{}, {"page": 4}, {"dtype": "int8"}, {"slack": 4}], ids=["row", "pages", "int8", "slides"]
)
@pytest.mark.parametrize(
    "more", [{}, {"lengths": [0, 0]}, {"parents": np.zeros(0, int)}], ids=["", "lengths", "parents"]
)
def test_no_positions_are_none_and_leave_the_cache(kind, more):
    layer, x = make("window"), normal((B, N, F))
    _, cache = layer.decode(x[:, :3], layer.cache(N, B, **kind))
    for decode in (layer.decode, jax.jit(layer.decode)):
        out, after = decode(x[:, :0], cache, **more)
        assert (out.shape, out.dtype) == ((B, 0, F), x.dtype)
        jax.tree.map(np.testing.assert_array_equal, after, cache)


@pytest.mark.parametrize("kind", [{}, {"page": 4}, {"dtype": "int8"}], ids=["row", "pages", "int8"])
@pytest.mark.parametrize("lead", [(0,), (0, 3)])
def test_no_examples_are_none(kind, lead):
    layer, x = make(), normal((*lead, N, F))
    out, cache = layer.decode(x[..., :3, :], layer.cache(N, lead, **kind))
    rest, _ = jax.jit(lambda x, c, n: layer.decode(x, c, lengths=n))(x[..., 3:, :], cache, jnp.zeros(lead, int))
    assert out.shape == (*lead, 3, F) and rest.shape == (*lead, N - 3, F)


@pytest.mark.parametrize(
    "more", [{}, {"slack": 2}, {"dtype": "int8"}, {"page": 2}], ids=["whole", "ring", "int8", "paged"]
)
def test_export_for_any_number_of_examples(more):
    layer = MultiHeadAttention(F, H, mask=causal & masks.window(3), rotary_base=1e4, rngs=nnx.Rngs(0))
    (b,) = export.symbolic_shape("b")
    step = jax.jit(lambda x, lengths, cache: layer.decode(x, cache, lengths=lengths))
    args = normal((B, 2, F)), jnp.array([2, 1]), layer.cache(N, B, **more)
    size = lambda x: jax.ShapeDtypeStruct((b if x.shape[0] == B else x.shape[0], *x.shape[1:]), x.dtype)
    for x, y in zip(
        *map(jax.tree.leaves, (export.export(step)(*jax.tree.map(size, args)).call(*args), step(*args))), strict=True
    ):
        assert_close(x, y, 1e-5)


@pytest.mark.parametrize("n", [0, 1.5, True])
def test_errors_of_making_a_cache(n):
    with pytest.raises(ValueError, match="n must be an int >= 1"):
        make().cache(n)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "int4", "float8_e5m2fnuz", "complex64"])
def test_a_cache_of_a_dtype_that_none_is_kept_in(dtype):
    with pytest.raises(ValueError, match=f"dtype must be a float of 16 bits or more, or one of int8, .*, got {dtype}"):
        make().cache(N, B, dtype)


def test_a_fresh_cache_can_be_donated():
    """Its keys and values are buffers apart, each of which the step may write into."""
    layer, x = make(), normal((B, N, F))
    want = layer(x)
    step = jax.jit(layer.decode, donate_argnums=1)
    fresh = layer.cache(N, (B,), dtype=x.dtype)
    out, cache = step(x[:, :3], fresh)
    assert fresh.key.is_deleted()
    assert fresh.value.is_deleted()
    rest, _ = step(x[:, 3:], cache)
    assert_close(jnp.concatenate([out, rest], axis=1), want, LOOSE)


def test_errors_of_decoding():
    layer, x = make(), normal((B, N, F))
    with pytest.raises(TypeError, match=r"cache must be made by the layer's cache\(\) or read\(\), got int"):
        layer.decode(x, 3)
    with pytest.raises(ValueError, match=r"batch axes \[2\] of x, got key \[3, 7, 4, 4\]"):
        layer.decode(x, layer.cache(N, (3,)))
    with pytest.raises(ValueError, match=r"key and value \[.., n, 4, 4\] .* got key \[2, 7, 2, 4\]"):
        layer.decode(x, make(kv_heads=2).cache(N, (B,)))
    with pytest.raises(ValueError, match="positions are those of the rotary embedding"):
        layer.decode(x, layer.cache(N, (B,)), positions=np.arange(N))
    with pytest.raises(ValueError, match=r'"t" must have t = 9, got shape \[7\]'):
        make("segments_for_all").decode(x, layer.cache(9, (B,)))
    with pytest.raises(ValueError, match=r"mask must be broadcastable to .* = \[2, 4, 9, 9\]"):
        make("dense").decode(x, layer.cache(9, (B,)))
    with pytest.raises(ValueError, match="context_positions was given with a cache"):
        make("grouped_rotary", context_features=F)(x, make("grouped_rotary").read(x), context_positions=np.arange(N))


# Caches that slide with a window
