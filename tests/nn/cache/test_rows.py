"""Caches whose examples each have rows of their own: all positions in a row, or a window that slides over them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import masks, mods
from jattn.nn import Decoder, Latent, MultiHeadAttention
from jattn.nn.cache import _rows, accept
from jattn.nn.cache._record import Cache, rows_of
from tests.layers import LOOSE, normal, randomised
from tests.tolerances import assert_close


def sliding(**options):
    mask = masks.causal() & masks.window(2)
    return randomised(MultiHeadAttention(8, 2, mask=mask, rotary_base=1e4, rngs=nnx.Rngs(0), **options))


RELATIVE = mods.relative(normal((2, 8), 5), mods.t5_bucket(False, 8, 20))


@pytest.mark.parametrize("steps", [(1,) * 11, (4, 1, 6), (2, 3, 3, 3)], ids=str)
@pytest.mark.parametrize(
    "options",
    [{"mods": RELATIVE}, {"latent": Latent(3, 2)}, {"kv_heads": 1, "sinks": True}],
    ids=["relative", "latent", "grouped"],
)
def test_a_cache_that_slides_keeps_the_window_alone(options, steps):
    """Positions are those of the whole sequence, whatever the slack, and however many come at once."""
    layer, x = sliding(**options), normal((3, 11, 8))
    cache, parts = layer.cache(11, 3, slack=3), []
    decode = nnx.jit(lambda layer, x, cache: layer.decode(x, cache))
    for n in np.cumsum((0, *steps[:-1])):
        out, cache = decode(layer, x[:, n : n + steps[len(parts)]], cache)
        parts.append(out)
    assert cache.key.shape[1] == cache.room == 5
    assert_close(jnp.concatenate(parts, 1), layer(x), LOOSE)
    assert cache.length.tolist() == [11] * 3
    assert cache.positions(1).tolist() == [[11]] * 3


def test_examples_slide_each_by_itself():
    layer, x = sliding(), normal((2, 8, 8))
    want = [layer(x[0]), layer(jnp.concatenate([x[1, :2], x[1, 4:]]))]
    _, cache = layer.decode(x[:, :4], layer.cache(8, 2, slack=4))
    cache = cache._replace(length=jnp.array([4, 2]))  # the second prompt was two tokens long
    parts = []
    for n in range(4, 8):
        out, cache = layer.decode(x[:, n : n + 1], cache)
        parts.append(out)
    for row, whole in zip(jnp.concatenate(parts, 1), want, strict=True):
        assert_close(row, whole[-4:], LOOSE)
    assert cache.first is not None
    assert cache.first.tolist() == [4, 2]  # moved once, when the first had no room


def test_where_a_cache_does_not_slide():
    layer, x = sliding(), normal((1, 8, 8))
    assert layer.cache(5, 1, slack=3).first is None  # the window and the slack are as many
    assert layer.cache(6, 1, slack=3).room == 5
    assert MultiHeadAttention(8, 2, mask=masks.causal(), rngs=nnx.Rngs(0)).cache(9, 1, slack=1).room == 9
    with pytest.raises(ValueError, match="slack must be at least 1, got 0"):
        layer.cache(9, 1, slack=0)
    _, cache = layer.decode(x[:, :7], layer.cache(9, 1, slack=1))
    with pytest.raises(ValueError, match="shortened to before what it keeps"):
        layer.decode(x[:, 7:], cache._replace(length=jnp.array([3])))
    late = jax.jit(lambda length: layer.decode(x[:, 7:], cache._replace(length=length))[0])
    assert jnp.isnan(late(jnp.array([3]))).all()
    assert jnp.isfinite(late(jnp.array([7]))).all()
    bare = MultiHeadAttention(8, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="needs a layer whose mask has a window within its room"):
        bare.decode(x[:, 7:], cache)
    biased = sliding(mods=mods.bias(jnp.zeros((9, 9)), "ts"))
    with pytest.raises(ValueError, match="must have no axes t and s"):
        biased.decode(x[:, 7:], cache)


def test_a_stack_keeps_the_windows_of_its_layers():
    near = {"mask": masks.causal() & masks.window(2)}
    stack = randomised(Decoder(8, 2, 3, pattern=(near, {}), rotary_base=1e4, rngs=nnx.Rngs(0)))
    x, cache, parts = normal((2, 9, 8)), stack.cache(9, 2, slack=2), []
    assert [c.past.room for c in (*cache.blocks, *cache.rest)] == [4, 9, 4]
    decode = nnx.jit(lambda stack, x, cache: stack.decode(x, cache))
    for n in range(0, 9, 3):
        out, cache = decode(stack, x[:, n : n + 3], cache)
        parts.append(out)
    assert_close(jnp.concatenate(parts, 1), stack(x), 10 * LOOSE)


def test_drafts_in_a_row_are_accepted_by_a_cache_that_slides():
    """As many as each example keeps, though the window has moved on since."""
    layer, x, drafts = sliding(), normal((2, 9, 8)), normal((2, 3, 8), 7)
    _, state = layer.decode(x[:, :6], layer.cache(20, 2, slack=6))
    _, state = layer.decode(drafts, state)
    state = accept(state, 3, jnp.array([[0, 1, 2]]), jnp.array([2, 1]))
    assert state.length.tolist() == [8, 7]
    out, _ = layer.decode(x[:, 6:7], state)
    for n, kept in enumerate((2, 1)):
        whole = layer(jnp.concatenate([x[n, :6], drafts[n, :kept], x[n, 6:7]]))
        assert_close(out[n, 0], whole[-1], LOOSE)


def test_drafts_that_a_window_has_left_behind():
    """More drafts than the slack: all of a row of them may be kept, which writes nothing, and nothing less."""
    layer, stack = sliding(), Decoder(8, 2, 3, mask=masks.causal() & masks.window(2), rngs=nnx.Rngs(0))
    x, everything = normal((1, 8, 8)), jnp.arange(6)
    _, state = layer.decode(x[:, :7], layer.cache(20, 1, slack=2))
    kept = accept(state, 6, everything)
    np.testing.assert_array_equal(kept.key, state.key)
    assert_close(layer.decode(x[:, 7:], kept)[0][:, 0], layer(x)[:, -1], LOOSE)
    for part in (layer, stack):
        state = part.decode(x[:, :7], part.cache(20, 1, slack=2))[1]
        state = accept(state, 6, everything[:4])
        with pytest.raises(ValueError, match="shortened to before what it keeps: give it more slack"):
            part.decode(x[:, 7:], state)
        late, _ = jax.jit(lambda x, state: part.decode(x, state))(x[:, 7:], state)  # noqa: B023
        assert jnp.isnan(late).all()


# The rows themselves


def _held(first, length, n=6, batch=2):
    at = jnp.arange(n, dtype=jnp.float32)
    key = jnp.broadcast_to((jnp.asarray(first)[:, None] + at)[..., None, None], (batch, n, 1, 1))
    return Cache(key, -key, jnp.asarray(length, jnp.int32), jnp.asarray(first, jnp.int32))


def test_a_cache_slides_to_the_first_position_that_is_still_seen():
    """Each row holds the number of its position, so that what stands where can be read."""
    cache = _rows.slid(_held([0, 2], [6, 3]), left=2)
    assert cache.first is not None and cache.first.tolist() == [4, 2]
    assert cache.key[0, :2].ravel().tolist() == [4, 5] and cache.key[1, :1].ravel().tolist() == [2]
    assert cache.length.tolist() == [6, 3] and cache.room == 6
    assert _rows.slid(_held([0, 2], [6, 3]), left=2, room=3).room == 3


@pytest.mark.parametrize(("t", "moved", "room"), [(1, True, 6), (0, False, 6), (7, True, 9)])
def test_room_is_made_only_where_it_is_used_up(t, moved, room):
    cache = _rows.with_room(_held([0, 0], [6, 1]), t, left=2)
    assert cache.first is not None
    assert cache.first.tolist() == ([4, 0] if moved else [0, 0])
    assert cache.room == room


def test_rows_are_moved_and_put_and_those_past_the_end_are_dropped():
    cache = _held([0, 0], [6, 6])
    at = jnp.array([[1, 0, 9], [2, 2, 2]])
    assert _rows.moved(cache, at).key[..., 0, 0].tolist() == [[1, 0, 5], [2, 2, 2]]
    new = rows_of(_held([10, 20], [0, 0], n=2))
    got = _rows.put(cache, new, jnp.array([[5, 0], [6, 1]]))
    assert got.key[..., 0, 0].tolist() == [[11, 1, 2, 3, 4, 10], [0, 21, 2, 3, 4, 5]]
