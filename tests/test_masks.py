"""Masks against their formulas, and what they say of whole blocks against a look at every pair; blocks that are skipped."""

from __future__ import annotations

import functools
import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import core

import jattn
from jattn import _terms, masks, operand
from jattn._call import checks
from jattn._terms import Origin, block_tables
from jattn._terms.block_tables import Answer, Tiling
from tests import strategies
from tests.cases import Draw, Sizes
from tests.problems import problem

SIZES = Sizes()
B, T, S, H = SIZES.b, SIZES.t, SIZES.s, SIZES.h
I, J = np.arange(T)[:, None], np.arange(S)[None]
RANDOM = np.random.default_rng(0)


def seen(mask, b=B, t=T, s=S, h=H) -> np.ndarray:
    """Which pairs attend, `[b, h, t, s]`, as attention itself has it."""
    q, k = jnp.zeros((b, t, h, 1)), jnp.zeros((b, s, h, 1))
    return np.asarray(jattn.weights(q, k, k, mask=mask)) > 0


# Each mask is its formula

Q_IDS, K_IDS = (np.sort(RANDOM.integers(0, 5, (B, n)), axis=-1) for n in (T, S))
SHORT, LONG = np.array([0, 5]), np.array([17, 11])
CENTERS = {axes: RANDOM.uniform(-2, S + 2, [getattr(SIZES, a) for a in axes]) for axes in ("t", "bt", "bht")}
WHOLE = RANDOM.integers(0, S, (B, T))
LAYOUT, HEADS_LAYOUT = RANDOM.random((4, 5)) < 0.5, RANDOM.random((H, 4, 5)) < 0.5
FLAGS = {shape: RANDOM.random(shape) < 0.5 for shape in itertools.product((1, B), (1, H), (1, T), (1, S))}
FLAGS |= {shape: RANDOM.random(shape) < 0.5 for shape in [(), (S,), (T, 1), (T, S), (H, 1, 1), (H, T, S)]}
near = lambda center, left, right: (center - left <= J) & (center + right >= J)
per_batch = lambda x: np.asarray(x)[:, None, None, None]

FORMULAS = {
    "causal": (masks.causal(), I >= J),
    "causal-after": (masks.causal(4), I + 4 >= J),
    "causal-before": (masks.causal(-3), I - 3 >= J),
    "causal-traced": (masks.causal(jnp.asarray(4)), I + 4 >= J),
    "window": (masks.window(3, 2), (J >= I - 3) & (J <= I + 2)),
    "window-left": (masks.window(3), (J >= I - 3) & (J <= I)),
    "window-open-left": (masks.window(None, 2), J <= I + 2),
    "window-open-right": (masks.window(2, None), J >= I - 2),
    "window-open": (masks.window(None, None), I == I),
    "window-beside": (masks.window(5, -2), (J >= I - 5) & (J <= I - 2)),
    "window-traced": (masks.window(jnp.asarray(3), jnp.asarray(1)), (J >= I - 3) & (J <= I + 1)),
    "around": (masks.around(CENTERS["t"], 3, 2), near(CENTERS["t"][:, None], 3, 2)),
    "around-batch": (masks.around(CENTERS["bt"], 1, 4), near(CENTERS["bt"][:, None, :, None], 1, 4)),
    "around-heads": (masks.around(CENTERS["bht"], 2, None), near(CENTERS["bht"][..., None], 2, S + 4)),
    "around-whole": (masks.around(WHOLE, jnp.asarray(2), 0), near(WHOLE[:, None, :, None], 2, 0)),
    "segments": (masks.segments(Q_IDS, K_IDS), Q_IDS[:, None, :, None] == K_IDS[:, None, None]),
    "segments-for-all": (masks.segments(Q_IDS[0], K_IDS[1]), Q_IDS[0][:, None] == K_IDS[1]),
    "segments-mixed": (masks.segments(Q_IDS, K_IDS[0]), Q_IDS[:, None, :, None] == K_IDS[0]),
    "prefix": (masks.prefix(6), J < 6),
    "prefix-nothing": (masks.prefix(0), I != I),
    "prefix-batch": (masks.prefix(SHORT), per_batch(SHORT) > J),
    "prefix-list": (masks.prefix([0, 5]), per_batch(SHORT) > J),
    "prefix-lm": (masks.prefix(6) | masks.causal(), (J < 6) | (I >= J)),
    "lengths": (masks.lengths(LONG), per_batch(LONG) > J),
    "lengths-queries": (masks.lengths(LONG, SHORT), (per_batch(LONG) > J) & (per_batch(SHORT) > I)),
    "lengths-static": (masks.lengths(9, 4), (J < 9) & (I < 4)),
    "dilated": (masks.dilated(3), (I - J) % 3 == 0),
    "dilated-every": (masks.dilated(1), I == I),
    "blocks": (masks.blocks(LAYOUT, 4), LAYOUT[I // 4, J // 4]),
    "blocks-heads": (masks.blocks(HEADS_LAYOUT, 4), HEADS_LAYOUT[:, I // 4, J // 4]),
    "function": (masks.function(lambda i, j: (i * j) % 3 == 0), (I * J) % 3 == 0),
    "function-of-keys": (masks.function(lambda i, j: j % 2 == 0), J % 2 == 0),
    "function-operands": (
        masks.function(lambda i, j, n, m: (j < n) & (i != m), operand(SHORT, "b"), operand(LONG % H, "b")),
        (per_batch(SHORT) > J) & (per_batch(LONG % H) != I),
    ),
    "and": (masks.causal() & masks.dilated(2), (I >= J) & ((I - J) % 2 == 0)),
    "or": (masks.causal(-5) | masks.prefix(SHORT), (I - 5 >= J) | (per_batch(SHORT) > J)),
    "not": (~masks.window(3, 2), (J < I - 3) | (J > I + 2)),
    "nested": (
        ~(masks.causal() & ~masks.segments(Q_IDS, K_IDS)) | masks.prefix(2),
        ~((I >= J) & (Q_IDS[:, None, :, None] != K_IDS[:, None, None])) | (J < 2),
    ),
    **{f"dense-{shape}": (masks.dense(x), x) for shape, x in FLAGS.items()},
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", FORMULAS)
def test_each_mask_is_its_formula(name):
    mask, formula = FORMULAS[name]
    np.testing.assert_array_equal(seen(mask), np.broadcast_to(formula, (B, H, T, S)))


def test_arrays_are_masks():
    for shape in [(B, 1, T, S), (T, S)]:
        np.testing.assert_array_equal(seen(FLAGS[shape]), np.broadcast_to(FLAGS[shape], (B, H, T, S)))
        np.testing.assert_array_equal(seen(jnp.asarray(FLAGS[shape])), seen(FLAGS[shape]))


def test_masks_combine_only_with_masks():
    mask = masks.causal()
    for use in (bool, lambda m: m and m, lambda m: not m, lambda m: m or None):
        with pytest.raises(TypeError, match="combine masks with & | ~"):
            use(mask)
    for other in (True, 1, None, np.ones((T, S), bool), jnp.ones((T, S), bool), lambda i, j: i >= j):
        for use in (lambda m, x: m & x, lambda m, x: x & m, lambda m, x: m | x, lambda m, x: x | m):
            with pytest.raises(TypeError):
                use(mask, other)


def test_static_masks_are_equal_by_value():
    """They are part of the compiled program's key."""
    make = lambda: masks.causal(2) & ~masks.blocks(LAYOUT, 4) | masks.prefix(3) & masks.dilated(2)
    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != make() & masks.causal(3)
    assert masks.blocks(LAYOUT, 4) != masks.blocks(~LAYOUT, 4)
    assert not jax.tree.leaves(make())


# Whole blocks


def placed(mask, sizes=SIZES):
    mask = checks.place(mask, {a: getattr(sizes, a) for a in "bhts"})
    return mask.bound(*Origin().indices(sizes.b, sizes.h))


def pairs(mask, sizes=SIZES) -> np.ndarray:
    """`[b, h, t, s]`: every pair of every head, from the operands' entries for it."""
    arrays, signature = _terms.split(mask)

    def cut(array, axes, b, h):
        array = np.asarray(array)
        for axis, index in (("b", b), ("h", h)):
            array = array[index] if axis in axes else array
        kept = [getattr(sizes, a) if a in axes else 1 for a in "ts"] if set("ts") & set(axes) else []
        return array.reshape(kept)

    i, j = np.arange(sizes.t)[:, None], np.arange(sizes.s)[None]
    heads = [
        [
            signature.fill([cut(x, a, b, h) for x, a in zip(arrays, signature.axes, strict=True)])(i, j)
            for h in range(sizes.h)
        ]
        for b in range(sizes.b)
    ]
    return np.asarray(heads)


def brute(mask, query: Tiling, key: Tiling, sizes=SIZES) -> Answer:
    """Answers from a look at every pair."""
    got = pairs(mask, sizes)
    cut = lambda x, tiling, n, axis: x.take(range(int(tiling.start(n)), int(tiling.start(n)) + tiling.block), axis)
    tiles = [[cut(cut(got, query, m, 2), key, n, 3) for n in range(key.count)] for m in range(query.count)]
    some, every = (np.array([[f(x, axis=(2, 3)) for x in row] for row in tiles]) for f in (np.any, np.all))
    return Answer(*(np.moveaxis(x, (0, 1), (2, 3)) for x in (some, every)))


def check(mask, query: Tiling, key: Tiling, exact=False):
    """`some` and `every` must be on the safe side, or exact."""
    mask = placed(mask)
    got, wanted = block_tables.answers(mask, query, key), brute(mask, query, key)
    some, every = (np.broadcast_to(x, wanted.some.shape) for x in got)
    assert not (wanted.some & ~some).any(), "a block that has pairs would be skipped"
    assert not (every & ~wanted.every).any(), "a block that has holes would go unmasked"
    if exact:
        np.testing.assert_array_equal(some, wanted.some)
        last = key.count if key.whole else key.count - 1
        np.testing.assert_array_equal(every[..., :last], wanted.every[..., :last])
    if not key.whole:
        assert not every[..., -1].any(), "the last key block repeats keys: it must look at positions"


TILINGS = st.tuples(st.sampled_from([1, 4, 5, 13]), st.sampled_from([1, 5, 6, 17])).map(
    lambda x: (Tiling(T, x[0]), Tiling(S, x[1]))
)


@hypothesis.settings(max_examples=100)
@hypothesis.given(st.data())
def test_answers_of_single_static_masks_are_exact(data):
    mask = data.draw(strategies.static_masks(SIZES))
    if isinstance(mask, masks.Window) and None not in (mask.left, mask.right):
        hypothesis.assume(mask.left + mask.right >= 0)  # one that contradicts itself is only on the safe side
    check(mask, *data.draw(TILINGS), exact=True)


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.data())
def test_answers_are_on_the_safe_side(data):
    leaves = strategies.static_masks(SIZES) | strategies.traced_masks(SIZES)
    check(data.draw(strategies.algebra(leaves)), *data.draw(TILINGS))


@pytest.mark.parametrize("tilings", [(4, 5), (13, 1)])
@pytest.mark.parametrize("name", FORMULAS)
def test_answers_of_every_mask(name, tilings):
    exact = {
        *(x for x in FORMULAS if x.startswith(("causal", "window", "prefix", "dilated", "blocks", "dense", "lengths"))),
        "function", "function-of-keys", "not",
    } - {"prefix-lm", "lengths-queries", "lengths-static"}  # fmt: skip
    check(FORMULAS[name][0], Tiling(T, tilings[0]), Tiling(S, tilings[1]), exact=name in exact)


@pytest.mark.parametrize("seed", range(5))
def test_answers_of_packed_documents_are_exact(seed):
    """Ids that count up, the same for queries and keys."""
    x = Draw(Sizes(t=S), jnp.float32, seed)
    mask, tilings = masks.segments(x.documents("bs")), (Tiling(S, 4), Tiling(S, 5))
    got, wanted = block_tables.answers(mask, *tilings), brute(mask, *tilings, x.sizes)
    np.testing.assert_array_equal(got.some, wanted.some[:, :1])
    np.testing.assert_array_equal(got.every[..., :-1], wanted.every[:, :1, :, :-1])


def table(mask, query=(16, 4), key=(16, 4), batch=1, heads=1):
    return block_tables.table(mask, Tiling(*query), Tiling(*key), batch, heads)


# Functions


def test_static_functions_are_looked_at_while_tracing():
    looked = []

    def fn(i, j):
        looked.append(not isinstance(i, core.Tracer))
        return i >= j

    mask = masks.function(fn)
    x = jax.ShapeDtypeStruct((1, 16, 1, 4), jnp.float32)
    jax.jit(functools.partial(jattn.attention, mask=mask, blocks=(4, 4))).lower(x, x, x)
    assert any(looked)
    assert not all(looked)  # the partial blocks
    np.testing.assert_array_equal(table(mask).full[0, 0], [0, 1, 2, 3])
    calls = len(looked)
    table(mask)
    assert len(looked) == calls  # once for each table


def test_static_functions_of_many_pairs_are_not_looked_at():
    """Looking at more than 2^30 pairs takes longer than it is worth."""
    looked = []

    def fn(i, j):
        looked.append((i.shape, j.shape))
        return i >= j

    mask = masks.function(fn)
    looked.clear()
    got = table(mask, (2**16, 2**14), (2**15, 2**14))
    assert not looked
    np.testing.assert_array_equal(got.partial[0, 0], [2, 2, 2, 2])
    assert not got.full.any()


def test_a_function_of_the_head_skips_blocks_of_each_head():
    x = jnp.asarray(RANDOM.standard_normal((2, 24, 2, 4)), jnp.float32)
    later = masks.function(lambda b, h, i, j: j <= i - 8 * h)
    plan = jattn.explain(x, x, x, mask=later, blocks=(8, 8), implementation="blockwise")
    assert plan.blocks == (4 * 3, 4 * 5, 4 * 1)  # empty, partial and full, of all heads, which one step takes together
    bound = _terms.bind(problem((x, x, x), {"mask": later}).mask, *Origin().indices(2, 2))
    some, every = (np.asarray(y) for y in block_tables.answers(bound, *[Tiling(24, 8)] * 2))
    assert some.sum((-1, -2)).tolist() == [[6, 3]] and every.sum((-1, -2)).tolist() == [[3, 1]]
    options = {"mask": later, "blocks": (8, 8), "implementation": "blockwise"}
    got = jax.jit(jax.vmap(lambda x: jattn.attention(x, x, x, **options)))(x)
    wanted = jattn.attention(x, x, x, mask=np.stack([np.tri(24, k=-8 * h, dtype=bool) for h in range(2)]))
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    of_batch = masks.function(lambda b, h, i, j: j <= i - 8 * b)
    assert jattn.explain(x, x, x, mask=of_batch, blocks=(8, 8), implementation="blockwise").blocks == (0, 36, 0)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "uint32"])
def test_centres_of_few_bits_do_not_wrap_around(dtype):
    q = jnp.ones((1, 8, 1, 4))
    centres = np.arange(8, dtype=dtype)
    for sides in ((3, 2), (200, 200)):
        got = jattn.weights(q, q, q, mask=masks.around(centres, *sides))
        np.testing.assert_array_equal(got, jattn.weights(q, q, q, mask=masks.window(*sides)))


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_sums_of_positions_do_not_wrap_below(implementation):
    q, k, v = (jax.random.normal(jax.random.key(n), (1, 8, 2, 4)) for n in range(3))
    sees_all = masks.window(jnp.int32(2**31 - 1), None)
    blocks = (4, 4) if implementation == "blockwise" else None
    for first in (5, jnp.int32(5), jnp.array([5])):
        got = jattn.attention(
            q, k, v, mask=sees_all, positions={"s": first}, implementation=implementation, blocks=blocks
        )
        np.testing.assert_allclose(got, jattn.attention(q, k, v), atol=1e-6)
    assert not jattn.weights(q, k, v, mask=masks.window(jnp.int32(-(2**31)), None)).any()


def test_ids_of_dtypes_that_one_holds_are_compared_as_numbers():
    q = jnp.ones((1, 8, 1, 4))
    small, large = np.arange(8, dtype=np.uint8), np.arange(8, dtype=np.int32)
    np.testing.assert_array_equal(jattn.weights(q, q, q, mask=masks.segments(small, large))[0, 0], np.eye(8))
