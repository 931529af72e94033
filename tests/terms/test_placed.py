"""Terms of queries and keys in any order: what they give is what they give where all stand in a row, in that order."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import gates, masks, mods, normalizers
from jattn._terms import Origin, block_tables
from jattn._terms.placed import PlacedGate, PlacedMask, PlacedMod, placed
from tests.layers import TIGHT, normal
from tests.tolerances import assert_close

B, N, H, D = 2, 9, 2, 4
ORDER = np.stack([np.random.default_rng(n).permutation(N) for n in range(B)]).astype(np.int32)


class Far(masks.Mask):
    """A class of a user's own, which answers for blocks."""

    def __call__(self, i, j):
        return j <= i - 2

    def blocks(self, i, j):
        return masks.Answer(j.lo <= i.hi - 2, j.hi <= i.lo - 2)


class Nearer(mods.Mod):
    def __init__(self, slope):
        self.slope = slope

    def __call__(self, score, i, j):
        return score - self.slope * jnp.abs(i - j)


ROW = np.random.default_rng(3).standard_normal(N)
LAYOUT = np.random.default_rng(4).random((H, 3, 3)) < 0.6
MASKS: dict[str, masks.Mask] = {
    "window": masks.window(3, 1) | masks.prefix(2),
    "dilated": masks.causal() & ~masks.dilated(3),
    "function": masks.function(lambda i, j: (i + 2 * j) % 3 > 0),
    "function-of-heads": masks.function(lambda b, h, i, j: (i + (1 + h) * j + b) % 3 > 0),
    "table": masks.function(lambda i, j: jnp.asarray(ROW > 0)[i] | (jnp.asarray(ROW < 1)[j])),
    "blocks": masks.causal() & masks.blocks(LAYOUT[0] | np.eye(3, dtype=bool), 3),
    "blocks-of-heads": masks.blocks(LAYOUT, 3) | masks.causal(-3),
    "own": Far(),
}
TERMS: dict[str, dict[str, Any]] = {name: {"mask": x} for name, x in MASKS.items()} | {
    "alibi": {"mods": mods.alibi(np.array([0.5, 0.1]))},
    "relative": {"mods": mods.relative(normal((H, 8), 1), mods.t5_bucket(True, 8, 9))},
    "relative-of-an-array": {"mods": mods.relative(normal((H, N), 1), (lambda n: lambda r: jnp.abs(r) * n)(jnp.int32(1)))},
    "mod": {"mods": mods.function(lambda s, i, j: s + jnp.asarray(ROW)[i] * (i - j))},
    "hides": {"mods": (mods.function(lambda s, i, j: jnp.where(j > i, -jnp.inf, s)), mods.softcap(2.0))},
    "own-mod": {"mods": Nearer(np.float32(0.3))},
    "gate": {"gates": gates.function(lambda w, i, j: w / (1 + jnp.abs(i - j)))},
    "dropout": {"gates": gates.dropout(0.4, 3)},
    "gumbel": {"normalizer": normalizers.gumbel(jax.random.key(2))},
    "sigmoid": {"normalizer": normalizers.sigmoid(), "mods": mods.alibi(np.array([0.5, 0.1]))},
}  # fmt: skip


def _in_order(x, order=ORDER):
    return jnp.take_along_axis(x, order[:, :, None, None], 1)


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
@pytest.mark.parametrize("name", TERMS)
def test_the_order_of_queries_and_keys_does_not_matter(name, implementation, x64):
    del x64
    terms = TERMS[name]
    q, k, v = (normal((B, N, H, D), n) for n in range(3))
    of_keys = ORDER[:, ::-1]
    there = placed(terms, jnp.asarray(ORDER), jnp.asarray(of_keys))
    got = jattn.attention(
        _in_order(q), _in_order(k, of_keys), _in_order(v, of_keys), **there,
        implementation=implementation, blocks=(2, 4) if implementation == "blockwise" else None,
    )  # fmt: skip
    assert_close(got, _in_order(jattn.attention(q, k, v, **terms, implementation="reference")), TIGHT)


@pytest.mark.parametrize("of", ["query", "key"])
@pytest.mark.parametrize("axes", ["t", "bt"])
def test_contents_are_of_the_rows_of_the_call(axes, of, x64):
    del x64
    q, k, v = (normal((B, N, H, D), n) for n in range(3))
    content = normal((B, N, H, 3) if axes == "bt" else (N, H, 3), 4)
    table = normal((H, 7, 3) if axes == "bt" else (7, 3), 5)
    order = ORDER if axes == "bt" else ORDER[:1].repeat(B, 0)
    turned = _in_order(content, order) if axes == "bt" else content[order[0]]
    there = placed(mods.relative_content(turned, table, of=of), *(jnp.asarray(order),) * 2)
    got = jattn.attention(*(_in_order(x, order) for x in (q, k, v)), mods=there)
    want = jattn.attention(q, k, v, mods=mods.relative_content(content, table, of=of))
    assert_close(got, _in_order(want, order), TIGHT)


@pytest.mark.parametrize("name", MASKS)
def test_blocks_are_judged_by_where_their_rows_stand(name):
    mask = placed(MASKS[name].bound(*Origin().indices(B, H)), jnp.asarray(ORDER), jnp.asarray(ORDER))
    x = jnp.ones((B, N, H, D))
    pairs = np.asarray(jattn.weights(x, x, x, mask=mask)) > 0
    tiling = block_tables.Tiling(N, 3)
    answer = block_tables.answers(mask, tiling, tiling)
    some, every = (np.broadcast_to(x, (B, H, 3, 3)) for x in answer)
    pairs = pairs.reshape(B, H, 3, 3, 3, 3)
    assert (some | ~pairs.any((3, 5))).all()
    assert (pairs.all((3, 5)) | ~every).all()


def test_empty_blocks_are_seen():
    near = placed(masks.window(1), jnp.arange(N)[None, ::-1], jnp.arange(N)[None, ::-1])
    tiling = block_tables.Tiling(N, 3)
    some = block_tables.answers(near, tiling, tiling).some
    np.testing.assert_array_equal(some[0, 0], [[1, 1, 0], [0, 1, 1], [0, 0, 1]])


def test_what_is_asked_of_a_term_is_the_wrapped_ones():
    i = j = jnp.zeros((1, 1), jnp.int32)
    own: dict[str, Any] = {"mask": masks.causal(), "mods": (mods.alibi(np.ones(1)), mods.function(lambda s, i, j: s)), "gates": gates.dropout(0.1, 0)}  # fmt: skip
    there = placed({**own, "precision": None, "blocks": (2, 2), "mods": (*own["mods"], mods.softcap(3.0))}, i, j)
    assert isinstance(there["mask"], PlacedMask)
    assert isinstance(there["gates"], PlacedGate)
    assert there["gates"].finite
    one, two, cap = there["mods"]
    assert isinstance(one, PlacedMod)
    assert (one.hides, one.finite, two.hides, two.finite) == (False, True, True, False)
    assert cap == mods.softcap(3.0)  # what is the same everywhere stays what backends know
    assert (there["precision"], there["blocks"]) == (None, (2, 2))
