"""Local attention: against plain jnp with the same parameters, under Flax's transformations, local in its cost."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import gates, masks, normalizers
from jattn.nn import LocalAttention, MultiHeadAttention, cache
from tests.layers import LOOSE, TIGHT, normal, pure, randomised
from tests.tolerances import assert_close

B, T, S, H, D, F, C = 2, 5, 11, 2, 3, 6, 4  # F and C: widths of x and of the context


def make(window, dtype: Any = jnp.float32, **options) -> LocalAttention:
    options = {"head_dim": D, "context_features": C, **options}
    return LocalAttention(F, H, window, param_dtype=dtype, rngs=nnx.Rngs(0), **options)


# The layer, written down


def dense(p, x, context, left, right, *, pace=None, positions=None, lengths=S, mask=True, gate=1.0, masked=True):
    """Any number of batch axes; scores and weights are `[.., h, t, s]`.  pace: None for predicted centres."""
    a, j = p["attention"], jnp.arange(context.shape[-2])
    project = lambda name, y: jnp.einsum("...tf,fhd->...htd", y, a[name]["kernel"]) + a[name]["bias"][:, None]
    query, key, value = project("query", x), project("key", context), project("value", context)
    lengths = jnp.asarray(lengths)[..., None, None]
    if pace is None:
        hidden = jnp.tanh(jnp.einsum("...tf,fhd->...htd", x, p["position"]["kernel"]))
        center = lengths / (1 + jnp.exp(-jnp.einsum("...htd,hd->...ht", hidden, p["direction"])))
    else:
        center = pace * jnp.broadcast_to(jnp.arange(x.shape[-2]) if positions is None else positions, x.shape[:-1])
        center = center[..., None, :]
    away = j - center[..., None]
    mask = mask & (j < lengths[..., None])
    if masked:
        mask &= (-left <= away) & (away <= right)
    score = jnp.where(mask, query @ jnp.swapaxes(key, -1, -2) / D**0.5, -1e30)
    weight = jax.nn.softmax(score) * jnp.any(mask, axis=-1, keepdims=True)
    if pace is None:
        weight *= jnp.exp(-(away**2) / (2 * ((left + right) / 4) ** 2))
    return jnp.einsum("...hts,...hsd,hdf->...tf", weight * gate, value, a["out"]["kernel"]) + a["out"]["bias"]


class Case(NamedTuple):
    layer: dict[str, Any]
    dense: dict[str, Any]
    call: dict[str, Any] = {}  # noqa: RUF012
    lead: tuple[int, ...] = (B,)
    t: int = T
    s: int = S


LENGTHS = np.array([4, 11])
HOLES = np.random.default_rng(1).random((B, H, T, S)) < 0.7
PREDICTED = {"center": "predicted"}
CASES = {
    "window": Case({"window": (3, 1)}, {"left": 3, "right": 1, "pace": 1}),
    "itself-alone": Case({"window": 0}, {"left": 0, "right": 0, "pace": 1}),
    "local-m": Case({"window": 2, "pace": 2.5}, {"left": 2, "right": 2, "pace": 2.5, "lengths": LENGTHS},
                    {"lengths": LENGTHS}),
    "positions": Case({"window": 2}, {"left": 2, "right": 2, "pace": 1, "positions": np.arange(T) + 4},
                      {"positions": np.arange(T) + 4}),
    "local-p": Case({"window": 3, **PREDICTED}, {"left": 3, "right": 3}),
    "local-p-lengths": Case({"window": 3, **PREDICTED}, {"left": 3, "right": 3, "lengths": LENGTHS},
                            {"lengths": LENGTHS}),
    "local-p-sides": Case({"window": (1, 4), **PREDICTED}, {"left": 1, "right": 4}),
    "and-more": Case({"window": 4, "mask": masks.causal(5), **PREDICTED},
                     {"left": 4, "right": 4, "mask": HOLES & (np.arange(S) <= np.arange(T)[:, None] + 5),
                      "gate": 1 + np.arange(S)},
                     {"mask": HOLES, "gates": gates.function(lambda w, i, j: w * (1 + j))}),
    "no-batch": Case({"window": 3, **PREDICTED}, {"left": 3, "right": 3, "lengths": 7}, {"lengths": 7}, ()),
    "two-batch-axes": Case({"window": 3, **PREDICTED},
                           {"left": 3, "right": 3, "lengths": np.array([[4, 11], [1, 7], [2, 9]]), "mask": HOLES},
                           {"lengths": np.array([[4, 11], [1, 7], [2, 9]]), "mask": HOLES}, (3, B)),
    "local-m-two-batch-axes": Case({"window": 1, "pace": 2.0}, {"left": 1, "right": 1, "pace": 2, "mask": HOLES},
                                   {"mask": HOLES}, (3, B)),
    "one-of-all": Case({"window": 1, **PREDICTED}, {"left": 1, "right": 1, "lengths": 1}, {}, (1,), 1, 1),
}  # fmt: skip


def inputs_of(case: Case, dtype=float):
    return normal((*case.lead, case.t, F), 1, dtype), normal((*case.lead, case.s, C), 2, dtype)


def compare(layer, case: Case, tolerance):
    """Values, and gradients to every parameter and input."""
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    inputs = inputs_of(case, jax.tree.leaves(params)[0].dtype)
    fns = (
        lambda p, *xs: nnx.merge(graph, p, rest)(*xs, **case.call),
        lambda p, *xs: dense(nnx.to_pure_dict(p), *xs, **case.dense),
    )

    def result_and_gradients(fn):
        out, pull = jax.vjp(fn, params, *inputs)
        return {"out": out, "gradients": pull(normal(out.shape, 9, out.dtype))}

    got, want = jax.jit(lambda: tuple(map(result_and_gradients, fns)))()
    jax.tree_util.tree_map_with_path(
        lambda path, x, y: assert_close(x, y, tolerance, jax.tree_util.keystr(path)), got, want
    )
    return got["gradients"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("x64")
def test_layer_is_what_is_written(name):
    case = CASES[name]
    gradients = compare(make(dtype=jnp.float64, **case.layer), case, TIGHT)[0]
    if case.layer.get("center") and case.s > 1:
        assert float(abs(gradients["direction"]).max()) > 1e-4
        assert float(abs(gradients["position"]["kernel"]).max()) > 1e-4


def test_float32():
    compare(make(**CASES["local-p-lengths"].layer), CASES["local-p-lengths"], LOOSE)


@pytest.mark.usefixtures("x64")
def test_the_gradient_of_the_centres_is_that_of_finite_differences():
    """Where no key enters or leaves a window: there the output jumps, as the paper's does."""
    layer = make(50, jnp.float64, **PREDICTED)  # wide: every key is within
    x, context = inputs_of(CASES["local-p"])
    graph, params = nnx.split(layer)
    loss = lambda p: jnp.sum(jnp.sin(nnx.merge(graph, p)(x, context)))
    direction = jax.tree.map(lambda x: normal(x.shape, 4), params)
    at = jax.jit(lambda size: loss(jax.tree.map(lambda p, d: p + size * d, params, direction)))
    slope = jax.jit(lambda: jax.jvp(loss, (params,), (direction,))[1])()
    assert_close(slope, (at(1e-5) - at(-1e-5)) / 2e-5, 1e-8)


def test_a_monotonic_centre_of_pace_1_is_a_window():
    x = normal((B, T, F))
    local = LocalAttention(F, H, (2, 1), rngs=nnx.Rngs(0))
    plain = MultiHeadAttention(F, H, mask=masks.window(2, 1), rngs=nnx.Rngs(0))
    assert (local(x) == plain(x)).all()
    assert_close(local(x, positions=np.arange(T)), plain(x), LOOSE)


def test_centres_of_bfloat16_do_not_skip_positions():
    layer = make(2, dtype=jnp.bfloat16, center="predicted")
    center = layer.centers(normal((1, 64, F), dtype=jnp.bfloat16), 4096)
    assert center.dtype == jnp.float32
    assert len(np.unique(center.astype(int) % 16)) > 8  # bfloat16 has every sixteenth at most
    assert layer(*inputs_of(CASES["local-p"], jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ["local-m", "local-p-lengths"])
def test_padding_changes_nothing(name):
    case = CASES[name]
    layer = make(**case.layer)
    x, context = inputs_of(case, jnp.float32)
    inside = np.arange(S + 3) < LENGTHS[:, None]
    longer = jnp.where(inside[..., None], jnp.pad(context, ((0, 0), (0, 3), (0, 0))), 7.0)
    loss = lambda m, x, c: jnp.sum(jnp.sin(m(x, c, lengths=LENGTHS)))
    run = nnx.jit(nnx.value_and_grad(loss, argnums=(0, 1, 2)))
    value, (to_layer, to_x, to_context) = run(layer, x, longer)
    want, (want_layer, want_x, want_context) = run(layer, x, context)
    assert_close(value, want, LOOSE)
    jax.tree.map(lambda a, b: assert_close(a, b, LOOSE), pure(to_layer), pure(want_layer))
    assert_close(to_x, want_x, LOOSE)
    assert_close(to_context[:, :S], want_context, LOOSE)
    assert not np.any(np.asarray(to_context)[~inside])


@pytest.mark.parametrize("center", ["monotonic", "predicted"])
def test_a_query_that_sees_nothing_gives_the_bias_of_out(center):
    layer = make(1, center=center)
    bias = layer.attention.out.bias
    assert bias is not None
    bias[...] = normal((F,), 3)
    x, context = inputs_of(CASES["window"], jnp.float32)
    run = nnx.jit(nnx.value_and_grad(lambda m, n: (m(x, context, lengths=n) ** 2).sum()))
    out = layer(x, context, lengths=jnp.array([0, S]))
    assert_close(out[0], jnp.broadcast_to(bias[...], (T, F)), LOOSE)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(run(layer, jnp.array([0, S]))))
    far = layer(x, context, positions=1000 * np.ones(T, int)) if center == "monotonic" else None
    assert far is None or not np.any(far - bias[...])


@pytest.mark.parametrize("name", ["window", "local-m", "local-p"])
def test_a_step_of_decoding_is_a_row_of_the_whole(name):
    case = CASES[name]
    layer = make(**case.layer)
    x, context = inputs_of(case, jnp.float32)
    whole = layer(x, context)
    for n in range(T):
        call: dict[str, Any] = {} if name == "local-p" else {"positions": jnp.array([n])}
        assert_close(layer(x[:, n : n + 1], context, **call)[:, 0], whole[:, n], LOOSE)


# Local in cost: a key block with a NaN makes NaN of every row that visits it


@pytest.mark.parametrize("options", [{}, {"pace": 0.5}, {"center": "predicted"}])
def test_far_tiles_are_not_visited(options):
    layer = make(2, implementation="blockwise", blocks=(4, 4), **options)
    if layer.direction is not None:
        layer.direction[...] = jnp.zeros_like(layer.direction[...])  # all centres are in the middle
    n = 32
    x, context = normal((B, n, F), 1, jnp.float32), normal((B, n, C), 2, jnp.float32)
    center = {"monotonic": np.arange(n) * options.get("pace", 1), "predicted": np.full(n, n / 2)}[layer.center]
    blocks = center.reshape(-1, 4)
    run = nnx.jit(lambda m, x, context: m(x, context))
    for block in range(n // 4):
        out = run(layer, x, context.at[:, 4 * block : 4 * block + 4].set(jnp.nan))
        near = (blocks.max(1) + 2 >= 4 * block) & (blocks.min(1) - 2 <= 4 * block + 3)
        np.testing.assert_array_equal(np.isnan(out).any((0, 2)), np.repeat(near, 4))


# Flax's transformations


def loss_of(m, x):
    return jnp.sum(m(x) ** 2)


def alone(**options) -> LocalAttention:
    return LocalAttention(F, H, 2, rngs=options.pop("rngs", nnx.Rngs(0)), **options)


def test_jit_grad_remat():
    layer, x = alone(center="predicted", rotary_base=10.0, head_dim=4), normal((B, T, F), dtype=jnp.float32)
    want = nnx.grad(loss_of)(layer, x)
    again = lambda m, x: jnp.sum(nnx.remat(lambda m, x: m(x))(m, x) ** 2)
    for got in (nnx.jit(nnx.grad(loss_of))(layer, x), nnx.grad(again)(layer, x)):
        jax.tree.map(lambda a, b: assert_close(a, b, LOOSE), pure(got), pure(want))


def test_scan_over_a_stack_of_layers():
    layers = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: alone(center="predicted", rngs=rngs)))(nnx.Rngs(0))
    x = normal((B, T, F), dtype=jnp.float32)
    scanned = nnx.scan(lambda x, layer: x + layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    graph, state = nnx.split(layers)
    want = x
    for n in range(3):
        want = want + nnx.merge(graph, jax.tree.map(lambda p, n=n: p[n], state))(want)
    assert_close(scanned(x, layers), want, LOOSE)


def test_eval_turns_dropout_off():
    layer, x = alone(dropout=0.5), normal((B, T, F), dtype=jnp.float32)
    assert float(abs(layer(x) - layer(x)).max()) > 1e-3
    layer.eval()
    assert (layer(x) == alone()(x)).all()


def test_shapes_of_the_parameters():
    got = jax.tree.map(jnp.shape, pure(make(2, center="predicted")))
    assert got["position"] == {"kernel": (F, H, D)}
    assert got["direction"] == (H, D)
    assert set(pure(make(2))) == {"attention"}


def test_a_context_is_projected_once_for_many_calls():
    layer = make(3, center="predicted")
    x, context = inputs_of(CASES["local-p"], jnp.float32)
    memory = layer.attention.read(context)
    assert_close(layer(x, memory), layer(x, context), LOOSE)
    shorter = memory._replace(length=jnp.asarray(LENGTHS, jnp.int32))
    assert_close(layer(x, shorter), layer(x, context, lengths=LENGTHS), LOOSE)


def test_options_reach_the_attention():
    layer, x = alone(normalizer=normalizers.sigmoid()), normal((B, T, F), dtype=jnp.float32)
    assert_close(
        layer(x),
        MultiHeadAttention(F, H, normalizer=normalizers.sigmoid(), mask=masks.window(2, 2), rngs=nnx.Rngs(0))(x),
        LOOSE,
    )


# Errors


@pytest.mark.parametrize(
    ("window", "options", "message"),
    [
        (-1, {}, r"window must be an int >= 0 or a pair of them, \(left, right\), got -1"),
        (1.5, {}, "window must be .* got 1.5"),
        ((1, 2, 3), {}, r"window must be .* got \(1, 2, 3\)"),
        ((1, None), {}, r"window must be .* got \(1, None\)"),
        (2, {"center": "local"}, 'center must be "monotonic" or "predicted", got \'local\''),
        (0, PREDICTED, "predicted centres need a window wider than 0, for sigma, got 0"),
        (2, {"pace": 0.0}, "pace must be > 0, .* got 0.0"),
        (2, {"pace": 2.0, **PREDICTED}, "pace .* is one of monotonic centres alone, got 2.0 for 'predicted'"),
        (2, {"dropout": 1.0}, "dropout must be a rate"),
    ],
)
def test_errors_of_making(window, options, message):
    with pytest.raises(ValueError, match=message):
        make(window, **options)


def test_unknown_option():
    with pytest.raises(TypeError, match="takes no option width"):
        make(2, width=3)


@pytest.mark.parametrize("center", ["monotonic", "predicted"])
@pytest.mark.parametrize(
    ("x", "context", "call", "message"),
    [
        ((B, T, F + 1), (B, S, C), {}, r"x must be \[.., t, 6\], got shape \[2, 5, 7\]"),
        ((F,), (B, S, C), {}, r"x must be \[.., t, 6\], got shape \[6\]"),
        ((B, T, F), (3, S, C), {}, r"same batch axes, got x \[2, 5, 6\], context \[3, 11, 4\]"),
        (
            (B, T, F),
            (B, S, C),
            {"lengths": np.ones(3, int)},
            r"lengths must be integers with the batch axes \[2\], got int32\[3\]",
        ),
        ((B, T, F), (B, S, C), {"lengths": np.ones(B)}, r"lengths must be integers .* got float32\[2\]"),
        ((B, T, F), (B, S, C), {"lengths": [-1, S]}, rf"lengths must be from 0 to {S}, got \[-1, {S}\]"),
        ((B, T, F), (B, S, C), {"mask": np.ones((T, T), bool)}, r"mask must be broadcastable .*, got shape \[5, 5\]"),
    ],
)
def test_errors_of_calling(center, x, context, call, message):
    with pytest.raises(ValueError, match=message):
        make(2, center=center)(jnp.ones(x), jnp.ones(context), **call)


def test_positions_without_use():
    with pytest.raises(ValueError, match="positions are those of the rotary embedding"):
        make(2, **PREDICTED)(*inputs_of(CASES["local-p"], jnp.float32), positions=np.arange(T))


def test_centres_that_are_not_predicted():
    layer = make(2)
    with pytest.raises(ValueError, match="centres are predicted where center=\"predicted\", got center='monotonic'"):
        layer.centers(jnp.ones((T, F)), 4)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"window": (2, 0)}, {"slack": 2}),
        ({"window": (2, 0), "pace": 0.5, "mask": masks.causal()}, {"page": 3}),
        ({"window": 2, "center": "predicted", "rotary_base": 1e4}, {"dtype": "float32"}),
    ],
    ids=["sliding", "pace", "predicted"],
)
def test_decoding_gives_the_last_rows_of_a_call_on_all_so_far(options, kind):
    mask, x = options.pop("mask", None), normal((2, 8, 8))
    layer = randomised(LocalAttention(8, 2, **options, rngs=nnx.Rngs(0)))
    state, n = layer.cache(8, 2, **kind), 0
    for t in (4, 1, 1, 2):
        out, state = layer.decode(x[:, n : n + t], state, mask=mask)
        n += t
        assert_close(out, layer(x[:, :n], mask=mask)[:, -t:], LOOSE)
    assert state.length.tolist() == [8, 8]
    out, _ = layer.decode(x[:, :4], layer.cache(8, 2, **kind), mask=mask, lengths=jnp.array([4, 2]))
    assert_close(out[1, :2], layer(x[1:, :2], mask=mask)[0], LOOSE)
    out, same = layer.decode(x[:, :0], state, mask=mask)
    assert out.shape == (2, 0, 8)
    jax.tree.map(np.testing.assert_array_equal, same, state)


@pytest.mark.parametrize("options", [{}, {"pace": 0.5}, {"center": "predicted"}], ids=["window", "pace", "predicted"])
def test_a_draft_gives_what_its_path_gives(options):
    """Where they are decoded one after the other, after prompts of unequal length."""
    layer = make(3, context_features=None, head_dim=4, rotary_base=100.0, mask=masks.causal(), **options)
    x, drafts, parents = normal((2, 5, F), 1), normal((2, 4, F), 2), [-1, 0, 0, 2]
    lengths = jnp.array([5, 3])
    _, state = layer.decode(x, layer.cache(12, 2), lengths=lengths)
    out, after = jax.jit(layer.decode)(drafts, state, parents=jnp.array(parents))
    for n in range(4):
        path = [n]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        alone, _ = layer.decode(drafts[:, np.array(path)], state)
        assert_close(out[:, n], alone[:, -1], LOOSE)
    kept = cache.accept(after, 4, jnp.array([[0, 2, 3]] * 2), 3)
    one, want = (layer.decode(x[:, :1], y)[0] for y in (kept, layer.decode(drafts[:, np.array([0, 2, 3])], state)[1]))
    assert_close(one, want, LOOSE)
