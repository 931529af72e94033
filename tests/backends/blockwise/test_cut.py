"""How a call is cut, as `explain` says it: the tile, and how many blocks are of each kind, over batch and heads."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jattn import masks, operand
from jattn._call import targets
from jattn._call.problem import reduce
from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.blockwise.cut import cut
from jattn.backends.contract import Spec
from tests.problems import problem

B, T, S, H, G, D = 2, 12, 10, 4, 2, 8


def _cut(mask, blocks: tuple[int, int] | None = (4, 3), target="cpu", known=True, sizes=(B, T, S, H, G)):
    b, t, s, h, g = sizes
    x = tuple(jax.ShapeDtypeStruct((b, n, heads, D), "float32") for n, heads in ((t, h), (s, g), (s, g)))
    whole = problem(x, {"mask": mask})
    q, k, v, operands, signature = reduce(whole)
    target = targets.Target("cpu") if target == "cpu" else targets.named(target)
    spec = Spec(BLOCKWISE, signature, np.dtype("float32"), None, blocks, target)
    bound = None if whole.mask is None else whole.mask.bound(*whole.origin.indices(b, h))
    return cut(spec, q, k, v, operands, bound, known)


MASKS = {
    "none": None,
    "causal": masks.causal(),
    "window": masks.window(4, 1),
    "nothing": masks.prefix(0),
    "holes": masks.dilated(2),
    "blocks": masks.blocks(np.random.default_rng(0).random((3, 4)) < 0.5, 4),
}


@pytest.mark.parametrize("name", MASKS)
def test_blocks_are_as_the_mask_has_them(name):
    """Counted pair by pair, of blocks of which the last is moved back to fit: 10 keys are blocks of 3, 3, 3 and 3."""
    mask = MASKS[name]
    got = _cut(mask)
    rows, columns = got.tile
    i, j = np.arange(T)[:, None], np.arange(S)[None]
    kinds = {"empty": 0, "partial": 0, "full": 0}
    for _ in range(H):
        seen = np.ones((T, S), bool) & (True if mask is None else np.asarray(mask(i, j)))
        for row in range(0, T, rows):
            for column in range(0, S, columns):
                first = min(column, S - columns)
                tile = seen[row : row + rows, first : first + columns]
                moved = first != column
                kind = "empty" if not tile.any() else "full" if tile.all() and not moved else "partial"
                kinds[kind] += B
    assert got.blocks is not None and sum(got.blocks) == sum(kinds.values())
    assert got.blocks == tuple(kinds.values())


def test_where_the_mask_is_known_at_run_time_alone_blocks_are_not_counted():
    mask = masks.function(lambda i, j, n: j < n, operand(3))
    assert _cut(mask, known=False).blocks is None


def test_tiles_of_a_gpu_are_estimated_unless_they_are_asked_for():
    assert _cut(None, None, "h100").tuned == "estimated: kernels launched, against work"
    assert _cut(None, (4, 5), "h100").tuned is None
    assert _cut(None, None).tuned is None


def test_sizes_of_1():
    got = _cut(masks.causal(), None, sizes=(1, 1, 1, 1, 1))
    assert got.tile == (1, 1) and got.blocks == (0, 0, 1)
