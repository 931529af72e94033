"""What stands past the end of a padded example reaches nothing: no output, and no gradient of a layer's parameters."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jattn.nn import Decoder, LocalAttention, MultiHeadAttention, Seq2SeqAttention, TransformerBlock
from tests.layers import LOOSE, normal
from tests.tolerances import assert_close

B, T, F = 2, 3, 4
LENGTHS = jnp.array([2, 0])
REAL = (jnp.arange(T) < LENGTHS[:, None])[..., None]
PREDICTED = LocalAttention(F, 2, 1, center="predicted", rngs=nnx.Rngs(0))
CALLS = {
    "seq2seq": (
        Seq2SeqAttention(F, rngs=nnx.Rngs(0)),
        lambda layer, x: layer(normal((B, 2, F)), layer.read(x, LENGTHS)),
    ),
    "local": (LocalAttention(F, 2, 1, rngs=nnx.Rngs(0)), lambda layer, x: layer(normal((B, 2, F)), x, lengths=LENGTHS)),
    "local, of itself": (LocalAttention(F, 2, 1, rngs=nnx.Rngs(0)), lambda layer, x: layer(x, lengths=LENGTHS)),
    "local, predicted": (PREDICTED, lambda layer, x: layer(x, lengths=LENGTHS)),
    **{
        f"decode {type(layer).__name__}": (
            layer,
            lambda layer, x: layer.decode(x, layer.cache(T, B), lengths=LENGTHS)[0],
        )
        for layer in (
            PREDICTED,
            MultiHeadAttention(F, 2, qk_norm=True, rngs=nnx.Rngs(0)),
            TransformerBlock(F, 2, rngs=nnx.Rngs(0)),
            Decoder(F, 2, 1, rngs=nnx.Rngs(0)),
        )
    },
}


@pytest.mark.parametrize("name", CALLS)
def test_padding_that_is_nan_is_padding_that_is_zero(name):
    layer, call = CALLS[name]

    def loss(layer, x):
        out = call(layer, x)
        return jnp.sum(jnp.where(REAL, out, 0) ** 3 if out.shape[1] == T else out**3)

    x = normal((B, T, F), 1)
    of = nnx.jit(nnx.value_and_grad(loss))
    got, want = (of(layer, jnp.where(REAL, x, padding)) for padding in (jnp.nan, 0))
    jax.tree.map(lambda a, b: assert_close(a, b, LOOSE), got, want)
