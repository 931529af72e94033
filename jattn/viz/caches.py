"""What is in a cache: the positions of each example, and in pages who holds which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jattn.viz._canvas import CELL, inches, label, opened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from jattn.nn import Cache
    from jattn.viz._canvas import AnyFigure

_ROW, _ROOM, _WIDEST = 0.4, 1.1, 14.0  # inches: an example, what stands around the rows, and the widest new figure
_COLOURS, _FREE, _NONE = 20, "0.93", "white"  # of as many pages in turn, of free pages and rows, of no page


def show_cache(
    cache: Cache,
    *,
    names: Sequence[str] | None = None,
    title: str | None = None,
    figure: AnyFigure | None = None,
) -> AnyFigure:
    """Draws what a cache holds: a line for each example, a cell for each position that there is room for.

    In pages a cell has the colour and the number of its page, so that examples that share one have the same; below are
    all pages, with how many examples hold each.  Of a cache that slides, numbers are positions: those that no window
    reaches any more are gone.

    Args:
        cache: of a layer, with one batch axis or none; of a stack take one, `cache.blocks[0].past`, and of its turns
            one, `jax.tree.map(lambda x: x[0], ..)`.
        names: of the examples; None numbers them.
        title: above the picture, as it is.
        figure: a matplotlib Figure or SubFigure to draw into; None makes one that fits.

    Returns:
        The figure.

    Raises:
        ValueError: more than one batch axis, or not as many names as examples.

    >>> import jax.numpy as jnp, jattn
    >>> from flax import nnx
    >>> layer = jattn.nn.MultiHeadAttention(32, 4, mask=jattn.masks.causal(), rngs=nnx.Rngs(0))
    >>> cache = layer.cache(24, 3, page=4)
    >>> _, cache = layer.decode(jnp.ones((3, 10, 32)), cache, lengths=jnp.array([10, 3, 0]))
    >>> figure = jattn.viz.show_cache(jattn.nn.cache.fork(cache, 0, 2))
    """
    length = np.atleast_1d(np.asarray(cache.length))
    if np.ndim(cache.length) > 1:
        raise ValueError(f"cache must have one batch axis or none, got {list(cache.length.shape)}; index it first")
    names = [str(n) for n in range(len(length))] if names is None else names
    if len(names) != len(length):
        raise ValueError(f"names must be {len(length)}, one for each example, got {len(names)}")
    pages = None if cache.pages is None else np.asarray(cache.pages).reshape(len(length), -1)
    extra = 0.0 if pages is None else 2 * _ROOM
    width = min(max(CELL * cache.room + _ROOM, 4.0), _WIDEST)
    figure = opened(figure, _ROW * len(length) + _ROOM + extra, width)
    axes = figure.subplots(1 if pages is None else 2, 1, squeeze=False, height_ratios=_ratios(len(length), pages))[:, 0]
    of_examples = axes[0]
    if pages is None:
        first = np.zeros_like(length) if cache.first is None else np.atleast_1d(np.asarray(cache.first))
        at = first[:, None] + np.arange(cache.room)
        there = at < length[:, None]
        _cells(of_examples, np.where(there, 0, -1), [[str(x) for x in row] for row in at], there)
        label(of_examples.xaxis, None, "row of the cache", inches(figure)[1])
    else:
        page = cache.key.shape[-3]
        of_row = np.repeat(pages, page, axis=1)
        there = (np.arange(of_row.shape[1]) < length[:, None]) & (of_row < cache.key.shape[-4])
        _cells(of_examples, np.where(there, of_row, -1), [[str(x) for x in row] for row in of_row], there)
        for edge in range(page, cache.room, page):
            of_examples.axvline(edge - 0.5, color="black", linewidth=1.0)
        label(of_examples.xaxis, None, f"position, in pages of {page}", inches(figure)[1])
        _pool(axes[1], np.asarray(cache.holders).ravel(), inches(figure)[1])
    of_examples.set_yticks(range(len(names)), names, parse_math=False)
    of_examples.set_ylabel("example")
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


def _ratios(examples: int, pages: np.ndarray | None) -> list[float]:
    return [float(examples)] if pages is None else [float(examples), 1.0]


def _cells(axes: Axes, colours: np.ndarray, texts: Sequence[Sequence[str]], there: np.ndarray) -> None:
    """A rectangle of cells: -1 has nothing, every other number the colour of its page."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    palette = 0.4 + 0.6 * np.asarray([colormaps["tab20"](n)[:3] for n in range(_COLOURS)])  # light beneath numbers
    image = np.where((colours >= 0)[..., None], palette[colours % _COLOURS], to_rgb(_FREE))
    axes.imshow(image, aspect="auto", interpolation="nearest")
    rows, columns = colours.shape
    for edge in range(1, rows):
        axes.axhline(edge - 0.5, color=_NONE, linewidth=2.0)
    if columns <= _WIDEST / CELL:
        for edge in range(1, columns):
            axes.axvline(edge - 0.5, color=_NONE, linewidth=0.5)
        for n, m in zip(*np.nonzero(there), strict=True):
            axes.text(m, n, texts[int(n)][int(m)], ha="center", va="center", fontsize=7)


def _pool(axes: Axes, holders: np.ndarray, width: float) -> None:
    """All pages, with how many hold each."""
    pages = np.arange(len(holders))
    held = holders > 0
    _cells(axes, np.where(held, pages, -1)[None], [[f"x{n}" for n in holders]], (holders > 1)[None])
    axes.set_yticks([0], ["pages"])
    free = int((~held).sum())
    label(axes.xaxis, None, f"page (x2: two examples hold it); {free} of {len(holders)} are free", width)
