"""Keys and values in pages: the same call as on what gathering them by hand gives, and errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import gates, masks, mods, normalizers, scores
from tests.tolerances import TOLERANCES, assert_close

random = np.random.default_rng(0)
B, T, H, G, D, E, POOL, PAGE, M = 2, 3, 4, 2, 8, 5, 7, 4, 3
LENGTHS = np.array([10, 5])
TABLE = np.array([[6, 2, 4], [2, 0, 99]])  # a page of both, and an entry that is not in use
Q, KEYS, VALUES = (
    jnp.asarray(random.standard_normal(shape), jnp.float32)
    for shape in ((B, T, H, D), (POOL, PAGE, G, D), (POOL, PAGE, G, E))
)
CASES: dict[str, dict[str, Any]] = {
    "decoding": {"mask": masks.causal() & masks.lengths(LENGTHS), "positions": LENGTHS - T},
    "terms": {
        "mask": masks.lengths(LENGTHS),
        "mods": (mods.bias(random.standard_normal((B, H, T, M * PAGE)), "bhts"), mods.softcap(3.0)),
        "gates": gates.dropout(0.3, 1),
        "score": scores.general(random.standard_normal((D, D))),
    },
    "whole rows": {"mask": masks.lengths(LENGTHS), "normalizer": normalizers.entmax15()},
}


def by_hand(pool):
    """`[b, s, g, d]`, key by key."""
    return jnp.stack(
        [jnp.stack([pool[min(row[j // PAGE], POOL - 1), j % PAGE] for j in range(M * PAGE)]) for row in TABLE]
    )


def attend(q, k, v, pages: Any = TABLE, **options):
    return jattn.attention(q, k, v, pages=pages, **options)


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
@pytest.mark.parametrize("name", CASES)
def test_is_the_call_on_gathered_keys(name, implementation):
    options = {**CASES[name], "implementation": implementation}
    plain = lambda q, k, v: jattn.attention(q, by_hand(k), by_hand(v), **options)
    for got, want in zip(
        *(jax.jit(jax.value_and_grad(lambda *x, f=f: jnp.sum(jnp.sin(f(*x))), (0, 1, 2)))(Q, KEYS, VALUES)
          for f in (lambda *x: attend(*x, **options), plain)), strict=True,
    ):  # fmt: skip
        jax.tree.map(lambda x, y: assert_close(x, y, TOLERANCES["float32"].gradient), got, want)


@pytest.mark.parametrize("columns", [1, 3, 4, 5, 8, 12])
@pytest.mark.parametrize("name", ["decoding", "terms"])
def test_tiles_of_keys_that_begin_anywhere_in_a_page(name, columns):
    options = {**CASES[name], "blocks": (T, columns), "implementation": "blockwise", "return_lse": True}
    got, wanted = attend(Q, KEYS, VALUES, **options), jattn.attention(Q, by_hand(KEYS), by_hand(VALUES), **options)
    for x, y in zip(got, wanted, strict=True):
        assert_close(x, y, TOLERANCES["float32"].value)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_where_integers_have_64_bits_and_nothing_is_promoted(dtype):
    q, k, v = (x.astype(dtype) for x in (Q, KEYS, VALUES))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        got = attend(q, k, v, implementation="blockwise", **CASES["decoding"])
    wanted = attend(q, k, v, implementation="reference", **CASES["decoding"])
    assert got.dtype == dtype
    assert_close(got, wanted, TOLERANCES[dtype].value)


def test_a_tile_copies_no_more_pages_than_it_sees():
    """The pools are read a tile at a time: there is never memory for all keys in a row."""
    long = jnp.arange(4096)[None] % POOL
    step = jax.jit(lambda q, k, v, n: attend(q, k, v, long, mask=masks.lengths(n), blocks=(1, 16)))
    program = step.lower(Q[:1, :1], KEYS, VALUES, jnp.array([20])).compile()
    memory: Any = program.memory_analysis()
    assert memory.temp_size_in_bytes < 4096 * PAGE * G * (D + E)


def test_what_nobody_sees_reaches_nothing():
    seen = np.zeros((POOL, PAGE), bool)
    for row, n in zip(TABLE, LENGTHS, strict=True):
        seen[[row[j // PAGE] for j in range(n)], np.arange(n) % PAGE] = True
    poison = lambda pool: jnp.where(seen[..., None, None], pool, jnp.nan)
    options = {"mask": masks.lengths(LENGTHS)}
    out, pull = jax.vjp(lambda *x: attend(*x, **options), Q, poison(KEYS), poison(VALUES))
    np.testing.assert_array_equal(out, attend(Q, KEYS, VALUES, **options))
    assert all(jnp.isfinite(x).all() for x in pull(out))


def test_maps_looks_and_draws():
    mask = masks.lengths(LENGTHS)
    want, one = attend(Q, KEYS, VALUES, mask=mask), lambda n: masks.lengths(n[None])
    alone = lambda q, row, n: attend(q[None], KEYS, VALUES, row[None], mask=one(n))[0]
    assert_close(jax.vmap(alone)(Q, jnp.asarray(TABLE), jnp.asarray(LENGTHS)), want, TOLERANCES["float32"].value)
    lone = jattn.attention(Q[0], KEYS, VALUES, pages=TABLE[0], mask=masks.prefix(10))
    assert_close(lone, want[0], TOLERANCES["float32"].value)
    assert not np.asarray(jattn.weights(Q, KEYS, VALUES, pages=TABLE, mask=mask))[1, ..., 5:].any()
    _, index, _ = jattn.sample(jax.random.key(0), Q, KEYS, VALUES, pages=TABLE, mask=mask)
    assert (index[1] < 5).all()
    none = jattn.attention(Q, KEYS, VALUES, pages=np.zeros((B, 0), int))
    assert not none.any()


def test_explain_says_what_is_copied():
    shape = jax.ShapeDtypeStruct
    plan = jattn.explain(Q, KEYS, VALUES, pages=shape((B, M), "int32"), mask=masks.lengths(LENGTHS))
    assert plan.copied is None and "gathered" not in str(plan)  # a step of few queries takes pages a tile at a time
    options = {"pages": TABLE, "mask": masks.lengths(LENGTHS)}
    for plan in (
        jattn.explain(Q, KEYS, VALUES, implementation="reference", **options),
        jattn.explain(Q, KEYS, VALUES, blocks=(2, 4), **options),
    ):
        assert plan.copied == B * M * PAGE * G * (D + E) * 4
        assert "pages" in str(plan)
    assert jattn.explain(Q[:, :1], Q, Q).copied is None
    for pages in (TABLE[0], TABLE[0].tolist(), shape((M,), "int32")):
        lone = jattn.explain(shape((T, H, D), "float32"), KEYS, VALUES, pages=pages)
        assert lone.shape == f"b 1, t {T}, s {M * PAGE}, h {H}, g {G}, d {D}, e {E}, float32"


BAD = {
    "floats": ({"pages": np.ones((B, M))}, TypeError, ["pages", "integers", "float64"]),
    "a name": ({"pages": "table"}, TypeError, ["pages", "str"]),
    "batch": ({"pages": TABLE[:1]}, ValueError, ["pages", "b = 2", "[1, 3]"]),
    "ragged": ({"pages": [[1, 2], [3]]}, ValueError, ["pages", "[b, m]", "unequal lengths"]),
    "one row": ({"pages": TABLE[0]}, ValueError, ["pages", "[b, m]", "[3]"]),
    "no pool": ({"k": KEYS[0], "v": VALUES[0], "pages": TABLE}, ValueError, ["pools", "[4, 2, 8]"]),
    "other pools": ({"v": VALUES[1:], "pages": TABLE}, ValueError, ["as many pages", "[6, 4, 2, 5]"]),
    "no page": ({"k": KEYS[:0], "v": VALUES[:0], "pages": TABLE}, ValueError, ["a page", "[0, 4, 2, 8]"]),
    "width": ({"q": Q[..., 1:], "pages": TABLE}, ValueError, ["same width d"]),
    "their name": ({"page_indices": TABLE}, TypeError, ["page_indices is pages="]),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    given, kind, words = BAD[name]
    with pytest.raises(kind) as raised:
        jattn.attention(**{**{"query": given.get("q", Q), "key": given.get("k", KEYS), "value": given.get("v", VALUES)},
                           **{x: y for x, y in given.items() if x not in "qkv"}})  # fmt: skip
    assert "\n" not in str(raised.value)
    assert all(word in str(raised.value) for word in words), raised.value


def test_a_sequence_over_devices_takes_none():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(TypeError, match="takes no pages"):
        jattn.parallel.attention(Q, KEYS, VALUES, pages=TABLE, mesh=mesh, sequence_axis="x")  # pyright: ignore[reportCallIssue]  # wrong on purpose
