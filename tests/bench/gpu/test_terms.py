"""What is asked of attention: every ask is a call, and its tiles and pairs are counted right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from bench.gpu._cases import Case
from bench.gpu._terms import ASKS, attended_pairs, tiles

WINDOW, DOCUMENT = 40, 48


def _seen(mask: str, t: int) -> np.ndarray:
    i, j = np.arange(t)[:, None], np.arange(t)[None]
    causal = j <= i
    return {
        "full": np.ones((t, t), bool),
        "causal": causal,
        "window": causal & (j > i - WINDOW),
        "segments": causal & (i // DOCUMENT == j // DOCUMENT),
    }[mask]


@pytest.mark.parametrize("mask", ["full", "causal", "window", "segments"])
@pytest.mark.parametrize(("t", "rows", "columns"), [(128, 16, 32), (128, 32, 16), (100, 16, 8), (128, 64, 64)])
def test_tiles_and_pairs(mask, t, rows, columns):
    seen = _seen(mask, t)
    assert attended_pairs(mask, t, WINDOW, DOCUMENT) == seen.sum()
    got = [seen[i : i + rows, j : j + columns] for i in range(0, t, rows) for j in range(0, t, columns)]
    full, partial = sum(x.all() for x in got), sum(x.any() and not x.all() for x in got)
    assert tiles(mask, t, rows, columns, WINDOW, DOCUMENT) == (full, partial)


@pytest.mark.parametrize("name", ASKS)
def test_every_ask_is_a_call(name):
    """Its shapes are those of its values, and the mask that is counted is the mask that is asked for."""
    ask, (b, t, h) = ASKS[name], (2, 96, 3)
    case = Case(name, b, t, h, 8, "fwd", window=WINDOW, document=DOCUMENT)
    drawn = case.values(np.random.default_rng(0))
    shapes = ask.arrays(b, t, h)
    assert {key: x.shape for key, x in drawn.items()} == {key: shape for key, (shape, _) in shapes.items()}
    q = jnp.ones((b, t, h, 8))
    options = case.options({key: jnp.asarray(x) for key, x in drawn.items()})
    assert jax.eval_shape(lambda q: jattn.attention(q, q, q, implementation="reference", **options), q).shape == q.shape
    mask = {"mask": options["mask"]} if "mask" in options else {}
    weights = jattn.weights(q, q, q, **mask)
    np.testing.assert_array_equal(np.asarray(weights[0, 0]) > 0, _seen(ask.mask, t))
