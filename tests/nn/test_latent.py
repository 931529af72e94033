"""Latent keys and values: against what is written, decoded from latents alone, stacked, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import masks, mods, scores
from jattn.nn import Latent, MultiHeadAttention, Rotary, YarnScaling, rotary
from tests.layers import LOOSE, TIGHT, compare, normal, pure, randomised
from tests.tolerances import assert_close

B, T, S, H, D, E, F, C, R = 2, 5, 7, 3, 4, 2, 8, 6, 5  # D, E: of a head's key and value; R: of the latent


def make(latent, dtype=jnp.float32, **options):
    return randomised(
        MultiHeadAttention(F, H, head_dim=D, value_dim=E, latent=latent, param_dtype=dtype, rngs=nnx.Rngs(0), **options)
    )


def written(p, x, context=None, *, places=0, turn=lambda y: y, scale=None, mask=True):
    """As DeepSeek's paper has it (its equations 37 to 47), head by head."""
    context = x if context is None else context
    norm = lambda p, y: y / jnp.sqrt((y * y).mean(-1, keepdims=True) + 1e-6) * p["scale"]
    product = lambda p, y: y @ p["kernel"] + p.get("bias", 0)
    down = product(p["latent"]["down"], context)
    latent, shared = norm(p["latent"]["norm"], down[..., :R]), turn(down[..., None, R:])[..., 0, :]
    source = norm(p["query_latent"]["norm"], product(p["query_latent"]["down"], x)) if "query_latent" in p else x
    heads = []
    for h in range(H):
        query = source @ p["query"]["kernel"][:, h] + (p["query"]["bias"][h] if "bias" in p["query"] else 0)
        key, value = latent @ p["key"]["kernel"][:, h], latent @ p["value"]["kernel"][:, h]
        score = query[..., :D] @ key.swapaxes(-1, -2)
        score += turn(query[..., None, D:])[..., 0, :] @ shared.swapaxes(-1, -2)
        score *= (D + places) ** -0.5 if scale is None else scale
        heads.append(jax.nn.softmax(jnp.where(mask, score, -1e30), -1) @ value)
    return jnp.einsum("...thd,hdf->...tf", jnp.stack(heads, -2), p["out"]["kernel"]) + p["out"].get("bias", 0)


turned = Rotary(interleaved=True, scaling=YarnScaling(4.0, 64))
# the latent, options of the layer, of `written`, whether there is a context
CASES = {
    "of DeepSeek": (
        Latent(R, 4, query_rank=6), {"rotary": turned, "mask": masks.causal(), "use_bias": False},
        {"places": 4, "turn": turned, "mask": np.tri(T, dtype=bool)}, False,
    ),
    "without a latent of queries": (Latent(R, 2), {"rotary_base": 1e4}, {"places": 2, "turn": rotary}, False),
    "without positions": (Latent(R), {"score": scores.dot(0.3)}, {"scale": 0.3}, False),
    "cross": (Latent(R, 2, query_rank=6), {"context_features": C}, {"places": 2}, True),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("x64")
def test_layer_is_what_is_written_and_what_a_cache_gives(name):
    latent, options, as_written, cross = CASES[name]
    layer = make(latent, jnp.float64, **options)
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    inputs = (normal((B, T, F), 1), normal((B, S, C), 2))[: 1 + cross]

    def absorbed(p, x, context=None):
        layer = nnx.merge(graph, p, rest)
        return layer(x, layer.read(x if context is None else context))

    for run in (lambda p, *xs: nnx.merge(graph, p, rest)(*xs), absorbed):
        compare(run, lambda p, *xs: written(nnx.to_pure_dict(p), *xs, **as_written), params, inputs, TIGHT)


@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_decoding_is_the_whole_sequence_at_once(lead):
    layer = make(
        Latent(R, 4, query_rank=6), rotary=turned, mask=masks.causal(), mods=mods.alibi(np.ones(H)), sinks=True
    )
    x = normal((*lead, T, F))

    @nnx.jit
    def both(layer, x):
        first, cache = layer.decode(x[..., :3, :], layer.cache(T + 1, lead))
        last, cache = layer.decode(x[..., 3:, :], cache)
        return layer(x), jnp.concatenate([first, last], axis=-2), cache

    want, out, cache = both(layer, x)
    assert_close(out, want, LOOSE)
    assert cache.key.shape == (*lead, T + 1, 1, R + 4)
    assert cache.value.size == 0
    assert_close(layer.weights(x, cache)[..., :T], layer.weights(x), LOOSE)


def test_shapes_of_the_parameters():
    layer = make(Latent(R, 2, query_rank=6), context_features=C)
    assert jax.tree.map(jnp.shape, pure(layer)) == {
        "query_latent": {"down": {"kernel": (F, 6), "bias": (6,)}, "norm": {"scale": (6,)}},
        "latent": {"down": {"kernel": (C, R + 2), "bias": (R + 2,)}, "norm": {"scale": (R,)}},
        "query": {"kernel": (6, H, D + 2)},
        "key": {"kernel": (R, H, D)},
        "value": {"kernel": (R, H, E)},
        "out": {"kernel": (H, E, F), "bias": (F,)},
    }


@pytest.mark.parametrize(
    ("error", "latent", "options", "message"),
    [
        (ValueError, Latent(R), {"kv_heads": 1}, "leave out kv_heads, qk_norm and value_features"),
        (ValueError, Latent(R), {"qk_norm": True}, "leave out kv_heads, qk_norm and value_features"),
        (ValueError, Latent(R), {"score": scores.cosine()}, r"need score=jattn.scores.dot\(scale\), got Cosine"),
        (ValueError, Latent(R), {"rotary_base": 1e4}, "rotary_base needs an even"),
        (TypeError, R, {}, "latent must be a jattn.nn.Latent, got 5"),
    ],
)
def test_errors(error, latent, options, message):
    with pytest.raises(error, match=message):
        MultiHeadAttention(F, H, head_dim=D, latent=latent, rngs=nnx.Rngs(0), **options)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        Latent(0)


def test_values_of_their_own_are_refused():
    with pytest.raises(ValueError, match="makes keys and values of one"):
        make(Latent(R))(normal((B, T, F)), values=normal((B, T, F)))
