"""The one table of cases: what attention can be asked for.  Every backend is tried on every row.

A row makes the options of `jattn.attention` from a `Draw`, at any sizes and dtype; `SIZES` holds the rows that also fix sizes.
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jattn import gates, masks, mods, normalizers, operand, scores


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a case: no tile divides them, and no two of t, s, d, e are equal."""

    b: int = 2
    t: int = 13
    s: int = 17
    h: int = 4
    g: int = 2
    d: int = 5
    e: int = 3
    key_width: int = 0  # 0: d
    batch_axis: bool = True


class Draw:
    """Draws arrays of a case: axes by letter, `3 * x.normal("bt", 4)` is `[b, t, 4]`."""

    def __init__(self, sizes: Sizes, dtype: Any, seed: int):
        self.sizes, self.dtype, self.random = sizes, dtype, np.random.default_rng(seed)

    def __getattr__(self, axis: str) -> int:
        return getattr(self.sizes, axis)

    def shape(self, axes: str, *more: int) -> tuple[int, ...]:
        return (*(getattr(self.sizes, a) for a in axes), *more)

    def normal(self, axes: str, *more: int, scale: float = 1.0, shift: float = 0.0) -> jax.Array:
        return jnp.asarray(shift + scale * self.random.standard_normal(self.shape(axes, *more)), self.dtype)

    def number(self, value: float) -> jax.Array:
        return jnp.asarray(value, self.dtype)

    def integers(self, axes: str, low: int, high: int) -> jax.Array:
        return jnp.asarray(self.random.integers(low, high, self.shape(axes)), jnp.int32)

    def flags(self, *shape: int, odds: float = 0.6) -> np.ndarray:
        return self.random.random(shape) < odds

    def documents(self, axes: str, mean: int = 4) -> jax.Array:
        """Ids that come in runs."""
        starts = self.random.random(self.shape(axes)) < 1 / mean
        return jnp.asarray(np.cumsum(starts, axis=-1), jnp.int32)

    def inputs(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        b = "b" if self.batch_axis else ""
        width = self.key_width or self.d
        return self.normal(b + "thd"), self.normal(b + "sg", width), self.normal(b + "sge")


Options = dict[str, Any]
AXES = ["".join(x) for n in range(5) for x in itertools.combinations("bhts", n)]  # every subset


def _nested(x: Draw):
    ids = masks.segments(x.documents("bt"), x.documents("bs"))
    return (masks.causal(x.s - x.t) & ~(ids & masks.dilated(2))) | (
        masks.window(2, 3) & masks.prefix(x.integers("b", 0, x.s))
    )


def _without_rows(x: Draw):
    """The first and the last query see nothing, nor does anything of batch element 0 past its length."""
    middle = masks.function(lambda i, j, last: (i > 0) & (i < last), operand(jnp.asarray(x.t - 1)))
    return middle & masks.lengths(x.integers("b", 1, x.s + 1), x.integers("b", 0, x.t + 1))


def stick_breaking(scores):
    left = jax.nn.log_sigmoid(-scores)
    return jnp.exp(jax.nn.log_sigmoid(scores) + jax.lax.cumsum(left, scores.ndim - 1, reverse=True) - left)


def _relu(x: Draw) -> normalizers.Normalizer:
    """max(score + shift, 0) to a learned power, over a number of each query."""
    shift, power = x.normal("hs"), x.number(1.5)
    relu = lambda s, n, shift: jnp.maximum(s + shift, 0) ** power / n
    count = operand(2 + jnp.abs(x.normal("bt")), "bt")
    return normalizers.function(relu, count, operand(shift, "hs"), elementwise=True)


def _additive(x: Draw, *axes: str, m: int = 6) -> Options:
    w_q, w_k, v = axes
    return {"score": scores.additive(x.normal(w_q + "d", m), x.normal(w_k + "d", m), x.normal(v, m))}


def _everything(x: Draw) -> Options:
    return {
        "score": scores.general(x.normal("hdd", scale=0.3), x.number(0.8)),
        "mask": _nested(x) & _without_rows(x),
        "mods": (
            mods.softcap(x.number(3.0)),
            mods.alibi(x.normal("h", scale=0.1)),
            mods.relative(x.normal("h", 8)),
            mods.function(
                lambda s, i, j, m, c: s * m + jnp.cos(c * (i - j)),
                operand(x.normal("bh"), "bh"),
                operand(x.normal("s"), "s"),
            ),
        ),
        "gates": (gates.gaussian(x.normal("bt", scale=4.0, shift=x.s / 2), x.number(5.0)),),
        "bias": x.normal("hts"),
        "sinks": x.normal("h"),
        "dropout": gates.dropout(0.2, jnp.uint32(7)),
    }


CASES: dict[str, Callable[[Draw], Options]] = {
    "plain": lambda x: {},
    # scores
    "dot-scale": lambda x: {"score": scores.dot(0.7)},
    "dot-learned-scale": lambda x: {"score": scores.dot(x.number(0.7))},
    "general": lambda x: {"score": scores.general(x.normal("dd"), 0.5)},
    "general-heads": lambda x: {"score": scores.general(x.normal("hdd"), x.number(0.5))},
    "cosine": lambda x: {"score": scores.cosine(3.0)},
    "cosine-learned-scale": lambda x: {"score": scores.cosine(x.number(3.0))},
    "concat": lambda x: {"score": scores.concat(x.normal("d"), x.normal("d"))},
    "concat-heads": lambda x: {"score": scores.concat(x.normal("d"), x.normal("hd")), "mask": masks.causal()},
    "additive": lambda x: _additive(x, "", "", ""),
    "additive-heads-query": lambda x: {**_additive(x, "h", "", "h"), "mask": masks.causal()},
    "additive-heads-key": lambda x: {**_additive(x, "", "h", ""), "mods": (mods.softcap(2.0),)},
    # masks
    "causal": lambda x: {"mask": masks.causal()},
    "causal-offset": lambda x: {"mask": masks.causal(x.s - x.t)},
    "causal-traced-offset": lambda x: {"mask": masks.causal(jnp.asarray(x.s // 2))},
    "causal-empty-rows": lambda x: {"mask": masks.causal(-3)},
    "window": lambda x: {"mask": masks.window(3, 2)},
    "window-open": lambda x: {"mask": masks.window(None, 2) & masks.window(3, None)},
    "window-beside": lambda x: {"mask": masks.window(5, -2)},
    "around": lambda x: {"mask": masks.around(x.normal("bt", scale=3, shift=x.s / 2), 3, 2)},
    "around-heads": lambda x: {"mask": masks.around(x.normal("bht", scale=3, shift=x.s / 2), 1, None)},
    "segments": lambda x: {"mask": masks.segments(x.documents("t"), x.documents("s"))},
    "segments-batch": lambda x: {"mask": masks.segments(x.documents("bt"), x.documents("bs")) & masks.causal()},
    "segments-scattered": lambda x: {"mask": masks.segments(x.integers("bt", 0, 3), x.integers("s", 0, 2))},
    "prefix": lambda x: {"mask": masks.prefix(x.s // 2)},
    "prefix-batch": lambda x: {"mask": masks.prefix(x.integers("b", 0, x.s + 1)) | masks.causal()},
    "prefix-nothing": lambda x: {"mask": masks.prefix(0)},
    "lengths": lambda x: {"mask": masks.lengths(x.integers("b", 0, x.s + 1), x.integers("b", 0, x.t + 1))},
    "dilated": lambda x: {"mask": masks.dilated(3)},
    "not-dilated": lambda x: {"mask": ~masks.dilated(3)},
    "blocks": lambda x: {"mask": masks.blocks(x.flags(-(-x.t // 4), -(-x.s // 4)), 4)},
    "blocks-heads": lambda x: {"mask": masks.blocks(x.flags(x.h, -(-x.t // 3), -(-x.s // 3)), 3)},
    "dense": lambda x: {"mask": x.flags(x.b, x.h, x.t, x.s)},
    "dense-keys": lambda x: {"mask": masks.dense(x.flags(x.b, 1, 1, x.s))},
    "dense-queries": lambda x: {"mask": jnp.asarray(x.flags(x.h, x.t, 1))},
    "function": lambda x: {"mask": masks.function(lambda i, j: (i * i + j) % 5 != 0)},
    "function-operands": lambda x: {
        "mask": masks.function(
            lambda i, j, reach, hole: (abs(i - j) < reach) & (j != hole),
            operand(x.integers("h", 1, 9), "h"),
            operand(x.integers("bt", 0, x.s), "bt"),
        )
    },
    "nested": lambda x: {"mask": _nested(x)},
    "empty-rows": lambda x: {"mask": _without_rows(x)},
    # mods
    "bias": lambda x: {"bias": x.normal("hts")},
    "bias-keys": lambda x: {"bias": x.normal("b", 1, 1, x.s)},
    "bias-every-axes": lambda x: {"mods": tuple(mods.bias(x.normal(a, scale=0.3), a) for a in AXES)},
    "softcap": lambda x: {"mods": mods.softcap(1.5)},
    "softcap-learned": lambda x: {"mods": (mods.softcap(x.number(1.5)),), "mask": masks.causal()},
    "alibi": lambda x: {"mods": (mods.alibi(x.normal("h", scale=0.3)),)},
    "order": lambda x: {
        "bias": x.normal("hts"),
        "mods": (mods.softcap(1.0), mods.alibi(x.normal("h")), mods.softcap(2.0)),
    },
    "relative": lambda x: {"mods": (mods.relative(x.normal("h", 8)),)},
    "relative-bucket": lambda x: {
        "mods": (mods.relative(x.normal("h", 7), lambda r: jnp.clip(r, -3, 3) + 3),),
        "mask": masks.window(4, 4),
    },
    "mod-function": lambda x: {
        "mods": (
            mods.function(
                lambda s, i, j, a, b, c: s * jax.nn.softplus(a) + jnp.sin(b * i) * c,
                operand(x.normal("bh"), "bh"),
                operand(x.normal("t"), "t"),
                operand(x.normal("hs"), "hs"),
            ),
        )
    },
    "indices": lambda x: {
        "mask": masks.function(lambda b, h, i, j: (i + j + h) % 3 != 0) & masks.function(lambda b, h, i, j: j != b),
        "mods": mods.function(lambda s, b, h, i, j, m: s * m - 0.1 * h * abs(i - j) + b, operand(x.normal("h"), "h")),
        "gates": gates.function(lambda w, b, h, i, j: w * (1 + b + 2 * h)),
    },
    # gates
    "dropout": lambda x: {"dropout": gates.dropout(0.3, 5)},
    "dropout-traced-seed": lambda x: {"dropout": gates.dropout(0.5, jnp.uint32(5)), "mask": masks.causal()},
    "gaussian": lambda x: {"gates": (gates.gaussian(x.normal("bt", scale=3, shift=x.s / 2), 3.0),)},
    "gaussian-heads": lambda x: {"gates": (gates.gaussian(x.normal("bht", scale=3, shift=x.s / 2), x.number(3.0)),)},
    "gate-function": lambda x: {
        "gates": (gates.function(lambda w, i, j, a: w * jnp.tanh(a), operand(x.normal("hs"), "hs")),),
        "mask": masks.causal(),
    },
    "gates": lambda x: {
        "gates": (gates.dropout(0.4, 1), gates.gaussian(x.normal("bt"), 5.0)),
        "dropout": gates.dropout(0.2, 2),
    },
    # sinks
    "sinks": lambda x: {"sinks": x.normal("h")},
    "sinks-empty-rows": lambda x: {"sinks": x.normal("h"), "mask": _without_rows(x), "dropout": gates.dropout(0.2, 2)},
    "sinks-of-nothing": lambda x: {"sinks": x.normal("h").at[0].set(-jnp.inf), "mask": masks.causal(-2)},
    # normalisers
    "sigmoid": lambda x: {"normalizer": normalizers.sigmoid(-1.0), "mask": _without_rows(x)},
    "sigmoid-learned-bias": lambda x: {
        "normalizer": normalizers.sigmoid(x.number(-1.0)),
        "dropout": gates.dropout(0.2, 2),
    },
    "sparsemax": lambda x: {"normalizer": normalizers.sparsemax()},
    "sparsemax-empty-rows": lambda x: {"normalizer": normalizers.sparsemax(), "mask": _without_rows(x)},
    "entmax15": lambda x: {"normalizer": normalizers.entmax15(), "mods": (mods.relative(x.normal("h", 8)),)},
    "entmax15-empty-rows": lambda x: {"normalizer": normalizers.entmax15(), "mask": _without_rows(x)},
    "hard": lambda x: {"normalizer": normalizers.hard(), "mask": _without_rows(x)},
    "hard-straight-through": lambda x: {"normalizer": normalizers.hard(True), "mask": _without_rows(x)},
    "gumbel": lambda x: {"normalizer": normalizers.gumbel(jax.random.key(1), 0.7), "mask": masks.causal()},
    "gumbel-hard": lambda x: {"normalizer": normalizers.gumbel(jax.random.key(1), x.number(0.7), hard=True)},
    "relu": lambda x: {"normalizer": _relu(x), "mask": _without_rows(x), "dropout": gates.dropout(0.2, 2)},
    "stick-breaking": lambda x: {
        "normalizer": normalizers.function(stick_breaking),
        "mask": masks.causal(x.s - x.t - 1),
    },
    # positions
    "positions": lambda x: {
        "mask": masks.window(9) & ~masks.blocks(x.flags(x.t // 3 + 4, x.s // 3 + 4, odds=0.3), 3),
        "mods": (mods.relative(x.normal("h", 8)),),
        "positions": {"t": 7, "s": 2},
    },
    "positions-traced": lambda x: {
        "mask": masks.causal(4) & masks.blocks(x.flags(9, x.t // 3 + 4, x.s // 3 + 4), 3)
        | masks.segments(x.documents("t"), x.documents("s")),
        "mods": (mods.alibi(x.normal("h", scale=0.3)), mods.relative(x.normal("h", 8))),
        "dropout": gates.dropout(0.2, 2),
        "positions": {"t": x.integers("b", 0, 9), "s": jnp.asarray(3), "h": jnp.asarray(4), "b": jnp.asarray(5)},
    },
    # and
    "precision": lambda x: {"precision": "highest", "bias": x.normal("t", 1)},
    "everything": _everything,
    "one-query": lambda x: {"mask": masks.causal(x.s - 1)},
    "one-key": lambda x: {"bias": x.normal("hts")},
    "one-of-all": lambda x: {"mods": (mods.relative(x.normal("h", 4)),), "dropout": gates.dropout(0.1, 0)},
    "one-key-head": lambda x: {"mask": masks.causal(), "sinks": x.normal("h")},
    "no-groups": lambda x: {"mask": masks.causal()},
    "no-batch-axis": lambda x: {"mask": masks.segments(x.documents("t"), x.documents("s")), "bias": x.normal("hts")},
    "rectangular-general": lambda x: {"score": scores.general(x.normal("hd", x.key_width))},
    "rectangular-additive": lambda x: {
        "score": scores.additive(x.normal("d", 4), x.normal("", x.key_width, 4), x.normal("", 4)),
    },
}
SIZES = {
    "one-query": Sizes(t=1),
    "one-key": Sizes(s=1),
    "one-of-all": Sizes(1, 1, 1, 1, 1, 1, 1),
    "one-key-head": Sizes(g=1),
    "no-groups": Sizes(h=3, g=3, d=2, e=7),
    "no-batch-axis": Sizes(b=1, batch_axis=False),
    "rectangular-general": Sizes(key_width=7),
    "rectangular-additive": Sizes(key_width=2),
}


def make(name: str, dtype: Any, sizes: Sizes | None = None) -> tuple[tuple[jax.Array, ...], Options]:
    """The arrays and the options of a case, the same at every call."""
    x = Draw(sizes or SIZES.get(name, Sizes()), dtype, zlib.crc32(name.encode()))
    return x.inputs(), CASES[name](x)
