"""Drafts that are a tree: each is what its own path gives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jattn
from jattn import gates, masks, mods, nn, normalizers, operand
from jattn.nn import cache, frozen
from jattn.nn._tree import tree
from tests.layers import LOOSE, TIGHT, normal
from tests.nn.cache.serving import KINDS, B, F, X, held, make, near
from tests.tolerances import assert_close


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
    parents, start = TREES[name], jnp.array([3])
    made, sees = tree(parents, (), len(parents)), _ancestors(parents)
    np.testing.assert_array_equal(made.depth, sees.sum(-1) - 1)
    t, s = len(parents), 3 + len(parents)
    q, k = jnp.zeros((1, t, 1, 2)), jnp.zeros((1, s, 1, 2))
    places = np.concatenate([np.arange(3), 3 + sees.sum(-1) - 1])
    keys = made.keys(start, jnp.arange(s)[None])
    np.testing.assert_array_equal(keys[0], places)
    mask = masks.causal() if left is None else masks.window(left)
    options = made.options({"mask": mask}, start, jnp.asarray(places[None, 3:]), keys)
    got = np.asarray(jattn.weights(q, k, k, **options, positions=start))[0, 0] > 0
    near = places[3:, None] - places <= (np.inf if left is None else left)
    np.testing.assert_array_equal(got, np.concatenate([np.ones((t, 3), bool), sees], -1) & near)


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


def test_masks_that_hide_nothing_more_than_a_tree_does_are_left_out():
    made, start = tree([-1, 0], (), 2), jnp.array([0])
    places = jnp.arange(2)[None]
    tree_alone = made.options({}, start, places, places)["mask"]
    for mask in (masks.causal(), masks.causal(3), masks.window(None, 1)):
        options = made.options({"mask": mask, "mods": mods.softcap(3.0)}, start, places, places)
        assert jax.tree.structure(options["mask"]) == jax.tree.structure(tree_alone)
        assert options["mods"] == (mods.softcap(3.0),)
    assert jax.tree.structure(made.options({"mask": masks.causal(-1)}, start, places, places)["mask"]) != (
        jax.tree.structure(tree_alone)
    )


# Terms that look at positions, of layers whose arrays are made for ROOM positions

ROOM, T = 20, 7
PARENTS = np.array([[-1, 0, 0, 2, 1, 3, -1], [-1, -1, 1, 0, 2, 3, 5], [-1, 0, 1, 2, 3, 4, 5]])  # the last is a chain
ROWS = np.random.default_rng(0).standard_normal((2, ROOM))
causal = masks.causal()


class Tilt(mods.Mod):
    """A class of a user's own, with an array that learns."""

    def __init__(self, slope):
        self.slope = slope

    def __call__(self, score, i, j):
        return score - self.slope * (i - j)


def _looked_up(s, i, j):
    return s + jnp.asarray(ROWS[0])[i] * jnp.asarray(ROWS[1])[j]


SLOPES = mods.alibi(np.array([0.5, 0.25, 0.1, 0.0]))
TERMS: dict[str, dict[str, Any]] = {
    "alibi": {"mods": SLOPES},
    "frozen alibi, soft cap": {"mods": (frozen(SLOPES), mods.softcap(2.0))},
    "relative": {"mods": mods.relative(normal((4, 8), 1), mods.t5_bucket(False, 8, 16))},
    "content of queries": {"mods": mods.relative_content(normal((ROOM, 4, 3), 2), normal((9, 3), 3))},
    "content of keys": {"mods": mods.relative_content(normal((ROOM, 4, 3), 2), normal((4, 9, 3), 3), of="key")},
    "mod": {"mods": mods.function(lambda s, i, j: s - 0.1 * (i - j) ** 2)},
    "mod of arrays": {"mods": mods.function(_looked_up)},
    "mod of operands": {
        "mods": mods.function(lambda s, i, j, a, b: s + a * b, operand(ROWS[0], "t"), operand(ROWS[1], "s"))
    },
    "own mod": {"mods": Tilt(np.float32(0.3))},
    "bias": {"mods": mods.bias(normal((ROOM, ROOM), 4), "ts")},
    "gate": {"gates": gates.function(lambda w, i, j: w / (1 + jnp.abs(i - j)))},
    "gaussian": {"gates": gates.gaussian(normal((B, ROOM), 5) + np.arange(ROOM), 2.0)},
    "dropout": {"gates": gates.dropout(0.3, 1)},
    "gumbel": {"normalizer": normalizers.gumbel(jax.random.key(1))},
    "sparsemax": {"normalizer": normalizers.sparsemax(), "mods": SLOPES},
    "mask": {"mask": causal & masks.function(lambda i, j: (i * j) % 3 != 1)},
    "dilated": {"mask": causal & masks.dilated(2)},
    "window": {"mask": masks.window(3), "mods": SLOPES},
    "window to both sides": {"mask": masks.window(3, 1)},
    "not the last": {"mask": masks.window(5, -1)},
    "around": {"mask": causal & masks.around(np.arange(ROOM) // 2, 2, 2)},
    "segments": {"mask": causal & masks.segments(np.stack([np.arange(ROOM) // n for n in (3, 4, 7)]))},
    "dense": {"mask": causal & masks.dense(np.eye(ROOM, dtype=bool) | (normal((ROOM, ROOM), 6) > -0.5))},
    "blocks": {"mask": causal & masks.blocks(np.eye(5, dtype=bool) | np.eye(5, k=-2, dtype=bool), 4)},
    "prefix": {"mask": causal | masks.prefix(np.array([2, 6, 9]))},
}


def by_paths(layer, drafts, state, parents):
    """`[b, t, features]`: each draft decoded after its own parent, where nothing beside its path was decoded."""
    step, states, out = jax.jit(layer.decode), [state], []
    for n in range(drafts.shape[1]):
        before = [states[1 + p] for p in parents[:, n]]
        if len({*parents[:, n]}) > 1:  # each example goes on from another: their arrays have an axis of examples
            before = [jax.tree.map(lambda *x: jnp.stack([y[b] for b, y in enumerate(x)]), *before)]
        one, after = step(drafts[:, n : n + 1], before[0])
        states.append(after)
        out.append(one)
    return jnp.concatenate(out, 1)


@pytest.mark.parametrize("name", TERMS)
def test_terms_see_where_the_path_of_a_draft_has_it(name):
    """In trees of each example's own, twice, at lengths that differ."""
    layer = make(**TERMS[name])
    _, state = layer.decode(X[:, :4], layer.cache(ROOM, B), lengths=jnp.array([4, 3, 2]))
    decode = jax.jit(layer.decode)
    for seed in (5, 6):
        drafts = normal((B, T, F), seed)
        out, grown = decode(drafts, state, parents=jnp.asarray(PARENTS))
        assert_close(out, by_paths(layer, drafts, state, PARENTS), LOOSE)
        path = jnp.array([[0, 2, 3], [1, 2, 4], [0, 1, 2]])
        state = cache.accept(grown, T, path, jnp.array([3, 1, 2]))
    assert state.length.tolist() == [10, 5, 6]
    chain, _ = layer.decode(drafts, state, parents=np.arange(-1, T - 1))
    assert_close(chain, by_paths(layer, drafts, state, np.stack([np.arange(-1, T - 1)])), LOOSE)


@pytest.mark.parametrize("name", ["latent", "terms"])
@pytest.mark.parametrize("kind", KINDS)
def test_terms_in_caches_of_each_kind(kind, name):
    layer = make(name, mods=SLOPES, gates=TERMS["gate"]["gates"], mask=TERMS["dilated"]["mask"])
    drafts = normal((B, T, F), 5)
    _, state = layer.decode(X[:, :5], layer.cache(ROOM, B, **KINDS[kind]))
    out, _ = jax.jit(layer.decode)(drafts, state, parents=PARENTS[0])
    # the same numbers of the cache, so that what rounding does to them does not matter
    assert_close(out, by_paths(layer, drafts, state, PARENTS[:1]), LOOSE)


@pytest.mark.parametrize("slack", [2, T])
def test_terms_in_a_cache_that_slides(slack):
    """A slack that drafts fit in, and one that they do not."""
    layer = make(mask=masks.window(3), mods=(SLOPES, TERMS["relative"]["mods"]), gates=TERMS["gate"]["gates"])
    drafts = normal((B, T, F), 5)
    state = layer.cache(100, B, slack=slack)
    for n in range(0, 12, 4):
        _, state = layer.decode(X[:, n : n + 4], state)
    out, _ = jax.jit(layer.decode)(drafts, state, parents=PARENTS)
    assert_close(out, by_paths(layer, drafts, state, PARENTS), LOOSE)


@pytest.mark.parametrize("implementation", ["reference", "pallas_tpu"])
@pytest.mark.parametrize("name", ["alibi", "relative", "window", "blocks", "segments", "gate", "content of keys"])
def test_terms_on_other_backends(name, implementation, monkeypatch):
    monkeypatch.setenv("JATTN_INTERPRET", "1")
    layer, same = (make(**TERMS[name], implementation=x) for x in (implementation, "blockwise"))
    drafts = normal((B, T, F), 5)
    _, state = same.decode(X[:, :5], same.cache(ROOM, B))
    out, want = (x.decode(drafts, state, parents=PARENTS)[0] for x in (layer, same))
    assert_close(out, want, LOOSE)


def test_terms_of_the_call():
    """They see positions as those of the layer do; their arrays have a row for each draft and each row of the cache."""
    terms = mods.function(_looked_up), mods.function(lambda s, i, j: s - 0.1 * (i - j) ** 2)
    layer, own = make(), make(mods=tuple(map(frozen, terms)), mask=TERMS["mask"]["mask"])
    drafts = normal((B, T, F), 5)
    _, state = layer.decode(X[:, :5], layer.cache(ROOM, B))
    out, _ = layer.decode(drafts, state, parents=PARENTS, mods=terms, mask=TERMS["mask"]["mask"])
    assert_close(out, own.decode(drafts, state, parents=PARENTS)[0], LOOSE)
    bias = normal((B, 1, T, ROOM), 7)
    out, _ = layer.decode(drafts, state, parents=PARENTS, bias=bias)
    for n, sees in enumerate(_ancestors(PARENTS[0])):
        (path,) = np.nonzero(sees)
        alone = jnp.concatenate([X[0, :5], drafts[0, path]])
        of_last = bias[0, :, n, np.concatenate([np.arange(5), 5 + path])].T
        assert_close(out[0, n], layer(alone, bias=of_last[:, None])[-1], LOOSE)


@pytest.mark.parametrize("batch", [(), (B, 2)])
def test_terms_of_any_number_of_batch_axes(batch):
    layer, drafts = (
        make(mods=(SLOPES, TERMS["relative"]["mods"]), mask=TERMS["dilated"]["mask"]),
        normal((*batch, T, F), 5),
    )
    _, state = layer.decode(normal((*batch, 5, F), 6), layer.cache(ROOM, batch))
    out, _ = layer.decode(drafts, state, parents=PARENTS[0])
    assert_close(out, by_paths_of(layer, drafts, state), LOOSE)
    if batch:
        parents = jnp.asarray(np.stack([PARENTS[:2]] * B))
        over, _ = jax.vmap(lambda x, cache, parents: layer.decode(x, cache, parents=parents))(drafts, state, parents)
        one, _ = layer.decode(drafts, state, parents=parents)
        assert_close(over, one, LOOSE)


def by_paths_of(layer, drafts, state):
    """`by_paths` where all examples have the first tree, of any number of batch axes."""
    step, states, out = jax.jit(layer.decode), [state], []
    for n in range(T):
        one, after = step(drafts[..., n : n + 1, :], states[1 + PARENTS[0, n]])
        states.append(after)
        out.append(one)
    return jnp.concatenate(out, -2)


@pytest.mark.parametrize("name", ["alibi", "relative", "mask", "gate", "content of queries"])
def test_terms_in_float64_and_under_strict_promotion(name, x64):
    del x64
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        layer = make(**TERMS[name], param_dtype=jnp.float64)
        drafts = normal((B, T, F), 5, jnp.float64)
        _, state = layer.decode(X[:, :5].astype(jnp.float64), layer.cache(ROOM, B))
        out, _ = layer.decode(drafts, state, parents=PARENTS)
        assert out.dtype == jnp.float64
        assert_close(out, by_paths(layer, drafts, state, PARENTS), TIGHT)


@pytest.mark.parametrize("shared", [False, True])
def test_a_stack_with_terms(shared):
    options: dict[str, Any] = {"positional": nn.Alibi(4)} if shared else TERMS["relative"]
    decoder = nn.Decoder(F, 4, 3, mask=causal, **options, rngs=nnx.Rngs(0))
    drafts = normal((B, T, F), 5)
    _, state = decoder.decode(X[:, :5], decoder.cache(ROOM, B))
    out, grown = decoder.decode(drafts, state, parents=PARENTS[0])
    assert_close(out, by_paths_of(decoder, drafts, state), LOOSE)
    kept = cache.accept(grown, T, jnp.array([0, 2, 3]))
    _, alone = decoder.decode(drafts[:, jnp.array([0, 2, 3])], state)
    assert_close(decoder.decode(X[:, :2], kept)[0], decoder.decode(X[:, :2], alone)[0], LOOSE)


def test_arrays_must_be_made_for_all_of_the_cache():
    layer = make(mods=mods.bias(ROWS[0], "s"))
    with pytest.raises(ValueError, match=r'an operand with axes "s" must have s = 8, got shape \[20\]'):
        layer.decode(X[:, :2], layer.cache(8, B), parents=[-1, -1])
