"""Rotary embedding: against complex numbers and published formulas, what it leaves alone, against Flax's, in layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import masks
from jattn.nn import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    MultiHeadAttention,
    Rotary,
    TransformerBlock,
    YarnScaling,
    rotary,
    segment_positions,
)
from tests.layers import LOOSE, TIGHT, normal, turn
from tests.nn.test_scaling import llama3, ntk, plain, yarn
from tests.tolerances import TOLERANCES, assert_close

B, T, S, H, D = 2, 6, 9, 4, 4


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


def test_a_variable_is_a_base():
    x, base = normal((B, T, H, D)), jnp.float32(500.0)
    variable: Any = nnx.Variable(base)  # which type checkers do not take for an array
    np.testing.assert_array_equal(rotary(x, base=variable), rotary(x, base=base))


def test_rotary_of_an_odd_width():
    with pytest.raises(ValueError, match=r"d must be even, got x \[6, 4, 3\]"):
        rotary(jnp.ones((T, H, 3)))


# Rotary: parts, neighbours, frequencies, scalings, sections


def turn_pairs(x, angles, factor=1.0, interleaved=False, width=None):
    """The embedding one pair at a time: x `[.., t, h, d]`, angles `[.., t, w/2]`."""
    out, width = np.array(x), x.shape[-1] if width is None else width
    for m in range(width // 2):
        a, b = (2 * m, 2 * m + 1) if interleaved else (m, m + width // 2)
        cos, sin = np.cos(angles[..., m])[..., None], np.sin(angles[..., m])[..., None]
        out[..., a] = factor * (x[..., a] * cos - x[..., b] * sin)
        out[..., b] = factor * (x[..., a] * sin + x[..., b] * cos)
    return out


E, W = 20, 16  # widths of a head and of its part that is turned
GIVEN = np.random.default_rng(3).random(E // 2)
# the object, what it does written down: frequencies, factor, whether neighbours are pairs, width
ROTARIES = {
    "plain": (Rotary(), plain(1e4, E), 1.0, False, E),
    "part": (Rotary(500.0, fraction=0.8), plain(500.0, W), 1.0, False, W),
    "interleaved": (Rotary(interleaved=True), plain(1e4, E), 1.0, True, E),
    "part of neighbours": (Rotary(fraction=0.8, interleaved=True), plain(1e4, W), 1.0, True, W),
    "given": (Rotary(frequencies=GIVEN), GIVEN, 1.0, False, E),
    "linear": (Rotary(scaling=LinearScaling(4.0)), plain(1e4, E) / 4, 1.0, False, E),
    "llama3": (Rotary(5e5, scaling=Llama3Scaling(8.0, 256)), llama3(5e5, E, 8.0, 256), 1.0, False, E),
    "yarn": (Rotary(scaling=YarnScaling(4.0, 512)), yarn(1e4, E, 4.0, 512), 0.1 * np.log(4) + 1, False, E),
    "yarn of gpt-oss": (
        Rotary(150_000.0, scaling=YarnScaling(32.0, 4096, truncate=False)),
        yarn(150_000.0, E, 32.0, 4096, truncate=False), 0.1 * np.log(32) + 1, False, E,
    ),
    "yarn of DeepSeek": (
        Rotary(interleaved=True, scaling=YarnScaling(40.0, 64, attention_factor=0.5)), yarn(1e4, E, 40.0, 64), 0.5, True, E,
    ),
    "dynamic, short": (Rotary(fraction=0.8, scaling=DynamicScaling(2.0, 2000)), plain(1e4, W), 1.0, False, W),
    "dynamic, long": (Rotary(scaling=DynamicScaling(2.0, 100)), ntk(1e4, E, 2.0, 100, 1001), 1.0, False, E),
    "of a user": (Rotary(scaling=lambda base, w, length: (base / (1 + np.arange(w // 2)), 2.0)), 1e4 / (1 + np.arange(E // 2)), 2.0, False, E),
}  # fmt: skip


@pytest.mark.parametrize("name", ROTARIES)
@pytest.mark.usefixtures("x64")
def test_rotary_is_the_published_formula(name):
    embed, frequencies, factor, interleaved, width = ROTARIES[name]
    x, positions = np.asarray(normal((B, T, H, E))), np.random.default_rng(0).integers(0, 1000, (B, T))
    positions[0, 0] = 1000
    want = turn_pairs(x, positions[..., None] * frequencies, factor, interleaved, width)
    assert_close(embed(x, positions), want, TIGHT)
    assert_close(jax.jit(embed)(x, positions), want, TIGHT)
    assert hash(embed) == hash(embed)


@pytest.mark.usefixtures("x64")
def test_sections_go_by_positions_of_their_own():
    embed, x = Rotary(fraction=0.8, sections=(2, 1, 5)), np.asarray(normal((B, T, H, E)))
    positions = np.random.default_rng(0).integers(0, 1000, (3, B, T))
    angles = np.stack([positions[kind] for kind in (0, 0, 1, 2, 2, 2, 2, 2)], -1) * plain(1e4, W)
    assert_close(embed(x, positions), turn_pairs(x, angles, width=W), TIGHT)
    assert_close(embed(x, positions[:, :1]), turn_pairs(x, angles[:1], width=W), TIGHT)
    assert_close(embed(x, positions[0]), Rotary(fraction=0.8)(x, positions[0]), TIGHT)
    assert_close(embed(x), Rotary(fraction=0.8)(x), TIGHT)


def test_positions_of_documents_side_by_side():
    ids = jnp.array([[0, 0, 0, 0, 0, 0], [7, 7, 3, 4, 4, 4]])
    assert segment_positions(ids).tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 0, 0, 1, 2]]
    assert segment_positions(ids[:, :0]).shape == (2, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rotary(0.0), "base must be a number > 0"),
        (lambda: Rotary(fraction=1.5), r"fraction must be a number in \(0, 1\], got 1.5"),
        (lambda: Rotary(frequencies=(1.0,), scaling=LinearScaling(2.0)), "beside a scaling: give them as they are"),
        (lambda: Rotary(frequencies=np.ones((2, 2))), r"frequencies must be numbers \[w/2\], got \[2, 2\]"),
        (lambda: Rotary(sections=(1, 0)), r"sections\[1\] must be at least 1, got 0"),
        (lambda: Rotary(fraction=0.8).width(4), r"0.8 \* 4 -> 3"),
        (lambda: Rotary(frequencies=(1.0,)).width(4), "frequencies must be for w/2 = 2 pairs of features, got 1"),
        (lambda: Rotary(sections=(1, 2)).width(4), "sections must be for w/2 = 2 pairs of features, got 3"),
        (lambda: Rotary(sections=(1, 1))(jnp.ones((T, H, 4)), np.ones((3, T))), r"or \[2, .., t\] and have its t, got \[3, 6\]"),
        (lambda: LinearScaling(0.5), "factor must be a number >= 1, got 0.5"),
        (lambda: Llama3Scaling(2.0, 64, 4.0, 4.0), "high must be greater than low"),
        (lambda: YarnScaling(2.0, 64, 1.0), "fast must be greater than slow"),
        (lambda: Rotary(scaling=DynamicScaling(2.0, 64))(jnp.ones((T, H, 2))), "more than two turned features, got 2"),
        (lambda: MultiHeadAttention(8, 2, rotary_base=1e4, rotary=Rotary(), rngs=nnx.Rngs(0)), "give one of them"),
        (lambda: MultiHeadAttention(8, 2, rotary=Rotary(fraction=0.75), rngs=nnx.Rngs(0)), r"0.75 \* 4 -> 3"),
    ],
)  # fmt: skip
def test_rotary_that_does_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# In layers


class Learned(nnx.Module):
    """Frequencies that are parameters, for heads of width D."""

    def __init__(self):
        self.frequencies = nnx.Param(jnp.array([1.0, 0.1]))

    def __call__(self, x, positions):
        places = jnp.arange(x.shape[-3]) if positions is None else positions
        angles = (places[..., None] * self.frequencies[...])[..., None, :]
        first, second = jnp.split(x, 2, -1)
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], -1)


def test_layers_take_any_function_and_modules_learn():
    x = normal((B, T, 8))
    make = lambda **options: TransformerBlock(8, 2, mask=masks.causal(), rngs=nnx.Rngs(0), **options)
    block = make(rotary=Learned())
    assert_close(block(x), make(rotary=Rotary(frequencies=(1.0, 0.1)))(x), LOOSE)
    gradient = nnx.grad(lambda m: jnp.sum(m(x) ** 2))(block)
    assert float(abs(gradient["attention"]["rotary"]["frequencies"][...]).min()) > 0
    assert_close(make(rotary=lambda y, positions: rotary(y, positions, 50.0))(x), make(rotary_base=50.0)(x), LOOSE)
    assert make(rotary_base=50.0).attention.rotary_base == 50.0
    assert make().attention.rotary_base is None


@pytest.mark.parametrize(
    "embed", [Rotary(interleaved=True, fraction=0.5), Rotary(sections=(1, 1))], ids=["part", "sections"]
)
def test_documents_side_by_side_are_as_each_alone(embed):
    """Decoded as well; the second document begins at position 0 again."""
    x, ids = normal((1, T, 8)), jnp.array([[0, 0, 1, 1, 1, 1]])
    mask = masks.causal() & masks.segments(ids)
    layer = MultiHeadAttention(8, 2, rotary=embed, mask=masks.causal(), rngs=nnx.Rngs(0))
    positions = segment_positions(ids)
    if embed.sections is not None:
        positions = jnp.stack([positions, 2 * positions])
    alone = [layer(x[:, part], positions=positions[..., part]) for part in (slice(2), slice(2, None))]
    out = layer(x, mask=mask, positions=positions)
    assert_close(out, jnp.concatenate(alone, 1), LOOSE)
    first, cache = layer.decode(
        x[:, :3], layer.cache(T, 1), positions=positions[..., :3], mask=masks.segments(ids[:, :3], ids)
    )
    rest = layer.decode(
        x[:, 3:], cache, positions=positions[..., 3:], mask=ids[:, None, 3:, None] == ids[:, None, None]
    )[0]
    assert_close(jnp.concatenate([first, rest], 1), out, LOOSE)
