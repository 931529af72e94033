"""What a serving loop does with the examples in caches: they come, split, are cut short, and go."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jattn import masks
from jattn.nn import Decoder, cache
from tests.layers import randomised
from tests.nn.cache.serving import KINDS, PAGE, B, F, N, X, held, make, near
from tests.tolerances import assert_close


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
    ("name", "kind"),
    [*(("plain", kind) for kind in KINDS), ("latent", "contiguous"), ("latent", "paged"), ("latent", "both")],
)
@pytest.mark.parametrize("jit", [False, True])
def test_each_fork_accepts_drafts_of_its_own(name, kind, jit):
    """What one moves is not what the others have, though they shared the page that it is in."""
    layer = make(name)
    _, state = layer.decode(X[:, :5], layer.cache(N, B, **KINDS[kind]), lengths=jnp.array([5, 0, 0]))
    drafts = jnp.broadcast_to(X[0, 5:11], (B, 6, F))
    _, state = layer.decode(drafts, state, parents=[-1, -1, 0, 1, 2, 3], lengths=jnp.array([6, 0, 0]))
    paths, counts = np.array([[0, 2, 4], [1, 3, 5], [1, 3, 5]]), [2, 3, 0]
    state = cache.fork(state, [0, 0], [1, 2])
    accept = jax.jit(cache.accept, static_argnums=1) if jit else cache.accept
    state = accept(state, 6, jnp.array(paths), jnp.array(counts))
    assert state.length.tolist() == [7, 8, 5]
    if state.pages is not None:
        assert held(state) == 1 + 3  # the full page is shared, the second of each is its own
    out, state = layer.decode(X[:, 11:13], state)
    for n in range(B):
        alone = jnp.concatenate([X[0, :5], X[0, 5 + paths[n, : counts[n]]], X[n, 11:13]])
        assert_close(out[n], layer(alone[None])[0, -2:], near(kind))
    if state.pages is not None:
        held(state)


def test_a_stack_accepts_after_a_fork():
    pattern = ({"mask": masks.causal() & masks.window(2)}, {})
    stack = randomised(Decoder(F, 2, 3, pattern=pattern, rotary_base=1e4, rngs=nnx.Rngs(0)))
    _, state = stack.decode(X[:2, :5], stack.cache(N, 2, slack=6, page=4))
    _, state = stack.decode(X[:2, 5:7], state, parents=[-1, -1])
    state = cache.accept(cache.fork(state, 0, 1), 2, jnp.array([[0], [1]]))
    out, state = stack.decode(X[:2, 7:8], state)
    for n in range(2):
        alone = jnp.concatenate([X[0, :5], X[0, 5 + n : 6 + n], X[n, 7:8]])
        assert_close(out[n], stack(alone[None])[0, -1:], 4 * near("paged"))
    held(state.blocks[1].past)


def test_no_page_is_left_to_accept_in():
    """Who moves nothing writes nothing, and who has no page for what moves is told so, or has NaN."""
    layer = make()
    state = layer.cache(N, B, page=8, pages=1)
    _, state = layer.decode(X[:, :5], state, lengths=jnp.array([5, 0, 0]))
    _, state = layer.decode(X[:, 5:7], state, parents=[-1, -1], lengths=jnp.array([2, 0, 0]))
    state = cache.fork(state, [0, 0], [1, 2])
    assert held(cache.accept(state, 2, jnp.array([[0]]))) == 1
    path = jnp.array([[0], [1], [0]])
    with pytest.raises(ValueError, match="0 free pages of 1, and 1 more positions need 1"):
        cache.accept(state, 2, path)
    late = jax.jit(cache.accept, static_argnums=1)(state, 2, path)
    late = cache.free(late, 2)
    held(late)
    out, _ = jax.jit(lambda x, c, n: layer.decode(x, c, lengths=n))(X[:, 7:8], late, jnp.array([1, 1, 0]))
    alone = jnp.concatenate([X[0, :6], X[0, 7:8]])
    assert_close(out[0], layer(alone[None])[0, -1:], near("paged"))
    assert jnp.isnan(out[1]).all()


def test_drafts_that_had_no_page_are_nan_wherever_they_move():
    layer = make()
    _, state = layer.decode(X[:1, :5], layer.cache(N, 1, page=4, pages=2))
    _, state = jax.jit(lambda x, c: layer.decode(x, c, parents=[-1] * 4))(X[:1, 5:9], state)
    state = jax.jit(cache.accept, static_argnums=1)(state, 4, jnp.array([[3]]))
    assert state.length.tolist() == [6]
    assert jnp.isnan(layer.decode(X[:1, 9:10], state)[0]).all()


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
        (TypeError, 2, "ab", None, r"path must be integers \[\.\., k\], got 'ab'"),
        (TypeError, 2, [[0], [0, 1]], None, r"path must be integers \[\.\., k\], got \[\[0\], \[0, 1\]\]"),
        (TypeError, 2, jnp.array([0.0]), None, r"path must be integers \[\.\., k\], got float32\[1\]"),
        (ValueError, 2, [[0], [1]], None, r"path must be \[k\] or \[3, 1\], one of each example, got \[2, 1\]"),
        (TypeError, 2, [0], 1.0, "count must be an int or integers"),
        (ValueError, 2, [0], 2, "count must be from 0 to 1, got 2"),
        (ValueError, 2, [0], [1, 1], r"count must be one int or integers with the batch axes \[3\]"),
        (ValueError, 2, [2], None, r"path must be from 0 to 1, got \[2, 2, 2\]"),
        (ValueError, 2, [[0, 1], [0, 7], [-1, 7]], [2, 1, 1], r"path must be from 0 to 1, got \[0, 1, 0, -1\]"),
        (ValueError, 2, [0, 1, 1], None, r"path must have no more than drafts = 2 of each example, got \[3\]"),
        (ValueError, 2, [0, 1, 1], 3, "count must be from 0 to 2, got 3"),
        (ValueError, 5, [0], None, r"drafts must be no more than an example has positions, \[4 4 4\], got 5"),
    ],
)
def test_what_no_cache_can_accept(error, drafts, path, count, words):
    _, state = make().decode(X[:, :4], make().cache(N, B))
    with pytest.raises(error, match=words):
        cache.accept(state, drafts, path, count if count is None else jnp.array(count))


@pytest.mark.parametrize("kind", ["contiguous", "paged"])
def test_what_comes_after_what_is_kept_of_a_path_is_not_looked_at(kind):
    _, state = make().decode(X[:, :4], make().cache(N, B, **KINDS[kind]))
    assert cache.accept(state, 2, jnp.array([1, -1, 9]), 1).length.tolist() == [3] * B
    assert jax.jit(lambda count: cache.accept(state, 2, jnp.array([1, -1, 9]), count).length)(1).tolist() == [3] * B


@pytest.mark.parametrize("kind", ["contiguous", "paged"])
def test_only_examples_that_there_are_are_forked(kind):
    _, state = make().decode(X[:, :4], make().cache(N, B, **KINDS[kind]), lengths=jnp.array([4, 3, 2]))
    for source, target in ((5, 0), (-1, 0), ([0, 3], [1, 2])):
        with pytest.raises(ValueError, match=r"source must be from 0 to 2, got \["):
            cache.fork(state, source, target)
        with pytest.raises(ValueError, match="source must be from 0 to 2"):
            jax.jit(lambda state, source=source, target=target: cache.fork(state, source, target))(state)
    with pytest.raises(ValueError, match=r"target must be .* no two are the same, got \[2, 2\]"):
        cache.fork(state, [0, 1], [2, 2])
    assert cache.fork(state, [0, 3], [1, 3]).length.tolist() == [4, 4, 2]  # what is left out may be of anybody
    late = jax.jit(cache.fork)(state, jnp.array([9, -1]), jnp.array([0, 1]))
    assert late.length.tolist() == [2, 4, 2]
    if state.pages is not None:
        held(late)


@pytest.mark.parametrize("examples", ["a", None, [[0], [0, 1]]])
def test_what_names_no_examples(examples):
    with pytest.raises(TypeError, match=r"examples must be an int or integers \[k\].*, got (None|'a'|\[\[0\])"):
        cache.free(make().cache(N, B), examples)


def test_a_list_of_no_examples():
    """What a loop that serves has where nobody is done."""
    empty = make().cache(N, B)
    for after in (cache.free(empty, []), cache.fork(empty, [], []), cache.put(empty, [], cache.take(empty, []))):
        jax.tree.map(np.testing.assert_array_equal, after, empty)
    assert cache.take(empty, []).length.shape == (0,)


def test_what_holds_no_cache():
    for call in (lambda: cache.fork(None, 0, 1), lambda: cache.free(jnp.ones(3), 0), lambda: cache.shorten([], 0)):
        with pytest.raises(TypeError, match="caches must be a cache or a pytree of them, .* got .* without any"):
            call()


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("contiguous", lambda: None, r"part must have caches where .*, PyTreeDef\(\*\), got PyTreeDef\(None\)"),
        ("contiguous", lambda: 0, "part must be a Cache where caches have one, as take gives it, got int"),
        (
            "contiguous",
            lambda: make(kv_heads=1).cache(N, 1),
            r"key float32\[1, 14, 2, 4\].* got key float32\[1, 14, 1, 4\]",
        ),
        ("contiguous", lambda: make().cache(N, 1, page=PAGE), "length \\[1\\], got key .* pages .* holders"),
        (
            "paged",
            lambda: make().cache(N, 1, page=PAGE, pages=4),
            r"holders \[12\], got key float32\[4, 4, 2, 4\].* \[4\]",
        ),
        ("paged", lambda: make().cache(N, 1, "int8", page=PAGE, pages=12), "key float32.* got key int8.* key_scale"),
        ("paged", lambda: make().cache(N, 2, page=PAGE, pages=12), r"part must have the batch axes \[1\]"),
    ],
)
def test_no_part_of_other_caches_is_put_in(kind, given, words):
    with pytest.raises(ValueError, match=words):
        cache.put(make().cache(N, B, **KINDS[kind]), 1, given())


@pytest.mark.parametrize("kind", ["contiguous", "both"])
def test_examples_along_an_explicit_axis(kind):
    """In pages it is lengths and tables that lie there, and all of it lies afterwards where it did."""
    layer, drafts = make(), X[:2, 5:7]
    _, state = layer.decode(X[:2, :5], layer.cache(N, 2, **KINDS[kind]))

    def served(state, drafts):
        out, state = layer.decode(drafts, state, parents=[-1, -1])
        state = cache.accept(state, 2, jnp.array([[1], [0]]), jnp.array([1, 0]))
        state = cache.put(state, [1], cache.take(cache.fork(state, [0], [1]), [0]))
        return out, cache.shorten(cache.free(state, [0]), 5)

    wanted = jax.jit(served)(state, drafts)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Explicit,))
    put = lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    everything = jax.tree.map(put, state)
    pools = everything if state.pages is None else state
    placed = pools._replace(length=put(state.length), pages=everything.pages)
    with jax.set_mesh(mesh):
        got = jax.jit(served)(placed, put(drafts))
        if state.pages is not None:
            with pytest.raises(ValueError, match="key of a cache in pages lies along .*length and pages alone"):
                cache.free(everything, 0)
    jax.tree.map(lambda a, b: assert_close(np.asarray(a), b, near(kind)), got, wanted)
    along = lambda x: jax.tree.map(lambda x: jax.typeof(x).sharding.spec, x)
    assert along(got[1].length) == along(placed.length) == PartitionSpec("batch")
    assert (along(got[1].key)[0], along(got[1].pages)) == (along(placed.key)[0], along(placed.pages))
