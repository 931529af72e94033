"""Attention over recurrent networks: against plain jnp with the same parameters, with padding and holes, under Flax."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jattn import normalizers
from jattn.nn import HierarchicalAttention, RecurrentAttention
from tests.layers import LOOSE, TIGHT
from tests.tolerances import TOLERANCES, assert_close

F, D = 3, 2  # widths of x and of a state
SUMMARIES = ("attention", "mean", "last")


def normal(*shape: int, seed: int = 0, dtype: Any = float) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def made(kind: Any, seed: int = 0, **options: Any) -> Any:
    """A layer with every parameter drawn anew, also those that start at 0."""
    layer = kind(F, D, **{"param_dtype": float, "rngs": nnx.Rngs(seed), **options})
    leaves, tree = jax.tree.flatten(nnx.state(layer, nnx.Param))
    drawn = [x + 0.3 * normal(*x.shape, seed=100 + n, dtype=x.dtype) for n, x in enumerate(leaves)]
    nnx.update(layer, jax.tree.unflatten(tree, drawn))
    return layer


# The layers, written down for one sequence and one document, real steps only


def lstm(p, steps):
    cell = hidden = jnp.zeros(D)
    states = []
    for x in steps:
        gates = x @ p["dense_i"]["kernel"] + hidden @ p["dense_h"]["kernel"] + p["dense_h"]["bias"]
        i, f, g, o = jnp.split(gates, 4)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        states.append(hidden)
    return jnp.stack(states)


def gru(p, steps):
    hidden, states = jnp.zeros(D), []
    for x in steps:
        (r, z, n), (hr, hz, hn) = (
            jnp.split(y, 3)
            for y in (x @ p["dense_i"]["kernel"] + p["dense_i"]["bias"], hidden @ p["dense_h"]["kernel"])
        )
        z = jax.nn.sigmoid(z + hz)
        hidden = (1 - z) * jnp.tanh(n + jax.nn.sigmoid(r + hr) * hn) + z * hidden
        states.append(hidden)
    return jnp.stack(states)


def summed(p, states, kind):
    """(weights, vector)"""
    if kind == "attention":
        p = p["summary"]["attention"]
        weight = jax.nn.softmax(jnp.tanh(states @ p["hidden"]["kernel"] + p["hidden"]["bias"]) @ p["context"][0])
    else:
        weight = {"mean": jnp.full(len(states), 1 / len(states)), "last": jnp.zeros(len(states)).at[-1].set(1)}[kind]
    return weight, weight @ states


def level(p, steps, kind):
    if "forward" in p:
        both = gru(p["forward"], steps), gru(p["backward"], steps[::-1])[::-1]
        steps = jnp.concatenate(both, axis=-1)
    return summed(p, steps, kind)


def recurrent(p, x, mask, kind):
    """(weights [s], out), of a sequence with its mask as a NumPy array."""
    where = np.flatnonzero(mask)
    if not where.size:
        return jnp.zeros(len(x)), jnp.zeros(D)
    weight, out = summed(p, lstm(p["cell"], x[where]), kind)
    return jnp.zeros(len(x)).at[where].set(weight), out


def hierarchical(p, x, mask, kind):
    """(weights [n, m], weights [n], out), of a document with its mask as a NumPy array."""
    words, sentences = jnp.zeros(mask.shape), jnp.zeros(len(mask))
    vectors, real = [], np.flatnonzero(mask.any(-1))
    for n in real:
        where = np.flatnonzero(mask[n])
        weight, vector = level(p["words"], x[n, where], kind)
        words = words.at[n, where].set(weight)
        vectors.append(vector)
    if not vectors:
        return words, sentences, jnp.zeros(2 * D)
    weight, out = level(p.get("sentences", {}), jnp.stack(vectors), kind)
    return words, sentences.at[real].set(weight), out


MASK = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 1, 0]], bool)  # with holes
DOCUMENTS = np.stack([MASK, np.zeros_like(MASK)])
CASES = {
    **{f"recurrent_{kind}": (RecurrentAttention, recurrent, MASK, {"summary": kind}) for kind in SUMMARIES},
    "documents": (HierarchicalAttention, hierarchical, DOCUMENTS, {"summary": "attention"}),
    "sets": (HierarchicalAttention, hierarchical, DOCUMENTS, {"summary": "mean", "sentence_gru": False}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("x64")
def test_layer_is_what_is_written(name):
    kind, plain, mask, options = CASES[name]
    layer, x = made(kind, **options), normal(*mask.shape, F)
    graph, params, rest = nnx.split(layer, nnx.Param, ...)

    def got(p, x):
        layer = nnx.merge(graph, p, rest)
        weights = layer.weights(x, jnp.asarray(mask))
        return *(weights if isinstance(weights, tuple) else (weights,)), layer(x, jnp.asarray(mask))

    def want(p, x):
        each = [plain(nnx.to_pure_dict(p), *one, options["summary"]) for one in zip(x, mask, strict=True)]
        return tuple(map(jnp.stack, zip(*each, strict=True)))

    results = []
    for fn in (got, want):
        found, pull = jax.vjp(jax.jit(fn), params, x)
        results.append((found, pull(tuple(normal(*y.shape, seed=n) for n, y in enumerate(found)))))
    jax.tree.map(lambda a, b: assert_close(a, b, TIGHT), *results)


@pytest.mark.parametrize("name", ["recurrent_last", "documents"])
@pytest.mark.usefixtures("x64")
def test_padding_changes_nothing(name):
    kind, _, mask, options = CASES[name]
    layer, x = made(kind, **options), normal(*mask.shape, F)
    more = [(0, 0)] + [(1, 2)] * (mask.ndim - 1)  # before and after, and sentences of nothing
    padded = jnp.pad(x, [*more, (0, 0)], constant_values=jnp.nan)
    inside = np.pad(mask, more)
    loss = jax.jit(lambda m, x, mask: jnp.sum(m(x, mask) ** 2))
    want, got = (jax.value_and_grad(loss, (0, 1))(layer, *inputs) for inputs in ((x, mask), (padded, inside)))
    jax.tree.map(lambda a, b: assert_close(a, b, TIGHT), (got[0], got[1][0]), (want[0], want[1][0]))
    assert_close(got[1][1][np.pad(np.ones_like(mask), more)], want[1][1].reshape(-1, F), TIGHT)
    assert (got[1][1][~inside] == 0).all()


@pytest.mark.parametrize("kind", [RecurrentAttention, HierarchicalAttention])
@pytest.mark.usefixtures("x64")
def test_batch_axes_and_no_mask(kind):
    sequence, width = ((5,), D) if kind is RecurrentAttention else ((2, 5), 2 * D)
    layer, x = made(kind, normalizer=normalizers.sparsemax()), normal(2, 3, *sequence, F)
    call = nnx.jit(lambda m, x, mask=None: m(x, mask))
    out = call(layer, x)
    assert out.shape == (2, 3, width)
    assert_close(call(layer, x, jnp.ones(x.shape[:-1], bool)), out, TIGHT)
    assert_close(call(layer, x[0, 0]), out[0, 0], TIGHT)
    assert_close(nnx.jit(nnx.vmap(lambda m, x: m(x), in_axes=(None, 0)))(layer, x), out, TIGHT)
    assert call(layer, normal(*[1] * len(sequence), F)).shape == (width,)


@pytest.mark.parametrize("name", ["recurrent_last", "documents"])
def test_batches_along_an_explicit_axis(name):
    """Whatever the mask hides, and wherever the mask lies."""
    kind, _, _, options = CASES[name]
    mask = np.resize([[1, 0, 1], [0, 0, 0], [1, 1, 0]], (2, 3) if kind is RecurrentAttention else (2, 2, 3)) > 0
    x = jnp.where(mask[..., None], normal(*mask.shape, F, dtype=jnp.float32), jnp.nan)
    layer = made(kind, param_dtype=jnp.float32, **options)
    loss = jax.jit(jax.value_and_grad(lambda m, x: jnp.sum(m(x, jnp.asarray(mask)) ** 2), (0, 1)))
    wanted = loss(layer, x)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
        got, out = loss(layer, placed), jax.eval_shape(layer, placed, jnp.asarray(mask))
    jax.tree.map(lambda a, b: assert_close(np.asarray(a), b, LOOSE), got, wanted)
    assert out.sharding.spec[0] == got[1][1].sharding.spec[0] == "batch"


@pytest.mark.parametrize("kind", [RecurrentAttention, HierarchicalAttention])
def test_under_the_transformations_of_flax(kind):
    mask = jnp.asarray(MASK[1:3])
    x = normal(*mask.shape, F, dtype=jnp.float32)
    loss = lambda m, x, mask: jnp.sum(m(x, mask) ** 2)
    scan = nnx.scan(lambda carry, m: (carry, m(x, mask)), in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))

    @nnx.jit
    def every_way(layer, layers):
        each = nnx.vmap(lambda m: m(x, mask))(layers)
        return nnx.grad(loss)(layer, x, mask), nnx.grad(nnx.remat(loss))(layer, x, mask), each, scan(0.0, layers)[1]

    layers = nnx.split_rngs(splits=2)(nnx.vmap(lambda rngs: kind(F, D, rngs=rngs)))(nnx.Rngs(0))
    plain, again, each, scanned = every_way(kind(F, D, rngs=nnx.Rngs(0)), layers)
    jax.tree.map(lambda a, b: assert_close(a, b, LOOSE), again, plain)
    assert_close(scanned, each, LOOSE)
    assert float(abs(each[0] - each[1]).max()) > 1e-3


def test_shapes_of_the_parameters():
    shapes = lambda layer: jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(layer)))
    pool = lambda width, hidden: {
        "attention": {"hidden": {"kernel": (width, hidden), "bias": (hidden,)}, "context": (1, hidden)}
    }
    cell = {"dense_i": {"kernel": (F, 4 * D)}, "dense_h": {"kernel": (D, 4 * D), "bias": (4 * D,)}}
    assert shapes(RecurrentAttention(F, D, attention=7, rngs=nnx.Rngs(0))) == {"cell": cell, "summary": pool(D, 7)}
    assert shapes(RecurrentAttention(F, D, summary="last", rngs=nnx.Rngs(0))) == {"cell": cell}
    gru = lambda width: {"dense_i": {"kernel": (width, 3 * D), "bias": (3 * D,)}, "dense_h": {"kernel": (D, 3 * D)}}
    both = lambda width: {"forward": gru(width), "backward": gru(width), "summary": pool(2 * D, 2 * D)}
    assert shapes(HierarchicalAttention(F, D, rngs=nnx.Rngs(0))) == {"words": both(F), "sentences": both(2 * D)}


@pytest.mark.parametrize(("kind", "summary"), [(RecurrentAttention, "attention"), (HierarchicalAttention, "mean")])
def test_dtypes(kind, summary):
    made, x = functools.partial(kind, F, D, summary=summary), normal(2, 3, F, dtype=jnp.float32)
    wide, narrow = made(rngs=nnx.Rngs(0)), made(dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    call = nnx.jit(lambda m, x: m(x))
    assert {y.dtype for y in jax.tree.leaves(nnx.state(narrow))} == {jnp.dtype("float32")}
    assert call(narrow, x).dtype == jnp.bfloat16
    assert call(wide, x).dtype == call(wide, x.astype(jnp.bfloat16)).dtype == jnp.float32
    assert_close(call(narrow, x), call(wide, x), 8 * TOLERANCES["bfloat16"].gradient)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_mean_of_more_steps_than_16_bits_can_count(dtype):
    steps = 70_000
    layer = RecurrentAttention(1, 1, summary="mean", dtype=dtype, rngs=nnx.Rngs(0))
    weights = layer.summary.weights(jnp.ones((steps, 1), dtype), None)
    assert_close(weights.sum(), 1.0, TOLERANCES["float32"].value * 10)
    mean = layer.summary(jnp.ones((steps, 1), dtype), None)
    assert mean.dtype == dtype
    assert_close(mean, jnp.ones(1), 0.25 * TOLERANCES[dtype].value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "features must be at least 1, got 0"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"attention": 0}, "hidden must be at least 1, got 0"),
        ({"summary": "max"}, "summary must be one of 'attention', 'mean'.* got 'max'"),
    ],
)
@pytest.mark.parametrize("kind", [RecurrentAttention, HierarchicalAttention])
def test_errors_of_making(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**{"features": F, "hidden": D, "rngs": nnx.Rngs(0), **options})


@pytest.mark.parametrize(
    ("kind", "x", "mask", "error", "message"),
    [
        (RecurrentAttention, (F,), None, ValueError, r"x must be \[.., s, 3\], got shape \[3\]"),
        (HierarchicalAttention, (5, F), None, ValueError, r"x must be \[.., n, m, 3\], got shape \[5, 3\]"),
        (HierarchicalAttention, (4, 5, 2), None, ValueError, r"x must be \[.., n, m, 3\], got shape \[4, 5, 2\]"),
        (RecurrentAttention, (5, F), np.ones(5), TypeError, "mask must be booleans, .* got float"),
        (HierarchicalAttention, (4, 5, F), np.ones((4, 5), int), TypeError, "mask must be booleans, .* got int"),
        (RecurrentAttention, (5, F), np.ones(4, bool), ValueError, r"mask must be \[.., s\] = \[5\].*shape \[4\]"),
        (HierarchicalAttention, (4, 5, F), np.ones(5, bool), ValueError, r"\[.., n, m\] = \[4, 5\].*shape \[5\]"),
    ],
)
def test_errors_of_calling(kind, x, mask, error, message):
    layer = kind(F, D, rngs=nnx.Rngs(0))
    for method in (layer, layer.weights):
        with pytest.raises(error, match=message):
            method(jnp.ones(x), mask)
