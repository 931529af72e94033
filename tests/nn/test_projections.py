"""What comes before the attention of a layer: which projections have biases, norms, widths, and what does not fit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.nn import L2Norm, MultiHeadAttention
from jattn.nn._projections import NAMES, Projections, biases, norm_of

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 6)), jnp.float32)


def _projections(rotary=None, norm=None) -> Projections:
    rngs = nnx.Rngs(0)
    linear = lambda width, *heads: nnx.LinearGeneral(width, heads, rngs=rngs)
    return Projections(linear(6, 4, 8), linear(6, 2, 8), linear(3, 2, 5), norm, norm, rotary)


def test_queries_and_keys_are_normalised_and_then_turned():
    seen = []
    turned = lambda heads, positions: seen.append(positions) or heads + 1
    made, plain = _projections(turned, lambda x: 2 * x), _projections()
    at = np.arange(5)
    np.testing.assert_allclose(made.queries(X, at), 2 * plain.query(X) + 1, rtol=1e-5)
    values = X[..., :3]
    key, value = made.keys_values(X, values, None)
    np.testing.assert_allclose(key, 2 * plain.key(X) + 1, rtol=1e-5)
    np.testing.assert_array_equal(value, plain.value(values))  # values are neither
    assert seen[0] is at and seen[1] is None


def test_widths_are_those_of_the_projections():
    made = _projections()
    assert made.in_features() == (6, 6, 3)
    assert made.cache_widths() == (2, 8, 5)


@pytest.mark.parametrize(
    ("given", "named"),
    [(True, NAMES), (False, ()), (("query", "out"), ("query", "out")), ([], ()), ({"value"}, ("value",)), (np.True_, NAMES)],
    ids=str,
)  # fmt: skip
def test_biases_are_of_all_none_or_those_that_are_named(given, named):
    assert biases(given) == {name: name in named for name in NAMES}


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("query", TypeError, "use_bias must be True or False, or some of"),
        (1, TypeError, "got 1"),
        (("query", 2), TypeError, "got \\('query', 2\\)"),
        (("query", "q", "k"), ValueError, "use_bias must name some of query, key, value, out, got 'q', 'k'"),
    ],
)
def test_biases_of_what_there_is_not(given, error, words):
    with pytest.raises(error, match=words):
        biases(given)


def test_norms_are_made_by_functions():
    assert norm_of(False) is None
    assert norm_of(True) is nnx.RMSNorm
    assert norm_of(nnx.LayerNorm) is nnx.LayerNorm
    with pytest.raises(TypeError, match="qk_norm must be True or False, or made like nnx.LayerNorm .* got 'rms'"):
        norm_of("rms")  # pyright: ignore[reportArgumentType]  # wrong on purpose


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_an_l2_norm_are_as_long_as_its_scale(dtype):
    norm = L2Norm(6, rngs=nnx.Rngs(0), param_dtype=dtype)
    x = X.astype(dtype)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        got = norm(x)
    assert got.dtype == dtype
    unit = np.asarray(x, np.float64) / np.linalg.norm(np.asarray(x, np.float64), axis=-1, keepdims=True)
    np.testing.assert_allclose(
        np.asarray(got, np.float64), unit * np.asarray(norm.scale[...], np.float64), rtol=0.02, atol=1e-3
    )
    assert not np.asarray(norm(jnp.zeros((1, 6), dtype))).any()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda made: made.check_x(X[..., :5], None), ValueError, r"x must be \[\.\., t, 6\], got shape \[2, 5, 5\]"),
        (lambda made: made.check_x(X, np.arange(5)), ValueError, "positions"),
        (
            lambda made: made.check(X, X[:1], values=X[:1, :, :3]),
            ValueError,
            "x and context must have the same batch axes",
        ),
        (lambda made: made.check_context(X[..., :2], None), ValueError, r"context must be \[\.\., s, 6\]"),
        (lambda made: made.check_x(X[0, 0], None), ValueError, r"x must be \[\.\., t, 6\]"),
    ],
)
def test_what_does_not_fit_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call(_projections())


def test_a_layer_has_the_biases_that_it_names():
    layer = MultiHeadAttention(6, 2, use_bias=("out",), rngs=nnx.Rngs(0))
    assert [getattr(layer, name).bias is not None for name in NAMES] == [False, False, False, True]
