"""A problem that has nearly everything, as a function of its arrays: what the derivatives are tried on."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np

import jattn
from jattn import gates, masks, mods, scores
from tests import oracle
from tests.evaluate import QUICK
from tests.tolerances import assert_close

DEFINITION = "definition"
B, T, S, H, G, D, E, N = 2, 5, 7, 4, 2, 3, 2, 3
SHAPES = {
    "q": (B, T, H, D), "k": (B, S, G, D), "v": (B, S, G, E), "w": (H, D, D), "bias": (H, T, S), "table": (H, 6), "cap": (),
    "sinks": (H,), "center": (B, T), "sigma": (),
}  # fmt: skip
LEVELS = {
    "q_ids": ((B, T), 3),
    "kv_ids": ((B, S), 3),
    "length": ((B,), S),
    "dense": ((B, 1, 1, S), 2),
    "seed": ((), 99),
}


def _shape(name, shape, levels):
    for over, axis in levels:
        if name in over:
            shape = (N, *shape) if axis == 0 else (*shape, N)
    return shape


def floats(seed, levels=()):
    """The differentiable arrays; `levels` are vmaps, the innermost first: (names of the arrays it is over, axis)."""
    random = np.random.default_rng(seed)
    got = {name: random.standard_normal(_shape(name, shape, levels)) for name, shape in SHAPES.items()}
    got["cap"], got["sigma"] = 2 + np.abs(got["cap"]), 3 + np.abs(got["sigma"])
    return {name: jnp.asarray(x.astype(np.float32), float) for name, x in got.items()}  # the same numbers in float32


def integers(seed, levels=()):
    random = np.random.default_rng(seed)
    got = {
        name: jnp.asarray(random.integers(0, top, _shape(name, shape, levels)), jnp.int32)
        for name, (shape, top) in LEVELS.items()
    }
    return {**got, "dense": got["dense"] == 1, "seed": got["seed"].astype(jnp.uint32)}


def attend(x, n, implementation):
    """out and lse of a problem that has nearly everything, by a backend or by its definition; some rows see nothing."""
    if implementation == DEFINITION:
        return _defined(x, n)
    q, k, v, w = (x[name] for name in "qkvw")
    if implementation == "pallas_gpu":
        (q, k, v), w = (_widened(y, 1).astype(jnp.bfloat16) for y in (q, k, v)), _widened(w, 2)
    out, lse = jattn.attention(
        q, k, v,
        score=scores.general(w, 0.5),
        mask=(masks.causal(1) & masks.segments(n["q_ids"], n["kv_ids"])) | (masks.prefix(n["length"]) & masks.dense(n["dense"])),
        mods=(mods.relative(x["table"]), mods.softcap(x["cap"])),
        gates=(gates.gaussian(x["center"], x["sigma"]), gates.dropout(0.2, n["seed"])),
        bias=x["bias"],
        sinks=x["sinks"],
        return_lse=True,
        implementation=implementation,
        blocks=(2, 3) if implementation == "blockwise" else None,
    )  # fmt: skip
    return out[..., : x["v"].shape[-1]], lse


def _widened(x, axes):
    """Zeros up to the 16 numbers that the least product of a GPU takes, along the last axes: no result changes."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - axes) + [(0, 16 - n) for n in x.shape[-axes:]])


def _defined(x, n):
    """The same in plain arrays `[b, h, t, s]`, with nothing of the library."""
    i, j = np.arange(T)[:, None], np.arange(S)
    k, v = (jnp.repeat(y, H // G, axis=2) for y in (x["k"], x["v"]))
    score = 0.5 * jnp.einsum("bthd,hdc,bshc->bhts", x["q"], x["w"], k) + x["bias"]
    bucket = np.vectorize(oracle.t5_bucket(True, SHAPES["table"][1]))(j - i)
    score = x["cap"] * jnp.tanh((score + x["table"][:, bucket]) / x["cap"])
    per_element = lambda y: y[:, None, None]
    documents = n["q_ids"][:, None, :, None] == per_element(n["kv_ids"])
    live = ((j <= i + 1) & documents) | ((j < per_element(n["length"])[..., None]) & n["dense"])
    score = jnp.where(live, score, -1e30)
    sink = jnp.broadcast_to(x["sinks"][:, None, None], (*score.shape[:-1], 1))
    lse = jax.nn.logsumexp(jnp.concatenate([score, sink], axis=-1), axis=-1, keepdims=True)
    weight = jnp.where(live, jnp.exp(score - lse), 0)
    weight *= jnp.exp(-((j - x["center"][:, None, :, None]) ** 2) / (2 * x["sigma"] ** 2))
    weight *= oracle.dropout(0.2, int(n["seed"]))(np.ones(()), oracle.At(*np.ogrid[:B, :H, :T, :S]))
    return jnp.einsum("bhts,bshe->bthe", weight, v), jnp.swapaxes(lse[..., 0], 1, 2)


def loss(x, n, implementation):
    out, lse = attend(x, n, implementation)
    u = jnp.cos(jnp.arange(out.size)).reshape(out.shape)
    return jnp.sum(out * u) + jnp.sum(jnp.sin(lse))


def run(make, implementation, *args):
    """make(implementation), a function of the args, in the widest type that the backend takes."""
    with jax.enable_x64(implementation not in ("pallas_tpu", "pallas_gpu")):
        return jax.jit(make(implementation), compiler_options=QUICK)(*jax.tree.map(np.asarray, args))


def assert_same(got, wanted, tolerance=1e-11):
    chex.assert_trees_all_equal_shapes(got, wanted)
    for (path, x), y in zip(jax.tree_util.tree_flatten_with_path(got)[0], jax.tree.leaves(wanted), strict=True):
        largest = max(1.0, float(np.abs(y).max()))
        assert_close(x / largest, y / largest, tolerance, jax.tree_util.keystr(path))
    assert any(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(wanted))


def only(x, names):
    return {name: x[name] for name in names}


def along(fn, x, dx):
    """The derivative of fn along dx, in forward mode."""
    return jax.jvp(fn, (x,), (dx,))[1]


def inner(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
