"""What layers ask of a cache, whatever its kind: an empty one, one with more positions, one that is checked."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.nn.cache import _kinds
from jattn.nn.cache._record import Cache

G, D, E = 2, 4, 3
KINDS = {
    "rows": {},
    "sliding": {"slides": True},
    "pages": {"page": 2},
    "few bits": {"dtype": "int8"},
    "pages of few bits": {"page": 2, "dtype": "int8"},
}


def _empty(kind="rows", lead=(2,), n=6, **changes):
    return _kinds.empty(lead, n, G, D, E, **{"dtype": "float32", **KINDS[kind], **changes})


def _new(t, lead=(2,)):
    random = np.random.default_rng(t)
    return (jnp.asarray(random.standard_normal((*lead, t, G, width)), jnp.float32) for width in (D, E))


def _held(cache: Cache, name: str) -> np.ndarray:
    """`[.., n, g, d]`: what a cache of one batch axis has of each position, as it is meant."""
    array, scale = np.asarray(getattr(cache, name), np.float32), getattr(cache, f"{name}_scale")
    array = array if scale is None else array * np.asarray(scale)[..., None]
    if cache.pages is None:
        return array
    return np.stack(
        [array[np.minimum(x, len(array) - 1)].reshape(-1, *array.shape[2:]) for x in np.asarray(cache.pages)]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_cache_can_be_donated(kind):
    """Its arrays are buffers apart."""
    cache = _empty(kind)
    assert cache.room == 6 and cache.length.tolist() == [0, 0]
    places = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(cache)]
    assert len(set(places)) == len(places)
    assert (cache.first is not None) == (kind == "sliding")
    assert (cache.key_scale is not None) == ("few bits" in kind)
    assert cache.pages is None or (cache.pages == 6).all()  # of none of the six pages


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("taken", [None, (1, 3), (0, 2)])
def test_what_is_appended_is_there_as_far_as_it_is_real(kind, taken):
    cache = _empty(kind)
    for t in (2, 3):
        key, value = _new(t)
        before = np.asarray(cache.length)
        cache = _kinds.append(cache, key, value, None if taken is None else jnp.array(taken))
        for name, new in (("key", key), ("value", value)):
            for n in range(2):
                real = t if taken is None else min(t, taken[n])
                got = _held(cache, name)[n, before[n] : before[n] + real]
                np.testing.assert_allclose(got, new[n, :real], atol=0.02)
        assert cache.length.tolist() == [before[n] + (t if taken is None else taken[n]) for n in range(2)]


def test_what_comes_past_the_end_is_dropped():
    (key, value), cache = _new(4), _empty(n=6)
    cache = _kinds.append(_kinds.append(cache, key, value), key, value)
    np.testing.assert_array_equal(cache.key[:, 4:], key[:, :2])
    np.testing.assert_array_equal(cache.key[:, :4], key)


def test_room_that_is_known_to_be_too_little_is_an_error():
    key, value = _new(5)
    cache = _kinds.append(_empty(), key, value)
    _kinds.check_room(cache, 1)
    _kinds.check_room(cache, 5, jnp.array([1, 0]))  # of five, so many are real
    with pytest.raises(ValueError, match="room for n = 6 positions and holds 5: 2 more do not fit"):
        _kinds.check_room(cache, 2)
    _kinds.check_room(_empty("sliding"), 100)  # it moves on
    paged = _empty("pages", pages=3)
    _kinds.check_room(paged, 2)
    with pytest.raises(ValueError, match="has 3 free pages of 3, and 4 more positions need 4"):
        _kinds.check_room(paged, 4)
    jax.jit(lambda cache: _kinds.check_room(cache, 100))(cache)  # not known


def test_caches_of_a_pytree_are_shortened_to_what_came_and_was_real():
    """One that grew by nothing is read alone, and stays."""
    key, value = _new(3)
    before = _kinds.append(_empty(), key, value)
    after = {"own": _kinds.append(before, *_new(2)), "read": before, "other": 3}
    lengths = _kinds.lengths({"own": before, "read": before, "other": 3})
    got = _kinds.shortened(after, lengths, jnp.array([1, 0]))
    assert isinstance(got, dict) and got["other"] == 3
    assert [x.tolist() for x in _kinds.lengths(got)] == [[4, 3], [3, 3]]
    assert not _kinds.slides(got) and _kinds.slides([before, _empty("sliding")])


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_of_another_layer_or_batch_is_named(kind):
    cache = _empty(kind)
    _kinds.check(cache, (2,), G, D, E)
    for lead, heads, d, e in (((3,), G, D, E), ((2, 1), G, D, E), ((2,), G + 1, D, E), ((2,), G, E, E)):
        with pytest.raises(ValueError, match=r"cache must have .* and length \[\.\.\] with the batch axes"):
            _kinds.check(cache, lead, heads, d, e)
    with pytest.raises(TypeError, match=r"cache must be made by the layer's cache\(\) or read\(\), got tuple"):
        _kinds.check((), (2,), G, D, E)
