"""What users' functions may return, and gates and normalisers of a user's own: looked at once, before anything runs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import gates, masks, mods, normalizers, operand
from jattn._terms import functions
from tests.bad_input import K, Q, V, attend, call, check_named
from tests.terms.own import Both, Kernel

KEY = jax.random.key(0)
RELATIVE: Any = mods.relative  # whose types would refuse what is wrong on purpose


class Ranked(normalizers.Normalizer):
    elementwise = True

    def __call__(self, scores):
        return jnp.sort(scores, -1)


BAD = {
    # what functions are and return
    "mask of integers": (attend(mask=masks.function(lambda i, j: (i - j) % 3)), TypeError,
                         ["masks.function", "returns int32", "must return bool"]),
    "operand for a mask": (attend(mask=masks.function(lambda i, j, m: m, jattn.operand(np.ones(5, int), "s"))), TypeError,
                           ["returns int32", "must return bool"]),
    "mod of booleans": (attend(mods=mods.function(lambda s, i, j: s > 0)), TypeError, ["mods.function", "returns bool"]),
    "mod of one row": (attend(mods=mods.function(lambda s, i, j: s[:1])), ValueError, ["elementwise", "[1, bs]", "[bt, bs]"]),
    "mask of one row": (attend(mask=masks.function(lambda i, j: (j >= i)[:1])), ValueError, ["elementwise", "[1, bs]"]),
    "NumPy on a tile": (attend(mask=masks.function(lambda i, j: np.eye(8, dtype=bool)[i, j])), TypeError, ["jax.numpy"]),
    "an item of a tile": (attend(mask=masks.function(lambda i, j: i >= j.item())), TypeError, ["masks.function", "jax.numpy"]),
    "a list by a tile": (attend(mask=masks.function(lambda i, j: [1, 2, 3][i] > j)), TypeError, ["jax.numpy"]),
    "mask turned": (attend(mask=masks.function(lambda i, j: (j >= i).T)), ValueError, ["elementwise", "[bs, bt]"]),
    "random mod": (attend(mods=mods.function(lambda s, i, j: s + jax.random.normal(KEY, s.shape))),
                   ValueError, ["random numbers", "gates.dropout"]),
    "random gate": (attend(gates=gates.function(lambda w, i, j: w * jax.random.uniform(jax.random.PRNGKey(1)))), ValueError,
                    ["gates.function", "random numbers"]),
    "gate that adds": (attend(gates=gates.function(lambda w, i, j: w + 0.1)), ValueError, ["linear in the weight", "add"]),
    "gate at least": (attend(gates=gates.function(lambda w, i, j: jnp.maximum(w, 0.1))), ValueError, ["linear", "max"]),
    "gate that fills": (attend(gates=gates.function(lambda w, i, j: jnp.where(i > j, w, 1.0))), ValueError,
                        ["linear", "select_n"]),
    "gate of a root": (attend(gates=gates.function(lambda w, i, j: jnp.sqrt(w))), ValueError, ["linear", "sqrt"]),
    "mod of two results": (attend(mods=mods.function(lambda s, i, j: (s, s))), TypeError, ["one array", "tuple"]),
    "mod of a list": (attend(mods=mods.function(lambda s, i, j: [s])), TypeError, ["one array", "list"]),
    "mod of text": (attend(mods=mods.function(lambda s, i, j: "s")), TypeError, ["one array", "str"]),
    "mask that prints": (attend(mask=masks.function(lambda i, j: (jax.debug.print("{}", i), i >= j)[1])), ValueError,
                         ["masks.function", "has an effect", "debug", "leave it out"]),
    "mod that calls back": (attend(mods=mods.function(lambda s, i, j: (jax.debug.callback(print, s), s)[1])), ValueError,
                            ["mods.function", "debug_callback", "leave it out"]),
    "gate that prints inside": (attend(gates=gates.function(jax.jit(lambda w, i, j: (jax.debug.print("w"), w)[1]))), ValueError,
                                ["gates.function", "has an effect"]),
    "bucket that prints": (attend(mods=mods.relative(np.ones((4, 3)), lambda r: (jax.debug.print("r"), r)[1])), ValueError,
                           ["mods.relative: bucket", "has an effect"]),
    "normaliser that prints": (attend(normalizer=normalizers.function(lambda s: (jax.debug.print("s"), s)[1])), ValueError,
                               ["normalizers.function", "has an effect"]),
    "mask with and": (attend(mask=masks.function(lambda i, j: i < 3 and j < 4)), TypeError, ["& | ~"]),
    "mod of an array without axes": (attend(mods=mods.function(lambda s, i, j, x: s + x, np.ones(5, np.float32))), ValueError,
                                     ["mods.function", "tile [bt, bs]", "(bt, bs), (5,)", "jattn.operand(array, axes)"]),
    "gate of an array without axes": (attend(gates=gates.function(lambda w, i, j, x: w * x, np.ones((4, 4), np.float32))),
                                      ValueError, ["gates.function", "tile [bt, bs]", "jattn.operand(array, axes)"]),
    "several keys": (lambda: normalizers.gumbel(jax.random.split(KEY)), TypeError, ["one jax.random key"]),
    # normalisers of a user's own
    "one weight a row": (attend(normalizer=normalizers.function(lambda s: s.max(-1, keepdims=True))), ValueError,
                         ["normalizers.function", "weights [bt, s]", "[bt, 1]"]),
    **{
        f"rows: {name}": (attend(normalizer=normalizers.function(fn)), ValueError,
                          ["normalizers.function", "each row", "mixes rows", "axis=-1"])
        for name, fn in {
            "a sum of all": lambda s: jnp.maximum(s, 0) / jnp.maximum(s, 0).sum(),
            "flat": lambda s: jax.nn.softmax(s.reshape(-1)).reshape(s.shape),
            "of columns": lambda s: jnp.cumsum(s, 0),
            "turned": lambda s: jnp.sort(s.T).T,
            "product": lambda s: s @ s.T @ s,
        }.items()
    },
    "random weights": (attend(normalizer=normalizers.function(lambda s: s * jax.random.uniform(KEY, s.shape))), ValueError,
                       ["random numbers", "gumbel"]),
    "not elementwise: a sum": (attend(normalizer=normalizers.function(lambda s: s / s.sum(-1, keepdims=True), elementwise=True)),
                               ValueError, ["normalizers.function", "elementwise", "whole rows"]),
    "not elementwise: its length": (attend(normalizer=normalizers.function(lambda s: jnp.maximum(s, 0) / s.shape[-1], elementwise=True)),
                                    ValueError, ["elementwise", "what else is in its row"]),
    "not elementwise: a place": (attend(normalizer=normalizers.function(lambda s: s * jnp.arange(s.shape[-1]), elementwise=True)),
                                 ValueError, ["elementwise"]),
    "not elementwise: a class": (attend(normalizer=Ranked()), ValueError, ["normalizer: Ranked", "elementwise"]),
    "sinks of a function": (attend(sinks=np.ones(4, np.float32), normalizer=normalizers.function(lambda s: s)), ValueError,
                            ["sinks", "function has none"]),
    "lse of a function": (attend(return_lse=True, normalizer=normalizers.function(lambda s: s)), ValueError, ["return_lse", "function"]),
    "sample of a function": (call(jattn.sample, KEY, Q, K, V, normalizer=normalizers.function(lambda s: s)), ValueError,
                             ["sample", "no normalizer"]),
    "bucket in NumPy": (attend(mods=RELATIVE(np.ones((4, 3)), lambda r: np.clip(r, 0, 2))), TypeError,
                        ["mods.relative", "bucket", "jax.numpy"]),
    "bucket with if": (attend(mods=RELATIVE(np.ones((4, 3)), lambda r: 0 if r < 0 else 1)), TypeError,
                       ["bucket", "jnp.where"]),
    "bucket by a list": (attend(mods=RELATIVE(np.ones((4, 3)), lambda r: [1, 2][r])), TypeError, ["bucket", "jnp.asarray"]),
    "shorter bucket": (attend(mods=mods.relative(np.ones((4, 3)), lambda r: r[:2])), TypeError, ["bucket", "as many"]),
    "bucket from the least": (attend(mods=mods.relative(np.ones((4, 3)), lambda r: r - r.min())), ValueError,
                              ["mods.relative: bucket", "elementwise", "reduce_min", "j - i"]),
    "bucket that counts": (attend(mods=mods.relative(np.ones((4, 3)), lambda r: jnp.arange(len(r)))), ValueError,
                           ["mods.relative: bucket", "elementwise", "iota"]),
    "bucket by how many": (attend(mods=mods.relative(np.ones((4, 3)), lambda r: r % len(r))), ValueError,
                           ["mods.relative: bucket", "shape of its tile"]),
    "bucket of content": (attend(mods=mods.relative_content(np.ones((2, 6, 4, 8)), np.ones((3, 8)), lambda r: jnp.sort(r))),
                          ValueError, ["mods.relative_content: bucket", "elementwise", "sort"]),
    "bucket of floats": (attend(mods=mods.relative(np.ones((4, 3)), lambda r: r * 0.5)), TypeError, ["bucket", "integers"]),
}  # fmt: skip


@pytest.mark.smoke
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    check_named(BAD[name])


# Gates of a user's own must be linear in the weight


ARRAYS = [np.random.default_rng(n).standard_normal((2, 8, 2, 4)).astype(np.float32) for n in range(3)]


class Half(gates.Gate):
    def __call__(self, weight, i, j):
        return weight * 0.5


class Squared(gates.Gate):
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, weight, i, j):
        return self.scale * weight**2


class Floor(gates.Gate):
    def __init__(self, least):
        self.least = least

    def __call__(self, weight, i, j):
        return jnp.maximum(weight, self.least)


class Branching(gates.Gate):
    def __call__(self, weight, i, j):
        return weight if weight > 0.1 else weight / 2


class Pair(gates.Gate):
    def __call__(self, weight, i, j):
        return weight, weight


CENTER = operand(np.tile(np.arange(8.0, dtype=np.float32), (2, 1)), "bt")


OTHER = {
    "squared": (lambda x: Squared(2.0), "Squared must be linear in the weight, .* has integer_pow"),
    "squared, an operand": (Squared, "Squared must be linear in the weight, .* has integer_pow"),
    "a floor": (lambda x: Floor(x), "Floor must be linear in the weight, .* has max"),
    "nested": (lambda x: Both(Half(), Floor(x)), "Both must be linear in the weight, .* has max"),
    "a function in it": (lambda x: Both(Half(), gates.function(lambda w, i, j: w + x)), "must be linear .* has add"),
}


def gated(make, **options):
    return lambda x: jattn.attention(*ARRAYS, gates=make(x), **options)


@pytest.mark.parametrize(
    "run", [lambda fn: fn, jax.jit, lambda fn: jax.grad(lambda x: fn(x).sum())], ids=["plain", "jit", "grad"]
)
@pytest.mark.parametrize("name", OTHER)
def test_a_gate_that_is_not_linear_is_refused(name, run):
    make, message = OTHER[name]
    with pytest.raises(ValueError, match=message):
        run(gated(make))(jnp.float32(0.1))


def test_a_gate_must_be_one_array_and_take_tiles():
    with pytest.raises(TypeError, match="gates: Pair must return one array, returns tuple"):
        gated(lambda x: Pair())(1.0)
    with pytest.raises(TypeError, match="gates: Branching uses `and`, `or`, `not` or `if` on arrays"):
        gated(lambda x: Branching())(1.0)


def test_gates_are_looked_at_once_for_each_class_and_signature():
    looked = []

    class Looked(Kernel):
        def __call__(self, weight, i, j):
            looked.append(weight.shape)
            return super().__call__(weight, i, j)

    dtype = np.dtype(np.float32)
    check = lambda scale, center: functions.checked((None, (), (Looked(scale, center),)), dtype)
    check(operand(np.float32(1), ""), CENTER)
    check(operand(np.float32(2), ""), CENTER)
    assert len(looked) == 1
    check(operand(np.float32(2), ""), operand(np.ones((2, 2, 8), np.float32), "bht"))  # other axes
    check(3.0, CENTER)  # a number, which is static
    assert len(looked) == 3


def test_the_librarys_gates_are_not_looked_at(monkeypatch):
    """They are linear, so that a call need not trace them once more."""
    monkeypatch.setattr(jax, "make_jaxpr", None)
    functions.checked((None, (), (gates.dropout(0.1, 0), gates.gaussian(np.ones((2, 8)), 1.0))), np.dtype(np.float32))
