"""`implementation="reference"` against the oracle: every piece, values and gradients, in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import gates, masks, mods, normalizers, scores
from jattn._call import checks, targets
from jattn._call.problem import reduce
from jattn._derivatives import twin
from jattn.backends import whole_rows
from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import Spec
from jattn.backends.reference import forward as reference
from tests import oracle
from tests.cases import stick_breaking
from tests.evaluate import QUICK

pytestmark = pytest.mark.usefixtures("x64")

B, T, S, H, G, D, E = 2, 5, 7, 4, 2, 3, 2
SIZES: dict[str, Any] = dict(zip("btshgde", (B, T, S, H, G, D, E), strict=True))
KEY = 11  # of jax.random, for the pieces that draw


class Case(NamedTuple):
    arrays: dict[str, Any]  # what is differentiated: an array, or its axes as letters and numbers
    ours: Callable[[Any], dict[str, Any]]  # options of `jattn.attention`, of the arrays by name
    oracles: Callable[[Any], dict[str, Any]]  # options of `oracle.attention`


def _both(module: str, name: str, *args: Any, **arrays: Any) -> Case:
    """A score whose arguments are the same on both sides."""
    make = lambda where: lambda x: {module: getattr(where, name)(*args, *(getattr(x, n) for n in arrays))}
    return Case(arrays, make({"score": scores, "normalizer": normalizers}[module]), make(oracle))


def _mask(ours: masks.Mask, oracles: Callable, **arrays: Any) -> Case:
    return Case(arrays, lambda x: {"mask": ours}, lambda x: {"mask": oracles})


def _mod(ours: Callable, oracles: Callable, **arrays: Any) -> Case:
    return Case(arrays, lambda x: {"mods": (ours(x),)}, lambda x: {"mods": (oracles(x),)})


def _gate(ours: Callable, oracles: Callable, **arrays: Any) -> Case:
    return Case(arrays, lambda x: {"gates": (ours(x),)}, lambda x: {"gates": (oracles(x),)})


def _seed() -> int:
    return int(jax.random.bits(jax.random.key(KEY), (), "uint32"))


def _gumbel(hard: bool) -> Case:
    return Case(
        {"temperature": np.array(0.7)},
        lambda x: {"normalizer": normalizers.gumbel(jax.random.key(KEY), x.temperature, hard)},
        lambda x: {
            "mods": (oracle.gumbel(_seed(), x.temperature),),
            "normalizer": oracle.hard() if hard else oracle.softmax(),
        },
    )


_rng = np.random.default_rng(0)
_ids, _kv_ids = _rng.integers(0, 2, (B, T)), _rng.integers(0, 3, (B, S))
_kv, _q = np.array([3, 0]), np.array([4, 5])
_centers = {n: _rng.uniform(0, S, [SIZES[a] for a in n]) for n in ("t", "bt", "bht")}
_layout, _layouts = _rng.random((3, 4)) < 0.5, _rng.random((H, 3, 4)) < 0.5
_dense = _rng.random((B, 1, T, S)) < 0.5
_everything = Case(
    {
        "w": "hdd",
        "cap": np.array(3.0),
        "slopes": "h",
        "table": "h8",
        "m": "bh",
        "center": "bt",
        "sinks": "h",
        "bias": "hts",
    },
    lambda x: {
        "score": scores.general(x.w, 0.5),
        "mask": (masks.causal(2) & ~masks.dilated(3)) | masks.prefix(jnp.asarray(_kv)),
        "bias": x.bias,
        "mods": (
            mods.softcap(x.cap),
            mods.alibi(x.slopes),
            mods.relative(x.table),
            mods.function(lambda s, i, j, m: s * m + jnp.cos((i - j) * 1.0), jattn.operand(x.m, "bh")),
        ),
        "gates": (gates.gaussian(x.center, 4.0),),
        "sinks": x.sinks,
        "dropout": gates.dropout(0.3, 5),
    },
    lambda x: {
        "score": oracle.general(x.w, 0.5),
        "mask": lambda at: (oracle.causal(2)(at) & ~oracle.dilated(3)(at)) | oracle.prefix(_kv)(at),
        "mods": (
            oracle.bias(x.bias, "hts"),
            oracle.softcap(x.cap),
            oracle.alibi(x.slopes),
            oracle.relative(x.table, oracle.t5_bucket(True, 8)),
            lambda s, at: s * x.m[at.b, at.h] + np.cos(at.i - at.j),
        ),
        "gates": (oracle.gaussian(x.center, 4.0), oracle.dropout(0.3, 5)),
        "sinks": x.sinks,
    },
)

CASES: dict[str, Case] = {
    "plain": Case({}, lambda x: {}, lambda x: {}),
    "dot": _both("score", "dot", scale=np.array(0.7)),
    "general": _both("score", "general", w="dd", scale=np.array(0.7)),
    "general-heads": _both("score", "general", w="hdd"),
    "cosine": _both("score", "cosine", scale=np.array(5.0)),
    "concat": _both("score", "concat", w_q="d", w_k="d"),
    "concat-heads": _both("score", "concat", w_q="hd", w_k="hd"),
    "additive": _both("score", "additive", w_q="d6", w_k="d6", v="6"),
    "additive-heads": _both("score", "additive", w_q="hd6", w_k="hd6", v="h6"),
    "sigmoid": _both("normalizer", "sigmoid", bias=np.array(-0.5)),
    "sparsemax": _both("normalizer", "sparsemax"),
    "entmax15": _both("normalizer", "entmax15"),
    "hard": _both("normalizer", "hard"),
    "gumbel": _gumbel(False),
    "gumbel-hard": _gumbel(True)._replace(arrays={"temperature": np.array(0.7)}),
    "stick-breaking": Case(
        {},
        lambda x: {"normalizer": normalizers.function(stick_breaking), "mask": masks.causal(-1)},
        lambda x: {"normalizer": oracle.stick_breaking(), "mask": oracle.causal(-1)},
    ),
    "relu": Case(
        {},
        lambda x: {
            "normalizer": normalizers.function(lambda z, n: jnp.maximum(z, 0) / n, jattn.operand(jnp.minimum(jnp.arange(T) + 2.0, S), "t"), elementwise=True),
            "mask": masks.causal(1),
        },
        lambda x: {"normalizer": oracle.relu(), "mask": oracle.causal(1)},
    ),
    "relu-counted": Case(
        {"power": np.array(1.0)},
        lambda x: {
            "normalizer": normalizers.function(lambda z, power: jnp.maximum(z, 0) ** power / jnp.maximum((~jnp.isneginf(z)).sum(-1, keepdims=True), 1), x.power),
            "mask": masks.lengths(_kv, _q),
        },
        lambda x: {"normalizer": lambda z: np.maximum(z, 0) ** x.power / len(z), "mask": oracle.lengths(_kv, _q)},
    ),
    "indices": Case(
        {"m": "h"},
        lambda x: {
            "mask": masks.function(lambda b, h, i, j: (i + j + h + b) % 3 != 0),
            "mods": mods.function(lambda s, b, h, i, j, m: s * m[h] - 0.1 * h * abs(i - j) + b * j, jattn.operand(x.m)),
            "gates": gates.function(lambda w, b, h, i, j: w * (1 + b + 2 * h)),
        },
        lambda x: {
            "mask": lambda at: (at.i + at.j + at.h + at.b) % 3 != 0,
            "mods": (lambda s, at: s * x.m[at.h] - 0.1 * at.h * abs(at.i - at.j) + at.b * at.j,),
            "gates": (lambda w, at: w * (1 + at.b + 2 * at.h),),
        },
    ),
    "causal": _mask(masks.causal(), oracle.causal()),
    "causal-offset": _mask(masks.causal(-2), oracle.causal(-2)),
    "window": _mask(masks.window(1, 2), oracle.window(1, 2)),
    "window-open": _mask(masks.window(None, 1), oracle.window(None, 1)),
    "around-t": _mask(masks.around(_centers["t"], 1, 1), oracle.around(_centers["t"], 1, 1)),
    "around-bt": _mask(masks.around(_centers["bt"], 0, 2), oracle.around(_centers["bt"], 0, 2)),
    "around-bht": _mask(masks.around(_centers["bht"], 1, 2), oracle.around(_centers["bht"], 1, 2)),
    "segments": _mask(masks.segments(_ids, _kv_ids), oracle.segments(_ids, _kv_ids)),
    "prefix": _mask(masks.prefix(3), oracle.prefix(3)),
    "prefix-b": _mask(masks.prefix(_kv), oracle.prefix(_kv)),
    "lengths": _mask(masks.lengths(_kv, _q), oracle.lengths(_kv, _q)),
    "dilated": _mask(masks.dilated(3), oracle.dilated(3)),
    "blocks": _mask(masks.blocks(_layout, 2), oracle.blocks(_layout, 2)),
    "blocks-heads": _mask(masks.blocks(_layouts, 2), oracle.blocks(_layouts, 2)),
    "dense": _mask(masks.dense(_dense), oracle.dense(_dense)),
    "function": _mask(masks.function(lambda i, j: (i * j) % 3 < 2), oracle.function(lambda i, j: (i * j) % 3 < 2)),
    "and": _mask(
        masks.causal() & masks.window(2, 2), lambda at: oracle.causal()(at) & oracle.window(2, 2)(at)
    ),
    "or-not": _mask(
        masks.dilated(2) | ~masks.causal(1), lambda at: oracle.dilated(2)(at) | ~oracle.causal(1)(at)
    ),
    "softcap": _mod(lambda x: mods.softcap(x.cap), lambda x: oracle.softcap(x.cap), cap=np.array(1.5)),
    "alibi": _mod(lambda x: mods.alibi(x.slopes), lambda x: oracle.alibi(x.slopes), slopes="h"),
    "relative": _mod(lambda x: mods.relative(x.table), lambda x: oracle.relative(x.table, oracle.t5_bucket(True, 6)), table="h6"),
    "relative-decoder": _mod(
        lambda x: mods.relative(x.table, mods.t5_bucket(False, 4, 5)),
        lambda x: oracle.relative(x.table, oracle.t5_bucket(False, 4, 5)),
        table="h4",
    ),
    **{
        f"bias-{axes or 'scalar'}": _mod(
            lambda x, axes=axes: mods.bias(x.array, axes), lambda x, axes=axes: oracle.bias(x.array, axes), array=axes
        )
        for axes in ("", "h", "bs", "bt", "hts", "bhts")
    },
    "mod-function": _mod(
        lambda x: mods.function(lambda s, i, j, m: jnp.sin(s * m) + 0.1 * i - 0.2 * j, jattn.operand(x.m, "t")),
        lambda x: lambda s, at: np.sin(s * x.m[at.i]) + 0.1 * at.i - 0.2 * at.j,
        m="t",
    ),
    "dropout": _gate(lambda x: gates.dropout(0.4, 2**32 - 3), lambda x: oracle.dropout(0.4, 2**32 - 3)),
    "gaussian": _gate(
        lambda x: gates.gaussian(x.center, x.sigma), lambda x: oracle.gaussian(x.center, x.sigma), center="bt", sigma=np.array(2.0)
    ),
    "gaussian-heads": _gate(lambda x: gates.gaussian(x.center, 3.0), lambda x: oracle.gaussian(x.center, 3.0), center="bht"),
    "gate-function": _gate(
        lambda x: gates.function(lambda w, i, j, m: w * m * (1 + i + j), jattn.operand(x.m, "hs")),
        lambda x: lambda w, at: w * x.m[at.h, at.j] * (1 + at.i + at.j),
        m="hs",
    ),
    "sinks": Case({"sinks": "h"}, lambda x: {"sinks": x.sinks, "mask": masks.prefix(_kv)}, lambda x: {"sinks": x.sinks, "mask": oracle.prefix(_kv)}),
    **{
        f"{name}-hidden": Case(
            {}, lambda x, name=name: {"normalizer": getattr(normalizers, name)(), "mask": masks.lengths(_kv, _q)},
            lambda x, name=name: {"normalizer": getattr(oracle, name)(), "mask": oracle.lengths(_kv, _q)},
        )
        for name in ("sigmoid", "sparsemax", "entmax15", "hard")
    },
    "everything": _everything,
}  # fmt: skip
ZERO_GRADIENT = ("hard", "gumbel-hard")  # almost everywhere; straight through, the gradient is that of another function


def _arrays(case: Case, sizes: dict[str, Any], seed: int = 1) -> SimpleNamespace:
    random = np.random.default_rng(seed)
    draw = lambda axes: random.standard_normal([sizes.get(a) or int(a) for a in axes])
    inputs = {"query": draw("bthd"), "key": draw("bsgd"), "value": draw("bsge")}
    return SimpleNamespace(**inputs, **{n: draw(x) if isinstance(x, str) else x for n, x in case.arrays.items()})


def _ours(case: Case, x: Any) -> dict[str, Any]:
    got = case.ours(x)
    softmax = got.get("normalizer", normalizers.softmax()).is_softmax
    result = jattn.attention(x.query, x.key, x.value, **got, implementation="reference", return_lse=softmax)
    out, lse = result if softmax else (result, None)
    return {"out": out, "lse": lse}


def _oracles(case: Case, x: Any) -> oracle.Result:
    return oracle.attention(x.query, x.key, x.value, **case.oracles(x))


@pytest.mark.parametrize("name", CASES)
def test_values(name):
    case = CASES[name]
    x = _arrays(case, SIZES)
    on_device = SimpleNamespace(**{n: jnp.asarray(y) for n, y in vars(x).items()})
    got, wanted = _ours(case, on_device), _oracles(case, x)
    np.testing.assert_allclose(got["out"], wanted.out, rtol=1e-12, atol=1e-12)
    if got["lse"] is not None:
        np.testing.assert_allclose(got["lse"], wanted.lse, rtol=1e-12, atol=1e-12)
    weights = jattn.weights(on_device.query, on_device.key, on_device.value, **case.ours(on_device))
    np.testing.assert_allclose(weights, wanted.weights, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name", [n for n in CASES if (n not in ZERO_GRADIENT and CASES[n].arrays) or n.endswith("-hidden") or n == "plain"]
)
def test_gradients(name):
    """Along every array by itself, in one random direction; central differences of the oracle."""
    case = CASES[name]
    arrays = vars(_arrays(case, SIZES))
    random = np.random.default_rng(2)
    shapes = _ours(case, SimpleNamespace(**arrays))
    cotangents = {n: random.standard_normal(y.shape) for n, y in shapes.items() if y is not None}

    def ours(arrays):
        got = _ours(case, SimpleNamespace(**arrays))
        total = jnp.sum(cotangents["out"] * got["out"])
        if got["lse"] is not None:  # where a row sees nothing it is -inf, and constant
            total += jnp.sum(cotangents["lse"] * jnp.where(jnp.isneginf(got["lse"]), 0, got["lse"]))
        return total

    def wanted(arrays):
        got = _oracles(case, SimpleNamespace(**arrays))
        total = np.sum(cotangents["out"] * got.out)
        return total + (
            np.sum(cotangents["lse"] * np.where(np.isneginf(got.lse), 0, got.lse)) if "lse" in cotangents else 0
        )

    gradients = jax.grad(ours)({n: jnp.asarray(y) for n, y in arrays.items()})
    for n, y in arrays.items():
        direction = random.standard_normal(y.shape)
        moved = [wanted({**arrays, n: y + step * direction}) for step in (1e-6, -1e-6)]
        slope = (moved[0] - moved[1]) / 2e-6
        np.testing.assert_allclose(np.vdot(gradients[n], direction), slope, rtol=1e-7, atol=1e-7, err_msg=n)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1, 1, 1), (3, 2, 11, 3, 1, 1, 5), (1, 9, 1, 2, 2, 4, 1)])
@pytest.mark.parametrize(
    "name", ["plain", "cosine", "additive-heads", "sparsemax", "entmax15", "sigmoid", "hard", "dropout", "gumbel"]
)
def test_sizes(name, sizes):
    case = CASES[name]
    x = _arrays(case, dict(zip("btshgde", sizes, strict=True)))
    np.testing.assert_allclose(_ours(case, x)["out"], _oracles(case, x).out, rtol=1e-12, atol=1e-12)


def test_buckets():
    for bidirectional, buckets, most in ((True, 32, 128), (False, 32, 128), (True, 8, 20), (False, 5, 3)):
        theirs = oracle.t5_bucket(bidirectional, buckets, most)
        relative = np.arange(-150, 150)
        np.testing.assert_array_equal(
            mods.t5_bucket(bidirectional, buckets, most)(jnp.asarray(relative)), [theirs(int(x)) for x in relative]
        )


def test_merge():
    x = _arrays(CASES["plain"], SIZES)
    cuts = [slice(0, 2), slice(2, 3), slice(3, S)]
    parts = [oracle.attention(x.query, x.key[:, c], x.value[:, c], mask=oracle.causal(-1))[:2] for c in cuts]
    wanted = oracle.merge(*parts)
    for got, want in zip(jattn.merge(*[(jnp.asarray(o), jnp.asarray(e)) for o, e in parts]), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    whole = oracle.attention(x.query, x.key, x.value)
    parts = [oracle.attention(x.query, x.key[:, c], x.value[:, c])[:2] for c in cuts]
    np.testing.assert_allclose(oracle.merge(*parts)[0], whole.out, rtol=1e-12, atol=1e-12)


def test_sample():
    x = _arrays(CASES["plain"], SIZES)
    mask = masks.lengths(_kv, _q) & masks.causal(1)
    out, index, log_prob = jattn.sample(jax.random.key(KEY), x.query, x.key, x.value, mask=mask)
    wanted = oracle.sample(
        _seed(), x.query, x.key, x.value, mask=lambda at: oracle.lengths(_kv, _q)(at) & oracle.causal(1)(at)
    )
    np.testing.assert_allclose(out, wanted[0], rtol=1e-12)
    np.testing.assert_array_equal(index, wanted[1])
    np.testing.assert_allclose(log_prob, wanted[2], rtol=1e-12)


# What nobody sees, and what somebody sees and should not have


NORMALIZERS = {
    "softmax": normalizers.softmax,
    "sigmoid": lambda: normalizers.sigmoid(jnp.asarray(-0.5)),
    "sparsemax": normalizers.sparsemax,
    "entmax15": normalizers.entmax15,
    "hard": normalizers.hard,
    "hard-through": lambda: normalizers.hard(True),
    "gumbel": lambda: normalizers.gumbel(jax.random.key(KEY), jnp.asarray(0.7)),
    "gumbel-hard": lambda: normalizers.gumbel(jax.random.key(KEY), jnp.asarray(0.7), hard=True),
    "stick-breaking": lambda: normalizers.function(stick_breaking),
    "relu": lambda: normalizers.function(lambda z, a: jnp.maximum(z + a, 0), jnp.asarray(0.5), elementwise=True),
}


def _twin(query, key, value, **options):
    """What the higher derivatives of the fused backends are derivatives of."""
    problem = checks.problem(query, key, value, score=scores.dot(), mods_=options.pop("mods"), **options)
    q, k, v, operands, signature = reduce(problem)
    spec = Spec(BLOCKWISE, signature, query.dtype, None, None, targets.current())
    return twin.attend(spec, (q, k, v, *operands))


WAYS = {
    name: functools.partial(jattn.attention, implementation=name) for name in ("reference", "blockwise")
}  # fmt: skip
ON = [
    (way, n)
    for n in NORMALIZERS
    for way in ("reference", "blockwise")
    if way == "reference" or n not in ("softmax", "gumbel")
]


def _hides(x: SimpleNamespace) -> dict[str, Any]:
    """Batch element 1 sees nothing, nor does query 4 of element 0; keys 3 and beyond are seen by none."""
    curved = mods.function(lambda s, i, j, m: s * jnp.tanh(m) + 1 / m, jattn.operand(x.m, "bt"))
    return {
        "mask": masks.lengths(jnp.asarray(_kv), jnp.asarray(_q)),
        "mods": (mods.bias(x.row, "bt"), mods.softcap(x.cap), mods.bias(x.column, "bs"), curved),
        "gates": (
            gates.gaussian(x.center, 2.0),
            gates.function(lambda w, i, j, c: w * c, jattn.operand(x.column, "bs")),
        ),
    }


_HIDDEN = Case(
    {"row": "bt", "column": "bs", "cap": np.array(3.0), "m": "bt", "center": "bt", "out": "bthe", "lse": "bth"},
    dict,
    dict,
)


def _poisoned(x: SimpleNamespace, bad: float) -> SimpleNamespace:
    """`bad` wherever nobody looks, the cotangents of rows that see nothing included."""
    x = SimpleNamespace(**{n: np.array(y) for n, y in vars(x).items()})
    for array in (x.key, x.value, x.column):
        array[0, 3:], array[1] = bad, bad
    for array in (x.query, x.row, x.m, x.center, x.out, x.lse):
        array[0, 4], array[1] = bad, bad
    return x


def _values_and_gradients(attend: Callable, normalizer: Any) -> Callable:
    """Of the arrays by name: out and lse, and the gradients of all arrays and of what the normaliser holds."""
    softmax = normalizer.is_softmax

    def loss(arrays, normalizer, cotangents):
        y = SimpleNamespace(**arrays)
        got = attend(y.query, y.key, y.value, normalizer=normalizer, **_hides(y), return_lse=softmax)
        out, lse = got if softmax else (got, jnp.zeros(()))
        total = jnp.sum(cotangents["out"] * out)
        return total + (jnp.sum(cotangents["lse"] * lse) if softmax else 0), (out, lse)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True, allow_int=True), compiler_options=QUICK)

    def fn(x):
        arrays = {n: jnp.asarray(y) for n, y in vars(x).items()}
        gradients, values = gradient(arrays, normalizer, {n: arrays.pop(n) for n in ("out", "lse")})
        return values, [y for y in jax.tree.leaves(gradients) if jnp.issubdtype(y.dtype, jnp.floating)]

    return fn


@pytest.mark.parametrize(("way", "name"), [*ON, ("twin", "softmax"), ("twin", "gumbel")])
def test_what_nobody_sees_reaches_nothing(way, name):
    x = _arrays(_HIDDEN, SIZES)
    fn = _values_and_gradients(_twin if way == "twin" else WAYS[way], NORMALIZERS[name]())
    wanted = fn(x)
    assert all(np.all(np.isfinite(y)) for y in wanted[1])
    for bad in (np.nan, np.inf, -np.inf):
        chex.assert_trees_all_equal(fn(_poisoned(x, bad)), wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("way", "name"), [*ON, ("twin", "softmax"), ("twin", "gumbel")])
def test_what_is_seen_and_not_a_number_is_not_hidden(way, name, bad):
    """One score of rows 2 of element 0, head 1: only they are NaN, in out and lse."""
    x = _arrays(CASES["plain"], SIZES)
    array = np.zeros((B, H, T, S))
    array[0, 1, 2, 1] = bad
    softmax = NORMALIZERS[name]().is_softmax
    attend = _twin if way == "twin" else WAYS[way]
    got: Any = attend(
        x.query, x.key, x.value, normalizer=NORMALIZERS[name](), mask=masks.prefix(3), mods=(mods.bias(array, "bhts"),), return_lse=softmax
    )  # fmt: skip
    wanted = np.zeros((B, T, H), bool)
    wanted[0, 2, 1] = True
    out = got[0] if softmax else got
    np.testing.assert_array_equal(np.isnan(out), np.broadcast_to(wanted[..., None], out.shape))
    if softmax:
        np.testing.assert_array_equal(np.isnan(got[1]), wanted)
    # where the mask hides it, it counts for nothing
    hidden = attend(
        x.query, x.key, x.value, normalizer=NORMALIZERS[name](), mask=~masks.dense(array != 0), mods=(mods.bias(array, "bhts"),), return_lse=softmax
    )  # fmt: skip
    assert all(np.all(np.isfinite(y)) for y in jax.tree.leaves(hidden))


def test_what_nobody_sees_reaches_no_weight_and_no_sample():
    x = _arrays(CASES["plain"], SIZES)
    clean, dirty = x, _poisoned(SimpleNamespace(**vars(_arrays(_HIDDEN, SIZES)) | vars(x)), np.nan)
    mask = masks.lengths(jnp.asarray(_kv), jnp.asarray(_q))
    chex.assert_trees_all_equal(*(jattn.weights(y.query, y.key, y.value, mask=mask) for y in (clean, dirty)))
    draws = [jattn.sample(jax.random.key(KEY), y.query, y.key, y.value, mask=mask) for y in (clean, dirty)]
    chex.assert_trees_all_equal(*draws)
    # seen: no draw could be right
    query = x.query.copy()
    query[0, 1] = np.nan
    out, _, log_prob = jattn.sample(jax.random.key(KEY), query, x.key, x.value, mask=mask)
    rows = np.zeros((B, T), bool)
    rows[0, 1] = True
    np.testing.assert_array_equal(np.isnan(log_prob).all(-1), rows)
    np.testing.assert_array_equal(np.isnan(out).all((-1, -2)), rows)


@pytest.mark.parametrize("way", ["reference", "twin"])
def test_a_row_of_the_least_finite_bias_is_the_mean(way):
    x = _arrays(CASES["plain"], SIZES)
    least = np.finfo(np.float64).min
    attend = _twin if way == "twin" else WAYS[way]
    out, lse = attend(
        x.query,
        x.key,
        x.value,
        normalizer=normalizers.softmax(),
        mods=(mods.bias(jnp.asarray(least), ""),),
        return_lse=True,
    )
    np.testing.assert_allclose(
        out, np.broadcast_to(np.repeat(x.value.mean(1), H // G, 1)[:, None], out.shape), rtol=1e-12
    )
    np.testing.assert_allclose(lse, least, rtol=1e-12)


@pytest.mark.parametrize("way", ["reference", "blockwise", "twin"])
def test_minus_infinity_under_a_soft_cap_stays_hidden(way):
    x = _arrays(CASES["plain"], SIZES)
    array = np.zeros((T, S))
    array[:, 2], array[3] = -np.inf, -np.inf
    name = "entmax15" if way == "blockwise" else "softmax"
    attend = _twin if way == "twin" else WAYS[way]

    def fn(cap, bias):
        out: Any = attend(
            x.query, x.key, x.value, normalizer=getattr(normalizers, name)(),
            mods=(mods.bias(bias, "ts"), mods.softcap(cap)), return_lse=name == "softmax",
        )  # fmt: skip
        return out[0] if name == "softmax" else out

    wanted = oracle.attention(
        x.query, x.key, x.value, normalizer=getattr(oracle, name)(), mods=(oracle.bias(array, "ts"), oracle.softcap(3.0))
    )  # fmt: skip
    np.testing.assert_allclose(fn(jnp.asarray(3.0), jnp.asarray(array)), wanted.out, rtol=1e-12, atol=1e-12)
    dcap, dbias = jax.grad(lambda *a: jnp.sum(jnp.sin(fn(*a))), (0, 1))(jnp.asarray(3.0), jnp.asarray(array))
    assert np.isfinite(dcap)
    assert np.isfinite(dbias).all() and not np.asarray(dbias)[np.isneginf(array)].any()


@pytest.mark.parametrize("sizes", [{"t": 0}, {"s": 0}, {"b": 0}])
@pytest.mark.parametrize("name", NORMALIZERS)
def test_nothing_to_attend_to(name, sizes):
    shape = lambda axes: tuple({**SIZES, **sizes}[a] for a in axes)
    q, k, v = (jnp.zeros(shape(a)) for a in ("bthd", "bsgd", "bsge"))
    for mask in (None, masks.causal()):
        problem = checks.problem(q, k, v, score=scores.dot(), normalizer=NORMALIZERS[name](), mask=mask)
        out, lse, weights = jax.jit(reference.attention)(problem)
        np.testing.assert_array_equal(out, np.zeros(shape("bthe")))
        np.testing.assert_array_equal(lse, np.full(shape("bth"), -np.inf))
        assert weights.shape == shape("bhts")
        strips = jax.jit(whole_rows.attention)(problem)
        np.testing.assert_array_equal(strips, np.zeros(shape("bthe")))
