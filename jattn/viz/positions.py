"""Weights over the positions of one sequence: what a classifier looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike  # which takes lists

from jattn.viz._canvas import CELL, LETTER, inches, label, opened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from jattn.viz._canvas import AnyFigure

_WIDTH, _MARGIN = 10.0, 0.8  # inches: of a new figure, and of that the room beside the axes
_BARS, _SIGNAL = 1.1, 1.6  # inches: the height of bars and of a signal


class _Line(NamedTuple):
    """What one line of the picture shows of one row of the weights, on a scale from 0 to `top`."""

    title: str
    weights: np.ndarray
    top: float
    tokens: Sequence[str] | None
    signal: np.ndarray | None


def show_positions(
    weights: ArrayLike,
    tokens: Sequence[str] | Sequence[Sequence[str]] | None = None,
    *,
    signal: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
    xlabel: str | None = None,
    sharey: bool = True,
    figure: AnyFigure | None = None,
) -> AnyFigure:
    """Draws weights over positions as bars, above the tokens or the signal that they are weights of.

    Rows are drawn one above the other; a row of many tokens goes on in the next line, like text.

    Args:
        weights: `[s]`, or `[n, s]`: n examples, heads or models.
        tokens: `s` strings, the same for all rows (a string counts as its characters), or n sequences of strings, each
            as long as its row or its padding goes.
        signal: numbers `[s]` or `[s, c]`, a curve for each channel, the same for all rows, or `[n, s, c]`.
        lengths: how many positions of each row are real, an int or `[n]`; the padding after them is not drawn.
        names: n strings, one above each row; None numbers the rows, if there are several.
        title: above the picture, as it is.
        xlabel: name of what a bar stands for; None says "token", or "position" where there are no tokens.
        sharey: True draws all rows on one scale, to be compared; False each on its own, so that a row of small weights
            can be read beneath one that has all of its weight in one place.
        figure: a matplotlib Figure or SubFigure to draw into; None makes one that fits.

    Returns:
        The figure.

    Raises:
        ValueError: `weights` has other axes, or an empty one; tokens, signal, lengths or names do not fit it; tokens
            and a signal are given at once.

    >>> from jattn import viz
    >>> weights, review = [0.1, 0.1, 0.7, 0.1, 0.0], ["a", "rather", "dull", "film"]
    >>> axes = viz.show_positions(weights, review, lengths=4).axes[0]
    >>> len(axes.patches), axes.get_xticklabels()[2].get_text()
    (4, 'dull')
    """
    rows = np.asarray(weights, np.float32)
    if rows.ndim not in (1, 2) or 0 in rows.shape:
        raise ValueError(f"weights must be [s] or [n, s], none of them 0, got {list(rows.shape)}; index a batch first")
    if tokens is not None and signal is not None:
        raise ValueError("tokens and a signal cannot both be beneath the weights: give one of them")
    rows = rows.reshape(-1, rows.shape[-1])
    counts = _counts(lengths, *rows.shape)
    texts, signals = _texts(tokens, counts, rows.shape[1]), _signals(signal, *rows.shape)
    if names is not None and len(names) != len(rows):
        raise ValueError(f"names must be {len(rows)} strings, one for each row of the weights, got {len(names)}")
    if names is None:
        names = [f"row {n}" for n in range(len(rows))] if len(rows) > 1 else [""]
    width = _WIDTH if figure is None else inches(figure)[1]
    wide = max(counts) if tokens is None else _wrapped(max(counts), width)
    tops = [float(row[:count].max()) for row, count in zip(rows, counts, strict=True)]
    tops = [max(tops)] * len(rows) if sharey else tops
    lines = [
        _Line(name if start == 0 else "", row[start:stop], top or 1.0, text and text[start:stop], curve)
        for name, row, top, count, text, curve in zip(names, rows, tops, counts, texts, signals, strict=True)
        for start in range(0, count, wide)
        for stop in [min(start + wide, count)]
    ]
    xlabel = ("position" if tokens is None else "token") if xlabel is None else xlabel
    return _draw(lines, wide, width, title, xlabel, figure)


def _wrapped(count: int, width: float) -> int:
    """How many of `count` tokens stand in one line, in as few lines as it takes, all of them about as full."""
    lines = math.ceil(count / max(1, int((width - _MARGIN) / CELL)))
    return math.ceil(count / lines)


def _counts(lengths: ArrayLike | None, n: int, s: int) -> list[int]:
    """How many positions of each row are drawn."""
    if lengths is None:
        return [s] * n
    given = np.asarray(lengths)
    if given.shape not in ((), (n,)) or given.dtype.kind not in "iu" or given.min() < 1 or given.max() > s:
        raise ValueError(f"lengths must be an int or {n} of them, each from 1 to s = {s}, got {lengths}")
    return np.broadcast_to(given, n).tolist()


def _texts(tokens: Any, counts: list[int], s: int) -> Sequence[Sequence[str] | None]:
    """The tokens of each row."""
    if tokens is None:
        return [None] * len(counts)
    shared = isinstance(tokens, str) or all(isinstance(x, str) for x in tokens)
    texts = [tokens] * len(counts) if shared else list(tokens)
    if len(texts) != len(counts):
        raise ValueError(f"tokens must be one sequence of strings or {len(counts)}, one a row, got {len(texts)}")
    for n, (text, count) in enumerate(zip(texts, counts, strict=True)):
        if len(text) not in (count, s):
            raise ValueError(f"tokens: row {n} of the weights has {count}, got {len(text)} tokens to label them")
    return texts


def _signals(signal: ArrayLike | None, n: int, s: int) -> Sequence[np.ndarray | None]:
    """The signal `[s, c]` of each row."""
    if signal is None:
        return [None] * n
    given = np.asarray(signal, np.float32)
    whole = given[:, None] if given.ndim == 1 else given
    if whole.ndim not in (2, 3) or whole.shape[-2] != s or whole.shape[:-2] not in ((), (n,)):
        raise ValueError(f"signal must be [s], [s, c] or [n, s, c] with n = {n}, s = {s}, got {list(given.shape)}")
    return list(np.broadcast_to(whole, (n, *whole.shape[-2:])))


def _draw(
    lines: list[_Line], wide: int, width: float, title: str | None, xlabel: str, figure: AnyFigure | None
) -> AnyFigure:
    """The lines, one above the other, with room for `wide` positions across `width` inches."""
    curves, texts = lines[0].signal is not None, lines[0].tokens is not None
    longest = max((len(token) for line in lines for token in line.tokens or ()), default=0)
    beneath = _SIGNAL if curves else LETTER * longest + 0.2
    headings = 0.25 * sum(1 for line in lines if line.title) + 0.4 * bool(title) + 0.3
    figure = opened(figure, len(lines) * (_BARS + beneath) + headings, width)
    heights = [_BARS, _SIGNAL] if curves else [_BARS]
    axes = figure.subplots(len(lines) * len(heights), 1, squeeze=False, height_ratios=heights * len(lines))[:, 0]
    for line, (bars, *below) in zip(lines, axes.reshape(len(lines), -1), strict=True):
        bars.set_title(line.title, loc="left", parse_math=False)
        bars.bar(range(len(line.weights)), line.weights, width=0.8 if texts else 1.0)
        bars.spines[["top", "right"]].set_visible(False)
        bars.set(xlim=(-0.5, wide - 0.5), ylim=(0.0, 1.05 * line.top), ylabel="weight")
        label(bars.xaxis, line.tokens, "", (width - _MARGIN) * len(line.weights) / wide)
        if below:
            _curves(below[0], bars, line)
    axes[-1].set_xlabel(xlabel)
    figure.align_ylabels(axes)
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


def _curves(axes: Axes, above: Axes, line: _Line) -> None:
    """The signal, beneath the bars on the same positions."""
    from matplotlib import colormaps, rcParams

    assert line.signal is not None
    channels = line.signal.shape[1]
    above.tick_params(labelbottom=False)
    if channels > len(rcParams["axes.prop_cycle"]):  # which would give the same colour to two channels
        axes.set_prop_cycle(color=colormaps["turbo"](np.linspace(0.0, 1.0, channels)))
    axes.plot(line.signal[: len(line.weights)], linewidth=1.0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlim=above.get_xlim(), ylabel="signal")
    label(axes.xaxis, None, "", 0.0)
