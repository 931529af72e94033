"""`attention_fn` inside Flax's own layers, of NNX and of linen: the same as theirs, decoding, weights, dropout, what is refused."""

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
from jattn import gates, masks, mods
from jattn.nn import attention_fn
from tests.layers import LOOSE, compare, normal, randomised
from tests.tolerances import TOLERANCES, assert_close

B, T, S, H, D, F = 2, 6, 9, 4, 4, 16
I, J = np.arange(T)[:, None], np.arange(T)[None]
CAUSAL = J <= I
SLOPES = np.array([0.5, 0.25, 0.125, 0.0625])


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


@pytest.mark.parametrize("precision", ["highest", ("highest", "highest"), (jax.lax.Precision.HIGHEST,) * 2])
def test_precision_of_flax_reaches_both_products(precision):
    q = jnp.ones((B, T, H, D))
    text = str(jax.make_jaxpr(lambda q: attention_fn()(q, q, q, precision=precision))(q))
    assert "HIGHEST" in text
    assert "precision=None" not in text


def test_precisions_that_differ_are_refused():
    q = jnp.ones((B, T, H, D))
    with pytest.raises(ValueError, match=r"precision must be a jax.lax.Precision or its name, got \('highest', 'def"):
        attention_fn()(q, q, q, precision=("highest", "default"))


def test_fixed_options_and_the_mask_of_the_call_both_hold():
    layer = lambda **options: nnx.MultiHeadAttention(
        num_heads=H, in_features=F, decode=False, rngs=nnx.Rngs(0), **options
    )
    x = normal((B, T, F))
    out = layer(attention_fn=attention_fn(mask=masks.causal(), mods=mods.alibi(SLOPES)))(x, mask=jnp.asarray(some))
    add = lambda q, k, v, mask, **options: nnx.dot_product_attention(
        q, k, v, bias=jnp.asarray(-SLOPES[:, None, None] * abs(I - J), jnp.float32), mask=mask & CAUSAL, **options
    )
    assert_close(out, layer(attention_fn=add)(x, mask=jnp.asarray(some)), LOOSE)
    mask: Any = masks.causal() & masks.dense(some)  # Flax says arrays, and hands on whatever it is given
    lazy = layer(attention_fn=attention_fn(mods=mods.alibi(SLOPES)))(x, mask=mask)
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
            got, changed = layer.apply(variables, x[:, n : n + 1], mutable=["cache"])
            variables, _ = {**variables, **changed}, out.append(got)
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
    "alibi": {"mods": (mods.softcap(3.0), mods.alibi(SLOPES))},
    "relative": {"mods": mods.relative(np.ones((H, 32)))},
    "gaussian": {"gates": gates.gaussian(np.ones((B, T)), 1.0)},
}
WITHOUT = {
    "keys": {"mask": masks.lengths(np.array([T, 3])) | masks.prefix(1)},
    "array of keys": {"mask": np.arange(T) != 2},
    "bias of keys": {"mods": (mods.softcap(3.0), mods.bias(normal((T,)), "s"))},
    "function of keys": {"mods": mods.function(lambda s, i, j, x: s - x * j, jattn.operand(SLOPES, "h"))},
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
    assert_close(decoded(layer), layer(x, mask=jnp.asarray(CAUSAL)), LOOSE)


def test_a_step_without_a_mask_is_no_decoding_of_flax():
    q, k = normal((B, 1, H, D)), normal((B, S, H, D))
    assert_close(attention_fn(mask=masks.causal(S - 1))(q, k, k), attention_fn()(q, k, k), LOOSE)


def test_weights_are_sown():
    x = normal((3, B, T, F))
    options = {"num_heads": H, "in_features": F, "decode": False, "dropout_rate": 0.5, "deterministic": False}
    call = {"mask": np.stack([some] * 3), "sow_weights": True}
    got = []
    ways: list[dict[str, Any]] = [{}, {"attention_fn": attention_fn()}]
    for fn in ways:
        layer = nnx.MultiHeadAttention(**options, **fn, rngs=nnx.Rngs(0))
        sown = nnx.capture(layer, nnx.Intermediate)(x, **call)[1]
        got.append(nnx.to_pure_dict(sown)["attention_weights"][0])
    assert got[0].shape == (3, B, H, T, T)
    assert_close(got[1], got[0], LOOSE)


@pytest.mark.parametrize("wide", [True, False])
def test_weights_are_sown_in_linen(wide):
    x, got = normal((B, T, F)), []
    ways: list[dict[str, Any]] = [{}, {"attention_fn": attention_fn()}]
    for fn in ways:
        layer = linen.MultiHeadDotProductAttention(num_heads=H, dtype=jnp.bfloat16, force_fp32_for_softmax=wide, **fn)
        variables = layer.init(jax.random.key(0), x)
        sown = layer.apply(variables, x, mask=some, sow_weights=True, mutable="intermediates")[1]
        got.append(sown["intermediates"]["attention_weights"][0])
    assert got[0].dtype == got[1].dtype == (jnp.float32 if wide else jnp.bfloat16)
    assert_close(got[1], got[0], 4 * TOLERANCES["bfloat16"].value)


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
