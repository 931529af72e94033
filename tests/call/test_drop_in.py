"""`jattn.dot_product_attention` beside the installed `jax.nn.dot_product_attention`: the same facts of both."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks
from tests.tolerances import TOLERANCES, assert_close

B, T, S, H, G, D = 2, 9, 11, 4, 2, 5
OURS, THEIRS = jattn.dot_product_attention, jax.nn.dot_product_attention


def draw(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def holes(*shape):
    """Booleans, with the first key seen by all."""
    some = np.random.default_rng(1).random(shape) < 0.7
    some[..., 0] = True
    return some


Q, K, V = draw(B, T, H, D), draw(B, S, G, D, seed=1), draw(B, S, G, D, seed=2)
LENGTHS: dict[str, Any] = {
    "query_seq_lengths": np.array([9, 5], np.int32),
    "key_value_seq_lengths": np.array([4, 11], np.int32),
}

CASES = {
    "plain": {},
    "scale": {"scale": 0.3},
    "scale 0": {"scale": 0.0},
    "scale of NumPy": {"scale": np.float64(0.3)},
    "scale as an array": {"scale": jnp.asarray(0.3)},
    "causal": {"is_causal": True},
    **{f"bias {x}": {"bias": draw(*x, seed=3)} for x in ((), (S,), (T, S), (H, 1, S), (1, H, T, S), (B, 1, T, 1), (B, H, T, S))},
    "bias of integers": {"bias": np.arange(S) // 3},
    "bias of booleans": {"bias": np.arange(S) > 3},
    "bias of a list": {"bias": [[0.5] * S] * T},
    "bias of bfloat16": {"bias": draw(T, S, seed=3).astype(jnp.bfloat16)},
    **{f"mask {x}": {"mask": holes(*x)} for x in ((S,), (T, S), (H, 1, S), (1, H, T, S), (B, 1, T, S), (B, H, T, S))},
    "mask True": {"mask": True},
    "mask of a list": {"mask": [True] * 5 + [False] * 6},
    "bias -inf and a mask": {"bias": np.where(np.arange(S) == 2, -np.inf, 0).astype(np.float32), "mask": holes(T, S)},
    "window": {"local_window_size": 3},
    "window 0": {"local_window_size": (4, 0)},
    "window, causal": {"local_window_size": (3, 2), "is_causal": True},
    "query lengths": {"query_seq_lengths": LENGTHS["query_seq_lengths"]},
    "key lengths": {"key_value_seq_lengths": LENGTHS["key_value_seq_lengths"]},
    "lengths": LENGTHS,
    "all": {
        "bias": draw(B, 1, T, S, seed=3), "mask": holes(1, 1, T, S), "scale": 0.5, "is_causal": True,
        "local_window_size": (9, 2), **LENGTHS,
    },
}  # fmt: skip


def outcome(fn, arrays, options, implementation=None, run=lambda fn, *x: jax.jit(fn)(*x)):
    """Values, the residual, and gradients to query, key, value and every floating-point array among the options."""
    learnt = {
        name: x for name, x in options.items() if name in ("bias", "scale") and isinstance(x, (np.ndarray, jax.Array))
        and jnp.issubdtype(x.dtype, jnp.floating)
    }  # fmt: skip
    rest = {name: x for name, x in options.items() if name not in learnt}

    def loss(arrays, learnt):
        out, lse = fn(*arrays, **learnt, **rest, implementation=implementation, return_residual=True)
        weight = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return jnp.sum(out.astype(jnp.float32) * weight) + jnp.sum(lse.astype(jnp.float32)), (out, lse)

    gradients, (out, lse) = run(jax.grad(loss, (0, 1), has_aux=True), arrays, learnt)
    return {"out": out, "residual": lse, "gradients": gradients}


def seen(options):
    """`[b, t]`: the rows whose residual means something."""
    return np.arange(T) < np.asarray(options.get("query_seq_lengths", [T, T]))[:, None]


def compare(got, want, tolerance, rows: Any = slice(None)):
    got, want = ({**x, "residual": x["residual"][rows]} for x in (got, want))

    def same(path, x, y):
        assert x.dtype == y.dtype, jax.tree_util.keystr(path)
        rounding = tolerance if x.dtype == got["out"].dtype else TOLERANCES[x.dtype.name].gradient
        assert_close(x, y, rounding, jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(same, got, want)


@pytest.mark.smoke
@pytest.mark.parametrize("name", CASES)
def test_gives_what_jax_gives(name):
    options = CASES[name]
    want = outcome(THEIRS, (Q, K, V), options)
    compare(outcome(OURS, (Q, K, V), options, "xla"), want, 2e-5, seen(options))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["plain", "bias (1, 4, 9, 11)", "lengths", "window, causal"])
def test_in_half_precision(name, dtype):
    """Against what jax gives for the same numbers in float32, and with the dtypes of what it gives for these."""
    cast = lambda x: np.asarray(x, dtype) if isinstance(x, np.ndarray) and x.dtype == np.float32 else x
    arrays, options = jax.tree.map(cast, ((Q, K, V), CASES[name]))
    wide = lambda x: np.asarray(x, np.float32) if isinstance(x, np.ndarray) and x.dtype == dtype else x
    got, want = outcome(OURS, arrays, options), outcome(THEIRS, *jax.tree.map(wide, (arrays, options)))
    shapes = outcome(THEIRS, arrays, options, run=jax.eval_shape)  # its float16 runs nowhere but on GPU
    compare(
        got, jax.tree.map(lambda x, y: y.astype(x.dtype), shapes, want), 2 * TOLERANCES[dtype].gradient, seen(options)
    )


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_grouped_heads(heads):
    arrays = Q, K[:, :, :1].repeat(heads, 2), V[:, :, :1].repeat(heads, 2)
    compare(outcome(OURS, arrays, {}), outcome(THEIRS, arrays, {}), 2e-5)


@pytest.mark.parametrize("options", [{}, {"bias": draw(H, T, S), "mask": np.tri(T, S, dtype=bool), "scale": 0.2}])
def test_without_a_batch_axis(options):
    arrays = Q[0], K[0], V[0]
    got, want = outcome(OURS, arrays, options), outcome(THEIRS, arrays, options)
    assert got["out"].shape == (T, H, D)
    compare(got, want, 2e-5)
    lengths: dict[str, Any] = {
        "query_seq_lengths": np.array([7], np.int32),
        "key_value_seq_lengths": np.array([4], np.int32),
    }
    assert_close(OURS(*arrays, **lengths), THEIRS(*arrays, **lengths), 2e-5)


@pytest.mark.parametrize("shapes", [((H, D), (H, D)), ((T, H, D), (1, S, H, D)), ((1, T, H, D), (S, H, D))])
def test_missing_axes_have_size_1(shapes):
    q, k = (draw(*x, seed=n) for n, x in enumerate(shapes))
    compare(outcome(OURS, (q, k, k), {}), outcome(THEIRS, (q, k, k), {}), 2e-5)


def test_by_position_and_with_lists():
    bias, mask = draw(1, H, T, S), np.tri(T, S, dtype=bool)
    assert_close(OURS(Q, K, V, bias, mask), THEIRS(Q, K, V, bias, mask), 2e-5)
    lists = [x.tolist() for x in (Q, K, V)]
    assert_close(OURS(*lists), THEIRS(*map(jnp.asarray, lists)), 2e-5)


def test_under_vmap():
    """One bias and one mask for all, and lengths of each."""
    bias, mask = draw(B, H, T, S), np.ones((1, 1, S), bool)
    lengths = LENGTHS["key_value_seq_lengths"][:, None]

    def each(fn):
        one = lambda q, k, v, bias, mask, n: fn(q, k, v, bias, mask, key_value_seq_lengths=n, implementation="xla")
        return jax.vmap(one, (0, 0, 0, 0, None, 0))(Q, K, V, bias, mask, lengths)

    assert_close(each(OURS), each(THEIRS), 2e-5)


def test_forward_mode():
    bias = draw(1, H, T, S)
    arrays, tangents = (Q, K, V, bias), (draw(B, T, H, D, seed=5), K, V, bias)

    def pushed(fn):
        return jax.jvp(lambda *x: fn(*x, is_causal=True, return_residual=True), arrays, tangents)

    got, want = pushed(OURS), pushed(THEIRS)
    jax.tree.map(lambda x, y: assert_close(x, y, 2e-5), got, want)
    assert not np.any(got[1][1])  # of the residual


def test_linearised_with_integers_and_booleans_among_the_arguments():
    """Integers and booleans get the gradients that jax gives them, of dtype float0."""
    bias, mask, lengths = np.arange(S), np.ones((T, S), bool), LENGTHS["query_seq_lengths"]

    def pulled(fn):
        call = lambda q, bias, mask, n: fn(q, K, V, bias, mask, query_seq_lengths=n)
        out, pull = jax.vjp(call, Q, bias, mask, lengths)
        return pull(jnp.ones_like(out))

    got, want = pulled(OURS), pulled(THEIRS)
    assert [x.dtype for x in got] == [x.dtype for x in want]
    assert_close(got[0], want[0], 2e-5)


MODES = {
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "checks": lambda: jax.enable_checks(True),
    "NaN": lambda: jax.debug_nans(True),
    "x64": lambda: jax.enable_x64(True),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["plain", "lengths", "bias (4, 1, 11)", "mask (11,)", "window", "all"])
def test_in_the_modes_of_jax(mode, name):
    """Where jax.nn runs, ours does, with the same numbers."""
    options, arrays = CASES[name], tuple(map(jnp.asarray, (Q, K, V)))
    want = outcome(THEIRS, arrays, options)
    with MODES[mode]():
        got = outcome(OURS, arrays, options)
    compare(got, want, 2e-5, seen(options))


@pytest.mark.parametrize("name", ["plain", "mask (11,)", "window", "lengths"])
def test_it_runs_where_infinities_are_looked_for(name):
    with jax.debug_infs(True):
        out = OURS(*map(jnp.asarray, (Q, K, V)), **CASES[name])
    assert_close(out, THEIRS(Q, K, V, **CASES[name]), 2e-5)


def test_infinities_are_not_made_of_a_mask_in_float64():
    with jax.enable_x64(True), jax.debug_infs(True):
        zeros = [jnp.zeros(x) for x in ((5, 6, 11), (7, 3, 11), (7, 3, 11))]
        assert not np.any(OURS(*zeros, mask=jnp.arange(7) <= 3))


def test_implementations():
    out = OURS(Q, K, V)
    for name in ("xla", "blockwise", "reference"):
        assert_close(OURS(Q, K, V, implementation=name), out, TOLERANCES["float32"].value)
    with pytest.raises(jattn.UnsupportedError, match="'cudnn'"):
        OURS(Q, K, V, implementation="cudnn")
    with pytest.raises(ValueError, match="implementation must be"):
        OURS(Q, K, V, implementation="flash")


def test_has_the_installed_signature():
    assert inspect.signature(OURS) == inspect.signature(THEIRS)
    own = inspect.signature(OURS.__wrapped__ if hasattr(OURS, "__wrapped__") else OURS, follow_wrapped=False)
    assert list(own.parameters) == list(inspect.signature(THEIRS).parameters)
    with pytest.raises(TypeError, match="unexpected keyword"):
        OURS(Q, K, V, causal=True)  # pyright: ignore[reportCallIssue]  # wrong on purpose


@pytest.mark.parametrize(
    "options", [{"mask": np.zeros((1, 1, T, S), bool)}, {"local_window_size": (3, -1)}, {"key_value_seq_lengths": np.array([0, 3])}]
)  # fmt: skip
def test_a_row_that_sees_nothing_gives_zero(options):
    """What the docstring says is different: there it is the mean of the values, and a finite residual."""
    out, lse = OURS(Q, K, V, **options, return_residual=True)
    there, residual = THEIRS(
        Q, K, V, **jax.tree.map(lambda x: np.int32(x) if np.ndim(x) == 1 else x, options), return_residual=True
    )
    empty = np.isneginf(lse)
    assert empty.any()
    assert not np.any(out[empty])
    mean = jnp.broadcast_to(V.repeat(H // G, 2).mean(1, keepdims=True), there.shape)
    assert_close(there[empty], mean[empty], 2e-5)
    assert_close(out[~empty], there[~empty], 2e-5)
    assert_close(lse[~empty], residual[~empty], 2e-5)
    assert np.all(np.isfinite(residual))


def test_what_a_mask_hides_stays_hidden():
    """A bias of the least number on all the keys that are seen: here their mean."""
    bias, mask = np.full((S,), np.finfo(np.float32).min), np.arange(S) < 3
    out = OURS(Q, K, V, bias=bias, mask=mask)
    assert_close(out, jnp.broadcast_to(V[:, :3].repeat(H // G, 2).mean(1, keepdims=True), out.shape), 2e-5)


def test_takes_more_than_jax():
    mask = np.tri(T, S, dtype=bool)
    assert_close(OURS(Q, K, V, mask=masks.causal()), THEIRS(Q, K, V, mask=mask), 2e-5)
    assert OURS(Q, K, V[..., :3]).shape == (B, T, H, 3)
    lengths = LENGTHS["key_value_seq_lengths"]
    want = THEIRS(Q, K, V, key_value_seq_lengths=lengths)
    assert_close(OURS(Q, K, V, key_value_seq_lengths=lengths.astype(np.int64)), want, 2e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"query_seq_lengths": 3}, ValueError, r"query_seq_lengths must be integers \[b\] = \[2\], got int32\[\]"),
        ({"query_seq_lengths": [1.5, 2.0]}, ValueError, "query_seq_lengths .* got float32"),
        ({"key_value_seq_lengths": [3]}, ValueError, r"key_value_seq_lengths .* got int32\[1\]"),
        ({"mask": np.ones((T, S), int)}, TypeError, "mask array must be boolean"),
        ({"mask": np.ones((S, T), bool)}, ValueError, "mask must be broadcastable"),
        ({"bias": draw(S, T)}, ValueError, "bias must be broadcastable"),
        ({"local_window_size": 2.5}, TypeError, "left must be an integer"),
        ({"local_window_size": (1, 2, 3)}, ValueError, "local_window_size must be an int or"),
        ({"scale": "large"}, TypeError, "scale must be a number"),
    ],
)
def test_errors(options, error, message):
    with pytest.raises(error, match=message):
        OURS(Q, K, V, **options)
