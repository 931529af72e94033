"""Pictures of weights over positions: what is drawn, over what, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from jattn import viz

WORDS = ["attention", "is", "a", "weighted", "mean", "of", "what", "was", "seen"]


def _weights(*shape):
    return np.random.default_rng(0).dirichlet(np.ones(shape[-1]), size=shape[:-1]).astype(np.float32)


def _bars(axes):
    return [bar.get_height() for bar in axes.patches]


def _labels(axes):
    return [label.get_text() for label in axes.get_xticklabels()]


def test_one_row_of_tokens_is_one_bar_for_each():
    weights = _weights(9)
    (axes,) = viz.show_positions(jnp.asarray(weights, jnp.bfloat16), WORDS, title="a definition").axes
    np.testing.assert_array_equal(_bars(axes), jnp.asarray(weights, jnp.bfloat16).astype(jnp.float32))
    assert _labels(axes) == WORDS
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")) == ("token", "weight", "")
    assert axes.figure.get_suptitle() == "a definition"


def test_rows_lie_one_above_the_other_on_one_scale_without_their_padding():
    weights, lengths = _weights(3, 7), [7, 2, 5]
    figure = viz.show_positions(weights, lengths=jnp.asarray(lengths))
    for n, axes in enumerate(figure.axes):
        np.testing.assert_array_equal(_bars(axes), weights[n, : lengths[n]])
        assert axes.get_title(loc="left") == f"row {n}"
        assert axes.get_ylim() == figure.axes[0].get_ylim()
        assert axes.get_xlim() == (-0.5, 6.5)
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "position"]


def test_rows_may_have_each_its_own_scale_so_that_no_bar_is_too_small_to_see():
    weights = np.stack([np.eye(50, dtype=np.float32)[-1], np.full(50, 0.02, np.float32)])
    tops = {}
    for sharey in (True, False):
        last, mean = viz.show_positions(weights, sharey=sharey).axes
        tops[sharey] = [axes.get_ylim()[1] for axes in (last, mean)]
        np.testing.assert_array_equal(_bars(mean), weights[1])
    np.testing.assert_allclose(tops[True], [1.05, 1.05])
    np.testing.assert_allclose(tops[False], [1.05, 0.021])


@pytest.mark.parametrize(("tokens", "usual"), [(WORDS, "token"), (None, "position")])
def test_what_a_bar_stands_for_has_a_name(tokens, usual):
    assert viz.show_positions(_weights(9), tokens).axes[-1].get_xlabel() == usual
    assert viz.show_positions(_weights(9), tokens, xlabel="book").axes[-1].get_xlabel() == "book"


@pytest.mark.parametrize("channels", [3, 12, 40])
def test_no_two_channels_of_a_signal_have_one_colour(channels):
    curves = viz.show_positions(_weights(20), signal=np.zeros((20, channels))).axes[1]
    assert len({str(line.get_color()) for line in curves.lines}) == channels


def test_each_row_may_have_tokens_of_its_own_with_its_padding_or_without():
    tokens = [["a", "b", "c"], "de", "fg_"]
    figure = viz.show_positions(_weights(3, 3), tokens, lengths=[3, 2, 2], names=["one", "two", "three"])
    assert [_labels(axes) for axes in figure.axes] == [["a", "b", "c"], ["d", "e"], ["f", "g"]]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one", "two", "three"]


def test_a_long_text_goes_on_in_the_next_line():
    weights, text = _weights(2, 90), WORDS * 10
    figure = viz.show_positions(weights, text, names=["here", "there"])
    assert len(figure.axes) > 4
    assert [x for axes in figure.axes for x in _labels(axes)] == 2 * text
    np.testing.assert_array_equal(np.concatenate([_bars(axes) for axes in figure.axes]), weights.ravel())
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert {len(_bars(axes)) for axes in figure.axes} == {30}  # 90 in as few lines as it takes, all as full
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")] == ["here", "there"]


def test_a_signal_is_drawn_beneath_on_the_same_positions():
    weights, signal = _weights(2, 20), np.random.default_rng(1).normal(size=(2, 20, 3)).astype(np.float32)
    figure = viz.show_positions(weights, signal=signal, lengths=[20, 8])
    for n, length in enumerate((20, 8)):
        bars, curves = figure.axes[2 * n : 2 * n + 2]
        np.testing.assert_array_equal(_bars(bars), weights[n, :length])
        for channel, line in enumerate(curves.lines):
            np.testing.assert_array_equal(
                np.asarray(line.get_xydata()).T, [np.arange(length), signal[n, :length, channel]]
            )
        assert len(curves.lines) == 3
        assert bars.get_xlim() == curves.get_xlim()
        assert curves.get_ylabel() == "signal"
    assert curves.get_xlabel() == "position"


@pytest.mark.parametrize("shape", [(20,), (20, 1)])
def test_a_signal_may_be_the_same_for_all_rows(shape):
    figure = viz.show_positions(_weights(2, 20), signal=np.arange(20.0).reshape(shape))
    assert [len(axes.lines) for axes in figure.axes] == [0, 1, 0, 1]


def test_a_part_of_a_figure_can_be_drawn_into():
    figure = Figure(figsize=(6, 3), layout="constrained")
    part = figure.subfigures(1, 2, squeeze=False)[0, 0]
    assert viz.show_positions(_weights(9), WORDS, title="$left", figure=part) is part
    assert len(part.axes) > 0


def test_no_weight_at_all_is_drawn_as_none():
    (axes,) = viz.show_positions(np.zeros(4)).axes
    assert _bars(axes) == [0, 0, 0, 0]
    assert axes.get_ylim() == (0, 1.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: viz.show_positions(_weights(2, 3, 4)), r"\[s\] or \[n, s\].*\[2, 3, 4\]"),
        (lambda: viz.show_positions(np.zeros((0, 3))), r"none of them 0"),
        (lambda: viz.show_positions(_weights(4), "abc"), "row 0 of the weights has 4, got 3 tokens"),
        (lambda: viz.show_positions(_weights(2, 4), [["a"] * 4]), "or 2, one a row, got 1"),
        (lambda: viz.show_positions(_weights(4), "abcd", signal=np.zeros(4)), "give one of them"),
        (lambda: viz.show_positions(_weights(4), signal=np.zeros((3, 2))), r"s = 4, got \[3, 2\]"),
        (lambda: viz.show_positions(_weights(2, 4), signal=np.zeros((3, 4, 2))), r"n = 2, s = 4, got \[3, 4, 2\]"),
        (lambda: viz.show_positions(_weights(2, 4), lengths=[1, 5]), r"from 1 to s = 4, got \[1, 5\]"),
        (lambda: viz.show_positions(_weights(2, 4), lengths=[1, 2, 3]), "an int or 2 of them"),
        (lambda: viz.show_positions(_weights(2, 4), lengths=2.0), "got 2.0"),
        (lambda: viz.show_positions(_weights(2, 4), names=["one"]), "names must be 2 strings.*got 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
