"""Classes of a user's own, in the places of the library's: they hold arrays, which get gradients, and may skip blocks."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import gates, masks, mods, normalizers, operand, scores
from tests.terms.own import Both, Kernel
from tests.tolerances import assert_close

Q, K, V = (np.random.default_rng(n).standard_normal((2, 8, 2, 4)).astype(np.float32) for n in range(3))


class Relu(normalizers.Normalizer):
    """max(score, 0)^power times a learned number."""

    def __init__(self, power, scale):
        self.power, self.scale = power, scale

    def __call__(self, scores):
        return self.scale * jnp.maximum(scores, 0) ** self.power


@dataclasses.dataclass(frozen=True)
class Tilt(mods.Mod):
    slope: jax.Array

    def __call__(self, score, i, j):
        return score - self.slope * (i - j)


class Even(masks.Mask):
    def __call__(self, i, j):
        return (i + j) % 2 == 0


class Half(gates.Gate):
    def __call__(self, weight, i, j):
        return weight * 0.5


class Shifted(scores.Score):
    """q.k of keys moved by a learned vector."""

    def __init__(self, by):
        self.by = by

    def __call__(self, query, key):
        return query @ (key + self.by).T

    def reduce(self, query, key):
        return scores.Reduced(query, key + self.by.array, scores.Product(1.0))


@pytest.mark.parametrize("implementation", ["blockwise", "reference"])
def test_every_kind(implementation):
    def of(slope, scale, by):
        terms = {"score": Shifted(by), "mods": Tilt(slope), "mask": Even() & masks.causal(), "gates": Half()}
        return jnp.sum(jattn.attention(Q, K, V, normalizer=Relu(2, scale), implementation=implementation, **terms) ** 2)

    def plain(slope, scale, by):
        i, j = jnp.arange(8)[:, None], jnp.arange(8)[None]
        score = jnp.einsum("bthd,bshd->bhts", Q, K + by) - slope * (i - j)
        weight = jnp.where((j <= i) & ((i + j) % 2 == 0), scale * jnp.maximum(score, 0) ** 2, 0) / 2
        return jnp.sum(jnp.einsum("bhts,bshd->bthd", weight, V) ** 2)

    arguments = jnp.float32(0.3), jnp.float32(0.7), jnp.arange(4.0) / 8
    got, wanted = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*arguments) for f in (of, plain))
    jax.tree.map(lambda x, y: assert_close(x, y, 2e-5), got, wanted)


def test_a_new_one_of_the_same_values_does_not_compile_again():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def use(normalizer):
        return jattn.attention(Q, K, V, normalizer=normalizer)

    use(Relu(3, jnp.float32(1)))
    use(Relu(3, jnp.float32(2)))


class Heads(gates.Gate):
    """weight * table[h]: it asks which head the tile is of."""

    def __init__(self, table, head=None):
        self.table, self.head = table, head

    def bound(self, b, h):
        return Heads(self.table, h)

    def __call__(self, weight, i, j):
        return weight * jnp.asarray(self.table)[self.head]


CENTER = operand(np.tile(np.arange(8.0, dtype=np.float32), (2, 1)), "bt")
LINEAR = {
    "operands": lambda x: Kernel(x, CENTER),
    "nested": lambda x: Both(gates.dropout(0.25, 1), Kernel(x, CENTER)),
    "nested in it": lambda x: Both(Half(), gates.function(lambda weight, i, j: weight * x)),
    "of the head": lambda x: Heads((1.0, 2.0)),
    "what is not hashable": lambda x: Heads([1.0, 2.0]),
}


def gated(make, **options):
    return lambda x: jattn.attention(Q, K, V, gates=make(x), **options)


@pytest.mark.parametrize("name", [x for x in LINEAR if x != "what is not hashable"])
def test_a_linear_gate_is_run_by_every_backend(name):
    backends = [gated(LINEAR[name], implementation=x) for x in ("reference", "blockwise")]
    totals = [jax.jit(jax.value_and_grad(lambda x, fn=fn: jnp.sum(fn(x) ** 2))) for fn in backends]
    wanted, got = (total(jnp.float32(0.1)) for total in totals)
    jax.tree.map(lambda x, y: assert_close(x, y, 2e-5), got, wanted)


def test_attributes_need_not_be_hashable():
    lists, tuples = (gated(LINEAR[x])(1.0) for x in ("what is not hashable", "of the head"))
    np.testing.assert_array_equal(lists, tuples)
