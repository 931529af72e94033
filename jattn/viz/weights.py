"""Attention weights as heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike  # which takes lists

from jattn.viz._canvas import head_titles, heat_maps, stack

if TYPE_CHECKING:
    from jattn.viz._canvas import AnyFigure


def show_weights(
    weights: ArrayLike,
    query_tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    *,
    title: str | None = None,
    ylabel: str = "query",
    xlabel: str = "key",
    scale: str = "weight",
    figure: AnyFigure | None = None,
) -> AnyFigure:
    """Draws attention weights as a heat map, queries down and keys across, or as a grid of them, one for each head.

    Args:
        weights: `[t, s]`, or `[h, t, s]` for a grid.  All heads share one colour scale, from 0 to the largest weight.
        query_tokens: `t` strings that label the rows (a string counts as its characters); None numbers them.
        key_tokens: `s` strings that label the columns, likewise.
        title: above the picture, as it is.
        ylabel, xlabel, scale: names of what a row, a column and a colour stand for.
        figure: a matplotlib Figure or SubFigure to draw into; None makes one that fits the labels.

    Returns:
        The figure.

    Raises:
        ValueError: `weights` has other axes, or an empty one, or not as many rows and columns as there are tokens.

    >>> import jax, jattn
    >>> from jattn import masks, viz
    >>> x = jax.random.normal(jax.random.key(0), (1, 5, 2, 8))
    >>> figure = viz.show_weights(jattn.weights(x, x, x, mask=masks.causal())[0], "hello", "hello")
    >>> [axes.get_title() for axes in figure.axes[:2]]
    ['head 0', 'head 1']
    """
    heads = stack(weights, "weights")
    return heat_maps(
        heads, head_titles(len(heads)), (query_tokens, key_tokens), (ylabel, xlabel), title, figure, scale=scale
    )


def show_alignment(
    weights: ArrayLike,
    source: Sequence[str],
    target: Sequence[str],
    *,
    title: str | None = None,
    figure: AnyFigure | None = None,
) -> AnyFigure:
    """Draws what of the source each part of the target attends to, target down, source across (Bahdanau et al. 2015).

    Args:
        weights: `[t, s]`, or `[h, t, s]`, of which the mean over heads is drawn.
        source: `s` strings, one for each key (a string counts as its characters).
        target: `t` strings, one for each query.
        title: above the picture.
        figure: a matplotlib Figure or SubFigure to draw into; None makes one that fits the labels.

    Returns:
        The figure.

    Raises:
        ValueError: `weights` has other axes, or an empty one, or not as many rows and columns as there are tokens.

    >>> import numpy as np
    >>> from jattn import viz
    >>> axes = viz.show_alignment(np.eye(3), ["le", "chat", "dort"], ["the", "cat", "sleeps"]).axes[0]
    >>> axes.get_xlabel(), axes.get_ylabel()
    ('source', 'target')
    """
    mean = stack(weights, "weights").mean(axis=0, keepdims=True)
    return heat_maps(mean, head_titles(1), (target, source), ("target", "source"), title, figure)
