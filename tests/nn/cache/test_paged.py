"""Caches of all kinds through what a serving loop does: the numbers of each example alone, and pages that come and go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import masks
from jattn.nn import Decoder, cache
from tests.layers import LOOSE, normal, randomised
from tests.nn.cache.serving import KINDS, PAGE, B, F, N, X, held, make, near
from tests.tolerances import assert_close


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


@pytest.mark.parametrize("page", [PAGE, 8, 16])
def test_the_pages_of_a_cache_are_enough_for_forks(page):
    """Who write into a page that they share leave one of them the page, whatever it is that each has of it."""
    layer = make()
    _, state = layer.decode(X[:, :5], layer.cache(14, B, page=page), lengths=jnp.array([5, 0, 0]))
    state = cache.fork(state, [0, 0], [1, 2])
    for decode in (layer.decode, jax.jit(layer.decode)):
        out, after = decode(X[:, 5:14], state)
        for n in range(B):
            assert_close(out[n], layer(jnp.concatenate([X[0, :5], X[n, 5:14]])[None])[0, 5:], LOOSE)
        assert held(after) == 5 // page + B * (-(-14 // page) - 5 // page)
    _, after = layer.decode(X[:, 5:6], state, lengths=jnp.array([1, 1, 0]))  # who does not write keeps it
    assert held(after) == 3 + 5 // page
    out, after = layer.decode(X[:, 6:7], after)
    assert_close(out[2], layer(jnp.concatenate([X[0, :5], X[2, 6:7]])[None])[0, 5:], LOOSE)


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
