"""Caches of all kinds through what a serving loop does: the numbers of each example alone, and pages that come and go."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import masks, mods
from jattn.nn import Decoder, Latent, MultiHeadAttention, cache
from tests.layers import LOOSE, normal, randomised
from tests.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("quick")

B, N, F, PAGE = 3, 14, 16, 4
X = normal((B, N, F))
LAYERS: dict[str, dict[str, Any]] = {
    "plain": {"rotary_base": 1e4, "kv_heads": 2},
    "terms": {"mods": mods.alibi(np.array([0.5, 0.25, 0.1, 0.0])), "sinks": True},
    "latent": {"latent": Latent(6, 4), "rotary_base": 1e4},
}
KINDS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "paged": {"page": PAGE},
    "quantised": {"dtype": "int8"},
    "both": {"dtype": "int8", "page": PAGE},
}


def make(name="plain", mask=masks.causal(), **options):  # noqa: B008
    return randomised(MultiHeadAttention(F, 4, mask=mask, rngs=nnx.Rngs(0), **{**LAYERS[name], **options}))


def near(kind):
    """How far numbers of that kind may be from those of the whole sequence at once."""
    return 0.05 if "dtype" in KINDS.get(kind, {}) else LOOSE


def held(paged):
    """Holders are who holds a page, and all of them."""
    for pages, holders in zip(
        np.asarray(paged.pages).reshape(-1, *paged.pages.shape[-2:]), np.asarray(paged.holders).reshape(-1, paged.holders.shape[-1]), strict=True
    ):  # fmt: skip
        counts = np.bincount(pages.ravel(), minlength=holders.size + 1)
        np.testing.assert_array_equal(counts[: holders.size], holders)
    return int((np.asarray(paged.holders) > 0).sum())


@pytest.mark.parametrize(
    ("name", "kind"),
    [*(("plain", kind) for kind in KINDS), ("terms", "paged"), ("latent", "paged"), ("latent", "both")],
)
def test_a_ragged_batch_is_each_example_alone(name, kind):
    """A prompt beside tokens of others, in chunks, donated, under jit."""
    layer, step = make(name), jax.jit(lambda x, c, n: layer.decode(x, c, lengths=n), donate_argnums=1)
    state, done, outs = layer.cache(N, B, **KINDS[kind]), np.zeros(B, int), [[] for _ in range(B)]
    for counts in ((5, 1, 0), (1, 5, 3), (4, 1, 5), (4, 5, 5)):
        x = jnp.stack(
            [
                jnp.pad(X[n, done[n] : done[n] + c], ((0, 5 - c), (0, 0)), constant_values=7)
                for n, c in enumerate(counts)
            ]
        )
        out, state = step(x, state, jnp.array(counts))
        assert jnp.isfinite(out).all()
        for n, c in enumerate(counts):
            outs[n].append(out[n, :c])
        done += counts
    want = layer(X)
    for n in range(B):
        assert_close(jnp.concatenate(outs[n]), want[n, : done[n]], near(kind))
    assert state.length.tolist() == done.tolist()
    if state.pages is not None:
        assert held(state) == sum(-(-n // PAGE) for n in done)


@pytest.mark.parametrize("kind", KINDS)
def test_fork_diverge_free_and_use_again(kind):
    layer = make()
    step = jax.jit(lambda x, c, n: layer.decode(x, c, lengths=n))
    fork, free = jax.jit(cache.fork), jax.jit(cache.free)
    lone = lambda *parts: layer(jnp.concatenate(parts)[None])[0]
    prompt, tails = X[0, :6], X[:, 6:10]
    _, state = step(jnp.stack([prompt] * B), layer.cache(N, B, **KINDS[kind]), jnp.array([6, 0, 0]))
    state = fork(state, jnp.array([0, 0, 9]), jnp.array([1, 2, 9]))  # the last is out of range
    assert state.length.tolist() == [6] * 3
    if state.pages is not None:
        assert held(state) == 2
        assert state.holders.max() == 3
    out, state = step(tails, state, jnp.array([4, 4, 4]))
    for n in range(B):
        assert_close(out[n], lone(prompt, tails[n])[6:], near(kind))
    if state.pages is not None:
        assert held(state) == 1 + 3 * 2  # the full page is shared, the other two of each are its own
    state = free(state, jnp.where(jnp.array([True, False, True]), jnp.arange(B), B))
    assert state.length.tolist() == [0, 10, 0]
    out, state = step(X[:, :4], state, jnp.array([4, 0, 2]))
    assert_close(out[0], lone(X[0, :4]), near(kind))
    state = fork(state, [1, 0], [0, 1])  # they change places
    assert state.length.tolist() == [10, 4, 2]
    out, state = step(X[:, 10:12], state, jnp.array([2, 2, 0]))
    assert_close(out[0], lone(prompt, tails[1], X[0, 10:12])[10:], near(kind))
    assert_close(out[1], lone(X[0, :4], X[1, 10:12])[4:], near(kind))
    if state.pages is not None:
        held(state)


@pytest.mark.parametrize("kind", ["contiguous", "both"])
def test_one_example_is_taken_and_put_back(kind):
    layer = make()
    _, state = layer.decode(X[:, :5], layer.cache(N, B, **KINDS[kind]))
    state = cache.free(state, 1)
    _, one = layer.decode(X[:1, :6], cache.take(state, [1]))
    state = cache.put(state, [1], one)
    assert state.length.tolist() == [5, 6, 5]
    out, state = layer.decode(jnp.stack([X[0, 5:7], X[0, 6:8], X[2, 5:7]]), cache.shorten(state, 6))
    want = layer(X)
    for got, wanted in zip(out, (want[0, 5:7], want[0, 6:8], want[2, 5:7]), strict=True):
        assert_close(got, wanted, near(kind))
    if state.pages is not None:
        held(state)


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


@pytest.mark.parametrize("kind", ["paged"])
def test_a_stack_with_windows_in_turn_is_scanned(kind):
    pattern = ({"mask": masks.causal() & masks.window(2)}, {})
    stack = randomised(Decoder(F, 2, 3, pattern=pattern, rotary_base=1e4, rngs=nnx.Rngs(0)))
    state = stack.cache(N, B, slack=3, **KINDS[kind])
    assert [c.past.room for c in (*state.blocks, *state.rest)] == [5, 16, 5]

    @nnx.jit
    def run(stack, x, state):
        _, state = stack.decode(x[:, :4], state, lengths=jnp.array([4, 2, 0]))
        state = cache.fork(state, 0, 2)
        graph, parts = nnx.split(stack)
        step = lambda state, token: nnx.merge(graph, parts).decode(token[:, None], state)[::-1]
        state, out = jax.lax.scan(step, state, jnp.swapaxes(x[:, 4:9], 0, 1))
        return out[:, :, 0].swapaxes(0, 1), state

    out, state = run(stack, X, state)
    assert_close(out[0], stack(X)[0, 4:9], 4 * near(kind))
    assert_close(out[1], stack(jnp.concatenate([X[1, :2], X[1, 4:9]])[None])[0, 2:], 4 * near(kind))
    assert_close(out[2], stack(jnp.concatenate([X[0, :4], X[2, 4:9]])[None])[0, 4:], 4 * near(kind))
    held(state.blocks[1].past)


@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_batch_axes_each_have_a_pool(lead):
    layer, x = make(), normal((*lead, N, F))
    out, state = layer.decode(x[..., :5, :], layer.cache(N, lead, page=PAGE))
    rest, state = jax.jit(layer.decode)(x[..., 5:, :], state)
    assert_close(jnp.concatenate([out, rest], -2), layer(x), LOOSE)
    assert state.key.shape[:-4] == lead[:-1]
    over = jax.vmap(layer.decode)(normal((2, 3, F)), jax.vmap(lambda _: layer.cache(N, page=PAGE))(jnp.arange(2)))[0]
    assert_close(over, layer(normal((2, 3, F))), LOOSE)


def test_no_page_is_left():
    layer = make()
    _, state = layer.decode(X[:, :4], layer.cache(N, B, page=PAGE, pages=4))
    with pytest.raises(ValueError, match=r"1 free pages of 4, and 1 more positions need 3: free examples"):
        layer.decode(X[:, 4:5], state)
    step = jax.jit(layer.decode)
    out, late = step(X[:, 4:5], state)
    assert jnp.isfinite(out[0]).all()
    assert jnp.isnan(out[1:]).all()
    late = cache.free(late, 0)
    out, late = step(X[:, 5:6], late)  # what was dropped does not come back, whatever is free by now
    assert jnp.isnan(out[1:]).all()
    out, late = step(X[:, :1], cache.free(late, [1, 2]))
    assert_close(out[1:], layer(X[1:, :1]), LOOSE)
    with pytest.raises(ValueError, match="room for n = 16 positions and holds 0: 17 more"):
        layer.decode(normal((B, 17, F)), layer.cache(N, B, page=PAGE))
    shared = cache.fork(layer.decode(X[:1, :6], layer.cache(N, 1, page=PAGE, pages=2))[1], 0, 0)
    assert_close(layer.decode(X[:1, 6:8], shared)[0], layer(X[:1])[:, 6:8], LOOSE)


def test_nothing_of_free_pages_reaches_anything():
    layer = make()
    state = layer.cache(N, B, page=PAGE)
    state = state._replace(key=jnp.full_like(state.key, jnp.nan), value=jnp.full_like(state.value, jnp.nan))
    out, _ = layer.decode(X[:, :6], state)
    assert_close(out, layer(X)[:, :6], LOOSE)


def test_errors():
    layer = make()
    for given, words in (
        ({"page": 0}, "page must be at least 1"),
        ({"pages": 3}, "without page"),
        ({"page": 4, "pages": 0}, "pages"),
    ):
        with pytest.raises(ValueError, match=words):
            layer.cache(N, B, **given)
    state = layer.cache(N, B, page=PAGE)
    with pytest.raises(ValueError, match=r"key and value \[.., p, page, 2, 4\] .* got key \[12, 4, 2, 4\]"):
        layer.decode(X[:2], state)
    with pytest.raises(ValueError, match="source and target must be as many, got 2 and 1"):
        cache.fork(state, [0, 1], 2)
    with pytest.raises(TypeError, match="examples must be an int or integers"):
        cache.free(state, 1.0)
    with pytest.raises(ValueError, match="no batch axis"):
        cache.free(layer.cache(N, page=PAGE), 0)
    with pytest.raises(ValueError, match=r"examples must be from 0 to 2, got 3"):
        cache.take(state, 3)
    with pytest.raises(ValueError, match=r"part must have the batch axes \[2\], as examples say, got \[1\]"):
        cache.put(state, [0, 1], cache.take(state, 1))
    with pytest.raises(ValueError, match="parents must be -1 or an earlier draft"):
        layer.decode(X[:, :2], state, parents=[0, -1])
    with pytest.raises(ValueError, match=r"parents must be \[t\] = \[2\]"):
        layer.decode(X[:, :2], state, parents=[-1])
    others: list[dict[str, Any]] = [{"name": "terms"}, {"mask": masks.window(3, 1)}]
    for options in others:
        with pytest.raises(ValueError, match="parents need a layer whose mask is masks.causal"):
            (sliding := make(**options)).decode(X[:, :2], sliding.cache(N, B), parents=[-1, -1])


@pytest.mark.parametrize("kind", ["contiguous", "paged"])
@pytest.mark.parametrize(
    ("error", "length", "words"),
    [
        (ValueError, -4, "length must be 0 or more, got -4"),
        (ValueError, [2, -1, 3], r"length must be 0 or more, got \[2, -1, 3\]"),
        (TypeError, 2.7, r"length must be an int or integers \[\.\.\], got float64\[\]"),
        (TypeError, True, r"length must be an int or integers \[\.\.\], got bool\[\]"),
        (ValueError, [1, 2], r"length must be one int or integers with the batch axes \[3\] of the cache, got \[2\]"),
        (ValueError, [[1, 2, 3]], r"integers with the batch axes \[3\] of the cache, got \[1, 3\]"),
    ],
)
def test_what_no_cache_can_be_shortened_to(kind, error, length, words):
    state = make().cache(N, B, **KINDS[kind])
    with pytest.raises(error, match=words):
        cache.shorten(state, length)
    with pytest.raises(error, match=words):
        jax.jit(lambda state: cache.shorten(state, length))(state)  # known, though the cache is not


def test_a_stack_is_shortened_as_one():
    stack = randomised(Decoder(F, 2, 2, rngs=nnx.Rngs(0)))
    _, state = stack.decode(X[:, :4], stack.cache(N, B))
    assert cache.shorten(state, jnp.array([1, 9, 3])).blocks[0].past.length.tolist() == [[1, 4, 3]] * 2
    with pytest.raises(ValueError, match=r"batch axes \[2, 3\] of the cache, got \[2\]"):
        cache.shorten(state, [1, 2])


@pytest.mark.parametrize(
    ("error", "drafts", "path", "count", "words"),
    [
        (TypeError, 2.0, [0], None, "drafts must be an int, got 2.0"),
        (ValueError, 0, [0], None, "drafts must be at least 1, got 0"),
        (TypeError, 2, [0.0], None, r"path must be integers \[\.\., k\], got float32\[1\]"),
        (ValueError, 2, [[0], [1]], None, r"path must be \[k\] or \[3, 1\], one of each example, got \[2, 1\]"),
        (TypeError, 2, [0], 1.0, "count must be an int or integers"),
        (ValueError, 2, [0], 2, "count must be from 0 to 1, got 2"),
        (ValueError, 2, [0], [1, 1], r"count must be one int or integers with the batch axes \[3\]"),
    ],
)
def test_what_no_cache_can_accept(error, drafts, path, count, words):
    _, state = make().decode(X[:, :4], make().cache(N, B))
    with pytest.raises(error, match=words):
        cache.accept(state, drafts, jnp.array(path), count if count is None else jnp.array(count))
