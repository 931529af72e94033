"""What is checked on a GPU: small calls whose sizes no tile divides, of every kind that the kernels have a way for.

The first are the plainest: a run that is cut off has asked what matters most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jax import Array


@dataclass(frozen=True)
class Check:
    """One call.

    Attributes:
        name: in the table and for `--filter`.
        options: from the arrays by name, the keyword arguments of `jattn.attention`; arrays of floating-point numbers
            get gradients.
        arrays: draws them; b, t, s, h are those of the sizes.
        stored: the dtype of keys and values of 8 bits, which then have scales; without, they have the queries'.
        lse: whether lse is returned, and has a cotangent.
        tiny: whether a simulator can do it in seconds.
        cotangent: how large that of out is: tolerances are for gradients of order 1, and these sum over hundreds of
            rows.
    """

    name: str
    options: Callable[[dict[str, Any]], dict[str, Any]]
    arrays: Callable[[np.random.Generator, Check], dict[str, Any]] = lambda rng, x: {}
    b: int = 2
    t: int = 333
    s: int = 333
    h: int = 4
    g: int = 2
    d: int = 128
    e: int = 128
    dtype: str = "bfloat16"
    stored: str = ""
    lse: bool = False
    tiny: bool = False
    cotangent: float = 0.5

    @property
    def sizes(self) -> str:
        shape = f"b{self.b} t{self.t} s{self.s} h{self.h} g{self.g} d{self.d} e{self.e} {self.dtype}"
        return f"{shape} {self.stored}".rstrip()


def _pieces() -> Any:
    """The library's modules, imported only where a case is run."""
    import jattn

    return jattn


def _causal(arrays: dict[str, Any]) -> dict[str, Any]:
    return {"mask": _pieces().masks.causal()}


def _documents(rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
    """Ids 0, 0, .., 1, 1, .. of documents that are a hundred tokens long on average."""
    return np.cumsum(rng.random((rows, length)) < 0.01, axis=1, dtype=np.int32)


def _numbers(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def _user(s: Array, i: Array, j: Array, scale: Array, decay: Array) -> Array:
    import jax.numpy as jnp

    return jnp.where(i - j < 100, jnp.tanh(s) * scale, s * jnp.exp(-jnp.abs(decay)))


def _awkward(s: Array, i: Array, j: Array, scale: Array) -> Array:
    """Functions that kernels have to be given other words for."""
    import jax.numpy as jnp

    return s + scale * jnp.log1p(jnp.abs(s)) + 0.1 * jnp.floor((i - j) / 7) * jnp.expm1(-jnp.abs(scale))


def _sines(s: Array, i: Array, j: Array, scale: Array) -> Array:
    """Of large angles, and logarithms of what is nearly 1."""
    import jax.numpy as jnp

    return s * jnp.cos(100.0 * (i - j)) + scale * jnp.log(1 + 1e-4 * jnp.sin(s) ** 2) * 1e4


def _modular(s: Array, i: Array, j: Array, table: Array) -> Array:
    import jax.numpy as jnp

    return jnp.where((i + j) % 7 == 3, s * table, s)


def _segments(rng: np.random.Generator, x: Check) -> dict[str, np.ndarray]:
    return {"ids": _documents(rng, x.b, x.t)}


def _slopes(rng: np.random.Generator, x: Check) -> dict[str, np.ndarray]:
    return {"slopes": np.abs(_numbers(rng, x.h, scale=0.1))}


def _everything(x: dict[str, Any]) -> dict[str, Any]:
    jattn = _pieces()
    mask = jattn.masks.causal() & jattn.masks.segments(x["ids"])
    mods = jattn.mods.alibi(x["slopes"]), jattn.mods.softcap(x["cap"])
    return {"mask": mask, "mods": mods, "dropout": jattn.gates.dropout(0.1, x["seed"]), "sinks": x["sinks"]}


def _everything_arrays(rng: np.random.Generator, x: Check) -> dict[str, Any]:
    more = {"cap": np.float32(20), "seed": np.uint32(7), "sinks": _numbers(rng, x.h)}
    return {**_segments(rng, x), **_slopes(rng, x), **more}


def _alibi(x: dict[str, Any]) -> dict[str, Any]:
    return {**_causal(x), "mods": (_pieces().mods.alibi(x["slopes"]),)}


def _softcap(x: dict[str, Any]) -> dict[str, Any]:
    return {**_causal(x), "mods": (_pieces().mods.softcap(x["cap"]),)}


def _segmented(x: dict[str, Any]) -> dict[str, Any]:
    masks = _pieces().masks
    return {"mask": masks.causal() & masks.segments(x["ids"])}


def _bias(x: dict[str, Any]) -> dict[str, Any]:
    return {"bias": x["bias"]}


def _bias_of(*axes: str) -> Callable[[np.random.Generator, Check], dict[str, np.ndarray]]:
    """A bias with these axes, the others of length 1."""
    return lambda rng, x: {"bias": _numbers(rng, *(getattr(x, axis) if axis in axes else 1 for axis in "bhts"))}


_AXES = ("b", "h", "t", "s", "bh", "bt", "bs", "ht", "hs", "ts", "bht", "bhs", "bts", "hts", "bhts")


def _biases(x: dict[str, Any]) -> dict[str, Any]:
    return {"mods": tuple(_pieces().mods.bias(0.3 * x[axes], axes) for axes in _AXES)}


def _biases_arrays(rng: np.random.Generator, x: Check) -> dict[str, Any]:
    return {axes: _numbers(rng, *(getattr(x, a) for a in axes)) for axes in _AXES}


def _gumbel(x: dict[str, Any]) -> dict[str, Any]:
    import jax

    return {**_causal(x), "normalizer": _pieces().normalizers.gumbel(jax.random.key(x["seed"]), 0.7)}


def _dropout(x: dict[str, Any]) -> dict[str, Any]:
    return {**_causal(x), "dropout": _pieces().gates.dropout(0.3, x["seed"])}


def _seed(rng: np.random.Generator, x: Check) -> dict[str, Any]:
    return {"seed": np.uint32(11)}


def _with_function(fn: Callable[..., Any], **axes: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def options(x: dict[str, Any]) -> dict[str, Any]:
        jattn = _pieces()
        operands = [jattn.operand(x[name], letters) for name, letters in axes.items()]
        return {**_causal(x), "mods": (jattn.mods.function(fn, *operands),)}

    return options


def _without_rows(x: dict[str, Any]) -> dict[str, Any]:
    masks = _pieces().masks
    return {"mask": masks.lengths(x["keys"], x["queries"]) & masks.causal(-5)}


def _lengths(rng: np.random.Generator, x: Check) -> dict[str, np.ndarray]:
    draw = lambda most: rng.integers(0, most + 1, x.b).astype(np.int32)
    return {"keys": draw(x.s), "queries": draw(x.t)}


def _pages(many: int) -> Callable[[np.random.Generator, Check], dict[str, Any]]:
    """A table of so many pages of each example, in no order: keys and values are b pages of s rows, which all share."""

    def draw(rng: np.random.Generator, x: Check) -> dict[str, np.ndarray]:
        table = rng.integers(0, x.b, (x.b, many)).astype(np.int32)
        return {"table": table, "keys": rng.integers(0, many * x.s + 1, x.b).astype(np.int32)}

    return draw


def _in_pages(x: dict[str, Any]) -> dict[str, Any]:
    return {"mask": _pieces().masks.lengths(x["keys"]), "pages": x["table"]}


def _stored(kind: str) -> Callable[[np.random.Generator, Check], dict[str, Any]]:
    """Scales of keys and values, and lengths; or a table of pages."""

    def draw(rng: np.random.Generator, x: Check) -> dict[str, Any]:
        more = _pages(70)(rng, x) if kind == "pages" else _lengths(rng, x)
        return {**more, **{name: np.abs(_numbers(rng, x.b, x.s, x.g, scale=0.02)) for name in _SCALES}}

    return draw


_SCALES = ("of_keys", "of_values")


def _narrow(x: dict[str, Any]) -> dict[str, Any]:
    pages = {"pages": x["table"]} if "table" in x else {}
    return {"mask": _pieces().masks.lengths(x["keys"]), "scales": tuple(x[name] for name in _SCALES), **pages}


CHECKS = [
    Check("plain", lambda x: {}, t=256, s=256, tiny=True),
    Check("causal", _causal, t=256, s=256, lse=True, tiny=True),
    Check("causal-awkward", _causal, t=333, s=333, lse=True),
    Check("plain-awkward", lambda x: {}, t=131, s=517),
    Check("alibi", _alibi, _slopes, tiny=True),
    Check("softcap-learned", _softcap, lambda rng, x: {"cap": np.float32(5)}),
    Check("segments", _segmented, _segments, tiny=True),
    Check("everything", _everything, _everything_arrays, lse=True),
    Check("window", lambda x: {"mask": _pieces().masks.window(100, 30)}, t=700, s=700),
    Check("dropout", _dropout, _seed),
    Check("bias", _bias, _bias_of("h", "t", "s"), t=256, s=256),
    Check("causal-d64", _causal, d=64, e=64, lse=True),
    Check("causal-d256", _causal, d=256, e=256, lse=True),
    Check("causal-float16", _causal, dtype="float16", lse=True),
    Check("grouped-heads", _causal, h=8, g=1),
    Check("own-heads", _causal, h=3, g=3, t=200, s=200),
    Check("unequal-widths", _causal, d=192, e=128),
    Check("narrow-values", lambda x: {}, d=128, e=64),
    Check("d16", _causal, d=16, e=16),
    Check("d80", _causal, d=80, e=80),
    Check("cross", lambda x: {}, t=77, s=1025, lse=True),
    Check("few-queries", lambda x: {"mask": _pieces().masks.causal(1020)}, t=5, s=1025),
    Check("decoding", lambda x: {"mask": _pieces().masks.lengths(x["keys"])}, _lengths, t=1, s=2049, h=8, lse=True),
    Check("pages-of-16", _in_pages, _pages(70), b=16, t=1, s=16, h=8, lse=True),
    Check("pages-of-256", _in_pages, _pages(5), b=4, t=2, s=256, h=8, lse=True),
    Check("8-bits-int8", _narrow, _stored("rows"), t=1, s=2049, h=8, stored="int8", lse=True),
    Check("8-bits-float8", _narrow, _stored("rows"), t=3, s=777, h=8, d=64, e=128, stored="float8_e4m3fn", lse=True),
    Check("8-bits-pages", _narrow, _stored("pages"), b=16, t=1, s=16, h=8, stored="int8", lse=True),
    Check("one-key", lambda x: {}, t=65, s=1, lse=True),
    Check("empty-rows", _without_rows, _lengths, lse=True),
    Check("causal-empty-rows", lambda x: {"mask": _pieces().masks.causal(-70)}, lse=True),
    Check("sinks", lambda x: {**_causal(x), "sinks": x["sinks"]}, lambda rng, x: {"sinks": _numbers(rng, x.h)}),
    Check("segments-scattered", lambda x: {"mask": _pieces().masks.segments(x["ids"])},
          lambda rng, x: {"ids": rng.integers(0, 3, (x.b, x.t)).astype(np.int32)}),
    Check("prefix", lambda x: {"mask": _pieces().masks.prefix(x["n"]) | _pieces().masks.causal()},
          lambda rng, x: {"n": np.array([37, 200], np.int32)}),
    Check("dilated", lambda x: {"mask": _pieces().masks.dilated(3)}),
    Check("blocks", lambda x: {"mask": _pieces().masks.blocks(np.random.default_rng(5).random((6, 6)) < 0.5, 64)}),
    Check("dense-mask", lambda x: {"mask": x["seen"]}, lambda rng, x: {"seen": rng.random((x.b, 1, x.t, x.s)) < 0.7}),
    Check("bias-keys", _bias, _bias_of("b", "s")),
    Check("bias-rows", _bias, _bias_of("h", "t")),
    # Without the axis of keys what a bias gets cancels, and rounding is left: that of one without t over all rows.
    Check("bias-every-axes", _biases, _biases_arrays, cotangent=0.2),
    Check("gumbel", _gumbel, _seed, lse=True),
    Check("sines", _with_function(_sines, scale="h"), lambda rng, x: {"scale": _numbers(rng, x.h)}),
    Check("relative", lambda x: {"mods": (_pieces().mods.relative(x["table"]),)},
          lambda rng, x: {"table": _numbers(rng, x.h, 32)}),
    Check("user-function", _with_function(_user, scale="h", decay="bt"),
          lambda rng, x: {"scale": _numbers(rng, x.h), "decay": _numbers(rng, x.b, x.t)}),
    Check("rewritten-functions", _with_function(_awkward, scale="h"), lambda rng, x: {"scale": _numbers(rng, x.h)}),
    Check("positions", _with_function(_modular, table="s"), lambda rng, x: {"table": _numbers(rng, x.s, scale=0.5)}),
    Check("dropout-segments", lambda x: {**_segmented(x), "dropout": _pieces().gates.dropout(0.1, x["seed"])},
          lambda rng, x: {**_segments(rng, x), **_seed(rng, x)}),
    Check("cosine", lambda x: {"score": _pieces().scores.cosine(8.0), **_causal(x)}),
    Check("float32", _causal, dtype="float32"),
    Check("large-scores", _with_function(lambda s, i, j, shift: s + shift, shift="h"),
          lambda rng, x: {"shift": 300 * _numbers(rng, x.h)}, lse=True),
    Check("two-thousand", _causal, b=1, h=2, g=1, t=2048, s=2048),
]  # fmt: skip
