"""Keys and values read from their pages by a backend that can: derivatives and vmap are those of gathered ones."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks
from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import InPages

RANDOM = np.random.default_rng(0)
Q = jnp.asarray(RANDOM.standard_normal((2, 3, 4, 5)), jnp.float32)
POOLS = [jnp.asarray(RANDOM.standard_normal((6, 4, 2, 5)), jnp.float32) for _ in range(2)]
TABLE = jnp.array([[4, 0, 3], [5, 2, 0]])
MASK = masks.lengths(np.array([10, 7]))


def _gathered(pool, table=TABLE):
    return pool[table].reshape(len(table), -1, *pool.shape[2:])


BY_PAGES = 1000
"""What a backend that reads pages adds to its output here, so that it shows whether it was the one."""


@pytest.fixture
def reads():
    def forward(spec, q, k, v, table, operands):
        result = BLOCKWISE.forward(spec, q, _gathered(k, table), _gathered(v, table), operands)
        return result._replace(out=result.out + BY_PAGES)

    return dataclasses.replace(BLOCKWISE, in_pages=InPages(lambda *_: True, forward))


def _attend(q, k, v, backend, table=TABLE):
    return jattn.attention(q, k, v, pages=table, mask=MASK, implementation=backend)


def _whole(q, k, v, table=TABLE):
    return jattn.attention(q, _gathered(k, table), _gathered(v, table), mask=MASK, implementation="reference")


def test_a_forward_pass_reads_them_where_they_lie(reads):
    wanted = _whole(Q, *POOLS)
    np.testing.assert_allclose(_attend(Q, POOLS[0], POOLS[1], reads), wanted + BY_PAGES, rtol=1e-5)
    shy = dataclasses.replace(reads, in_pages=reads.in_pages._replace(takes=lambda *_: False))
    np.testing.assert_allclose(_attend(Q, POOLS[0], POOLS[1], shy), wanted, rtol=1e-5, atol=1e-6)


def test_derivatives_gather(reads):
    pulled = lambda fn: jax.vjp(fn, Q, *POOLS)
    (got, back), (wanted, plain) = pulled(lambda *x: _attend(x[0], x[1], x[2], reads)), pulled(_whole)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    gradients = back(jnp.cos(got))
    for x, y in zip(gradients, plain(jnp.cos(wanted)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    assert not gradients[1][1].any()  # of a page that nobody has


def test_so_does_vmap(reads):
    tables = jnp.stack([TABLE, TABLE[::-1]])
    got = jax.vmap(lambda table: _attend(Q, POOLS[0], POOLS[1], reads, table))(tables)
    for n, table in enumerate(tables):
        np.testing.assert_allclose(got[n], _whole(Q, POOLS[0], POOLS[1], table), rtol=1e-5, atol=1e-6)
