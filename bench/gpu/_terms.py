"""What is asked of attention in every stage, by name: masks, mods and gates, and the arrays that they need.

Axis letters are those of the library: b batch, t query length (here also the key length), h heads, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jax import Array

WINDOW = 1024  # keys that a query of the window mask attends to: itself and the 1023 before it
DOCUMENT = 2048  # tokens of each packed document
BUCKETS = 32  # by which relative biases tell distances apart
RATE = 0.1  # the share of weights that dropout drops
CAP = 30.0  # where the soft cap bounds scores

Shape = tuple[int, ...]
Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class Ask:
    """One attention.

    Attributes:
        options: from the arrays by name, and the width of the window as `window`, the keyword arguments of
            `jattn.attention`.
        arrays: from b, t, h the shape and dtype of each array.
        mask: what is visited: `full`, `causal`, `window` or `segments` (causal as well).
    """

    options: Callable[[Arrays], dict[str, Any]]
    arrays: Callable[[int, int, int], dict[str, tuple[Shape, str]]] = lambda b, t, h: {}
    mask: str = "causal"


def _causal(arrays: Arrays) -> dict[str, Any]:
    from jattn import masks

    return {"mask": masks.causal()}


def _window(arrays: Arrays) -> dict[str, Any]:
    from jattn import masks

    return {"mask": masks.causal() & masks.window(left=arrays["window"] - 1)}


def _segments(arrays: Arrays) -> dict[str, Any]:
    from jattn import masks

    return {"mask": masks.causal() & masks.segments(arrays["ids"])}


def _alibi(arrays: Arrays) -> dict[str, Any]:
    from jattn import mods

    return {**_causal(arrays), "mods": (mods.alibi(arrays["slopes"]),)}


def _softcap(arrays: Arrays) -> dict[str, Any]:
    from jattn import mods

    return {**_causal(arrays), "mods": (mods.softcap(CAP),)}


def _all(arrays: Arrays) -> dict[str, Any]:
    from jattn import mods

    return {**_segments(arrays), "mods": (mods.alibi(arrays["slopes"]), mods.softcap(CAP))}


def _bias(arrays: Arrays) -> dict[str, Any]:
    return {**_causal(arrays), "bias": arrays["bias"]}


def _user(arrays: Arrays) -> dict[str, Any]:
    """A function that nobody has a kernel for: it looks at positions, at the score and at two learned arrays."""
    import jax.numpy as jnp

    from jattn import mods, operand

    def mod(s: Array, i: Array, j: Array, scale: Array, decay: Array) -> Array:
        return jnp.where(i - j < 100, jnp.tanh(s) * scale, s * jnp.exp(-jnp.abs(decay)))

    learned = operand(arrays["scale"], "h"), operand(arrays["decay"], "bt")
    return {**_causal(arrays), "mods": (mods.function(mod, *learned),)}


def _dropout(arrays: Arrays) -> dict[str, Any]:
    from jattn import gates

    return {**_causal(arrays), "dropout": gates.dropout(RATE, arrays["seed"])}


def _relative(arrays: Arrays) -> dict[str, Any]:
    from jattn import mods

    return {**_causal(arrays), "mods": (mods.relative(arrays["table"]),)}


def _decode(arrays: Arrays) -> dict[str, Any]:
    from jattn import masks

    return {"mask": masks.lengths(arrays["lengths"])}


_SLOPES = lambda b, t, h: {"slopes": ((h,), "float32")}
_IDS = lambda b, t, h: {"ids": ((b, t), "int32")}
ASKS = {
    "plain": Ask(lambda arrays: {}, mask="full"),
    "causal": Ask(_causal),
    "window": Ask(_window, mask="window"),
    "alibi": Ask(_alibi, _SLOPES),
    "softcap": Ask(_softcap),
    "segments": Ask(_segments, _IDS, mask="segments"),
    "all": Ask(_all, lambda b, t, h: {**_SLOPES(b, t, h), **_IDS(b, t, h)}, mask="segments"),
    "bias": Ask(_bias, lambda b, t, h: {"bias": ((h, t, t), "bfloat16")}),
    "user": Ask(_user, lambda b, t, h: {"scale": ((h,), "float32"), "decay": ((b, t), "float32")}),
    "dropout": Ask(_dropout, lambda b, t, h: {"seed": ((), "uint32")}),
    "relative": Ask(_relative, lambda b, t, h: {"table": ((h, BUCKETS), "float32")}),
    "decode": Ask(_decode, lambda b, t, h: {"lengths": ((b,), "int32")}, mask="full"),
}
"""By name: `all` is segments, ALiBi and a soft cap; what is not `plain` or `decode` is causal as well.  `decode`: few
queries, keys as far as lengths say that are known when the call runs."""


def values(ask: Ask, b: int, t: int, h: int, rng: np.random.Generator, document: int) -> dict[str, np.ndarray]:
    """Arrays for an ask: documents of that many tokens, lengths of t keys, a seed, small numbers.  bfloat16 is left
    to the caller."""
    arrays = {}
    for name, (shape, dtype) in ask.arrays(b, t, h).items():
        match dtype:
            case "int32" if name == "lengths":
                arrays[name] = np.full(shape, t, np.int32)
            case "int32":
                arrays[name] = np.broadcast_to(np.arange(t, dtype=np.int32) // document, shape)
            case "uint32":
                arrays[name] = np.full(shape, 7, np.uint32)
            case _:
                arrays[name] = (0.1 * rng.standard_normal(shape, np.float32)).astype(np.float32)
    return arrays


def tiles(mask: str, t: int, rows: int, columns: int, window: int, document: int) -> tuple[int, int]:
    """How many tiles of one head are full and how many partial; the others are empty, and never visited."""
    first_row, first_column = np.arange(0, t, rows)[:, None], np.arange(0, t, columns)[None]
    last_row, last_column = np.minimum(first_row + rows, t) - 1, np.minimum(first_column + columns, t) - 1
    full, empty = (
        np.ones((len(first_row), first_column.size), bool),
        np.zeros((len(first_row), first_column.size), bool),
    )
    if mask != "full":
        full, empty = full & (last_column <= first_row), empty | (first_column > last_row)
    if mask == "window":
        full &= first_column > last_row - window
        empty |= last_column <= first_row - window
    if mask == "segments":
        full &= first_column // document == last_row // document
        empty |= last_column // document < first_row // document
    return int((full & ~empty).sum()), int((~full & ~empty).sum())


def attended_pairs(mask: str, t: int, window: int, document: int) -> int:
    """How many pairs of a query and a key the mask lets through for one head."""
    triangle = lambda n: n * (n + 1) // 2
    w, (documents, rest) = min(t, window), divmod(t, document)
    return {
        "full": t * t,
        "causal": triangle(t),
        "window": t * w - w * (w - 1) // 2,
        "segments": documents * triangle(document) + triangle(rest),
    }[mask]


def names() -> Sequence[str]:
    """The names in `ASKS` but for decoding, whose queries are fewer than its keys."""
    return tuple(name for name in ASKS if name != "decode")
