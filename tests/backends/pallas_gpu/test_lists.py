"""LineLists of tiles for the GPU kernels: however lines are drawn, the same tiles are visited, and the same are full."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jattn_kernels.gpu.sizes import TileSizes

from jattn import masks
from jattn.backends.pallas_gpu import lists

SIZES = TileSizes(128, 64, 2, 64)
T, S = 300, 330  # three query tiles, six key tiles; none is whole at the end
MASKS = {
    "none": None,
    "causal": masks.causal(),
    "window": masks.window(40, 70),
    "at run time": masks.prefix(jnp.array([100, 330])),
}


def _visited(mask, lines, **most):
    """(batch element, query tile, key tile, whether it is full) of every visit."""
    read, arrays = lists.lists_of(mask, T, S, SIZES, lines, **most)
    queries, keys = -(-T // SIZES.rows), -(-S // SIZES.columns)
    step = SIZES.rows // SIZES.columns
    count = {"t": queries, "ts": queries * keys, "r": (queries - 1) * step + keys}[lines]
    found = []
    for b in range(read.batch):
        for line in range(count):
            refs: Any = [np.asarray(x) for x in arrays]
            visits: Any = read.visits(refs, b, 0, line)  # of numbers, in the place of references and what is traced
            for n in range(int(visits.total)):
                tile = int(visits.tile(n))
                where = {
                    "t": (line, tile),
                    "ts": divmod(line, keys),
                    "r": (tile, line + (tile - queries + 1) * step),
                }[lines]
                found.append((b, *where, n < int(visits.full)))
    return found


@pytest.mark.parametrize("lines", ["ts", "r"])
@pytest.mark.parametrize("name", MASKS)
def test_every_tile_is_visited_once(name, lines):
    wanted, found = _visited(MASKS[name], "t"), _visited(MASKS[name], lines)
    assert sorted(found) == sorted(wanted)
    assert len({x[:3] for x in found}) == len(found)


def test_lists_of_diagonals_are_those_of_runs():
    """Where lists would be long runs are read, which may visit more tiles but miss none."""
    wanted = {x[:3] for x in _visited(MASKS["causal"], "r")}
    assert wanted <= {x[:3] for x in _visited(MASKS["causal"], "r", most=0)}


def test_the_gradient_of_a_look_up_is_added_up_by_column():
    import jax

    from jattn.backends.pallas_gpu.terms import _columns

    random = np.random.default_rng(0)
    table, at = jnp.asarray(random.standard_normal((2, 5)), jnp.float32), jnp.asarray(random.integers(0, 5, 40))
    weight = jnp.asarray(random.standard_normal((2, 40)), jnp.float32)
    loss = lambda look_up: lambda table: jnp.sum(look_up(table, at) * weight)
    got, wanted = (jax.grad(loss(x))(table) for x in (_columns, lambda table, at: table[:, at]))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
