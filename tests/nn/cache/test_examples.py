"""What a serving loop does with the examples in caches: they come, split, are cut short, and go."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jattn.nn import Decoder, cache
from tests.layers import randomised
from tests.nn.cache.serving import KINDS, B, F, N, X, held, make, near
from tests.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("quick")


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
