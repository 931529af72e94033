"""The Transformer block: against plain jnp, decoded, stacked, under the transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import gates, masks, mods
from jattn.nn import BlockCache, Residual, TransformerBlock
from tests.layers import LOOSE, TIGHT, normal, pure, randomised
from tests.nn.test_multi_head import compare, dense
from tests.tolerances import assert_close

B, T, S, H, F, C = 2, 5, 7, 4, 8, 3
causal = masks.causal()
lower = np.tri(T, dtype=bool)
slopes = np.array([0.5, 0.25, 0.125, 0.0625])


class Squared(nnx.Module):
    """An MLP of one's own."""

    def __init__(self, features, *, dtype, param_dtype, rngs):
        self.into, self.out = (
            nnx.Linear(features, features, dtype=dtype, param_dtype=param_dtype, rngs=rngs) for _ in range(2)
        )

    def __call__(self, x):
        return self.out(self.into(x) ** 2)


def make(dtype=jnp.float32, rngs=None, **options):
    return randomised(TransformerBlock(F, H, param_dtype=dtype, rngs=rngs or nnx.Rngs(0), **options))


def inputs(block, lead=(B,)):
    return (normal((*lead, T, F), 1), normal((*lead, S, C), 2))[: 1 if block.cross_attention is None else 2]


def written(p, x, context=None, *, activation=jax.nn.gelu, norms="pre", parallel=False, **options):
    """The block with parameters `p`."""

    def norm(name, x):
        if "bias" in p[name]:
            x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * p[name]["scale"] + p[name].get("bias", 0)

    project = lambda name, x: x @ p[name]["kernel"] + p[name].get("bias", 0)

    def mlp(y):
        inside = activation(project("mlp_in", y))
        if "mlp_gate" in p:
            inside = activation(project("mlp_gate", y)) * project("mlp_in", y)
        return project("mlp_out", inside)

    if "mlp" in p:
        p = {**p, "mlp_in": p["mlp"]["into"], "mlp_out": p["mlp"]["out"]}
    parts = [("attention", lambda y: dense(p["attention"], y, **options)), ("mlp", mlp)]
    if context is not None:
        parts.insert(1, ("cross", lambda y: dense(p["cross_attention"], y, context)))
    if parallel:
        return x + sum(
            part(norm(f"{name}_norm" if f"{name}_norm" in p else "attention_norm", x)) for name, part in parts
        )
    for name, part in parts:
        if norms == "pre":
            x = x + part(norm(f"{name}_norm", x))
        elif norms == "post":
            x = norm(f"{name}_norm", x + part(x))
        elif norms == "output":
            x = x + norm(f"{name}_norm", part(x))
        else:
            x = x + norm(f"{name}_out_norm", part(norm(f"{name}_norm", x)))
    return x


# options of the block, and of `written`
CASES = {
    "encoder": ({}, {}),
    "decoder": ({"mask": causal, "rotary_base": 1e4, "kv_heads": 2}, {"mask": lower, "base": 1e4}),
    "window": ({"mask": causal & masks.window(1)}, {"mask": lower & ~np.tri(T, k=-2, dtype=bool)}),
    "alibi": (
        {"mask": causal, "mods": mods.alibi(slopes), "hidden": 5},
        {"mask": lower, "mod": lambda s, p: s - p["arrays"][0][:, None, None] * np.abs(np.subtract.outer(range(T), range(T)))},
    ),
    "gated": (
        {"gated": True, "activation": jax.nn.silu, "norm": nnx.RMSNorm, "use_bias": False},
        {"activation": jax.nn.silu},
    ),
    "post": ({"residual": Residual("post"), "context_features": C}, {"norms": "post"}),
    "sandwich": ({"residual": Residual("sandwich"), "norm": nnx.RMSNorm, "context_features": C}, {"norms": "sandwich"}),
    "output": ({"residual": Residual("output"), "norm": nnx.RMSNorm}, {"norms": "output"}),
    "parallel": ({"residual": Residual(parallel=True), "context_features": C}, {"parallel": True}),
    "one norm": ({"residual": Residual(parallel=True, one_norm=True), "use_bias": ("query", "mlp")}, {"parallel": True}),
    "mlp": ({"mlp": Squared}, {"activation": lambda x: x * x}),
    "cross": (
        {"context_features": C, "mask": causal, "rotary_base": 1e4, "mods": mods.alibi(0 * slopes), "kv_heads": 1},
        {"mask": lower, "base": 1e4, "mod": lambda s, p: s - p["arrays"][0][:, None, None] * np.abs(np.subtract.outer(range(T), range(T)))},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("x64")
def test_block_is_what_is_written(name):
    options, as_written = CASES[name]
    block = make(jnp.float64, **options)
    graph, params, rest = nnx.split(block, nnx.Param, ...)
    compare(
        lambda p, *xs: nnx.merge(graph, p, rest)(*xs),
        lambda p, *xs: written(nnx.to_pure_dict(p), *xs, **as_written),
        params,
        inputs(block),
        10 * TIGHT,
    )


@pytest.mark.parametrize("name", ["decoder", "window", "alibi", "cross", "post", "parallel"])
@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_decoding_is_the_whole_sequence_at_once(name, lead):
    block = make(**{"mask": causal, **CASES[name][0]})
    x, *context = inputs(block, lead)

    @nnx.jit
    def both(block, x, *context):
        first, cache = block.decode(x[..., :3, :], block.cache(T + 1, lead, *context))
        last, cache = block.decode(x[..., 3:, :], cache)
        return block(x, *context), jnp.concatenate([first, last], axis=-2), cache

    want, out, cache = both(block, x, *context)
    assert_close(out, want, LOOSE)
    assert (cache.past.length == T).all()
    assert (cache.context is None) == (not context)


def test_terms_of_a_call():
    """They are the self-attention's, and come after its own."""
    block, x = make(mask=causal, mods=mods.softcap(1.0)), normal((B, T, F))
    bias, gate = normal((H, T, T), 3), gates.function(lambda w, i, j: w / (1 + j))
    call = {"mods": mods.alibi(slopes), "gates": gate}
    y = block.attention_norm(x)
    y = x + block.attention(y, bias=bias, **call)
    want = y + block._mlp(block.mlp_norm(y))
    assert_close(block(x, bias=bias, **call), want, LOOSE)
    first, cache = block.decode(x[:, :3], block.cache(T, B), bias=bias[:, :3], **call)
    last, _ = block.decode(x[:, 3:], cache, bias=bias[:, 3:], **call)
    assert_close(jnp.concatenate([first, last], 1), want, LOOSE)


def test_shapes_of_the_parameters():
    block = TransformerBlock(F, H, hidden=6, gated=True, context_features=C, head_dim=3, kv_heads=2, rngs=nnx.Rngs(0))
    shapes = jax.tree.map(jnp.shape, pure(block))
    assert shapes.pop("attention")["key"] == {"kernel": (F, 2, 3), "bias": (2, 3)}
    assert shapes.pop("cross_attention")["key"] == {"kernel": (C, 2, 3), "bias": (2, 3)}
    norm = {"scale": (F,), "bias": (F,)}
    assert shapes == {
        "attention_norm": norm,
        "cross_norm": norm,
        "mlp_norm": norm,
        "mlp_in": {"kernel": (F, 6), "bias": (6,)},
        "mlp_gate": {"kernel": (F, 6), "bias": (6,)},
        "mlp_out": {"kernel": (6, F), "bias": (F,)},
    }


def test_padding_changes_nothing():
    block = make(context_features=C)
    x, context = inputs(block)
    n, m = jnp.array([2, T]), jnp.array([S, 3])

    def run(x, context):
        out = block(x, context, mask=masks.lengths(n), context_mask=masks.lengths(m))
        return jnp.sum(jnp.where((jnp.arange(T) < n[:, None])[..., None], out, 0) ** 2)

    fill = lambda x, n: jnp.where((jnp.arange(x.shape[1]) < n[:, None])[..., None], x, 9.0)
    value, grads = jax.jit(jax.value_and_grad(run, (0, 1)))(x, context)
    again, others = jax.jit(jax.value_and_grad(run, (0, 1)))(fill(x, n), fill(context, m))
    assert_close(again, value, LOOSE)
    for a, b, n_ in zip(grads, others, (n, m), strict=True):
        assert_close(a, b, 10 * LOOSE)
        assert (jnp.where((jnp.arange(a.shape[1]) < n_[:, None])[..., None], 0, a) == 0).all()


def test_a_context_of_which_nothing_is_seen():
    block = make(context_features=C)
    x, context = inputs(block)
    out = block(x, context, context_mask=masks.lengths(jnp.array([0, S])))
    assert jnp.isfinite(out).all()
    assert_close(out[1], block(x, context)[1], LOOSE)


# Dropout


def test_dropout():
    x = normal((B, T, F))
    block, same = (TransformerBlock(F, H, dropout=0.5, rngs=nnx.Rngs(params=0, dropout=1)) for _ in range(2))
    kept = TransformerBlock(F, H, rngs=nnx.Rngs(params=0))(x)
    first, second = block(x), block(x)
    assert float(abs(first - second).max()) > 1e-3
    assert (first == same(x)).all()
    assert_close(block(x, deterministic=True), kept, LOOSE)
    block.eval()
    assert_close(block(x), kept, LOOSE)
    assert_close(block.decode(x, block.cache(T, (B,)))[0], kept, LOOSE)


def test_dropout_of_a_seed_given_at_call():
    x = normal((B, T, F))
    block = TransformerBlock(F, H, dropout=0.5, rngs=nnx.Rngs(params=0))
    assert not jax.tree.leaves(nnx.state(block, nnx.Not(nnx.Param)))
    run = lambda seed: block(x, rngs=nnx.Rngs(dropout=seed))
    assert (run(1) == run(1)).all()
    assert float(abs(run(1) - run(2)).max()) > 1e-3
    with pytest.raises(ValueError, match="needs a stream of random keys"):
        block(x)


# Transformations


def stacked(n, **options):
    make = nnx.split_rngs(splits=n)(nnx.vmap(lambda rngs: TransformerBlock(F, H, rngs=rngs, **options)))
    return make(nnx.Rngs(0))


@pytest.mark.parametrize("remat", [False, True])
def test_scan_over_a_stack_with_remat(remat):
    blocks, x = stacked(3, mask=causal, rotary_base=1e4, mods=mods.alibi(slopes)), normal((B, T, F))

    def scanned(blocks, x):
        body = lambda x, block: block(x)
        return nnx.scan(nnx.remat(body) if remat else body, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, blocks)

    def looped(blocks, x):
        graph, state = nnx.split(blocks)
        for n in range(3):
            x = nnx.merge(graph, jax.tree.map(lambda leaf, n=n: leaf[n], state))(x)
        return x

    gradients = lambda run: nnx.jit(nnx.value_and_grad(lambda m, x: jnp.sum(run(m, x) ** 2)))(blocks, x)
    (value, grads), (want, want_grads) = gradients(scanned), gradients(looped)
    assert_close(value, want, LOOSE)
    same = lambda a, b: assert_close(a, b, 20 * LOOSE)
    jax.tree.map(same, nnx.to_pure_dict(grads), nnx.to_pure_dict(want_grads))


def test_a_stack_decodes_in_a_scan_of_scans():
    """Tokens outside, blocks inside, one compiled step: how a language model writes."""
    blocks = stacked(2, mask=causal & masks.window(2), kv_heads=2, context_features=C)
    x, context = normal((B, T, F), 1), normal((B, S, C), 2)

    @nnx.jit
    def run(blocks, x, context):
        caches = nnx.vmap(lambda block: block.cache(T, (B,), context))(blocks)
        graph, state = nnx.split(blocks)

        def through(x, layer):
            return nnx.merge(graph, layer[0]).decode(x, layer[1])

        def step(caches, token):
            out, caches = jax.lax.scan(through, token[:, None], (state, caches))
            return caches, out[:, 0]

        return jax.lax.scan(step, caches, x.swapaxes(0, 1))[1].swapaxes(0, 1)

    whole = nnx.scan(lambda x, block: block(x, context), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    assert_close(run(blocks, x, context), whole(x, blocks), 10 * LOOSE)


# Errors


@pytest.mark.parametrize(
    ("error", "make", "message"),
    [
        (
            ValueError,
            lambda: Residual("first"),  # pyright: ignore[reportArgumentType]  # wrong on purpose
            "norms must be one of 'pre', 'post', 'sandwich', 'output', got 'first'",
        ),
        (ValueError, lambda: Residual("post", parallel=True), "parallel parts have no norm of their sum"),
        (ValueError, lambda: Residual(one_norm=True), "one_norm is for parallel parts"),
        (TypeError, lambda: make(residual="post"), "residual must be a jattn.nn.Residual, got 'post'"),
        (ValueError, lambda: make(mlp=Squared, hidden=3), "hidden and mlp were both given"),
        (
            ValueError,
            lambda: make(use_bias=("mlp_in",)),
            "use_bias must name some of query, key, value, out, mlp, got 'mlp_in'",
        ),
    ],
)
def test_errors_of_making(error, make, message):
    with pytest.raises(error, match=message):
        make()


def test_errors():
    x = normal((B, T, F))
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        TransformerBlock(F, H, hidden=0, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="TransformerBlock takes no is_causal: here it is mask=jattn.masks.causal"):
        TransformerBlock(F, H, is_causal=True, rngs=nnx.Rngs(0))  # pyright: ignore[reportCallIssue]  # wrong on purpose
    plain, cross = (
        TransformerBlock(F, H, rngs=nnx.Rngs(0)),
        TransformerBlock(F, H, context_features=C, rngs=nnx.Rngs(0)),
    )
    with pytest.raises(ValueError, match="context must be an array: this block has cross-attention"):
        cross(x)
    for dtype in ("int8", jnp.int8):
        with pytest.raises(
            TypeError, match=r"context must be an array, got .*int8.*: give a cache's dtype by name, as dtype="
        ):
            TransformerBlock(F, H, rngs=nnx.Rngs(0)).cache(3, 2, dtype)  # pyright: ignore[reportArgumentType]  # wrong on purpose
    with pytest.raises(ValueError, match="context must be None: make the block with context_features"):
        plain(x, x)
    with pytest.raises(ValueError, match="context must be an array"):
        cross.cache(T, (B,))
    with pytest.raises(TypeError, match=r"cache must be made by the block's cache\(\), got Cache"):
        plain.decode(x, plain.attention.cache(T, (B,)))  # pyright: ignore[reportArgumentType]  # wrong on purpose
    with pytest.raises(ValueError, match=r"cache.context must be an array"):
        cross.decode(x, BlockCache(plain.attention.cache(T, (B,)), None))
    with pytest.raises(ValueError, match="positions are those of the rotary embedding"):
        plain(x, positions=np.arange(T))
