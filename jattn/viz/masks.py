"""Masks and their block tables: what is attended, what is computed, what is skipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jattn_kernels.tiles.work import EMPTY, FULL, kind_of
from numpy.typing import ArrayLike  # which takes lists

from jattn import _terms, api, masks, normalizers, scores
from jattn._call import checks
from jattn._terms import block_tables
from jattn.viz._canvas import fitted, grid, head_titles, heat_maps, inches, label, side, stack

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Patch

    from jattn.viz._canvas import AnyFigure

# In the order of the numbers of kinds, by which colours are looked up.
_KINDS = {"empty: skipped": "#e4e4e8", "partial: masked": "#f2a65a", "full: no mask": "#2b6cb0"}
_LEGEND = 0.8  # inches
_MOST_LINES = 64  # blocks of an axis, beyond which lines between them would hide them


def show_mask(
    mask: masks.Mask | ArrayLike,
    query_tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    *,
    shape: tuple[int, int] | None = None,
    title: str | None = None,
    figure: AnyFigure | None = None,
) -> AnyFigure:
    """Draws a mask, dark where a query (down) may attend to a key (across).

    Args:
        mask: from `jattn.masks`, or booleans, True = attend, `[t, s]`, or `[h, t, s]` for a grid.  A `Mask` that tells
            batch elements or heads apart is a grid too.
        shape: (t, s) of a `Mask`; None counts the tokens.
        query_tokens, key_tokens, title, figure: as in `show_weights`.

    Returns:
        The figure.

    Raises:
        TypeError: `mask` is neither a `Mask` nor boolean.
        ValueError: as in `show_weights`; a `Mask` without `shape` and tokens, or one whose arrays do not fit them;
            `shape` beside an array.

    >>> from jattn import masks, viz
    >>> figure = viz.show_mask(masks.window(left=1), "hello", "hello", title="window(left=1)")
    >>> figure = viz.show_mask(masks.lengths([3, 5]), shape=(5, 5))
    >>> [axes.get_title() for axes in figure.axes]
    ['batch 0', 'batch 1']
    """
    if isinstance(mask, masks.Mask):
        if shape is None and query_tokens is not None and key_tokens is not None:
            shape = len(query_tokens), len(key_tokens)
        pairs = _pairs(mask, *_sizes(shape))
        maps, titles = stack(pairs.reshape(-1, *pairs.shape[2:]), "mask"), _titles(*pairs.shape[:2])
    else:
        dtype = np.asarray(mask).dtype
        if dtype != np.bool_:
            raise TypeError(f"mask must be a Mask or an array of booleans, got {dtype}: draw weights with show_weights")
        if shape is not None:
            raise ValueError(f"shape is that of a Mask: an array has its own, got shape = {shape} beside it")
        maps = stack(mask, "mask")
        titles = head_titles(len(maps))
    return heat_maps(maps, titles, (query_tokens, key_tokens), ("query", "key"), title, figure, "Blues", scale=None)


def show_blocks(
    mask: masks.Mask | ArrayLike | None,
    shape: tuple[int, int],
    blocks: tuple[int, int],
    *,
    title: str | None = None,
    figure: AnyFigure | None = None,
) -> AnyFigure:
    """Draws which blocks of a mask are skipped, which are computed and masked, and which need no mask.

    The answers are those that the kernels go by: bounds on the safe side, so a block is "partial" where the mask does
    not know better, and so is the last column of blocks where it hangs over the end of the keys.  (The `blockwise`
    backend moves its last row and column of blocks back to fit, so that there a few more may be partial.)

    Args:
        mask: from `jattn.masks`, or a boolean array broadcastable to `[b, h, t, s]`, or None.  One that tells batch
            elements or heads apart is drawn as a grid.
        shape: (t, s), the numbers of queries and keys.
        blocks: (query rows, key rows) of a block, such as `jattn.explain(...).tile`.
        title, figure: as in `show_weights`.

    Returns:
        The figure, positions on its axes, and in its legend how many blocks there are of each kind.

    Raises:
        TypeError, ValueError: what `jattn.attention` would not take for a mask of this shape, or for blocks.

    >>> from jattn import masks, viz
    >>> figure = viz.show_blocks(masks.causal() & masks.window(left=300), (1000, 1000), (100, 100))
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['empty: skipped (66)', 'partial: masked (17)', 'full: no mask (17)']
    """
    t, s = _sizes(shape)
    rows, columns = checks.blocks(blocks) or (t, s)
    query, key = (block_tables.Tiling(n, block, overhang=True) for n, block in ((t, rows), (s, columns)))
    answer = block_tables.answers(_bound(mask, t, s), query, key)
    kinds = np.asarray(kind_of(*answer))
    titles = _titles(*kinds.shape[:2])
    figure = fitted(figure, len(titles), side(None) + _LEGEND, side(None))
    for axis, kind in zip(grid(figure, titles).axes, kinds.reshape(-1, *kinds.shape[2:]), strict=True):
        _draw(axis, kind, query, key)
    figure.legend(handles=_legend(kinds), loc="outside lower center", ncols=3 if inches(figure)[1] > 6.0 else 1)
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


def _legend(kinds: np.ndarray) -> list[Patch]:
    """The colour of each kind, and how many blocks are of it."""
    from matplotlib.patches import Patch

    counts = np.bincount(kinds.ravel(), minlength=len(_KINDS)).tolist()
    return [Patch(color=x, label=f"{kind} ({n:,})") for (kind, x), n in zip(_KINDS.items(), counts, strict=True)]


def _draw(axes: Axes, kinds: np.ndarray, query: block_tables.Tiling, key: block_tables.Tiling) -> None:
    """Blocks as coloured rectangles, over the positions that they hold."""
    from matplotlib.colors import ListedColormap

    rows, columns = (np.minimum(np.arange(x.count + 1) * x.block, x.length) for x in (query, key))
    width = 0.5 if max(kinds.shape) <= _MOST_LINES else 0.0
    colours = ListedColormap(list(_KINDS.values()))
    axes.pcolormesh(columns, rows, kinds, cmap=colours, vmin=EMPTY, vmax=FULL, edgecolors="white", linewidth=width)
    axes.set(xlim=(0, key.length), ylim=(query.length, 0))
    label(axes.xaxis, None, "key", 0.0)
    label(axes.yaxis, None, "query", 0.0)


def _sizes(shape: object) -> tuple[int, int]:
    pair = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    if len(pair) != 2 or not all(_terms.is_whole(x) and x >= 1 for x in pair):
        raise ValueError(f"shape must be (t, s), the numbers of queries and keys, two ints >= 1, got {shape!r}")
    return pair  # type: ignore[return-value]


def _pairs(mask: masks.Mask, t: int, s: int) -> jax.Array:
    """The mask as booleans `[b, h, t, s]`."""
    b, h = _lead(mask)
    query, key = jnp.zeros((b, t, h, 1)), jnp.zeros((b, s, 1, 1))
    # every pair scores 0 and gets the sigmoid of that, or no weight where the mask forbids it
    return api.weights(query, key, key, mask=mask, normalizer=normalizers.sigmoid()) > 0


def _bound(mask: masks.Mask | ArrayLike | None, t: int, s: int) -> masks.Mask | None:
    """The mask as the kernels ask it for its blocks."""
    if not (mask is None or isinstance(mask, masks.Mask)):
        mask = masks.dense(mask)
    b, h = _lead(mask)
    query, key = (jax.ShapeDtypeStruct((b, *x, 1), "float32") for x in ((t, h), (s, 1)))
    problem = checks.problem(query, key, key, score=scores.dot(), normalizer=normalizers.softmax(), mask=mask)
    return _terms.bind(problem.mask, *problem.origin.indices(b, h))


def _lead(mask: masks.Mask | None) -> tuple[int, int]:
    """How many batch elements and heads a mask tells apart."""
    kinds, sizes = (_terms.Operand, masks.Unplaced, masks.Blocks), {"b": 1, "h": 1}
    for x in jax.tree.leaves(mask, is_leaf=lambda x: isinstance(x, kinds)):
        if isinstance(x, masks.Blocks):
            axes, lengths = "h", x.layout.shape[:-2]
        elif isinstance(x, masks.Unplaced):
            axes, lengths = _terms.AXES[-x.array.ndim :], x.array.shape
        else:
            axes, lengths = x.axes, x.array.shape
        for axis, n in zip(axes, lengths, strict=False):
            sizes[axis] = max(sizes.get(axis, 1), n)
    return sizes["b"], sizes["h"]


def _titles(b: int, h: int) -> list[str]:
    """The titles of the pictures of a mask, one for each batch element and head."""
    if b == 1:
        return head_titles(h)
    return [f"batch {n}" + (f", head {m}" if h > 1 else "") for n in range(b) for m in range(h)]
