"""The blocks of ABCNN: against the paper's formulas in plain jnp, with padding, under Flax's transformations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.nn import ABCNN, AttentionPooling
from tests.tolerances import TOLERANCES, assert_close

F, O, W, LONGEST = 5, 4, 3, 9
VARIANTS = {"bcnn": (False, False), "abcnn1": (True, False), "abcnn2": (False, True), "abcnn3": (True, True)}
# a distance is the root of a difference: it keeps about half of its digits where two steps are close, and here all are
# apart, so that of float64 nothing is lost that the tolerance of a layer does not have
TIGHT, LOOSE = (50 * TOLERANCES[dtype].gradient for dtype in ("float64", "float32"))


def normal(*shape, seed=0, dtype=float):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def block_of(name="abcnn3", width=W, pooling: Any = "window", dtype=float, **options):
    before, after = VARIANTS[name]
    options = {"param_dtype": dtype, "rngs": nnx.Rngs(0), **options}
    layer = ABCNN(
        F, O, width, before=before, after=after, length=LONGEST if before else None, pooling=pooling, **options
    )
    assert layer.conv.bias is not None
    layer.conv.bias[...] += normal(O, seed=9, dtype=dtype)
    return layer


def matches(x, y):
    return 1 / (1 + jnp.linalg.norm(x[:, None] - y[None], axis=-1))


def plain(layer, p, x, y):
    """The paper's formulas for one pair of sentences without padding; (outputs, matches of sentences and columns)."""
    w = layer.width
    first = matches(x, y)

    def columns(x, first):
        channels = jnp.concatenate([x, first @ p["table"][: first.shape[1]]], axis=-1) if layer.before else x
        padded = jnp.pad(channels, ((w - 1, w - 1), (0, 0)))
        kernel = p["conv"]["kernel"].reshape(w, *channels.shape[1:], -1)
        sums = [jnp.einsum("wf,wfo->o", padded[i : i + w], kernel) for i in range(len(x) + w - 1)]
        return jnp.tanh(jnp.stack(sums) + p["conv"]["bias"])

    c, d = columns(x, first), columns(y, first.T)
    second = matches(c, d)

    def pooled(c, second, n):
        if layer.after:
            c = c * second.mean(axis=1)[:, None]
        if layer.pooling != "window":
            return {"mean": jnp.mean, "max": jnp.max}[layer.pooling](c, axis=0)
        return jnp.stack([c[i : i + w].mean(axis=0) for i in range(n)])

    return (pooled(c, second, len(x)), pooled(d, second.T, len(y))), first, second


def outcome(fn, *primals):
    """What comes out, and the gradients of it all to what goes in."""
    got, pull = jax.vjp(jax.jit(fn), *primals)
    leaves, tree = jax.tree.flatten(got)
    cotangent = jax.tree.unflatten(tree, [normal(*y.shape, seed=n, dtype=y.dtype) for n, y in enumerate(leaves)])
    return got, pull(cotangent)


def assert_same(got, want, tolerance=TIGHT):
    jax.tree.map(lambda a, b: assert_close(a, b, tolerance), got, want)


@pytest.mark.parametrize(
    ("name", "t", "s", "width", "pooling"),
    [
        ("bcnn", 7, 5, 3, "window"),
        ("bcnn", 4, 5, 2, "max"),
        ("abcnn1", 7, 5, 3, "window"),
        ("abcnn1", 1, 9, 1, "mean"),
        ("abcnn2", 7, 5, 3, "window"),
        ("abcnn2", 2, 1, 4, "window"),
        ("abcnn3", 5, 7, 3, "window"),
        ("abcnn3", 3, 2, 2, "mean"),
    ],
)
@pytest.mark.usefixtures("x64")
def test_block_is_what_is_written(name, t, s, width, pooling):
    layer, x, y = block_of(name, width, pooling), normal(t, F, seed=1), normal(s, F, seed=2)
    graph, params, rest = nnx.split(layer, nnx.Param, ...)

    def got(p, x, y):
        layer = nnx.merge(graph, p, rest)
        return tuple(layer(x, y)), layer.weights(x, y), layer.weights(x, y, columns=True)

    assert_same(
        outcome(got, params, x, y),
        outcome(lambda p, x, y: plain(layer, nnx.to_pure_dict(p), x, y), params, x, y),
    )


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.usefixtures("x64")
def test_padding_changes_nothing(name):
    layer, x, y = block_of(name), normal(2, 5, F, seed=1), normal(2, 4, F, seed=2)
    wide = lambda z, n, value: jnp.pad(z, ((0, 0), (0, n), (0, 0)), constant_values=value)
    mask = lambda n, total: jnp.broadcast_to(jnp.arange(total) < n, (2, total))
    masks = mask(5, 8), mask(4, 9)
    square = lambda m, x, y, *masks: sum(jnp.sum(out**2) for out in m(x, y, *masks))
    (want, (want_p, *want_xy)), (got, (got_p, *got_xy)) = (
        nnx.value_and_grad(square, argnums=(0, 1, 2))(layer, *args)
        for args in ((x, y), (wide(x, 3, 7.0), wide(y, 5, -50.0), *masks))
    )
    assert_same((got, got_p), (want, want_p))
    for grad, plain in zip(got_xy, want_xy, strict=True):
        n = plain.shape[1]
        assert_close(grad[:, :n], plain, TIGHT)
        assert (grad[:, n:] == 0).all()
    padded = layer(wide(x, 3, 7.0), wide(y, 5, -50.0), *masks)
    assert (padded[0][:, 5:] == 0).all()
    assert (padded[1][:, 4:] == 0).all()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("pooling", ["window", "mean", "max", "attention"])
@pytest.mark.usefixtures("x64")
def test_a_sentence_without_a_word_gives_zeros(name, pooling):
    pool = AttentionPooling(O, param_dtype=float, rngs=nnx.Rngs(1)) if pooling == "attention" else pooling
    layer, x = block_of(name, pooling=pool), normal(2, 4, F)
    nothing = jnp.zeros((2, 4), bool)
    square = lambda m, x: sum(jnp.sum(out**2) for out in m(x, x + 1, None, nothing))
    left, right = layer(x, x + 1, None, nothing)
    assert (right == 0).all()
    assert (left == 0).all() == layer.after  # nothing matches
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(nnx.grad(square, argnums=(0, 1))(layer, x)))


@pytest.mark.usefixtures("x64")
def test_the_same_words_match_wholly():
    """As in most pairs: where the distance is 0 its root has no slope, and rounding leaves it a little off 0."""
    x = normal(2, 6, F)
    layer = block_of()
    for dtype in (jnp.float64, jnp.float32):
        left = jnp.asarray(x, dtype)
        assert (jnp.diagonal(layer.weights(left, left), axis1=1, axis2=2) == 1).all()
    grads = nnx.grad(lambda m, x: sum(jnp.sum(out**2) for out in m(x, x)), argnums=(0, 1))(layer, x)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
    near = x.at[:, 0].add(1e-5)  # close, and still told apart
    assert_close(layer.weights(x, near)[:, 0, 0], jnp.full(2, 1 / (1 + 1e-5 * np.sqrt(F))), 1e-9)


@pytest.mark.usefixtures("x64")
def test_the_order_of_a_pair_does_not_matter():
    layer, x, y = block_of(), normal(2, 5, F, seed=1), normal(2, 4, F, seed=2)
    assert_same(layer(x, y), layer(y, x)[::-1])


@pytest.mark.parametrize("lead", [(), (2, 1, 3)])
@pytest.mark.usefixtures("x64")
def test_batch_axes(lead):
    layer, x, y = block_of(), normal(*lead, 5, F, seed=1), normal(*lead, 4, F, seed=2)
    mask = np.random.default_rng(3).random((*lead, 5)) < 0.7
    got = (*layer(x, y, mask), layer.weights(x, y, mask), layer.weights(x, y, mask, columns=True))
    for n in np.ndindex(*lead):
        alone = (*layer(x[n], y[n], mask[n]), layer.weights(x[n], y[n], mask[n]))
        assert_same([out[n] for out in got[:3]], list(alone))
    assert [out.shape for out in got] == [(*lead, 5, O), (*lead, 4, O), (*lead, 5, 4), (*lead, 7, 6)]


@pytest.mark.usefixtures("x64")
def test_pooling_of_all_columns():
    pool = AttentionPooling(O, param_dtype=float, rngs=nnx.Rngs(1))
    x, y = normal(2, 5, F, seed=1), normal(2, 4, F, seed=2)
    mask = jnp.arange(5) < jnp.array([[2], [5]])
    seen = []
    columns = block_of(pooling=lambda x, mask: seen.append((x, mask)) or x)(x, y, mask)
    assert [out.shape for out in columns] == [(2, 7, O), (2, 6, O)]
    assert (seen[0][1] == (jnp.arange(7) < jnp.array([[4], [7]]))).all()
    for pooling, want in (("mean", lambda x, m: x[m].mean(0)), ("max", lambda x, m: x[m].max(0))):
        got = block_of(pooling=pooling)(x, y, mask)
        for out, (values, real) in zip(got, seen, strict=True):
            assert_close(out, jnp.stack([want(*row) for row in zip(values, real, strict=True)]), TIGHT)
    assert_same(block_of(pooling=pool)(x, y, mask), tuple(pool(*each) for each in seen))
    assert "pooling" in nnx.to_pure_dict(nnx.state(block_of(pooling=pool), nnx.Param))


def test_float32_and_bfloat16():
    x, y = normal(2, 5, F, seed=1, dtype=jnp.float32), normal(2, 4, F, seed=2, dtype=jnp.float32)
    layer = block_of(dtype=jnp.float32)
    p = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    want = jax.vmap(lambda x, y: plain(layer, p, x, y)[0])(x, y)
    assert_same(layer(x, y), want, LOOSE)
    narrow = ABCNN(F, O, W, before=True, after=True, length=LONGEST, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    nnx.update(narrow, nnx.state(layer, nnx.Param))
    assert all(out.dtype == jnp.bfloat16 for out in narrow(x, y))
    assert_same(narrow(x, y), want, 4 * TOLERANCES["bfloat16"].gradient)


def test_under_the_transformations_of_flax():
    x, y = normal(2, 5, F, seed=1, dtype=jnp.float32), normal(2, 4, F, seed=2, dtype=jnp.float32)
    mask = jnp.arange(5) < jnp.array([[3], [5]])
    layer = block_of(dtype=jnp.float32)
    loss = lambda m, x, y, mask: sum(jnp.sum(out**2) for out in m(x, y, mask))
    want = nnx.grad(loss)(layer, x, y, mask)
    for grad in (nnx.jit(nnx.grad(loss)), nnx.grad(nnx.remat(loss))):
        assert_same(grad(layer, x, y, mask), want, LOOSE)
    make = lambda rngs: ABCNN(F, F, W, before=True, after=True, length=LONGEST, rngs=rngs)
    layers = nnx.split_rngs(splits=2)(nnx.vmap(make))(nnx.Rngs(0))

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def scanned(pair, layer):
        return layer(*pair, mask)

    graph, state = nnx.split(layers)
    pair = (x, y)
    for n in range(2):
        pair = nnx.merge(graph, jax.tree.map(lambda z, n=n: z[n], state))(*pair, mask)
    assert_same(scanned((x, y), layers), pair, LOOSE)
    assert_same(jax.vmap(layer)(x, y, mask), layer(x, y, mask), LOOSE)


def test_shapes_of_the_parameters():
    shapes = lambda layer: jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(layer, nnx.Param)))
    assert shapes(block_of("abcnn2")) == {"conv": {"kernel": (W * F, O), "bias": (O,)}}
    assert shapes(block_of("abcnn3")) == {"conv": {"kernel": (W * 2 * F, O), "bias": (O,)}, "table": (LONGEST, F)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_features": 0}, "in_features must be at least 1, got 0"),
        ({"features": 0}, "features must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"before": True}, "length must be at least 1 with before=True, else None, got before=True, length = None"),
        ({"before": True, "length": 0}, "length must be at least 1, got 0"),
        ({"length": 4}, "got before=False, length = 4"),
        ({"pooling": "sum"}, "pooling must be one of window, mean, max, or a function, got 'sum'"),
    ],
)
def test_errors_of_making(options, message):
    with pytest.raises(ValueError, match=message):
        ABCNN(**{"in_features": F, "features": O, "width": W, "rngs": nnx.Rngs(0), **options})


@pytest.mark.parametrize(
    ("x", "y", "masks", "error", "message"),
    [
        ((F,), (4, F), (), ValueError, r"x must be \[.., s, 5\], got shape \[5\]"),
        ((4, F), (4, F + 1), (), ValueError, r"y must be \[.., s, 5\], got shape \[4, 6\]"),
        ((2, 4, F), (3, 4, F), (), ValueError, r"same batch axes, got x \[2, 4, 5\], y \[3, 4, 5\]"),
        ((4, F), (LONGEST + 1, F), (), ValueError, "y has 10 steps, this layer was made with length=9"),
        (
            (4, F),
            (3, F),
            (None, np.ones(4, bool)),
            ValueError,
            r"mask must be \[.., s\] = \[3\], as y is, got shape \[4\]",
        ),
        ((4, F), (3, F), (np.ones(4),), TypeError, "mask must be booleans, True where x is real, got float"),
    ],
)
def test_errors_of_calling(x, y, masks, error, message):
    layer = block_of(dtype=jnp.float32)
    for method in (layer, layer.weights):
        with pytest.raises(error, match=message):
            method(jnp.ones(x), jnp.ones(y), *masks)


def test_insisting_on_what_is_no_backend():
    with pytest.raises(ValueError, match=r"implementation must be None or one of .* got 'nonsense'"):
        block_of(dtype=jnp.float32, implementation="nonsense")(jnp.ones((4, F)), jnp.ones((4, F)))
