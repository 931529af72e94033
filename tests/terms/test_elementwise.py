"""What depends on where in its tile an entry lies, or on others of it, is found in the jaxpr; and nothing else is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import gates, masks, mods
from jattn._terms.elementwise import COLUMNS, ROWS, across, across_rows, text_of
from tests.bad_input import attend, check_named

BAD = {
    "mod over the row": (attend(mods=mods.function(lambda s, i, j: s - s.max(-1, keepdims=True))), ValueError,
                         ["elementwise", "reduce_max"]),
    "gate of a running sum": (attend(gates=gates.function(lambda w, i, j: jnp.cumsum(w, 1))), ValueError,
                              ["gates.function", "elementwise", "cumsum"]),
    **{
        f"tile: {name}": (attend(mods=mods.function(fn)), ValueError, ["mods.function", "elementwise", "tile"])
        for name, fn in {
            "counted": lambda s, i, j: s - 0.3 * abs(i - jnp.arange(s.shape[1])),
            "counted before": lambda s, i, j: s + np.arange(s.shape[1]),
            "first column": lambda s, i, j: s - s[:, :1],
            "one entry": lambda s, i, j: s - jax.lax.dynamic_slice(s, (0, 0), (1, 1)),
            "taken": lambda s, i, j: s + jnp.take(s, 0, axis=1)[:, None],
            "rolled": lambda s, i, j: jnp.roll(s, 1, -1),
            "padded": lambda s, i, j: s + jnp.pad(s, ((0, 0), (1, 0)))[:, :-1],
            "written": lambda s, i, j: s.at[0].set(0.0),
            "product": lambda s, i, j: s @ s.T @ s,
            "reshaped": lambda s, i, j: s.reshape(s.shape[::-1]).T,
            "sum of a scan": lambda s, i, j: jax.lax.scan(lambda c, x: (c + x, c), jnp.zeros(s.shape[1]), s)[1],
            "transformed": lambda s, i, j: jnp.fft.fft(s).real,
            "width": lambda s, i, j: s * s.shape[1],
            "half the height": lambda s, i, j: s + j * (s.shape[0] // 2),
        }.items()
    },
    "mask that counts": (attend(mask=masks.function(lambda i, j: jnp.arange(j.shape[1])[None] <= i)), ValueError,
                         ["masks.function", "iota", "i and j"]),
    "gate that counts": (attend(gates=gates.function(lambda w, i, j: w * jnp.arange(w.shape[1]))), ValueError,
                         ["gates.function", "iota"]),
}  # fmt: skip


@pytest.mark.smoke
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    check_named(BAD[name])


SIZE, OTHER = (ROWS, COLUMNS), (1013, 2011)
TABLE = np.arange(35.0, dtype=np.float32).reshape(5, 7)


def traced(fn, size=SIZE):
    """The jaxpr of a function of scores `[bt, bs]` and their positions `i` `[bt, 1]` and `j` `[1, bs]`."""
    positions = (jax.ShapeDtypeStruct(x, jnp.int32) for x in ((size[0], 1), (1, size[1])))
    return jax.make_jaxpr(fn)(jax.ShapeDtypeStruct(size, jnp.float32), *positions)


ELEMENTWISE = {
    "formula": lambda s, i, j: jnp.where(i > j, s * 2003.0, jnp.tanh(s) - 1009 * (i - j)),
    "a table by positions": lambda s, i, j: s + jnp.asarray(TABLE)[i % 5, j % 7],
    "sum over a table": lambda s, i, j: s + jnp.asarray(TABLE).sum(-1)[i % 5],
    "sorted table": lambda s, i, j: s * jnp.sort(jnp.asarray(TABLE)[0])[j % 7],
    "sum over new entries": lambda s, i, j: (s[..., None] * jnp.asarray(TABLE[0])).sum(-1),
    "product over new entries": lambda s, i, j: jnp.stack([s, s * j], -1) @ jnp.asarray([1.0, 2.0]),
    "rows as columns and back": lambda s, i, j: s + i[:, 0][:, None] + j.reshape(-1)[None],
    "flat and back": lambda s, i, j: (s + i.T.reshape(-1, 1)) * 2,
    "jit": lambda s, i, j: jax.jit(lambda x: x + i)(s),
    "a loop of its own": lambda s, i, j: jax.lax.fori_loop(0, 3, lambda _, x: x * j, s),
    "each row by itself": lambda s, i, j: jax.lax.map(lambda x: x * 2, s),
    "rounded": lambda s, i, j: jax.lax.reduce_precision(s, 8, 7),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_what_looks_at_each_entry_alone_is_let_through_and_reads_the_same_in_every_tile(name):
    fn = ELEMENTWISE[name]
    assert across(traced(fn).jaxpr) == ""
    assert text_of(traced(fn), SIZE) == text_of(traced(fn, OTHER), OTHER)


ACROSS = {
    "reduce_max": lambda s, i, j: s - s.max(-1, keepdims=True),
    "reduce_sum": lambda s, i, j: s + j.sum(),
    "cumsum": lambda s, i, j: jax.jit(lambda x: jnp.cumsum(x, 0))(s),
    "iota": lambda s, i, j: s * jax.lax.broadcasted_iota(jnp.float32, s.shape, 1),
    "dot_general": lambda s, i, j: jax.lax.fori_loop(0, 2, lambda _, x: x @ jnp.ones((COLUMNS, COLUMNS)), s),
    "transpose": lambda s, i, j: s.T,
    "rev": lambda s, i, j: s[:, ::-1],
    "argmax": lambda s, i, j: s + jnp.argmax(s, -1, keepdims=True),
    "concatenate": lambda s, i, j: jnp.concatenate([s, s], 1),
    "sort": lambda s, i, j: jax.lax.cond(jnp.asarray(TABLE)[0, 0] > 0, jnp.sort, lambda x: x, s),
    "scan": lambda s, i, j: jax.lax.scan(lambda c, x: (c * x, c), jnp.ones(s.shape[1]), s)[1],
}


@pytest.mark.parametrize("name", ACROSS)
def test_the_first_primitive_that_looks_along_the_tile_is_named_however_deep_it_lies(name):
    assert across(traced(ACROSS[name]).jaxpr) == name


def test_the_shape_of_a_tile_is_told_from_numbers_that_look_like_it():
    same = lambda fn: text_of(traced(fn), SIZE) == text_of(traced(fn, OTHER), OTHER)
    assert same(lambda s, i, j: jnp.zeros(s.shape) + s * 1009.0 + 2003 * i)
    assert not same(lambda s, i, j: s * s.shape[0])
    assert not same(lambda s, i, j: s + jnp.asarray(np.arange(s.shape[1])))


def _halved(row):
    return jax.lax.while_loop(lambda x: jnp.sum(x) > 1, lambda x: x / 2, row)


def _top(scores):
    kept, at = jax.lax.top_k(scores, 3)
    return jnp.zeros_like(scores).at[jnp.arange(len(scores))[:, None], at].set(jax.nn.softmax(kept))


OF_ROWS = {
    "softmax": lambda s: jax.nn.softmax(s, axis=-1),
    "sorted": lambda s: jnp.take_along_axis(s, jnp.argsort(s), -1),
    "running sum of the turned": lambda s: jnp.cumsum(s.T, 0).T,
    "the best": _top,
    "product of each row": lambda s: s * (s[:, None] @ s[:, :, None])[:, 0],
    "vmap": jax.vmap(lambda row: row / jnp.linalg.norm(row) + jnp.median(row)),
    "a loop of each row": jax.vmap(_halved),
    "a loop until all are done": lambda s: jax.lax.while_loop(lambda x: jnp.any(x.sum(-1) > 1), lambda x: x / 2, s),
    "a loop over rows": lambda s: jax.lax.map(jax.nn.softmax, s),
    "transformed": lambda s: jnp.fft.fft(s).real,
}


@pytest.mark.parametrize("name", OF_ROWS)
def test_what_looks_along_each_row_by_itself_mixes_none(name):
    assert across_rows(jax.make_jaxpr(OF_ROWS[name])(jax.ShapeDtypeStruct(SIZE, jnp.float32)).jaxpr) == ""
