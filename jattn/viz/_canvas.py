"""What the pictures share: new figures, labels that can be read, grids of heat maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike

from jattn._extras import how_to_install

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure, SubFigure
    from typing_extensions import TypeVar  # one with a default, which `typing` has from Python 3.13 on

    # what is drawn into, and returned: a new figure where none is given
    AnyFigure = TypeVar("AnyFigure", bound=Figure | SubFigure, default=Figure)

CELL, _SMALLEST, _LARGEST = 0.24, 3.0, 16.0  # inches: a labelled row or column, and the sides of a new figure
_FONT = 5.0, 10.0  # points: the smallest and largest label
_SHARE = 0.8  # of a heat map's room is its own; labels, names and the colour scale take the rest
_SPACES = {" ": "\N{OPEN BOX}", "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"}
LETTER = 0.08  # inches: the width of a letter of that size, more or less


def opened(figure: AnyFigure | None, height: float, width: float) -> AnyFigure:
    """The figure, or where there is none a new one of that size."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        missing = f"jattn.viz draws with matplotlib, which is not installed: {how_to_install('zoo')}"
        raise ModuleNotFoundError(missing, name="matplotlib") from error

    return cast("AnyFigure", Figure(figsize=(width, height), layout="constrained")) if figure is None else figure


def inches(figure: Figure | SubFigure) -> tuple[float, float]:
    """Height and width."""
    return figure.bbox.height / figure.get_dpi(), figure.bbox.width / figure.get_dpi()


def side(tokens: Sequence[str] | None, others: Sequence[str] | None = None) -> float:
    """Inches of a new figure along one side of one heat map, with room for the labels of the other side."""
    beside = LETTER * max(map(len, others), default=0) if others is not None else 0.0
    return min((4.0 if tokens is None else max(CELL * len(tokens) + 1.0, _SMALLEST)) + beside, _LARGEST)


def label(axis: Axis, tokens: Sequence[str] | None, name: str, inches: float) -> None:
    """Names an axis, so many inches long, and labels as many of its tokens as are readable."""
    from matplotlib.axis import XAxis
    from matplotlib.ticker import MaxNLocator

    axis.set_label_text(name)
    if tokens is None:
        axis.set_major_locator(MaxNLocator("auto", steps=(1, 2, 5, 10), integer=True))
        return
    room = 72 * inches / len(tokens)  # points for one label
    every = math.ceil(_FONT[0] / room)
    # text that is not read as TeX
    labels = [readable(token) for token in tokens][::every]
    size = min(max(room, _FONT[0]), _FONT[1])
    axis.set_ticks(range(0, len(tokens), every), labels, fontsize=size, parse_math=False)
    if isinstance(axis, XAxis) and 0.6 * size * max(map(len, labels)) > every * room:
        axis.set_tick_params(rotation=90)


def readable(token: str) -> str:
    """White space as what can be seen: a token of spaces, of the end of a line, of a tab."""
    return "".join(_SPACES.get(x, _SPACES[" "]) for x in token) if token.isspace() else token


class Grid(NamedTuple):
    """Axes in a square, and how many inches of the figure each has."""

    axes: list[Axes]
    height: float
    width: float


def _square(count: int) -> tuple[int, int]:
    """Rows and columns of that many axes."""
    columns = math.ceil(math.sqrt(count))
    return math.ceil(count / columns), columns


def fitted(figure: AnyFigure | None, count: int, height: float, width: float) -> AnyFigure:
    """The figure, or where there is none a new one with room for `count` axes in a square, of `height` x `width`."""
    rows, columns = _square(count)
    return opened(figure, min(rows * height, _LARGEST), min(columns * width, _LARGEST))


def grid(figure: Figure | SubFigure, titles: Sequence[str]) -> Grid:
    """As many axes as there are titles."""
    rows, columns = _square(len(titles))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title)
    for unused in axes[len(titles) :]:
        unused.remove()
    height, width = inches(figure)
    return Grid(axes[: len(titles)], height / rows, width / columns)


def stack(array: ArrayLike, name: str) -> np.ndarray:
    """As float `[h, t, s]`."""
    array = np.asarray(array)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"{name} must be [t, s] or [h, t, s], none of them 0, got {array.shape}; index a batch first")
    return array.reshape(-1, *array.shape[-2:]).astype(np.float32)


def head_titles(h: int) -> list[str]:
    """Of the heat maps of h heads; one alone needs none."""
    return [f"head {head}" for head in range(h)] if h > 1 else [""]


def heat_maps(
    maps: np.ndarray,
    titles: Sequence[str],
    tokens: tuple[Sequence[str] | None, Sequence[str] | None],
    names: tuple[str, str],
    title: str | None,
    figure: AnyFigure | None,
    cmap: str = "viridis",
    scale: str | None = "weight",
) -> AnyFigure:
    """One heat map for each of `[n, t, s]`.  tokens and names: of rows, of columns.  scale: what the colours mean."""
    for sequence, length, name in zip(tokens, maps.shape[1:], names, strict=True):
        if sequence is not None and len(sequence) != length:
            raise ValueError(f"{name}: the array has {length}, got {len(sequence)} tokens to label them")
    figure = fitted(figure, len(titles), side(*tokens), side(*tokens[::-1]))
    axes, height, width = grid(figure, titles)
    top = float(np.nanmax(maps, initial=0.0)) or 1.0
    for axis, values in zip(axes, maps, strict=True):
        image = axis.imshow(values, cmap=cmap, vmin=0.0, vmax=top, aspect="auto", interpolation="nearest")
        label(axis.yaxis, tokens[0], names[0], _SHARE * height)
        label(axis.xaxis, tokens[1], names[1], _SHARE * width)
    if scale:
        figure.colorbar(image, ax=axes, label=scale)
    if title:
        figure.suptitle(title, parse_math=False)
    return figure
