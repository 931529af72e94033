"""Normalisers against their definitions: projections by bisection, gradients by finite differences, draws by counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import normalizers
from jattn._terms import rows

ROWS = np.random.default_rng(0).normal(size=(7, 11)) * 3


def _bisect(row: np.ndarray, weight) -> np.ndarray:
    """The weights of the threshold tau at which they sum to 1."""
    lo, hi = row.min() - 2, row.max()
    for _ in range(200):
        tau = (lo + hi) / 2
        lo, hi = (tau, hi) if weight(row, tau).sum() > 1 else (lo, tau)
    return weight(row, (lo + hi) / 2)


EXACT = {
    "softmax": lambda row: np.exp(row) / np.exp(row).sum(),
    "sigmoid": lambda row: 1 / (1 + np.exp(-row)),
    "sparsemax": lambda row: _bisect(row, lambda z, tau: np.maximum(z - tau, 0)),
    "entmax15": lambda row: _bisect(row / 2, lambda z, tau: np.maximum(z - tau, 0) ** 2),
    "hard": lambda row: np.eye(len(row))[row.argmax()],
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", EXACT)
def test_definition(x64, name):
    got = getattr(normalizers, name)()(jnp.asarray(ROWS))
    np.testing.assert_allclose(got, [EXACT[name](row) for row in ROWS], atol=1e-12)


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "sparsemax", "entmax15"])
def test_gradient(x64, name):
    fn = getattr(normalizers, name)()
    direction = np.random.default_rng(1).normal(size=ROWS.shape)
    got = jax.jvp(fn, (jnp.asarray(ROWS),), (jnp.asarray(direction),))[1]
    h = 1e-6
    np.testing.assert_allclose(got, (fn(ROWS + h * direction) - fn(ROWS - h * direction)) / (2 * h), atol=1e-7)
    pulled = jax.vjp(fn, jnp.asarray(ROWS))[1](jnp.asarray(direction))[0]
    np.testing.assert_allclose(np.vdot(pulled, direction), np.vdot(got, direction), rtol=1e-9)


@pytest.mark.parametrize("name", EXACT)
def test_masked_entries_get_nothing(x64, name):
    live = np.random.default_rng(2).random(ROWS.shape) < 0.5
    live[3] = False
    fn = getattr(normalizers, name)()
    got = fn(jnp.where(live, ROWS, -jnp.inf))
    assert not np.any(np.asarray(got)[~live])
    for row, keep, weight in zip(ROWS, live, got, strict=True):
        if keep.any():
            np.testing.assert_allclose(weight[keep], fn(jnp.asarray(row[keep])), atol=1e-12)
    slope = jax.grad(lambda x: jnp.sum(jnp.sin(fn(jnp.where(live, x, -jnp.inf)))))(jnp.asarray(ROWS))
    assert np.all(np.isfinite(slope))
    assert not np.any(np.asarray(slope)[~live])


@pytest.mark.parametrize("name", ["sparsemax", "entmax15"])
def test_ties_and_single_keys(x64, name):
    fn = getattr(normalizers, name)()
    np.testing.assert_allclose(fn(jnp.zeros((1, 4))), np.full((1, 4), 0.25), atol=1e-15)
    np.testing.assert_allclose(fn(jnp.full((1, 1), 7.0)), [[1.0]], atol=1e-15)
    np.testing.assert_allclose(fn(jnp.asarray([[9.0, 0.0, 9.0]])), [[0.5, 0, 0.5]], atol=1e-15)


@pytest.mark.parametrize("name", ["sparsemax", "entmax15"])
def test_large_scores_lose_nothing(name):
    fn = getattr(normalizers, name)()
    row = jnp.asarray([[0.25, 0.5, -0.125, -4.0]])
    np.testing.assert_array_equal(fn(row + 4096), fn(row))


SPARSE = {"sparsemax": normalizers.sparsemax(), "entmax15": normalizers.entmax15()}


@pytest.mark.parametrize("name", SPARSE)
def test_rows_sum_to_one_whatever_computes_the_scores(name):
    """XLA may compute a score twice and round it differently: no weight may hang on its last bit."""
    random = np.random.default_rng(3)
    s, x = (jnp.asarray(random.normal(size=n), jnp.float32) for n in ((13, 7), (13, 1)))
    weights = jax.jit(lambda s, x: SPARSE[name](jnp.tanh(s + x) * x + 0.01 * s * s))(s, x)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    q, k = (jnp.asarray(random.normal(size=(1, n, 1, 4)), jnp.float32) for n in (13, 7))
    curved = jattn.mods.function(lambda s, i, j, x: jnp.tanh(s + x) * x + 0.01 * s * s, jattn.operand(x[:, 0], "t"))
    for implementation in ("reference", "blockwise"):
        out = jattn.attention(
            q, k, jnp.ones_like(k), normalizer=SPARSE[name], mods=(curved,), implementation=implementation
        )
        np.testing.assert_allclose(out, 1, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SPARSE)
def test_rows_sum_to_one_whatever_the_scores(x64, name, dtype):
    random = np.random.default_rng(4)
    fn, precision = jax.jit(SPARSE[name]), 8 * np.finfo(dtype).eps
    for size in (1, 2, 7, 300, 5000):
        for scale in (0, 1e-6, 0.01, 1, 100, 1e30):
            weights = np.asarray(fn(jnp.asarray(random.normal(size=(3, size)) * scale, dtype)))
            assert weights.dtype == dtype and weights.min() >= 0
            np.testing.assert_allclose(weights.sum(-1), 1, atol=precision)
    # every step of the search takes few keys away
    for row in (-np.exp(-np.linspace(0, 30, 300)), np.exp(-np.linspace(0, 30, 300)), np.repeat([0.0, -1, -2], 100)):
        weights = np.asarray(fn(jnp.asarray(row, dtype)))
        np.testing.assert_allclose(weights.sum(), 1, atol=precision)
        np.testing.assert_allclose(weights, EXACT[name](row), atol=precision)


@pytest.mark.parametrize("name", SPARSE)
def test_second_derivative(x64, name):
    fn = SPARSE[name]
    a, b = np.random.default_rng(5).normal(size=(2, *ROWS.shape))
    first = lambda x: jax.jvp(fn, (x,), (jnp.asarray(a),))[1]
    got = jax.jvp(first, (jnp.asarray(ROWS),), (jnp.asarray(b),))[1]
    np.testing.assert_allclose(got, (first(ROWS + 1e-6 * b) - first(ROWS - 1e-6 * b)) / 2e-6, atol=1e-7)
    loss = lambda x: jnp.sum(a * fn(x))
    pulled = jax.grad(lambda x: jnp.vdot(b, jax.grad(loss)(x)))(jnp.asarray(ROWS))
    np.testing.assert_allclose(np.vdot(pulled, a), np.vdot(got, a), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", EXACT)
def test_rows_that_no_weights_could_stand_for(name):
    """NaN and +inf are NaN throughout the row; a row without a finite score has weights 0."""
    fn = getattr(normalizers, name)()
    nan, inf = np.nan, np.inf
    got = np.asarray(
        fn(jnp.asarray([[nan, 0, -inf], [inf, 0, 1], [-inf, -inf, -inf], [-inf, 2, -inf], [1e30, -1e30, 3e38]]))
    )
    bad = np.isnan(got[:2])
    assert bad.all() or (name == "sigmoid" and bad[:, 0].all())
    np.testing.assert_array_equal(got[2], 0)
    assert np.isfinite(got[3:]).all()
    if name != "sigmoid":
        np.testing.assert_array_equal(got[3:], [[0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 5)])
@pytest.mark.parametrize("name", EXACT)
def test_sizes_of_zero(name, shape):
    assert getattr(normalizers, name)()(jnp.zeros(shape)).shape == shape
    np.testing.assert_array_equal(rows.logsumexp(jnp.zeros((3, 0))), np.full(3, -np.inf))


@pytest.mark.parametrize("name", SPARSE)
def test_the_threshold_is_found_once(name):
    """The search is not part of the backward pass, though whole rows are computed again there; and nothing is sorted."""
    x = jnp.ones((1, 6, 2, 4))
    loss = lambda x: jnp.sum(jattn.attention(x, x, x, normalizer=SPARSE[name], implementation="blockwise") ** 2)
    program = str(jax.make_jaxpr(jax.grad(loss))(x))
    assert program.count("= while[") == 1
    assert "sort" not in program


@pytest.mark.parametrize("name", SPARSE)
def test_inside_shard_map(name):
    """The search runs on every device by itself, for as many steps as its rows need."""
    x = jnp.asarray(np.random.default_rng(6).normal(size=(2, 6, 2, 4)), jnp.float32)
    attend = lambda x: jattn.attention(x, x, x, normalizer=SPARSE[name], implementation="blockwise")
    mesh = jax.make_mesh((2,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("b")
    sharded = jax.jit(jax.shard_map(attend, mesh=mesh, in_specs=spec, out_specs=spec))
    loss = lambda attend: lambda x: jnp.sum(attend(x) ** 2)
    np.testing.assert_allclose(sharded(x), attend(x), atol=1e-6)
    np.testing.assert_allclose(jax.grad(loss(sharded))(x), jax.grad(loss(attend))(x), atol=1e-5)


def test_hard_takes_the_first_maximum_and_passes_no_gradient():
    row = jnp.asarray([[1.0, 3.0, 3.0]])
    np.testing.assert_array_equal(normalizers.hard()(row), [[0, 1, 0]])
    np.testing.assert_array_equal(jax.jacobian(normalizers.hard())(row), np.zeros((1, 3, 1, 3)))
    through = normalizers.hard(straight_through=True)
    np.testing.assert_array_equal(through(row), [[0, 1, 0]])
    np.testing.assert_allclose(jax.jacobian(through)(row), jax.jacobian(normalizers.softmax())(row), atol=1e-7)


def test_gumbel_draws_from_the_softmax():
    score = jnp.asarray([0.0, 1.0, 2.0])
    q = jnp.ones((4000, 1, 1))
    k, v = score[:, None, None], jnp.eye(3)[:, None]
    normalizer = normalizers.gumbel(jax.random.key(0), hard=True)
    share = jattn.attention(q, k, v, score=jattn.scores.dot(1.0), normalizer=normalizer).mean(0)[0]
    np.testing.assert_allclose(share, jax.nn.softmax(score), atol=4 * np.sqrt(0.25 / 4000))


def test_gumbel_temperature_and_key():
    q, k, v = jax.random.normal(jax.random.key(1), (3, 5, 2, 4))
    draw = lambda key, temperature: jattn.weights(q, k, v, normalizer=normalizers.gumbel(key, temperature))
    cold, warm = (draw(jax.random.key(0), x) for x in (0.05, 50.0))
    assert cold.max(-1).min() > warm.max(-1).max()
    np.testing.assert_allclose(warm, np.full(warm.shape, 1 / 5), atol=0.1)
    assert not np.array_equal(cold, draw(jax.random.key(2), 0.05))
    hard = jattn.weights(q, k, v, normalizer=normalizers.gumbel(jax.random.key(0), 1.0, hard=True))
    soft = draw(jax.random.key(0), 1.0)
    np.testing.assert_array_equal(hard.argmax(-1), soft.argmax(-1))
    np.testing.assert_allclose(np.sort(hard, -1)[..., -1], 1, atol=1e-6)
