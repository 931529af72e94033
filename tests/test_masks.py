"""Masks against their formulas, and what they say of whole blocks against a look at every pair; blocks that are skipped."""

from __future__ import annotations

import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import jattn
from jattn import _terms, masks, operand
from jattn._call import checks
from jattn._terms import block_tables
from jattn._terms.block_tables import Answer, Tiling
from tests import strategies
from tests.cases import Draw, Sizes

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
    return mask.bound(sizes.b, sizes.h)


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
    found = pairs(mask, sizes)
    cut = lambda x, tiling, n, axis: x.take(range(int(tiling.start(n)), int(tiling.start(n)) + tiling.block), axis)
    tiles = [[cut(cut(found, query, m, 2), key, n, 3) for n in range(key.count)] for m in range(query.count)]
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
    } - {"window-empty", "prefix-lm", "lengths-queries", "lengths-static"}  # fmt: skip
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


def test_tables_count_blocks():
    found = table(masks.causal())
    assert all(isinstance(x, np.ndarray) for x in found)
    np.testing.assert_array_equal(found.full[0, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(found.partial[0, 0], [1, 1, 1, 1])
    np.testing.assert_array_equal(found.index[0, 0, 2, :3], [0, 1, 2])
    found = table(~masks.causal())  # the full ones come first
    np.testing.assert_array_equal(found.full[0, 0], [3, 2, 1, 0])
    np.testing.assert_array_equal(found.partial[0, 0], [1, 1, 1, 1])
    np.testing.assert_array_equal(found.index[0, 0, 0], [1, 2, 3, 0])
    np.testing.assert_array_equal(found.index[0, 0, 1, :3], [2, 3, 1])
    found = table(masks.window(3))
    np.testing.assert_array_equal(found.full[0, 0], 0)
    np.testing.assert_array_equal(found.partial[0, 0], [1, 2, 2, 2])
    for mask in (None, masks.window(None, None), masks.dilated(1)):
        np.testing.assert_array_equal(table(mask).full, np.full((1, 1, 4), 4))
        assert not table(mask).partial.any()
    found = table(masks.prefix(0))
    assert not found.full.any()
    assert not found.partial.any()
    found = table(masks.function(lambda i, j, n: j < n, operand(3)))
    np.testing.assert_array_equal(found.partial, np.full((1, 1, 4), 4))


def test_a_static_contradiction_is_empty():
    found = table(masks.prefix(4) & ~masks.prefix(8))
    assert not found.full.any()
    assert not found.partial.any()


def test_tables_of_steps_join_their_batch_elements_and_heads():
    layout = np.zeros((4, 4, 4), bool)
    layout[0, 0, 0] = layout[1, 0, 0] = layout[1, 0, 1] = layout[2:, 0, 3] = True
    mask = masks.blocks(layout, 4).bound(1, 4)
    alone = table(mask)
    np.testing.assert_array_equal(alone.full[0, :, 0], [1, 2, 1, 1])
    joined = table(mask, heads=2)  # full for both, partial if for one
    np.testing.assert_array_equal(joined.full[0, :, 0], [1, 1])
    np.testing.assert_array_equal(joined.partial[0, :, 0], [1, 0])
    np.testing.assert_array_equal(joined.index[0, :, 0, 0], [0, 3])
    found = table(masks.prefix(np.array([4, 8, 16, 9])), batch=2)
    np.testing.assert_array_equal(found.full[:, 0, 0], [1, 2])
    np.testing.assert_array_equal(found.partial[:, 0, 0], [1, 2])


def test_a_table_for_shorter_arrays_serves_the_longer():
    """vmap folds an axis into the batch: an array without it is used again for every part."""
    mask = masks.prefix(np.array([4, 8])) & masks.segments(np.zeros((4, 16), np.int32), np.ones((4, 16), np.int32))
    found = table(mask | masks.prefix(np.array([4, 8])))
    np.testing.assert_array_equal(found.full[:, 0, 0], [1, 2, 1, 2])


# Empty blocks are never visited.  A visited block with a NaN among the values that some query of the tile sees makes NaN
# of all its rows that see something, even where the mask gives it no weight (0 * NaN): so what is not NaN has not been
# visited, or holds nothing that is seen.

LENGTH, BLOCK = 16, 4
QKV = tuple(jnp.asarray(RANDOM.standard_normal((2, LENGTH, 2, 4)), jnp.float32) for _ in range(3))


def attend(q, k, v, mask):
    return jattn.attention(q, k, v, mask=mask, implementation="blockwise", blocks=(BLOCK, BLOCK))


def gradients(q, k, v, mask):
    return jax.grad(lambda *x: jnp.sum(jnp.sin(attend(*x, mask))), (0, 1, 2))(q, k, v)


def visits(mask, fn=attend) -> np.ndarray:
    """Which key blocks each query block visits, `[b, query blocks, key blocks]`, from where a NaN shows up."""

    @jax.jit
    def one(mask, block):
        bad = (jnp.arange(LENGTH) // BLOCK == block)[:, None, None]
        return fn(QKV[0], QKV[1], jnp.where(bad, jnp.nan, QKV[2]), mask)

    found = [np.isnan(one(mask, n)).any((2, 3)).reshape(2, -1, BLOCK) for n in range(LENGTH // BLOCK)]
    return np.stack([x.any(-1) for x in found], axis=-1)


DOCUMENTS = np.repeat([[0, 0, 1, 2], [0, 1, 1, 1]], BLOCK, axis=1)
HOLES = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
SKIPS = {
    "causal": (masks.causal(), np.tri(4)),
    "causal-traced": (masks.causal(jnp.asarray(4)), np.tri(4, k=1)),
    "window": (masks.window(4), np.tri(4) - np.tri(4, k=-2)),
    "not-causal": (~masks.causal(), 1 - np.tri(4, k=-1)),
    "prefix": (masks.prefix(5), [1, 1, 0, 0]),
    "prefix-batch": (masks.prefix(np.array([9, 4])), np.array([[[1, 1, 1, 0]], [[1, 0, 0, 0]]])),
    "lengths": (masks.lengths(np.array([9, 4]), np.array([16, 8])),
                np.array([np.outer([1] * 4, [1, 1, 1, 0]), np.outer([1, 1, 0, 0], [1, 0, 0, 0])])),
    "around": (masks.around(np.linspace(1.2, 13.4, LENGTH), 1, 1), [[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]),
    "segments": (masks.segments(DOCUMENTS), DOCUMENTS[:, ::BLOCK, None] == DOCUMENTS[:, None, ::BLOCK]),
    "segments-causal": (masks.segments(DOCUMENTS) & masks.causal(),
                        (DOCUMENTS[:, ::BLOCK, None] == DOCUMENTS[:, None, ::BLOCK]) & (np.tri(4) > 0)),
    "blocks": (masks.blocks(HOLES, BLOCK), HOLES),
    "blocks-heads": (masks.blocks(np.stack([HOLES, np.zeros((4, 4), bool)]), BLOCK), HOLES),
    "dense": (masks.dense(np.kron(HOLES, np.eye(BLOCK)) > 0), HOLES),
    "function": (masks.function(lambda i, j: (j < 4) & (i >= 8)), np.outer([0, 0, 1, 1], [1, 0, 0, 0])),
    # visited everywhere, but nothing is seen beyond the first block
    "function-operands": (
        masks.function(lambda i, j, n: j < n, operand(jnp.asarray(4))),
        np.outer(np.ones(4), [1, 0, 0, 0]),
    ),
    "or": (masks.prefix(4) | masks.window(0), np.eye(4) + np.eye(1, 4) > 0),
}  # fmt: skip


@pytest.mark.parametrize("name", SKIPS)
def test_only_blocks_with_pairs_are_visited(name):
    """With the mask's arrays traced, so those of segments and lengths are known at run time only."""
    mask, blocks = SKIPS[name]
    np.testing.assert_array_equal(visits(mask), np.broadcast_to(blocks, (2, 4, 4)) > 0)


@pytest.mark.parametrize("name", ["prefix-batch", "segments-causal", "function", "around"])
def test_the_derivatives_skip_the_same_blocks(name):
    mask, blocks = SKIPS[name]
    blocks = np.broadcast_to(blocks, (2, 4, 4)) > 0
    pushed = lambda q, k, v, mask: jax.jvp(lambda q: attend(q, k, v, mask), (q,), (q,))[1]
    np.testing.assert_array_equal(visits(mask, pushed), blocks)
    pulled = lambda q, k, v, mask: jax.vjp(lambda q: attend(q, k, v, mask), q)[1](jnp.ones_like(q))[0]
    np.testing.assert_array_equal(visits(mask, pulled), blocks)


@pytest.mark.parametrize("name", ["prefix", "lengths"])
def test_nans_in_unused_keys_reach_nothing(name):
    mask = {"prefix": masks.prefix(8), "lengths": masks.lengths(jnp.asarray([8, 8]), jnp.asarray([16, 3]))}[name]
    q, k, v = QKV
    bad = (jnp.arange(LENGTH) >= 8)[:, None, None]
    spoilt = q, jnp.where(bad, jnp.nan, k), jnp.where(bad, jnp.nan, v)
    np.testing.assert_array_equal(jax.jit(attend)(*spoilt, mask), jax.jit(attend)(q, k, v, mask))
    for got, wanted in zip(jax.jit(gradients)(*spoilt, mask), jax.jit(gradients)(q, k, v, mask), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert not np.any(jax.jit(gradients)(*spoilt, mask)[1][:, 8:])


@_terms.term
class _Claims(masks.Mask):
    """No pair attends; but of key block 1, `blocks` claims that all do."""

    def __call__(self, i, j):
        return jnp.zeros(jnp.broadcast_shapes(i.shape, j.shape), bool)

    def blocks(self, i, j):
        full = (i.lo >= 0) & (j.lo == BLOCK)
        return Answer(np.ones_like(full), full)


def test_skipping_changes_no_values():
    for mask, _ in (SKIPS[name] for name in ("not-causal", "blocks-heads", "lengths")):
        wanted = jattn.attention(*QKV, mask=mask, implementation="reference")
        np.testing.assert_allclose(attend(*QKV, mask), wanted, rtol=1e-5, atol=1e-6)


def test_full_blocks_never_look_at_the_mask():
    only = masks.prefix(2 * BLOCK) & ~masks.prefix(BLOCK)
    np.testing.assert_array_equal(attend(*QKV, _Claims()), attend(*QKV, only))
    for got, wanted in zip(gradients(*QKV, _Claims()), gradients(*QKV, only), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)


# Functions


def test_static_functions_are_looked_at_while_tracing():
    looked = []

    def fn(i, j):
        looked.append(not isinstance(i, jax.core.Tracer))
        return i >= j

    mask = masks.function(fn)
    jax.jit(attend).lower(*QKV, mask)
    assert any(looked)
    assert not all(looked)  # the partial blocks
    np.testing.assert_array_equal(table(mask).full[0, 0], [0, 1, 2, 3])
    calls = len(looked)
    table(mask)
    assert len(looked) == calls  # once for each table


def test_static_functions_of_many_pairs_are_not_looked_at(monkeypatch):
    mask = masks.function(lambda i, j: i >= j)
    monkeypatch.setattr(masks, "_MOST_PAIRS", LENGTH * LENGTH)
    np.testing.assert_array_equal(table(mask, key=(LENGTH, 2)).partial[0, 0], 2)
    monkeypatch.setattr(masks, "_MOST_PAIRS", LENGTH * LENGTH - 1)
    np.testing.assert_array_equal(table(mask).partial, np.full((1, 1, 4), 4))


def test_functions_with_operands_are_partial_everywhere():
    mask = masks.function(lambda i, j, n: j < n, operand(np.array([16, 16]), "b"))
    found = block_tables.answers(mask, Tiling(16, 4), Tiling(16, 4))
    assert found.some.all()
    assert not found.every.any()


# Decoding


def test_one_program_decodes_every_step():
    q, k, v = QKV
    traced = []

    @jax.jit
    def step(n, k, v):
        traced.append(0)
        return attend(jax.lax.dynamic_slice_in_dim(q, n, 1, axis=1), k, v, masks.causal(n))

    whole = attend(q, k, v, masks.causal())
    for n in (0, 3, 4, 10, 15):
        unwritten = (jnp.arange(LENGTH) // BLOCK > n // BLOCK)[:, None, None]  # blocks of the cache not reached yet
        got = step(n, *(jnp.where(unwritten, jnp.nan, x) for x in (k, v)))
        np.testing.assert_allclose(got[:, 0], whole[:, n], rtol=1e-5, atol=1e-6)
    assert len(traced) == 1
