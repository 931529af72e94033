"""Pictures of masks and of their blocks: they say what the masks and the kernels say."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

import jattn
from jattn import masks, viz

I, J = np.arange(13)[:, None], np.arange(11)[None]
LAYOUT = np.array([[[True, False], [True, True]], [[False, True], [False, False]]])
IDS = np.array([[0] * 5 + [1] * 4 + [2] * 2, [3] * 11])

MASKS = {  # a mask of 13 queries and 11 keys, and its pairs [b h, t, s]
    "causal": (masks.causal(), [J <= I]),
    "window or prefix": (masks.window(left=2) | masks.prefix(3), [(J <= I) & (J >= I - 2) | (J < 3)]),
    "offset of an array": (masks.causal(jnp.int32(-2)), [J <= I - 2]),
    "lengths": (masks.lengths([4, 11], [13, 2]), [(J < 4) & (I < 13), (J < 11) & (I < 2)]),
    "segments": (
        masks.segments(np.pad(IDS, ((0, 0), (0, 2)), constant_values=9), IDS),
        [np.pad(x, (0, 2), constant_values=9)[:, None] == x for x in IDS],
    ),
    "layout for each head": (~masks.blocks(LAYOUT, 7), [~x[I // 7, J // 7] for x in LAYOUT]),
    "dense": (masks.dense((I + J) % 5 == 0), [(I + J) % 5 == 0]),
    "batch elements and heads": (
        masks.lengths([4, 11]) & masks.dense(np.stack([I >= J, I < J])),
        [short & x for short in (J < 4, J < 11) for x in (I >= J, I < J)],
    ),
    "function": (masks.function(lambda i, j: i * j % 3 == 0), [I * J % 3 == 0]),
}


def _drawn(figure):
    return [axes.images[0].get_array() for axes in figure.axes]


def _kinds(figure):
    """0 empty, 1 partial, 2 full."""
    return [np.asarray(axes.collections[0].get_array()) for axes in figure.axes]


def _counts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_drawn_as_its_pairs(name):
    mask, pairs = MASKS[name]
    for drawn, expected in zip(_drawn(viz.show_mask(mask, shape=(13, 11))), pairs, strict=True):
        np.testing.assert_array_equal(drawn, np.broadcast_to(expected, (13, 11)))


@pytest.mark.parametrize("name", MASKS)
def test_empty_blocks_hold_no_pair_and_full_ones_all(name):
    mask, pairs = MASKS[name]
    for kinds, expected in zip(_kinds(viz.show_blocks(mask, (13, 11), (3, 4))), pairs, strict=True):
        assert kinds.shape == (5, 3)
        for (row, column), kind in np.ndenumerate(kinds):
            block = np.broadcast_to(expected, (13, 11))[3 * row : 3 * row + 3, 4 * column : 4 * column + 4]
            assert kind == 1 or block.all() == block.any() == (kind == 2)


def test_the_legend_counts_what_explain_counts():
    x = jax.ShapeDtypeStruct((1, 4096, 2, 16), "float32")
    mask = masks.causal() & masks.window(left=1000)
    plan: Any = jattn.explain(x, x, x, mask=mask)
    empty, partial, full = (n // 2 for n in plan.blocks)  # of two heads
    assert _counts(viz.show_blocks(mask, (4096, 4096), plan.tile)) == [
        f"empty: skipped ({empty:,})",
        f"partial: masked ({partial:,})",
        f"full: no mask ({full:,})",
    ]


def test_blocks_lie_over_the_positions_that_they_hold():
    axes = viz.show_blocks(masks.causal(), (10, 7), (4, 3)).axes[0]
    (mesh,) = axes.collections
    assert isinstance(mesh, QuadMesh)
    corners = np.asarray(mesh.get_coordinates())
    assert corners[0, :, 0].tolist() == [0, 3, 6, 7]
    assert corners[:, 0, 1].tolist() == [0, 4, 8, 10]
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 7), (10, 0))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("key", "query")


def test_no_mask_is_full_and_an_array_is_a_mask():
    assert _kinds(viz.show_blocks(None, (8, 8), (4, 4)))[0].tolist() == [[2, 2], [2, 2]]
    assert _kinds(viz.show_blocks(np.tri(8, dtype=bool), (8, 8), (4, 4)))[0].tolist() == [[1, 0], [2, 1]]


def test_pictures_are_titled_and_drawn_where_asked():
    titles = [axes.get_title() for axes in viz.show_mask(MASKS["batch elements and heads"][0], shape=(13, 11)).axes]
    assert titles == ["batch 0, head 0", "batch 0, head 1", "batch 1, head 0", "batch 1, head 1"]
    assert [axes.get_title() for axes in viz.show_blocks(MASKS["lengths"][0], (13, 11), (3, 3)).axes] == [
        "batch 0",
        "batch 1",
    ]
    part = Figure(layout="constrained").subfigures(1, 2, squeeze=False)[0, 1]
    assert viz.show_blocks(masks.causal(), (13, 11), (3, 3), title="causal()", figure=part) is part
    assert part.get_suptitle() == "causal()"
    part.figure.draw_without_rendering()


def test_a_mask_is_two_colours_without_a_scale():
    mask = np.tril(np.ones((4, 4), bool))
    (axes,) = viz.show_mask(mask, key_tokens="abcd").axes
    np.testing.assert_array_equal(axes.images[0].get_array(), mask)
    assert axes.images[0].get_clim() == (0.0, 1.0)
    assert len(viz.show_mask(np.stack([mask, ~mask])).axes) == 2


def test_tokens_give_a_mask_its_shape():
    axes = viz.show_mask(masks.causal(), "abc", ["x", "y"]).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[1, 0], [1, 1], [1, 1]])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: viz.show_mask(masks.causal()), ValueError, r"shape must be \(t, s\).*got None"),
        (lambda: viz.show_mask(masks.causal(), "abc"), ValueError, r"shape must be \(t, s\).*got None"),
        (lambda: viz.show_mask(masks.causal(), "abc", shape=(4, 4)), ValueError, "query: the array has 4, got 3"),
        (lambda: viz.show_mask(I >= J, shape=(13, 11)), ValueError, r"an array has its own, got shape = \(13, 11\)"),
        (lambda: viz.show_mask(np.ones((3, 4))), TypeError, "booleans, got float64"),
        (lambda: viz.show_mask(masks.segments(IDS), shape=(4, 4)), ValueError, r"must start with b = 2, t = 4"),
        (lambda: viz.show_blocks(masks.causal(), (4, 0), (2, 2)), ValueError, r"two ints >= 1, got \(4, 0\)"),
        (lambda: viz.show_blocks(masks.causal(), 4, (2, 2)), ValueError, r"two ints >= 1, got 4"),  # pyright: ignore[reportArgumentType]  # wrong on purpose
        (lambda: viz.show_blocks(masks.causal(), (4, 4), 2), ValueError, r"blocks must be .* got 2"),  # pyright: ignore[reportArgumentType]  # wrong on purpose
        (lambda: viz.show_blocks(I - J, (13, 11), (2, 2)), TypeError, "must be boolean, got int64"),
        (lambda: viz.show_blocks(I >= J, (4, 4), (2, 2)), ValueError, r"broadcastable to .*\[1, 1, 4, 4\]"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
