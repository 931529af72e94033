"""Keys and values with scales, of few bits or not: the same call as on what they mean."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jattn
from jattn import gates, masks, mods, normalizers, scores
from tests.tolerances import TOLERANCES, assert_close

random = np.random.default_rng(0)
B, T, S, H, G, D, E = 2, 3, 12, 4, 2, 8, 5
Q = jnp.asarray(random.standard_normal((B, T, H, D)), jnp.float32)
KEYS, VALUES = (random.integers(-7, 8, (B, S, G, n)).astype(np.float32) for n in (D, E))
SCALES: Any = tuple(jnp.asarray(random.uniform(0.1, 0.3, (B, S, G)), jnp.float32) for _ in range(2))
LENGTHS = masks.lengths(np.array([12, 5]))
CASES: dict[str, dict[str, Any]] = {
    "terms": {
        "mask": LENGTHS,
        "mods": mods.softcap(2.0),
        "bias": random.standard_normal((B, 1, T, S)),
        "gates": gates.dropout(0.3, 1),
        "sinks": np.ones(H, np.float32),
    },
    "general": {"score": scores.general(random.standard_normal((D, D)))},
    "cosine": {"score": scores.cosine(3.0)},
    "whole rows": {"normalizer": normalizers.sigmoid(-1.0)},
}


def stored(dtype):
    return [jnp.asarray(x).astype(dtype) for x in (KEYS, VALUES)]


def meant(scales):
    return [x * c[..., None] for x, c in zip((KEYS, VALUES), scales, strict=True)]


def differentiated(attend):
    """What it gives, and its gradients to queries and scales."""
    loss = lambda q, scales: (jnp.sum(jnp.sin(out := attend(q, scales))), out)
    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(Q, SCALES)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "int8") for name in CASES), *(("terms", x) for x in ("float8_e4m3fn", "float8_e5m2", "float32"))],
)
def test_scores_and_weights_take_up_the_scales(name, dtype):
    want = differentiated(lambda q, scales: jattn.attention(q, *meant(scales), **CASES[name]))
    for implementation in ("reference", "blockwise"):
        options = {**CASES[name], "implementation": implementation}
        got = differentiated(lambda q, c, options=options: jattn.attention(q, *stored(dtype), scales=c, **options))
        jax.tree.map(lambda x, y: assert_close(x, y, TOLERANCES["float32"].gradient), got, want)


def test_in_pages_and_mapped():
    table = np.array([[3, 0], [3, 2]])
    pool = lambda x: jnp.stack([x[0, :6], x[0, 6:], x[1, :6], x[1, 6:]])
    k, v, *scales = map(pool, (*stored("int8"), *SCALES))
    rows = lambda x: pool(jnp.asarray(x))[table].reshape(B, S, *x.shape[2:])
    want = jattn.attention(Q, *map(rows, meant(SCALES)), mask=LENGTHS)
    options = {"pages": table, "scales": tuple(scales), "mask": LENGTHS}
    assert_close(jattn.attention(Q, k, v, **options), want, TOLERANCES["float32"].gradient)
    plan = jattn.explain(Q, k, v, device="v5e", **options)
    assert plan.copied == B * S * G * (D + E + 2 * 4)
    assert plan.backend == "pallas_tpu" or "int8" in plan.others["pallas_tpu"]
    alone = lambda q, k, v, scales: jattn.attention(q, k, v, scales=scales)
    whole = jattn.attention(Q, *meant(SCALES))
    key, value = stored("int8")
    assert_close(jax.vmap(alone)(Q, key, value, SCALES), whole, TOLERANCES["float32"].gradient)


def test_weights_are_those_that_multiply_the_values_as_they_are_meant():
    got, want = jattn.weights(Q, *stored("int8"), scales=SCALES), jattn.weights(Q, *meant(SCALES))
    assert_close(got, want, TOLERANCES["float32"].gradient)
    drawn: Any = jattn.sample
    one, other = (
        drawn(jax.random.key(0), Q, *x, **y) for x, y in ((stored("int8"), {"scales": SCALES}), (meant(SCALES), {}))
    )
    jax.tree.map(lambda x, y: assert_close(x, y, TOLERANCES["float32"].gradient), one, other)


BAD = {
    "no scales": ({}, TypeError, ["key", "int8", "scales="]),
    "one": ({"scales": SCALES[:1]}, TypeError, ["a pair", "tuple"]),
    "shape": ({"scales": (SCALES[0], SCALES[1][:, 1:])}, ValueError, ["scales[1]", "[2, 12, 2]", "[2, 11, 2]"]),
    "integers": ({"scales": (SCALES[0], np.ones((B, S, G), int))}, TypeError, ["scales[1]", "int64"]),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    options, kind, words = BAD[name]
    with pytest.raises(kind) as raised:
        jattn.attention(Q, *stored("int8"), **options)
    assert all(word in str(raised.value) for word in words), raised.value


def test_heads_along_an_explicit_axis():
    """Of a mesh of one device: JAX asks all the same how a result is sharded."""
    mesh = jax.make_mesh((1,), ("heads",), axis_types=(AxisType.Explicit,))
    at = NamedSharding(mesh, PartitionSpec(None, None, "heads"))
    with jax.set_mesh(mesh):
        q, k, v, *scales = (jax.device_put(x, at) for x in (Q, *stored("int8"), *SCALES))
        got = jax.jit(lambda *x: jattn.attention(*x[:3], scales=x[3:]))(q, k, v, *scales)
    assert_close(got, jattn.attention(Q, *meant(SCALES)), TOLERANCES["float32"].gradient)


@pytest.mark.parametrize("implementation", ["blockwise", "reference", "pallas_tpu"])
def test_scales_of_keys_that_nobody_sees_reach_nothing(monkeypatch, implementation):
    monkeypatch.setenv("JATTN_INTERPRET", "1")
    real = np.arange(S) < np.array([12, 5])[:, None]
    scales = tuple(jnp.where(real[..., None], x, jnp.nan) for x in SCALES)
    options: dict[str, Any] = {"mask": LENGTHS, "implementation": implementation}
    got, want = (jattn.attention(Q, *stored("int8"), **options, **{"scales": x}) for x in (scales, SCALES))
    assert_close(got, want, TOLERANCES["float32"].gradient)
