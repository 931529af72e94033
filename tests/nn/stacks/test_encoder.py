"""Encoders: against their blocks one after the other, how these start and what they share, dropout, errors."""

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jattn import masks, mods
from jattn.nn import Alibi, Encoder, Residual
from tests.layers import LOOSE, normal, pure, randomised
from tests.nn.stacks.looped import B, F, H, T, bias, blocks_of, looped, window
from tests.tolerances import assert_close


def test_an_encoder_is_its_blocks():
    """Kinds in turn and one left over, computed again for gradients, under a mask of the call and a shared term."""
    made = Encoder(F, H, 3, pattern=(window, {"rotary_base": 50.0}), positional=bias(), remat=True, rngs=nnx.Rngs(0))
    stack, x, real = randomised(made), normal((B, T, F)), masks.lengths(jnp.array([3, T]))

    @nnx.jit
    def run(stack, x):
        loss = lambda of: lambda stack, x: (of(stack, x) ** 2).sum()
        whole = loss(lambda stack, x: stack(x, mask=real))
        return [nnx.value_and_grad(f)(stack, x) for f in (whole, loss(lambda m, x: looped(m, x, mask=real)))]

    (got, gradients), (want, wanted) = run(stack, x)
    assert_close(got, want, 100 * LOOSE)
    pairs = (nnx.to_pure_dict(gradients), nnx.to_pure_dict(wanted))
    jax.tree.map(lambda a, b: assert_close(a, b, 100 * LOOSE), *pairs)


def test_blocks_start_apart_and_terms_are_held_once():
    stack = Encoder(F, H, 5, pattern=({}, {}), positional=bias(), rngs=nnx.Rngs(0))
    kernels = [block.attention.query.kernel[...] for block in blocks_of(stack)]
    assert all(float(abs(a - b).max()) > 1e-3 for n, a in enumerate(kernels) for b in kernels[:n])
    assert pure(stack)["positional"]["table"].shape == (H, 4)
    assert "positional" not in pure(Encoder(F, H, 1, positional=Alibi(H), rngs=nnx.Rngs(0)))
    assert "positional" in pure(Encoder(F, H, 1, positional=Alibi(H, learn=True), rngs=nnx.Rngs(0)))
    assert not hasattr(pure(Encoder(F, H, 1, residual=Residual("post"), rngs=nnx.Rngs(0))), "norm")


@pytest.mark.parametrize("remat", [False, True])
def test_dropout(remat):
    make = lambda rngs: Encoder(F, H, 3, pattern=({}, {}), dropout=0.5, remat=remat, rngs=rngs)
    x, stack = normal((B, T, F)), make(nnx.Rngs(params=0, dropout=1))
    first, second = stack(x), stack(x)
    assert float(abs(first - second).max()) > 1e-3
    assert (first == make(nnx.Rngs(params=0, dropout=1))(x)).all()
    bare = make(nnx.Rngs(params=0))
    run = lambda seed: bare(x, rngs=nnx.Rngs(dropout=seed))
    assert (run(1) == run(1)).all()
    assert float(abs(run(1) - run(2)).max()) > 1e-3
    assert_close(bare(x, deterministic=True), stack(x, deterministic=True), LOOSE)
    no_stream = nnx.Rngs(params=0)
    for call in (lambda: bare(x), lambda: stack(x, rngs=no_stream)):
        with pytest.raises(ValueError, match="needs a stream of random keys"):
            call()
    assert_close(stack(x, rngs=no_stream, deterministic=True), stack(x, deterministic=True), 0)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [({}, jnp.bfloat16), ({}, jnp.float16), ({"residual": Residual("post"), "dtype": jnp.bfloat16}, jnp.float32)],
    ids=["bfloat16", "float16", "post"],
)
def test_blocks_may_give_another_dtype_than_they_take(options, dtype):
    stack, x = Encoder(F, H, 3, pattern=({}, {}), **options, rngs=nnx.Rngs(0)), normal((B, T, F)).astype(dtype)
    got, want = stack(x), looped(stack, x)
    assert got.dtype == want.dtype != dtype
    assert_close(got.astype(jnp.float32), want.astype(jnp.float32), 0.05 if got.dtype == jnp.bfloat16 else LOOSE)


def test_positions_and_a_context_are_for_the_blocks_that_take_them():
    pattern = ({"rotary_base": 50.0}, {"context_features": 6}, {})
    stack = randomised(Encoder(F, H, 4, pattern=pattern, rngs=nnx.Rngs(0)))
    x, context, positions = normal((B, T, F)), normal((B, 3, 6), 1), jnp.arange(T) * 2 + 1
    want = x
    for block, read, places in zip(
        blocks_of(stack), (None, context, None, None), (positions, None, None, positions), strict=True
    ):
        want = block(want, read, positions=places)
    assert_close(stack(x, context, positions=positions), stack.norm(want), LOOSE)
    with pytest.raises(ValueError, match="context must be an array: this block has cross-attention"):
        stack(x)
    with pytest.raises(ValueError, match="make the block with context_features for cross-attention"):
        Encoder(F, H, 2, rngs=nnx.Rngs(0))(x, context)
    with pytest.raises(ValueError, match="positions are those of the rotary embedding"):
        Encoder(F, H, 2, pattern=({}, {}), rngs=nnx.Rngs(0))(x, positions=positions)


def test_errors():
    rngs = nnx.Rngs(0)
    with pytest.raises(ValueError, match="pattern must have options of blocks for each kind"):
        Encoder(F, H, 1, pattern={"mask": None}, rngs=rngs)  # pyright: ignore[reportArgumentType]  # wrong on purpose
    with pytest.raises(TypeError, match="positional must be like jattn.nn.Alibi"):
        Encoder(F, H, 1, positional=mods.softcap(1.0), rngs=rngs)  # pyright: ignore[reportArgumentType]  # wrong on purpose
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        Encoder(F, H, 0, rngs=rngs)


class _Counting(nnx.Module):
    """An MLP that draws, counts its calls and sows."""

    def __init__(self, features, *, dtype=None, param_dtype=None, rngs):
        del features, dtype, param_dtype
        self.dropout, self.calls = nnx.Dropout(0.5, rngs=rngs), nnx.Variable(jnp.zeros(()))

    def __call__(self, x):
        self.calls[...] = self.calls[...] + 1
        self.sow(nnx.Intermediate, "loss", jnp.sum(x))
        return self.dropout(x)


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
@pytest.mark.parametrize("remat", [False, True])
def test_what_blocks_change_is_kept(remat):
    options = {"pattern": ({}, {}), "mlp": _Counting, "norm": nnx.BatchNorm, "remat": remat}
    encoder, x = Encoder(16, 4, 5, **options, rngs=nnx.Rngs(0)), jnp.ones((2, 3, 16)) + jnp.arange(3)[:, None]
    assert not jnp.array_equal(encoder(x), nnx.jit(lambda encoder, x: encoder(x))(encoder, x))
    for block, shape in [*((one, (2,)) for one in encoder.blocks), (encoder.rest[0], ())]:
        chex.assert_trees_all_equal(block.mlp.calls[...], jnp.full(shape, 2.0))
        assert [loss.shape for loss in block.mlp.loss.get_value()] == [shape] * 2
        assert jnp.all(jnp.any(block.attention_norm.mean[...] != 0, -1))


def test_where_nothing_changes_nothing_is_written():
    """So that a stack that only reads may be closed over."""
    encoder, x = Encoder(16, 4, 2, dropout=0.5, rngs=nnx.Rngs(0)), jnp.ones((2, 3, 16))
    encoder.eval()
    chex.assert_trees_all_close(jax.jit(lambda x: encoder(x))(x), encoder(x), rtol=1e-5)
