"""Attention between encoder and decoder: against plain jnp with the same parameters, under Flax's transformations; hard
attention and its estimators of the gradient against enumeration."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jattn
from jattn import gates, masks, mods, normalizers, scores
from jattn.nn import Seq2SeqAttention
from jattn.nn.seq2seq import SCORES
from tests.layers import LOOSE, TIGHT, normal, pure
from tests.tolerances import TOLERANCES, assert_close

B, T, S, H, D, F, M = 2, 3, 7, 2, 5, 6, 4  # F and M: widths of the decoder's and the encoder's states
LENGTHS = np.array([3, 7])
DRAWS = 4000


def make(param_dtype: Any = jnp.float32, **options) -> Seq2SeqAttention:
    options = {"heads": H, "head_dim": D, "memory_features": M, **options}
    return Seq2SeqAttention(F, param_dtype=param_dtype, rngs=nnx.Rngs(0), **options)


def inputs(lead=(B,), t=T, s=S, dtype=float):
    return normal((*lead, t, F), 1, dtype), normal((*lead, s, M), 2, dtype)


# The layer, written down

COMPARE = {  # of query [.., h, t, d] and key [.., h, s, d], with the arrays of the score
    "dot": lambda q, k: q @ jnp.swapaxes(k, -1, -2) / D**0.5,
    "general": lambda q, k, w: q @ w @ jnp.swapaxes(k, -1, -2) / D**0.5,
    "cosine": lambda q, k, scale: scale * jnp.einsum(
        "...td,...sd->...ts", *(x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    ),
    "concat": lambda q, k, a, b: jnp.einsum("...htd,hd->...ht", q, a)[..., None]
    + jnp.einsum("...hsd,hd->...hs", k, b)[..., None, :],
    "additive": lambda q, k, w_q, w_k, v: jnp.einsum(
        "...htsm,hm->...hts", jnp.tanh((q @ w_q)[..., :, None, :] + (k @ w_k)[..., None, :, :]), v
    ),
}  # fmt: skip


def dense(p, x, states, compare, *, static=False, lengths=S, mask=True, weigh=None, gate=1.0):
    project = lambda name, y: (
        jnp.einsum("...tf,fhd->...htd", y, p[name]["kernel"]) + p[name].get("bias", jnp.zeros((H, D)))[:, None]
    )
    query = jnp.broadcast_to(p["query"][:, None], (H, x.shape[-2], D)) if static else project("query", x)
    arrays = [p["arrays"][n] for n in sorted(p.get("arrays", {}))]
    mask = mask & (jnp.arange(states.shape[-2]) < jnp.asarray(lengths)[..., None, None, None])
    score = jnp.where(mask, compare(query, project("key", states), *arrays), -1e30)
    weight = (weigh or jax.nn.softmax)(score) * jnp.any(mask, axis=-1, keepdims=True) * gate
    out = jnp.einsum("...hts,...hsd->...thd", weight, project("value", states))
    return out.reshape(*out.shape[:-2], -1), weight


class Case(NamedTuple):
    layer: dict[str, Any] = {}  # noqa: RUF012
    dense: dict[str, Any] = {}  # noqa: RUF012
    call: dict[str, Any] = {}  # noqa: RUF012
    lengths: Any = None
    lead: tuple[int, ...] = (B,)
    t: int = T
    s: int = S


HOLES = np.random.default_rng(1).random((B, 1, T, S)) < 0.7
CASES = {
    **{name: Case({"score": name}, {"compare": COMPARE[name], "lengths": LENGTHS}, lengths=LENGTHS) for name in SCORES},
    "static": Case({"score": "additive", "static": True}, {"compare": COMPARE["additive"], "static": True}),
    "own-score": Case({"score": scores.dot(np.array(0.7)), "use_bias": False},
                      {"compare": lambda q, k, scale: scale * q @ jnp.swapaxes(k, -1, -2)}),
    "no-batch": Case({"score": "general"}, {"compare": COMPARE["general"], "lengths": 4}, lengths=4, lead=()),
    "two-batch-axes": Case({"score": "concat"}, {"compare": COMPARE["concat"], "lengths": np.array([[3, 7], [1, 2], [7, 5]]), "mask": HOLES},
                           {"mask": HOLES}, np.array([[3, 7], [1, 2], [7, 5]]), (3, B)),
    "static-two-batch-axes": Case({"static": True}, {"static": True}, lead=(3, B)),
    "one-of-all": Case({}, {}, lead=(1,), t=1, s=1),
    "options": Case({"mods": mods.softcap(1.0), "mask": masks.prefix(6), "gates": gates.function(lambda w, i, j: w * (1 + j))},
                    {"compare": lambda q, k: jnp.tanh(COMPARE["dot"](q, k)), "mask": HOLES & (np.arange(S) < 6), "gate": (1 + np.arange(S)) / 2},
                    {"mask": HOLES, "gates": gates.function(lambda w, i, j: w / 2)}),
    "normalizer": Case({"normalizer": normalizers.hard()}, {"weigh": jax.nn.sigmoid},
                       {"normalizer": normalizers.sigmoid()}),
}  # fmt: skip


def run(layer: Seq2SeqAttention, x, states, lengths=None, **call):
    return layer(x, layer.read(states, lengths), **call)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("x64")
def test_layer_is_what_is_written(name):
    """What it reads and its weights, and gradients to every parameter and input."""
    case = CASES[name]
    layer = make(jnp.float64, **case.layer)
    graph, params, rest = nnx.split(layer, nnx.Param, ...)

    def layer_of(p, x, states):
        m = nnx.merge(graph, p, rest)
        memory = m.read(states, case.lengths)
        return m(x, memory, **case.call), m.weights(x, memory, **case.call)

    def result_and_gradients(fn):
        out, pull = jax.vjp(fn, params, *inputs(case.lead, case.t, case.s))
        return out, pull((normal(out[0].shape, 9), jnp.zeros_like(out[1])))

    options = {"compare": COMPARE["dot"], **case.dense}
    want_of = lambda p, *xs: dense(nnx.to_pure_dict(p), *xs, **options)
    got, want = jax.jit(lambda: (result_and_gradients(layer_of), result_and_gradients(want_of)))()
    jax.tree_util.tree_map_with_path(
        lambda path, a, b: assert_close(a, b, TIGHT, jax.tree_util.keystr(path)), got, want
    )


def test_float32_and_bfloat16():
    x, states = inputs(dtype=jnp.float32)
    wide, narrow = make(score="additive"), make(score="additive", dtype=jnp.bfloat16)
    want, _ = dense(pure(wide), x, states, COMPARE["additive"])
    assert_close(run(wide, x, states), want, LOOSE)
    out = run(narrow, *(y.astype(jnp.bfloat16) for y in (x, states)))
    assert out.dtype == jnp.bfloat16
    assert_close(out, want, 4 * TOLERANCES["bfloat16"].gradient)


@pytest.mark.parametrize("static", [False, True])
def test_padding_changes_nothing(static):
    layer = make(static=static, score="general")
    x, states = inputs(dtype=jnp.float32)
    inside = np.arange(S + 2) < LENGTHS[:, None]
    longer = jnp.where(inside[..., None], jnp.pad(states, ((0, 0), (0, 2), (0, 0))), 7.0)
    learn = nnx.jit(nnx.value_and_grad(lambda m, x, y: jnp.sum(jnp.sin(run(m, x, y, LENGTHS))), argnums=(0, 1, 2)))
    (value, (of_layer, of_x, of_states)), (want, wanted) = learn(layer, x, longer), learn(layer, x, states)
    assert_close(value, want, LOOSE)
    jax.tree.map(lambda a, b: assert_close(a, b, LOOSE), pure(of_layer), pure(wanted[0]))
    assert_close(of_x, wanted[1], LOOSE)
    assert_close(of_states[:, :S], wanted[2], LOOSE)
    assert not np.any(np.asarray(of_states)[~inside])


@pytest.mark.parametrize(
    "normalizer", [normalizers.softmax(), normalizers.hard(True), normalizers.gumbel(jax.random.key(0))]
)
def test_an_example_without_a_source_reads_zero(normalizer):
    layer = make(score="cosine", normalizer=normalizer)
    x, states = inputs(dtype=jnp.float32)
    lengths = np.array([0, S])
    out = run(layer, x, states, lengths)
    assert not np.any(out[0])
    assert np.all(np.any(out[1], axis=-1))
    gradients = nnx.jit(nnx.grad(lambda m, x: jnp.sum(run(m, x, states, lengths) ** 2), argnums=(0, 1)))(layer, x)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert not np.any(gradients[1][0])
    if not isinstance(normalizer, normalizers.Gumbel):
        read, place, log_prob = make().sample(jax.random.key(0), x, make().read(states, lengths))
        assert not np.any(read[0])
        assert (place[0] == -1).all()
        assert (log_prob[0] == -np.inf).all()


def test_steps_are_what_all_at_once_is():
    for layer in (make(score="additive"), make(static=True)):
        x, states = inputs(dtype=jnp.float32)
        memory = layer.read(states, LENGTHS)
        whole = layer(x, memory)
        for n in range(T):
            assert_close(layer(x[:, n : n + 1], memory)[:, 0], whole[:, n], LOOSE)


def test_static_attention_reads_the_same_at_every_step():
    layer = make(static=True)
    x, states = inputs(dtype=jnp.float32)
    memory = layer.read(states, LENGTHS)
    out, place, log_prob = layer.sample(jax.random.key(3), x, memory)
    for array in (layer(x, memory), layer.weights(x, memory).swapaxes(1, 2), out, place, log_prob):
        assert array.shape[:2] == (B, T)
        np.testing.assert_array_equal(array, np.broadcast_to(array[:, :1], array.shape))
    assert (layer(5 * x, memory) == layer(x, memory)).all()
    assert len({int(n) for seed in range(9) for n in layer.sample(jax.random.key(seed), x, memory)[1][1, 0]}) > 2


def test_what_is_drawn_is_the_definitions_whatever_runs_the_attention():
    x, states = inputs(dtype=jnp.float32)
    draw = lambda layer: layer.sample(jax.random.key(0), x, layer.read(states, LENGTHS))
    got, want = draw(make(implementation="blockwise", blocks=(8, 8))), draw(make())
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_query_that_all_steps_share():
    """What static attention is where the query is not learned: dynamic attention called once."""
    layer = make()
    x, states = inputs(dtype=jnp.float32)
    last = jnp.broadcast_to(x[:, -1:], x.shape)
    memory = layer.read(states, LENGTHS)
    assert_close(layer(last, memory), jnp.repeat(layer(x[:, -1:], memory), T, axis=1), LOOSE)


def test_sample_reads_the_place_it_names():
    layer = make(score="general")
    x, states = inputs((3, B), dtype=jnp.float32)
    lengths = np.array([[3, 7], [1, 2], [7, 5]])
    memory = layer.read(states, lengths)
    out, place, log_prob = layer.sample(jax.random.key(0), x, memory)
    assert place.shape == log_prob.shape == (3, B, T, H)
    assert (place < lengths[..., None, None]).all()
    weights = layer.weights(x, memory)  # [.., h, t, s]
    chosen = jnp.moveaxis(jax.nn.one_hot(place, S), -2, -3)
    assert_close(log_prob, jnp.log(jnp.sum(weights * chosen, -1)).swapaxes(-1, -2), LOOSE)
    want = jnp.einsum("...hts,...shd->...thd", chosen, memory.value).reshape(3, B, T, -1)
    assert_close(out, want, LOOSE)
    again = layer.sample(jax.random.key(0), x, memory)[1]
    assert (again == place).all()
    assert not (layer.sample(jax.random.key(1), x, memory)[1] == place).all()


# Hard attention: what each way to train it does to the scores


@pytest.mark.usefixtures("x64")
def test_argmax_passes_no_gradient_to_what_it_compares():
    layer = make(jnp.float64, score="general", normalizer=normalizers.hard())
    x, states = inputs()
    out, weights = run(layer, x, states), layer.weights(x, layer.read(states))
    assert set(np.unique(weights)) == {0.0, 1.0}
    gradients = pure(nnx.grad(lambda m: jnp.sum(jnp.sin(run(m, x, states))))(layer))
    assert not any(np.any(g) for g in jax.tree.leaves([gradients[n] for n in ("query", "key", "arrays")]))
    assert np.any(gradients["value"]["kernel"])
    want, _ = dense(pure(layer), x, states, COMPARE["general"], weigh=lambda s: (s == s.max(-1, keepdims=True)) * 1.0)
    assert_close(out, want, TIGHT)


@pytest.mark.usefixtures("x64")
def test_straight_through_has_the_gradient_of_softmax_at_the_choice_of_argmax():
    layer = make(jnp.float64, score="general", normalizer=normalizers.hard(straight_through=True))
    x, states = inputs()

    def through(score):
        soft = jax.nn.softmax(score)
        return soft + jax.lax.stop_gradient((score == score.max(-1, keepdims=True)) - soft)

    learn = lambda fn: nnx.jit(nnx.value_and_grad(lambda m: jnp.sum(jnp.sin(fn(m)))))(layer)
    got = learn(lambda m: run(m, x, states))
    want = learn(lambda m: dense(pure(m), x, states, COMPARE["general"], weigh=through)[0])
    assert_close(got[0], want[0], TIGHT)
    jax.tree.map(lambda a, b: assert_close(a, b, TIGHT), pure(got[1]), pure(want[1]))
    assert all(np.any(g) for g in jax.tree.leaves(pure(got[1])["arrays"]))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("hard", [False, True])
def test_the_gradient_of_gumbel_is_that_of_softmax_with_the_same_noise(hard):
    layer = make(jnp.float64, score="general")
    x, states = inputs()
    draw = lambda temperature, hard: normalizers.gumbel(jax.random.key(2), temperature, hard=hard)
    flat = jnp.zeros((B, T, H, D)), *[jnp.zeros((B, S, H, D))] * 2
    noise = jnp.log(jattn.weights(*flat, normalizer=draw(1.0, False)))  # but for a number for each row

    def weigh(score):
        soft = jax.nn.softmax((score + noise) / 0.5)
        chosen = (soft == soft.max(-1, keepdims=True)) * 1.0
        return soft + jax.lax.stop_gradient(chosen - soft) if hard else soft

    learn = lambda fn: nnx.jit(nnx.value_and_grad(lambda m: jnp.sum(jnp.sin(fn(m)))))(layer)
    got = learn(lambda m: run(m, x, states, normalizer=draw(0.5, hard)))
    want = learn(lambda m: dense(pure(m), x, states, COMPARE["general"], weigh=weigh)[0])
    assert_close(got[0], want[0], TIGHT)
    jax.tree.map(lambda a, b: assert_close(a, b, TIGHT), pure(got[1]), pure(want[1]))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("baseline", [0.0, 0.8])
def test_reinforce_is_unbiased(baseline):
    """Its mean over all that can be drawn is the gradient of the mean cost; and `sample` draws as often as it should."""
    q, k, v = (normal((n, 1, 2), seed) for n, seed in ((2, 0), (3, 1), (3, 2)))
    cost = lambda out: jnp.sin(out).sum((-2, -1))  # of each query

    def mean_cost(q, k, v):
        probability = jattn.weights(q, k, v)[0]
        return jnp.sum(probability * jnp.stack([cost(jnp.broadcast_to(v[n], (2, 1, 2))) for n in range(3)], axis=-1))

    def estimate(out, log_prob):
        paid = cost(out)
        return jnp.sum(paid + (jax.lax.stop_gradient(paid) - baseline) * log_prob)

    def one(places):
        """The estimator where those places were drawn."""
        rows = jnp.arange(2)
        log_prob = lambda q, k, v: jnp.log(jattn.weights(q, k, v)[0, rows, places])
        slope = jax.grad(lambda q, k, v: estimate(v[places], log_prob(q, k, v)), (0, 1, 2))(q, k, v)
        return jnp.exp(jnp.sum(log_prob(q, k, v))), slope

    want = jax.jit(jax.grad(mean_cost, (0, 1, 2)))(q, k, v)
    one = jax.jit(one)
    every = [one(np.array(places)) for places in itertools.product(range(3), repeat=2)]
    assert_close(sum(p for p, _ in every), 1.0, TIGHT)
    for n in range(3):
        assert_close(sum(p * slope[n] for p, slope in every), want[n], TIGHT)

    def drawn(q, k, v):
        repeat = lambda x: jnp.broadcast_to(x, (DRAWS, *x.shape))
        out, place, log_prob = jattn.sample(jax.random.key(0), *map(repeat, (q, k, v)))
        return jnp.sum(jax.vmap(estimate)(out, log_prob[..., 0])) / DRAWS, place[..., 0]

    got, place = jax.jit(jax.grad(drawn, (0, 1, 2), has_aux=True))(q, k, v)
    share = np.bincount(place[:, 0] * 3 + place[:, 1], minlength=9) / DRAWS  # in the order of `every`
    np.testing.assert_allclose(share, [p for p, _ in every], atol=4 * 0.5 / np.sqrt(DRAWS))
    for n in range(3):
        assert_close(got[n], sum(p * slope[n] for p, (_, slope) in zip(share, every, strict=True)), TIGHT)


# Flax's transformations


def test_jit_grad_remat_and_scan():
    layer = make(score="additive")
    x, states = inputs(dtype=jnp.float32)
    loss = lambda m, x: jnp.sum(run(m, x, states, LENGTHS) ** 2)
    want = nnx.grad(loss)(layer, x)
    again = lambda m, x: jnp.sum(nnx.remat(lambda m, x: run(m, x, states, LENGTHS))(m, x) ** 2)

    def stepwise(m, x):
        """A decoder's loop over steps, with the memory made once."""
        memory = m.read(states, LENGTHS)
        step = lambda m, row: jnp.sum(m(row[:, None], memory) ** 2)
        return jnp.sum(nnx.scan(step, in_axes=(None, 0), out_axes=0)(m, x.swapaxes(0, 1)))

    for got in (nnx.jit(nnx.grad(loss))(layer, x), nnx.grad(again)(layer, x), nnx.grad(stepwise)(layer, x)):
        jax.tree.map(lambda a, b: assert_close(a, b, 10 * LOOSE), pure(got), pure(want))


def test_shapes_of_the_parameters():
    shapes = lambda **options: jax.tree.map(jnp.shape, pure(make(**options)))
    assert shapes() == {
        "query": {"kernel": (F, H, D), "bias": (H, D)},
        "key": {"kernel": (M, H, D), "bias": (H, D)},
        "value": {"kernel": (M, H, D), "bias": (H, D)},
    }
    assert shapes(static=True)["query"] == (H, D)
    assert shapes(score="general")["arrays"] == {0: (H, D, D)}
    assert shapes(score="cosine")["arrays"] == {0: ()}
    assert shapes(score="concat")["arrays"] == {0: (H, D), 1: (H, D)}
    assert shapes(score="additive")["arrays"] == {0: (H, D, D), 1: (H, D, D), 2: (H, D)}


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"heads": 4, "head_dim": None},
            "features must be a multiple of heads, got features = 6, heads = 4; or give head_dim",
        ),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        (
            {"score": "matrix"},
            "score must be one of dot, general, cosine, concat, additive, or made like .*, got 'matrix'",
        ),
    ],
)
def test_errors_of_making(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_unknown_options():
    with pytest.raises(TypeError, match="Seq2SeqAttention takes no option dropout; the options are normalizer, mask"):
        make(dropout=0.1)
    x, states = inputs(dtype=jnp.float32)
    with pytest.raises(TypeError, match="Seq2SeqAttention takes no option score; the options are normalizer"):
        run(make(), x, states, score=scores.dot())
    with pytest.raises(ValueError, match="it takes no normalizer"):
        make(normalizer=normalizers.hard()).sample(jax.random.key(0), x, make().read(states))


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    ("x", "states", "lengths", "message"),
    [
        ((B, T, F + 1), (B, S, M), None, r"x must be \[.., t, 6\], got shape \[2, 3, 7\]"),
        ((B, T, F), (B, S, F), None, r"states must be \[.., s, 4\], got shape \[2, 7, 6\]"),
        ((B, T, F), (M,), None, r"states must be \[.., s, 4\], got shape \[4\]"),
        ((B, T, F), (3, S, M), None, r"cache must have .* with the batch axes \[2\] of x, got key \[3, 7, 2, 5\]"),
        ((B, T, F), (B, S, M), np.ones(3, int), r"lengths must be integers with the batch axes \[2\], got int32\[3\]"),
        ((B, T, F), (B, S, M), np.ones(B), r"lengths must be integers .* got float32\[2\]"),
        ((B, T, F), (B, S, M), [S + 1, 0], rf"lengths must be from 0 to {S}, got \[{S + 1}, 0\]"),
    ],
)
def test_errors_of_calling(static, x, states, lengths, message):
    with pytest.raises(ValueError, match=message):
        run(make(static=static), jnp.ones(x), jnp.ones(states), lengths)
