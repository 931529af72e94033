"""Pictures of attention: weights, alignments and masks, as matplotlib figures.

Nothing here touches pyplot: no window, no global state, no figure to close.  Save what comes back with
`figure.savefig(path)`, or end a notebook's cell with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure, SubFigure

_CELL, _SMALLEST, _LARGEST = 0.24, 3.0, 16.0  # inches: a labelled row or column, and the sides of a new figure
_FONT = 5.0, 10.0  # points: the smallest and largest label


def show_weights(
    weights: Any,
    query_tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    *,
    title: str | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draws attention weights as a heat map, queries down and keys across, or as a grid of them, one for each head.

    Args:
        weights: `[t, s]`, or `[h, t, s]` for a grid.  All heads share one colour scale, from 0 to the largest weight.
        query_tokens: `t` strings that label the rows (a string counts as its characters); None numbers them.
        key_tokens: `s` strings that label the columns, likewise.
        title: above the picture.
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
    heads = _heads(weights, "weights")
    return _draw(heads, (query_tokens, key_tokens), ("query", "key"), title, figure)


def show_alignment(
    weights: Any,
    source: Sequence[str],
    target: Sequence[str],
    *,
    title: str | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
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
    mean = _heads(weights, "weights").mean(axis=0, keepdims=True)
    return _draw(mean, (target, source), ("target", "source"), title, figure)


def show_mask(
    mask: Any,
    query_tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    *,
    title: str | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draws a boolean mask, dark where a query (down) may attend to a key (across).

    Args:
        mask: booleans, True = attend, `[t, s]`, or `[h, t, s]` for a grid.
        query_tokens, key_tokens, title, figure: as in `show_weights`.

    Returns:
        The figure.

    Raises:
        TypeError: `mask` is not boolean.
        ValueError: as in `show_weights`.

    >>> import numpy as np
    >>> from jattn import masks, viz
    >>> i, j = np.arange(4)[:, None], np.arange(4)[None]
    >>> figure = viz.show_mask(masks.window(left=1)(i, j), title="window(left=1)")
    """
    dtype = np.asarray(mask).dtype
    if dtype != np.bool_:
        raise TypeError(f"mask must be an array of booleans, got {dtype}: draw weights with show_weights")
    heads = _heads(mask, "mask")
    return _draw(heads, (query_tokens, key_tokens), ("query", "key"), title, figure, cmap="Blues", scale=None)


def _heads(array: Any, name: str) -> np.ndarray:
    """As float `[h, t, s]`."""
    array = np.asarray(array)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"{name} must be [t, s] or [h, t, s], none of them 0, got {array.shape}; index a batch first")
    return array.reshape(-1, *array.shape[-2:]).astype(np.float32)


def _draw(
    heads: np.ndarray,
    tokens: tuple[Sequence[str] | None, Sequence[str] | None],
    names: tuple[str, str],
    title: str | None,
    figure: Figure | SubFigure | None,
    cmap: str = "viridis",
    scale: str | None = "weight",
) -> Figure | SubFigure:
    """One heat map for each head.  tokens and names: of the rows, of the columns.  scale: what the colours mean."""
    h, *lengths = heads.shape
    for sequence, length, name in zip(tokens, lengths, names, strict=True):
        if sequence is not None and len(sequence) != length:
            raise ValueError(f"{name}: the array has {length}, got {len(sequence)} tokens to label them")
    columns = math.ceil(math.sqrt(h))
    rows = math.ceil(h / columns)
    if figure is None:
        figure = _figure(rows * _side(tokens[0]), columns * _side(tokens[1]))
    height, width = figure.bbox.height / figure.get_dpi() / rows, figure.bbox.width / figure.get_dpi() / columns
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    top = float(np.nanmax(heads, initial=0.0)) or 1.0
    for head, (axis, weights) in enumerate(zip(axes, heads, strict=False)):
        image = axis.imshow(weights, cmap=cmap, vmin=0.0, vmax=top, aspect="auto", interpolation="nearest")
        _label(axis.yaxis, tokens[0], names[0], height)
        _label(axis.xaxis, tokens[1], names[1], width)
        if h > 1:
            axis.set_title(f"head {head}")
    for unused in axes[h:]:
        unused.remove()
    if scale:
        figure.colorbar(image, ax=axes[:h], label=scale)
    if title:
        figure.suptitle(title)
    return figure


def _figure(height: float, width: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _side(tokens: Sequence[str] | None) -> float:
    """Inches of a new figure for one side of one heat map."""
    return 4.0 if tokens is None else min(max(_CELL * len(tokens) + 1.0, _SMALLEST), _LARGEST)


def _label(axis: Axis, tokens: Sequence[str] | None, name: str, inches: float) -> None:
    """Names an axis and labels as many of its tokens as are readable."""
    from matplotlib.axis import XAxis
    from matplotlib.ticker import MaxNLocator

    axis.set_label_text(name)
    if tokens is None:
        axis.set_major_locator(MaxNLocator(integer=True))
        return
    room = 72 * 0.8 * inches / len(tokens)  # points for one label; the axis' name and the colour scale take the rest
    every = math.ceil(_FONT[0] / room)
    # a space that is seen, and text that is not read as TeX
    labels = ["\N{OPEN BOX}" if token.isspace() else token for token in tokens][::every]
    size = min(max(room, _FONT[0]), _FONT[1])
    axis.set_ticks(range(0, len(tokens), every), labels, fontsize=size, parse_math=False)
    if isinstance(axis, XAxis) and 0.6 * size * max(map(len, labels)) > every * room:
        axis.set_tick_params(rotation=90)
