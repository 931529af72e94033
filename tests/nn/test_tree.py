"""Drafts that are a tree: each is what its own path gives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import gates, masks, mods
from jattn.nn import cache
from jattn.nn._tree import tree, without_rows
from tests.layers import LOOSE, normal
from tests.nn.cache.serving import KINDS, B, F, X, held, make, near
from tests.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize(
    ("name", "kind", "left"),
    [("plain", "contiguous", None), ("plain", "both", None), ("latent", "paged", None)]
    + [("plain", kind, left) for kind in ("contiguous", "both", "slack") for left in (1, 3)],
)
def test_a_tree_of_drafts(name, kind, left):
    """Each draft is what its own path gives, and the path that is kept goes on as if it had been alone."""
    layer, t = make(name) if left is None else make(name, mask=masks.causal() & masks.window(left)), 7
    parents = np.array([-1, 0, 0, 2, 1, 3, -1])
    sees, depth = np.eye(t, dtype=bool), np.zeros(t, int)
    for row, parent in enumerate(parents):
        if parent >= 0:
            sees[row], depth[row] = sees[row] | sees[parent], depth[parent] + 1
    drafts, prompt = normal((B, t, F), 5), X[:, :5]
    _, state = layer.decode(prompt, layer.cache(30, B, **KINDS.get(kind, {"slack": t})))
    out, state = jax.jit(layer.decode)(drafts, state, parents=parents)
    mask = np.block([[np.ones((5, 5), bool), np.zeros((5, t), bool)], [np.ones((t, 5), bool), sees]])
    places = np.concatenate([np.arange(5), 5 + depth])
    mask &= places[:, None] - places <= (np.inf if left is None else left)
    open_layer = make(name)  # of the same parameters: the mask here says what a window does
    whole = open_layer(jnp.concatenate([prompt, drafts], 1), mask=mask, positions=places)
    assert_close(out, whole[:, 5:], near(kind))
    paths, counts = [[0, 2, 3], [0, 1, 0], [6, 0, 0]], [3, 2, 1]
    state = jax.jit(cache.accept, static_argnums=1)(state, t, jnp.array(paths), jnp.array(counts))
    assert state.length.tolist() == [8, 7, 6]
    last, state = layer.decode(X[:, 5:6], state)
    rows = [
        jnp.concatenate([prompt[n], drafts[n, jnp.array(p[:c])], jnp.tile(X[n, 5:6], (4 - c, 1))])
        for n, (p, c) in enumerate(zip(paths, counts, strict=True))
    ]
    want = layer(jnp.stack(rows))
    assert_close(last[:, 0], jnp.stack([want[n, 5 + c] for n, c in enumerate(counts)]), near(kind))
    if state.pages is not None:
        held(state)


def test_many_drafts_and_parents_of_each_example():
    layer = make()
    parents = np.stack([np.arange(-1, 39), np.maximum(-1, np.arange(-1, 39) // 2)])  # a chain, and a tree of two
    drafts = normal((2, 40, F), 3)
    _, state = layer.decode(X[:2, :3], layer.cache(50, 2))
    out, _ = layer.decode(drafts, state, parents=jnp.asarray(parents))
    assert_close(out[0], layer(jnp.concatenate([X[0, :3], drafts[0]])[None])[0, 3:], LOOSE)
    path = [39]
    while parents[1, path[0]] >= 0:
        path.insert(0, parents[1, path[0]])
    assert_close(out[1, 39], layer(jnp.concatenate([X[1, :3], drafts[1, jnp.array(path)]])[None])[0, -1], LOOSE)


def _ancestors(parents):
    """Which drafts each sees, by following its parents."""
    sees = np.eye(len(parents), dtype=bool)
    for row, parent in enumerate(parents):
        while parent >= 0:
            sees[row, parent] = True
            parent = parents[parent]
    return sees


TREES = {
    "one": [-1],
    "siblings": [-1] * 5,
    "chain": list(range(-1, 69)),
    "binary": [(n - 1) // 2 if n else -1 for n in range(40)],
    "two roots": [-1, -1, 0, 1, 2, 3, 2],
}


@pytest.mark.parametrize("left", [None, 0, 1, 4])
@pytest.mark.parametrize("name", TREES)
def test_a_draft_sees_its_ancestors_and_what_came_before(name, left):
    parents, start = TREES[name], 3
    made, sees = tree(parents, (), len(parents)), _ancestors(parents)
    np.testing.assert_array_equal(made.depth, sees.sum(-1) - 1)
    t, s = len(parents), start + len(parents)
    q, k = jnp.zeros((1, t, 1, 2)), jnp.zeros((1, s, 1, 2))
    got = np.asarray(jattn.weights(q, k, k, mask=made.mask(jnp.array([start]), left), positions=start))[0, 0] > 0
    places = np.concatenate([np.arange(start), start + sees.sum(-1) - 1])
    near = places[start:, None] - places <= (np.inf if left is None else left)
    np.testing.assert_array_equal(got, np.concatenate([np.ones((t, start), bool), sees], -1) & near)


@pytest.mark.parametrize("name", ["binary", "two roots"])
def test_parents_may_be_known_at_run_time_alone(name):
    parents = jnp.array(TREES[name])
    known, late = tree(TREES[name], (2,), len(parents)), jax.jit(lambda x: tree(x, (2,), len(parents)))(parents)
    jax.tree.map(np.testing.assert_array_equal, late, known)
    assert known.depth.shape == (2, len(parents))


@pytest.mark.parametrize(
    ("parents", "error", "words"),
    [
        ([0.0, 1.0], TypeError, r"parents must be integers \[t\] or \[\.\., t\], got float"),
        ([-1], ValueError, r"parents must be \[t\] = \[2\] or \[3, 2\], one for each draft, got \[1\]"),
        ([0, -1], ValueError, "put each draft after its parent"),
        ([-1, 1], ValueError, "put each draft after its parent"),
        ([-2, 0], ValueError, "parents must be -1 or an earlier draft"),
    ],
)
def test_what_is_no_tree_is_named(parents, error, words):
    with pytest.raises(error, match=words):
        tree(parents, (3,), 2)


def test_only_terms_that_are_the_same_everywhere_go_with_a_tree():
    assert without_rows({}) == {"mask": None}
    cap = mods.softcap(3.0)
    for mask in (masks.causal(), masks.window(3), masks.window(5) & masks.causal()):
        assert without_rows({"mask": mask, "mods": cap}) == {"mask": None, "mods": cap}
    for options in (
        {"mask": masks.window(3, 1)},
        {"mask": masks.causal(1)},
        {"mask": masks.causal() | masks.prefix(2)},
        {"mask": masks.causal() & masks.dilated(2)},
        {"mods": (mods.softcap(3.0), mods.alibi(np.ones(2)))},
        {"gates": gates.dropout(0.1, 0)},
        {"bias": np.ones((1, 1))},
    ):
        with pytest.raises(ValueError, match=r"parents need a layer whose mask is masks.causal\(\)"):
            without_rows(options)
