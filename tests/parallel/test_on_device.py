"""What each of two devices computes inside `jax.shard_map`, by every strategy: its own part of what one computes."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import jattn
from jattn import masks, mods, normalizers, parallel
from jattn.parallel._on_device import on_device
from jattn.parallel._sharded_call import MeshAxes
from tests.parallel.calls import K, Q, V, call, mesh
from tests.problems import problem
from tests.tolerances import TOLERANCES, assert_close

AXES = MeshAxes(None, None, "sequence", (("sequence", 2),))
ROWS = PartitionSpec(None, "sequence")
IDS = np.array([[0, 0, 0, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 2]], np.int32)
TABLE = np.random.default_rng(3).standard_normal((2, 8)).astype(np.float32)
"""Of heads and positions."""


@pytest.mark.parametrize("zigzag", [False, True], ids=["contiguous", "zigzag"])
@pytest.mark.parametrize("strategy", ["ring", "all_to_all", "gather"])
def test_a_device_gets_its_own_part_of_what_one_computes(strategy, zigzag):
    """With a mask and a mod that see positions, and with operands of heads, of queries and of keys."""
    order = (lambda x, axis: parallel.zigzag(x, 2, axis)) if zigzag else (lambda x, axis: x)

    def of(ids, table):
        mask = masks.causal() & masks.segments(ids, ids)
        return {"mask": mask, "mods": (mods.alibi(TABLE[:, 0]), mods.bias(table, "hs"), mods.bias(table, "ht"))}

    def own(q, k, v, ids, table):
        made = problem((q, k, v), {**of(ids, table), "shares": 2})
        return on_device(made, call(strategy, AXES, zigzag))

    given = [order(x, 1) for x in (Q, K, V, IDS, TABLE)]
    over = jax.shard_map(own, mesh=mesh(2), in_specs=(ROWS,) * 5, out_specs=ROWS)
    got = jax.jit(over)(*given)
    wanted = jattn.attention(Q, K, V, **of(IDS, TABLE), return_lse=True)
    for x, y in zip(got, wanted, strict=True):
        assert_close(x, order(y, 1), TOLERANCES["float32"].value)


def test_out_is_alone_where_lse_is_not_asked_for():
    own = lambda q, k, v: on_device(problem((q, k, v), {}), call("gather", AXES, lse=False))
    over = jax.shard_map(own, mesh=mesh(2), in_specs=(ROWS,) * 3, out_specs=ROWS)
    assert_close(jax.jit(over)(Q, K, V), jattn.attention(Q, K, V), TOLERANCES["float32"].value)


def test_whole_rows_are_gathered():
    """A normaliser that sees whole rows, by a backend that computes all pairs at once."""
    sparse: dict[str, Any] = {"normalizer": normalizers.sparsemax()}
    own = lambda q, k, v: on_device(problem((q, k, v), sparse), call("gather", AXES, False, "reference", False))
    over = jax.shard_map(own, mesh=mesh(2), in_specs=(ROWS,) * 3, out_specs=ROWS)
    wanted = jattn.attention(Q, K, V, **sparse)
    assert_close(jax.jit(over)(Q, K, V), wanted, TOLERANCES["float32"].value)


def test_a_ring_of_a_backend_without_tiles_is_refused():
    own = lambda q, k, v: on_device(problem((q, k, v), {}), call("ring", AXES, implementation="reference", lse=False))
    over = jax.shard_map(own, mesh=mesh(2), in_specs=(ROWS,) * 3, out_specs=ROWS)
    with pytest.raises(
        jattn.UnsupportedError, match="'reference' computes all pairs at once: .* strategy='gather' takes"
    ):
        jax.eval_shape(over, Q, K, V)
