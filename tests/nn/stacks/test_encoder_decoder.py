"""An encoder and a decoder that reads it: against their blocks one after the other, decoded, blind to padding; errors."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jattn import masks
from jattn.nn import EncoderDecoder, TransformerBlock
from tests.layers import LOOSE, normal, pure, randomised
from tests.nn.stacks.looped import B, F, H, S, T, bias, looped
from tests.tolerances import assert_close


def test_encoder_and_decoder():
    """Whole, decoded, and blind to padding."""
    both = randomised(
        EncoderDecoder(
            F, H, 2, encoder={"positional": bias()}, decoder={"positional": bias(bidirectional=False)}, rngs=nnx.Rngs(0)
        )
    )
    x, y, n = normal((B, S, F), 1), normal((B, T, F), 2), jnp.array([3, S])
    real = masks.lengths(n)
    want = looped(both.decoder, y, looped(both.encoder, x, mask=real), context_mask=real)
    assert_close(both(x, y, mask=real), want, 10 * LOOSE)
    filled = jnp.where((jnp.arange(S) < n[:, None])[..., None], x, 9.0)
    first, cache = both.decode(y[:, :3], both.cache(T, filled, mask=real), mask=real)
    last, cache = both.decode(y[:, 3:], cache, mask=real)
    assert_close(jnp.concatenate([first, last], 1), want, 10 * LOOSE)
    ends = jnp.array([2, 3])
    _, cache = both.decode(y[:, :3], both.cache(T, filled, mask=real, page=2), mask=real, lengths=ends)
    ragged, _ = both.decode(jnp.stack([y[0, 2:4], y[1, 3:5]]), cache, mask=real)
    assert_close(ragged, jnp.stack([want[0, 2:4], want[1, 3:5]]), 10 * LOOSE)


def test_options_of_one_are_not_the_others_and_come_before_those_of_both():
    both = EncoderDecoder(
        F, H, 2, hidden=6, encoder={"final_norm": False}, decoder={"hidden": 10, "remat": True}, rngs=nnx.Rngs(0)
    )
    widths = [pure(x)["blocks"][0]["mlp_in"]["kernel"].shape for x in (both.encoder, both.decoder)]
    assert widths == [(2, F, 6), (2, F, 10)]
    assert both.encoder.norm is None and both.decoder.norm is not None
    assert (both.encoder.remat, both.decoder.remat) == (False, True)


def test_all_of_x_is_seen_and_of_y_what_came_before():
    x, y = normal((B, S, F), 1), normal((B, T, F), 2)
    both = randomised(EncoderDecoder(F, H, 1, rngs=nnx.Rngs(0)))
    of_x, of_y = jax.grad(lambda x, y: both(x, y)[:, 1].sum(), (0, 1))(x, y)
    assert (of_x != 0).any(-1).all()
    assert ((of_y != 0).any(-1) == (jnp.arange(T) < 2)).all()


def test_errors():
    both, x, y = EncoderDecoder(F, H, 1, rngs=nnx.Rngs(0)), normal((B, S, F)), normal((B, T, F))
    for wrong in ((x[..., :3], y), (x, y[..., :3])):
        with pytest.raises(ValueError, match=r"x must be \[.., t, 8\], got shape \[2, ., 3\]"):
            both(*wrong)
    with pytest.raises(ValueError, match="context must be None: make the block with context_features"):
        EncoderDecoder(F, H, 1, context_features=None, rngs=nnx.Rngs(0))(x, y)
    with pytest.raises(TypeError, match="EncoderDecoder takes no d_model: here it is features"):
        EncoderDecoder(F, H, 1, d_model=F, rngs=nnx.Rngs(0))  # pyright: ignore[reportCallIssue]  # wrong on purpose
    with pytest.raises(TypeError, match=r"EncoderDecoder takes no padding_mask: here it is mask=jattn.masks.lengths"):
        both(x, y, padding_mask=None)  # pyright: ignore[reportCallIssue]  # wrong on purpose
    with pytest.raises(TypeError, match="positional must be like jattn.nn.Alibi"):
        EncoderDecoder(F, H, 1, encoder={"positional": 3}, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"cache must be made by the decoder's cache\(\), got BlockCache"):
        both.decode(y, TransformerBlock(F, H, rngs=nnx.Rngs(0)).cache(T))  # pyright: ignore[reportArgumentType]  # wrong on purpose
