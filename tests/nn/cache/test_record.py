"""The records of caches: how much room there is, where the next positions stand, and what is changed of each."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.nn.cache._record import BlockCache, Cache, StackCache, each, rows_of, with_rows


def _cache(n=5, batch=(2,), **changes: Any) -> Any:
    made = Cache(jnp.zeros((*batch, n, 1, 3)), jnp.zeros((*batch, n, 1, 4)), jnp.zeros(batch, jnp.int32))
    return made._replace(**changes)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3), (0,)], ids=str)
def test_the_next_positions_of_each_example_follow_its_own(batch):
    length = jnp.arange(np.prod(batch, dtype=int), dtype=jnp.int32).reshape(batch)
    cache = _cache(batch=batch, length=length)
    with jax.numpy_rank_promotion("raise"):
        got = cache.positions(3)
    assert got.shape == (*batch, 3) and got.dtype == jnp.int32
    np.testing.assert_array_equal(got, np.asarray(length)[..., None] + np.arange(3))
    assert cache.positions(0).shape == (*batch, 0)


def test_room_is_that_of_an_examples_rows_or_of_its_pages():
    assert _cache(5).room == 5
    paged = _cache()._replace(key=jnp.zeros((7, 4, 1, 3)), pages=jnp.zeros((2, 3), jnp.int32))
    assert paged.room == 12


def test_rows_are_taken_out_and_put_back():
    scales: dict[str, Any] = {"key_scale": jnp.ones((2, 5, 1)), "value_scale": jnp.ones((2, 5, 1))}
    for cache in (_cache(), _cache(**scales)):
        rows = rows_of(cache)
        assert len(jax.tree.leaves(rows)) == (2 if cache.key_scale is None else 4)
        assert with_rows(cache, rows) == cache or all(
            x is y for x, y in zip(jax.tree.leaves(with_rows(cache, rows)), jax.tree.leaves(cache), strict=True)
        )
        other = with_rows(cache, jax.tree.map(lambda x: x + 1, rows))
        assert (other.key == 1).all() and other.length is cache.length


def _lengths(caches):
    found = []
    each(lambda x: found.append(x.length) or x, caches)
    return [x.tolist() for x in found]


def test_every_cache_of_a_pytree_is_changed_in_its_place():
    one, two = (_cache(length=jnp.array([n, n])) for n in (1, 2))
    block, alone = BlockCache(one, two), BlockCache(one, None)
    stack = StackCache((block,), (alone,))
    grown = each(lambda x: x._replace(length=x.length + 10), stack)
    assert _lengths(grown) == [[11, 11], [12, 12], [11, 11]]
    own = each(lambda x: x._replace(length=x.length + 10), stack, contexts=False)
    assert _lengths(own) == [[11, 11], [2, 2], [11, 11]]  # what is only read stays
    added = each(lambda x, y: x._replace(length=x.length + y.length), stack, grown)
    assert _lengths(added) == [[12, 12], [14, 14], [12, 12]]
    assert each(lambda x: x._replace(length=x.length * 0), {"a": one, "b": 3})["b"] == 3
