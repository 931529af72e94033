"""Functions that close over arrays, under every transformation; functions made anew; and what cannot be reached."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import types
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

import jattn
from jattn import gates, masks, mods, scores
from jattn._terms.closures import hoist
from tests.evaluate import equations
from tests.tolerances import assert_close

SIZES = (2, 8, 2, 4)
Q, K, V = (np.random.default_rng(n).standard_normal(SIZES).astype(np.float32) for n in range(3))
TABLE = np.random.default_rng(3).standard_normal(7).astype(np.float32)
IDS = np.array([0, 0, 0, 1, 1, 2, 2, 2])
BACKENDS = ["blockwise", "reference"]


def _attend(implementation, **options):
    blocks = (3, 5) if implementation == "blockwise" else None
    return jattn.attention(Q, K, V, implementation=implementation, blocks=blocks, **options)


def _by_operand(x, implementation):
    """What every way of closing over x must come to."""
    scaled = mods.function(lambda s, i, j, x: s * x + jnp.cos(x * i), jattn.operand(x))
    return jnp.sum(_attend(implementation, mods=(scaled,), mask=masks.causal()) ** 2)


class _Scaled:
    def __init__(self, x):
        self.x = {"by": x}

    def mod(self, s, i, j):
        return s * self.x["by"] + jnp.cos(self.x["by"] * i)


@dataclasses.dataclass(frozen=True, slots=True)
class _Slotted:
    x: Any

    def __call__(self, s, i, j):
        return s * self.x + jnp.cos(self.x * i)


def _with_default(x):
    def fn(s, i, j, x=x):
        return s * x + jnp.cos(x * i)

    return fn


def _through_a_helper(x):
    turn = lambda i: jnp.cos(x * i)
    return lambda s, i, j: s * x + turn(i)


def _jitted(x):
    return jax.jit(lambda s, i, j: s * x + jnp.cos(x * i))


class _Settings(dict):
    def __getattr__(self, name):
        return self[name]


class _Row(tuple):
    pass


def _through(value, get):
    """A function that gets x from a value that it closes over."""
    return lambda s, i, j: s * get(value) + jnp.cos(get(value) * i)


WAYS = {
    "cell": lambda x: lambda s, i, j: s * x + jnp.cos(x * i),
    "default": _with_default,
    "helper": _through_a_helper,
    "partial": lambda x: functools.partial(lambda x, s, i, j: s * x + jnp.cos(x * i), x),
    "method": lambda x: _Scaled(x).mod,
    "slots": _Slotted,
    "container": lambda x: (lambda y: lambda s, i, j: s * y["a"][0] + jnp.cos(y["a"][0] * i))({"a": [x]}),
    "jit": _jitted,
}
FURTHER_WAYS = {
    "namespace": lambda x: _through(types.SimpleNamespace(x=x), lambda y: y.x),
    "a class of dictionaries": lambda x: _through(_Settings(x=x), lambda y: y.x),
    "a class of tuples": lambda x: _through(_Row([x]), lambda y: y[0]),
    "deque": lambda x: _through(collections.deque([x]), lambda y: y[0]),
    "parameter": lambda x: _through(nnx.Param(x), lambda y: y[...]),
    "layer": lambda x: _through(nnx.LayerNorm(1, use_bias=False, scale_init=lambda *_: x, rngs=nnx.Rngs(0)), lambda y: y.scale[...]),
}  # fmt: skip


@pytest.mark.parametrize("implementation", BACKENDS)
@pytest.mark.parametrize("way", WAYS)
def test_a_traced_scalar_gets_its_gradient_however_it_is_held(way, implementation):
    def loss(x):
        return jnp.sum(_attend(implementation, mods=(mods.function(WAYS[way](x)),), mask=masks.causal()) ** 2)

    wanted = jax.grad(_by_operand)(0.7, implementation)
    assert abs(wanted) > 0.1
    assert_close(jax.grad(loss)(0.7), wanted, 1e-5)
    assert_close(jax.jit(jax.grad(loss))(0.7), wanted, 1e-5)


@pytest.mark.parametrize("way", FURTHER_WAYS)
def test_objects_of_many_classes_are_taken_apart(way):
    loss = lambda make: (
        lambda x: jnp.sum(_attend("blockwise", mods=(mods.function(make(x)),), mask=masks.causal()) ** 2)
    )
    assert_close(jax.grad(loss(FURTHER_WAYS[way]))(0.7), jax.grad(loss(WAYS["cell"]))(0.7), 1e-5)


_MESH = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
TRANSFORMS = {
    "vmap": lambda f: jax.vmap(f)(jnp.array([0.5, 0.7])),
    "vmap of grad": lambda f: jax.vmap(jax.grad(f))(jnp.array([0.5, 0.7])),
    "scan": lambda f: jax.lax.scan(lambda c, x: (c + f(x), f(x)), 0.0, jnp.array([0.5, 0.7])),
    "grad of scan": lambda f: jax.grad(lambda y: jax.lax.scan(lambda c, x: (c + f(x * y), None), 0.0, jnp.ones(2))[0])(0.7),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f))(0.7),
    "jvp": lambda f: jax.jvp(f, (0.7,), (1.0,)),
    "hessian": lambda f: jax.hessian(f)(0.7),
    "shard_map": lambda f: jax.shard_map(
        lambda x: f(x[0])[None], mesh=_MESH, in_specs=PartitionSpec("x"), out_specs=PartitionSpec("x")
    )(jnp.array([0.5, 0.7])),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transformations(name):
    def loss(x):
        scaled = mods.function(lambda s, i, j: s * x + jnp.cos(x * i))
        return jnp.sum(_attend("blockwise", mods=(scaled,), mask=masks.causal()) ** 2)

    wanted = TRANSFORMS[name](lambda x: _by_operand(x, "blockwise"))
    for got in (TRANSFORMS[name](loss), jax.jit(lambda: TRANSFORMS[name](loss))()):
        jax.tree.map(functools.partial(assert_close, tolerance=2e-5), got, wanted)


@pytest.mark.parametrize("implementation", BACKENDS)
def test_a_table_and_its_gradient(implementation):
    """Looked up at computed places; in NumPy, in JAX, and traced."""

    def of(table):
        looked_up = mods.function(lambda s, i, j: s + table[i % 7] * table[j % 7])
        return jnp.sum(_attend(implementation, mods=(looked_up,)) ** 2)

    at = np.arange(8) % 7

    def wanted(table):
        return jnp.sum(_attend(implementation, bias=table[at][:, None] * table[at]) ** 2)

    assert_close(of(TABLE), wanted(TABLE), 1e-5)
    assert_close(of(jnp.asarray(TABLE)), wanted(TABLE), 1e-5)
    assert_close(jax.grad(of)(TABLE), jax.grad(wanted)(TABLE), 1e-4)


@pytest.mark.parametrize("implementation", BACKENDS)
def test_gates_and_buckets_close_over_arrays_too(implementation):
    def of(x):
        scaled = gates.function(lambda w, i, j: w * x)
        return jnp.sum(_attend(implementation, gates=(scaled,)))

    plain = jnp.sum(_attend(implementation))
    assert_close(of(3.0), 3 * plain, 1e-5)
    assert_close(jax.grad(of)(3.0), plain, 1e-5)

    def relative(n):
        near = mods.relative(jnp.asarray(TABLE[None, :5].repeat(2, 0)), lambda r: jnp.clip(r, -n, n) + n)
        return _attend(implementation, mods=(near,))

    assert_close(jax.jit(relative)(2), relative(2), 1e-6)


def test_kernels_take_scalars_that_functions_close_over(monkeypatch):
    """Interpreted; whole tables are for XLA, and the error says so."""
    monkeypatch.setenv("JATTN_INTERPRET", "1")

    def loss(x, n, implementation):
        scaled = mods.function(lambda s, i, j: s * x + jnp.cos(x * i))
        near = mods.relative(jnp.asarray(TABLE[None, :5].repeat(2, 0)), lambda r: jnp.clip(r, -n, n) + n)
        below = masks.function(lambda i, j: j < n + 4)
        return jnp.sum(_attend(implementation, mods=(scaled, near), mask=below) ** 2)

    got, wanted = (jax.jit(jax.value_and_grad(loss), static_argnums=2)(0.7, 2, x) for x in ("pallas_tpu", "reference"))
    jax.tree.map(lambda x, y: assert_close(x, y, 1e-5), got, wanted)
    table = jnp.asarray(TABLE)
    with pytest.raises(jattn.UnsupportedError, match=r"operands with axes b h t s alone.*blockwise"):
        _attend("pallas_tpu", mods=(mods.function(lambda s, i, j: s + table[i % 7]),))

    class OfItsClass:
        x = jnp.float32(0.5)

        def mod(self, s, i, j):
            return s * self.x

    with pytest.raises(jattn.UnsupportedError, match=r"arrays of their own.*jattn\.operand"):
        _attend("pallas_tpu", mods=(mods.function(OfItsClass().mod),))


@pytest.mark.parametrize("implementation", BACKENDS)
def test_masks_close_over_arrays(implementation):
    wanted = _attend(implementation, mask=masks.segments(IDS))
    same = lambda ids: _attend(implementation, mask=masks.function(lambda i, j: ids[i[:, 0]][:, None] == ids[j]))
    for got in (same(IDS), same(jnp.asarray(IDS)), jax.jit(same)(IDS)):
        assert_close(got, wanted, 1e-6)
    below = lambda n: _attend(implementation, mask=masks.function(lambda i, j: j < n))
    for got in (
        below(3),
        below(np.int64(3)),
        below(jnp.int32(3)),
        jax.jit(below)(3),
        jax.vmap(below)(jnp.array([3]))[0],
    ):
        assert_close(got, _attend(implementation, mask=masks.prefix(3)), 1e-6)


def test_a_numpy_table_leaves_a_mask_static():
    """So blocks that it leaves empty are skipped."""
    ids = np.arange(64) // 16
    mask = masks.function(lambda i, j: ids[i] == ids[j])
    x = jax.ShapeDtypeStruct((1, 64, 1, 4), jnp.float32)
    plan = jattn.explain(x, x, x, mask=mask, blocks=(16, 16))
    assert plan.blocks == (12, 0, 4)


def test_a_function_made_anew_does_not_compile_again():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def use(tilt, near):
        return jattn.attention(Q, K, V, mods=(tilt,), mask=near)

    def made(x, n):
        return mods.function(lambda s, i, j: s * x - n * (i - j)), masks.function(lambda i, j: abs(i - j) < n)

    use(*made(jnp.float32(0.5), 3))
    use(*made(jnp.float32(0.7), 3))
    for other in (3.0, 4):  # not the same program: a float is not an int
        with pytest.raises(AssertionError, match="traced > 1 times"):
            use(*made(jnp.float32(0.7), other))


@pytest.mark.parametrize("way", ["partial", "keyword", "keyword default"])
def test_keywords_made_anew_do_not_compile_again(way):
    def capped(s, i, j, *, cap):
        return cap * jnp.tanh(s / cap)

    def made():
        def defaulted(s, i, j, *, cap=2.0):
            return cap * jnp.tanh(s / cap)

        ways = {
            "partial": functools.partial(lambda c, s, i, j: s * c, 2.0),
            "keyword": functools.partial(capped, cap=2.0),
        }
        return mods.function(ways.get(way, defaulted))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def use(mod):
        return jattn.attention(Q, K, V, mods=(mod,))

    use(made())
    use(made())


LEVEL = 2.0


def test_a_changed_global_is_not_the_old_one(monkeypatch):
    of = lambda: jattn.attention(Q, K, V, mods=(mods.function(lambda s, i, j: s * LEVEL),))
    first = of()
    monkeypatch.setitem(globals(), "LEVEL", 3.0)
    assert_close(of(), jattn.attention(Q, K, V, mods=(mods.function(lambda s, i, j: s * 3.0),)), 1e-6)
    assert abs(first - of()).max() > 1e-3


def test_what_a_function_appends_to_stays_the_same_list():
    seen = []

    def fn(s, i, j):
        seen.append(s.shape)
        return s

    jattn.attention(Q, K, V, mods=(mods.function(fn),))
    assert seen


class _Failure(Exception):
    pass


def _on_an_exception(x):
    failure = _Failure()
    failure.x = x  # pyright: ignore[reportAttributeAccessIssue]
    return _through(failure, lambda y: y.x)


@pytest.mark.parametrize("make", [lambda x: _through(itertools.repeat(x), next), _on_an_exception])
def test_what_is_out_of_reach_is_named(make):
    """An iterator, of which Python shows no attribute; an object of which Python's own part cannot be made anew."""

    def loss(x):
        return jnp.sum(jattn.attention(Q, K, V, mods=(mods.function(make(x)),)))

    with pytest.raises(TypeError, match=r"mods\.function: .*traced array.*jattn\.operand"):
        jax.grad(loss)(2.0)


def test_equal_functions_have_equal_keys():
    make = lambda x, n: hoist(lambda s, i, j: s * x + n)[0]
    assert make(jnp.ones(3), 1) == make(jnp.zeros(3), 1)
    assert hash(make(jnp.ones(3), 1)) == hash(make(jnp.zeros(3), 1))
    for other in (2, 1.0, True):
        assert make(jnp.ones(3), 1) != make(jnp.ones(3), other)
    assert make(jnp.ones(3), 0.0) != make(jnp.ones(3), -0.0)


def test_a_recursive_function_is_kept_whole():
    def power(s, n):
        return s if n == 0 else s * power(s, n - 1)

    got = jattn.attention(Q, K, V, mods=(mods.function(lambda s, i, j: power(s, 2)),))
    assert_close(got, jattn.attention(Q, K, V, mods=(mods.function(lambda s, i, j: s * s * s),)), 1e-5)


class _Layer(nnx.Module):
    """Its function closes over the whole layer."""

    def __init__(self, rngs):
        self.project = nnx.Linear(8, 8, rngs=rngs)
        self.temperature = nnx.Param(jnp.float32(1.5))

    def __call__(self, x):
        q = self.project(x).reshape(*x.shape[:2], 2, 4)
        return jattn.attention(q, q, q, mods=(mods.function(lambda s, i, j: s * self.temperature[...]),))


def test_what_is_not_used_is_not_held():
    layer, x = _Layer(nnx.Rngs(0)), jnp.asarray(Q).reshape(2, 8, 8)
    loss = lambda layer: jnp.sum(layer(x) ** 2)

    def plain(layer):
        q = layer.project(x).reshape(2, 8, 2, 4)
        return jnp.sum(jattn.attention(q, q, q, score=scores.dot(layer.temperature[...] / 2)) ** 2)

    for transform in (nnx.grad, lambda f: nnx.jit(nnx.grad(f))):
        got, wanted = transform(loss)(layer), nnx.grad(plain)(layer)
        jax.tree.map(lambda x, y: assert_close(x, y, 2e-4), got, wanted)
    graph, state = nnx.split(layer)
    jaxpr = jax.make_jaxpr(lambda state: loss(nnx.merge(graph, state)))(state).jaxpr
    (attend,) = equations(jaxpr, "attend")
    assert [x.aval.shape for x in attend.invars[3:]] == [()]  # the temperature alone


class _OfAll:
    x: Any = 0.0


_MODULE = types.ModuleType("settings_of_a_user")
_PACKAGE = types.ModuleType("package_of_a_user")
_PACKAGE.settings = _MODULE  # pyright: ignore[reportAttributeAccessIssue]
_HELD, _ROW, _OBJECT = {"x": 0.0}, [0.0], types.SimpleNamespace(x=0.0)
HOLDERS = {
    "dictionary": (lambda s, i, j: s - _HELD["x"] * abs(i - j), lambda x: _HELD.update(x=x)),
    "list": (lambda s, i, j: s - _ROW[0] * abs(i - j), lambda x: _ROW.__setitem__(0, x)),
    "object": (lambda s, i, j: s - _OBJECT.x * abs(i - j), lambda x: setattr(_OBJECT, "x", x)),
    "class": (lambda s, i, j: s - _OfAll.x * abs(i - j), lambda x: setattr(_OfAll, "x", x)),
    "module": (lambda s, i, j: s - _MODULE.x * abs(i - j), lambda x: setattr(_MODULE, "x", x)),
    "module in a module": (lambda s, i, j: s - _PACKAGE.settings.x * abs(i - j), lambda x: setattr(_MODULE, "x", x)),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_what_a_holder_holds_now_is_used_be_it_a_number_or_an_array(name):
    fn, put = HOLDERS[name]
    of = lambda: jattn.attention(Q, K, V, mods=mods.function(fn))
    wanted = lambda x: jattn.attention(Q, K, V, mods=mods.alibi(jnp.full(2, x)))
    for x in (0.0, 5.0, 0.5, jnp.float32(2.0)):
        put(x)
        assert_close(of(), wanted(x), 1e-6)

    def loss(x, attend):
        put(x)
        return jnp.sum(attend(x) ** 2)

    got = jax.jit(jax.grad(lambda x: loss(x, lambda _: of())))(2.0)
    put(0.0)
    assert_close(got, jax.grad(lambda x: jnp.sum(wanted(x) ** 2))(2.0), 1e-5)


def test_a_mask_and_a_bucket_of_a_changed_object():
    held = types.SimpleNamespace(n=1)
    of = lambda: jattn.attention(Q, K, V, mask=masks.function(lambda i, j: abs(i - j) <= held.n))
    table = np.random.default_rng(4).standard_normal((2, 8)).astype(np.float32)
    biased = lambda: jattn.attention(Q, K, V, mods=mods.relative(table, lambda r: jnp.clip(r + held.n, 0, 7)))
    first = of(), biased()
    held.n = 3
    assert_close(of(), jattn.attention(Q, K, V, mask=masks.window(3, 3)), 1e-6)
    assert all(abs(x - y).max() > 1e-3 for x, y in zip(first, (of(), biased()), strict=True))


def test_private_slots():
    class Scaled:
        __slots__ = ("__by",)

        def __init__(self):
            self.__by = jnp.float32(3)

        def __call__(self, s, i, j):
            return s * self.__by

    got = jattn.attention(Q, K, V, mods=mods.function(Scaled()))
    assert_close(got, jattn.attention(Q, K, V, score=scores.dot(3 * 4**-0.5)), 1e-6)


def test_what_a_function_writes_itself_makes_no_other_function_of_it():
    counted, log, calls = types.SimpleNamespace(n=0, by=2.0), [], {}

    def fn(s, i, j):
        counted.n += 1
        log.append(s.shape)
        calls["last"] = s.shape
        return s * counted.by

    of = lambda: jattn.attention(Q, K, V, mods=mods.function(fn))
    first, traced = of(), len(log)
    assert_close(of(), first, 0)
    assert len(log) == traced == counted.n
    counted.by = 3.0
    assert_close(of(), jattn.attention(Q, K, V, score=scores.dot(3 * 4**-0.5)), 1e-6)
