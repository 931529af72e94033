"""Decoders: against their blocks one after the other, whole and decoded; what they see; errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.nn import Alibi, Decoder, Encoder, Latent, Residual, TransformerBlock
from tests.layers import LOOSE, normal, randomised
from tests.nn.stacks.looped import B, F, H, S, T, bias, looped, window
from tests.tolerances import assert_close

CASES = {
    "one kind": lambda: Decoder(F, H, 3, rotary_base=1e4, rngs=nnx.Rngs(0)),
    "kinds in turn": lambda: Decoder(F, H, 5, pattern=(window, {"rotary_base": 50.0}), rngs=nnx.Rngs(0)),
    "fewer layers than kinds": lambda: Decoder(F, H, 1, pattern=(window, {}), rngs=nnx.Rngs(0)),
    "one table": lambda: Decoder(F, H, 3, pattern=({}, {}), positional=bias(bidirectional=False), rngs=nnx.Rngs(0)),
    "alibi": lambda: Decoder(F, H, 2, positional=Alibi(H), residual=Residual("post"), rngs=nnx.Rngs(0)),
    "cross": lambda: Decoder(F, H, 3, pattern=({}, window), context_features=F, rngs=nnx.Rngs(0)),
    "latent": lambda: Decoder(F, H, 2, latent=Latent(3, 2), rotary_base=1e4, remat=True, rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize("name", CASES)
def test_decoder_is_its_blocks_whole_and_decoded(name):
    stack = randomised(CASES[name]())
    x, context = normal((B, T, F), 1), normal((B, S, F), 2) if name == "cross" else None

    @nnx.jit
    def run(stack, x):
        whole, gradients = nnx.value_and_grad(lambda m, x: (m(x, context) ** 2).sum())(stack, x)
        want, want_gradients = nnx.value_and_grad(lambda m, x: (looped(m, x, context) ** 2).sum())(stack, x)
        first, cache = stack.decode(x[:, :3], stack.cache(T, B, context))
        last, cache = stack.decode(x[:, 3:], cache)
        out = stack(x, context), jnp.concatenate([first, last], 1)
        return (whole, nnx.to_pure_dict(gradients)), (want, nnx.to_pure_dict(want_gradients)), out

    got, want, (whole, decoded) = run(stack, x)
    jax.tree.map(lambda a, b: assert_close(a, b, 100 * LOOSE), got, want)
    assert_close(decoded, whole, 10 * LOOSE)


def test_an_encoder_sees_both_sides_and_a_decoder_one():
    x = normal((1, T, F))
    sees = lambda stack: np.asarray(jax.jacobian(lambda x: stack(x)[0].sum(-1))(x)[:, 0].any(-1))
    assert sees(Encoder(F, H, 1, rngs=nnx.Rngs(0))).all()
    assert (sees(Decoder(F, H, 1, rngs=nnx.Rngs(0))) == np.tri(T, dtype=bool)).all()


def test_positions_a_context_and_dtypes_are_for_the_blocks_that_take_them():
    """Rotary embeddings in some layers and cross-attention in others, in bfloat16 with parameters of float32."""
    pattern = ({"rotary_base": 50.0}, {"context_features": 6})
    stack = randomised(Decoder(F, H, 3, pattern=pattern, rngs=nnx.Rngs(0)))
    x, context, positions = normal((2, T, F)).astype(jnp.bfloat16), normal((2, 3, 6), 1), jnp.arange(T) + 5
    whole, cache = stack(x, context, positions=positions), stack.cache(T, 2, context)
    rows = []
    for n in (slice(0, 3), slice(3, T)):
        out, cache = stack.decode(x[:, n], cache, positions=positions[n])
        rows.append(out)
    assert whole.dtype == rows[0].dtype == jnp.float32
    assert_close(jnp.concatenate(rows, 1), whole, LOOSE)


def test_errors():
    rngs = nnx.Rngs(0)
    with pytest.raises(TypeError, match="Decoder takes no is_causal: here it is mask="):
        Decoder(F, H, 1, is_causal=True, rngs=rngs)  # pyright: ignore[reportCallIssue]  # wrong on purpose
    stack = Decoder(F, H, 1, rngs=rngs)
    with pytest.raises(TypeError, match=r"cache must be made by the decoder's cache\(\), got BlockCache"):
        stack.decode(normal((T, F)), TransformerBlock(F, H, rngs=rngs).cache(T))  # pyright: ignore[reportArgumentType]  # wrong on purpose
    with pytest.raises(ValueError, match=rf"x must be \[.., t, {F}\], got shape \[2, 3\]"):
        stack.decode(
            jnp.ones((2, 3), jnp.int32), stack.cache(T, 2), lengths=jnp.array([3, 1])
        )  # tokens, as `generate` has them


@pytest.mark.parametrize("kind", [{}, {"page": 2, "pages": 5}, {"dtype": "int8"}], ids=str)
def test_more_than_a_cache_has_room_for_is_an_error_outside_of_jit(kind):
    """Layers are scanned, where nobody can raise, so the stack looks first."""
    stack = Decoder(16, 2, 3, rngs=nnx.Rngs(0))
    x = jnp.ones((2, 6, 16))
    out, _ = stack.decode(x[:, :5], stack.cache(5, 2, **kind), lengths=jnp.array([5, 2]))
    assert jnp.isfinite(out).all()
    for lengths in (None, jnp.array([5, 6])):
        with pytest.raises(ValueError, match="do not fit|more positions need"):
            stack.decode(x, stack.cache(5, 2, **kind), lengths=lengths)
    late = jax.jit(stack.decode)(x, stack.cache(5, 2, **kind))[0]
    assert jnp.isnan(late[:, 5]).any() and jnp.isfinite(late[:, 0]).all()
