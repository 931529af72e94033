"""Pictures of weights: what is drawn, how it is labelled, and what is refused."""

import io
import warnings
from typing import assert_type

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure, SubFigure

import jattn
from jattn import masks, viz


def _weights(*shape):
    return np.random.default_rng(0).dirichlet(np.ones(shape[-1]), size=shape[:-1])


def _figure(*args, **options) -> Figure:
    """A new figure of weights: nothing is given that it could be a part of."""
    figure = viz.show_weights(*args, **options)
    assert isinstance(figure, Figure)
    return figure


def _labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_weights_of_one_head_are_one_heat_map_with_named_axes():
    weights = _weights(3, 4)
    axes, scale = viz.show_weights(weights, ["a", "bc", " "], "wxyz", title="one head").axes
    np.testing.assert_array_equal(axes.images[0].get_array(), weights.astype(np.float32))
    assert (axes.get_xlabel(), axes.get_ylabel(), scale.get_ylabel()) == ("key", "query", "weight")
    assert _labels(axes.xaxis) == ["w", "x", "y", "z"]
    assert _labels(axes.yaxis) == ["a", "bc", "\N{OPEN BOX}"]
    assert axes.figure.get_suptitle() == "one head"


@pytest.mark.parametrize("heads", [2, 3, 4, 5])
def test_weights_of_many_heads_are_a_grid_with_one_colour_scale(heads):
    weights = _weights(heads, 5, 6)
    *grid, _ = viz.show_weights(weights).axes
    assert [axes.get_title() for axes in grid] == [f"head {head}" for head in range(heads)]
    for axes, head in zip(grid, weights, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), head.astype(np.float32))
        assert axes.images[0].get_clim() == (0.0, np.float32(weights.max()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_of_jattn_are_drawn_whatever_their_dtype(dtype):
    x = jax.random.normal(jax.random.key(0), (1, 5, 2, 8), dtype)
    weights = jattn.weights(x, x, x, mask=masks.causal())[0].astype(dtype)
    drawn = np.asarray(viz.show_weights(weights, "hello", "hello").axes[1].images[0].get_array())
    np.testing.assert_array_equal(drawn, weights[1].astype(jnp.float32))
    assert drawn[0, 1] == 0


def test_an_alignment_has_the_target_down_the_source_across_and_the_mean_of_the_heads():
    weights = _weights(2, 3, 4)
    axes = viz.show_alignment(weights, ["je", "ne", "sais", "pas"], "???").axes[0]
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), weights.mean(0), rtol=1e-6)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("source", "target")
    assert _labels(axes.xaxis) == ["je", "ne", "sais", "pas"]
    assert _labels(axes.yaxis) == ["?", "?", "?"]


def test_axes_and_colours_are_named_after_what_they_stand_for():
    axes, scale = viz.show_weights(_weights(2, 2), ylabel="question", xlabel="book", scale="match").axes
    assert (axes.get_xlabel(), axes.get_ylabel(), scale.get_ylabel()) == ("book", "question", "match")


def test_white_space_is_drawn_as_signs():
    tokens = [" ", "\n", "\t", "\n ", "?", "\N{NARROW NO-BREAK SPACE}"]
    labels = _labels(viz.show_weights(_weights(6, 6), tokens, tokens).axes[0].xaxis)
    assert labels == ["\u2423", "\u21b5", "\u21e5", "\u21b5\u2423", "?", "\u2423"]


@pytest.mark.parametrize("draw", [lambda x: viz.show_weights(x), lambda x: viz.show_mask(x > 0)])
def test_nothing_attended_to_is_drawn_as_nothing(draw):
    image = draw(np.zeros((3, 3))).axes[0].images[0]
    assert image.get_clim() == (0.0, 1.0)
    assert image.get_array().max() == 0


def test_many_tokens_are_thinned_until_they_can_be_read():
    axes = viz.show_weights(_weights(10, 400), None, [str(j) for j in range(400)]).axes[0]
    labels = _labels(axes.xaxis)
    assert labels == [str(j) for j in axes.get_xticks()]
    assert 50 < len(labels) < 200
    assert float(axes.xaxis.get_ticklabels()[0].get_fontsize()) >= 5


def test_a_new_figure_has_room_for_long_labels_and_an_end():
    tokens = ["Donaudampfschifffahrtsgesellschaft"] * 4
    short, long = (_figure(_weights(4, 4), x, x).get_size_inches() for x in ("abcd", tokens))
    assert min(long - short) > 2
    assert _figure(_weights(9, 50, 50), "x" * 50, "x" * 50).get_size_inches().max() <= 16


@pytest.mark.parametrize(("tokens", "rotation"), [("abcdefghij", 0), (["Donnerstag"] * 10, 90)])
def test_only_labels_too_wide_for_their_column_are_turned(tokens, rotation):
    figure = _figure(_weights(10, 10), None, tokens)
    figure.draw_without_rendering()
    assert figure.axes[0].xaxis.get_ticklabels()[0].get_rotation() == rotation


def test_a_figure_or_a_part_of_one_can_be_drawn_into():
    figure = Figure(figsize=(8, 4), layout="constrained")
    for part, title in zip(figure.subfigures(1, 2, squeeze=False)[0], ("left", "right"), strict=True):
        assert viz.show_alignment(_weights(2, 3), "abc", "de", title=title, figure=part) is part
        assert part.get_suptitle() == title
    assert len(figure.axes) == 4


def test_text_is_text_and_saving_warns_of_nothing():
    tokens = ["$", "$x$", "_", "\N{NARROW NO-BREAK SPACE}", "срѣда", "Τρίτη"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure = _figure(_weights(6, 6), tokens, tokens, title="from $5 to \\frac$")
        file = io.BytesIO()
        figure.savefig(file)
    assert caught == []
    assert file.getvalue().startswith(b"\x89PNG")
    assert not any(label.get_parse_math() for label in figure.axes[0].get_xticklabels())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: viz.show_weights(_weights(2, 2, 3, 4)), ValueError, r"\[t, s\] or \[h, t, s\].*\(2, 2, 3, 4\)"),
        (lambda: viz.show_weights(np.zeros((3, 0))), ValueError, r"none of them 0, got \(3, 0\)"),
        (lambda: viz.show_weights(_weights(3, 4), "ab"), ValueError, "query: the array has 3, got 2 tokens"),
        (lambda: viz.show_alignment(_weights(3, 4), "abc", "abc"), ValueError, "source: the array has 4, got 3 tokens"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_type_checkers_know_which_kind_of_figure_comes_back():
    """A subfigure cannot be saved: only where one is drawn into may a picture be one."""
    whole = Figure()
    part = whole.add_subfigure(whole.add_gridspec(1, 2)[0])
    weights, sight = np.eye(3), masks.causal()
    assert_type(viz.show_weights(weights), Figure).savefig(io.BytesIO())
    assert_type(viz.show_alignment(weights, "abc", "def"), Figure)
    assert_type(viz.show_mask(sight, shape=(3, 3), figure=None), Figure)
    assert_type(viz.show_blocks(sight, (3, 3), (2, 2), figure=whole), Figure)
    assert assert_type(viz.show_positions(weights[0], figure=part), SubFigure) is part
