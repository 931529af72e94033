"""One primitive on arrays of one shape, in operations that Mosaic has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jattn_kernels.gpu.lowering import rewrites

_NATIVE = {
    "add", "sub", "mul", "div", "max", "min", "neg", "abs", "exp", "exp2", "tanh", "sqrt", "rsqrt",
    "and", "or", "xor", "shift_left", "shift_right_logical", "shift_right_arithmetic", "eq", "ne", "lt", "le",
    "gt", "ge",
}  # fmt: skip
ON_BITS = {
    "log", "log2", "sin", "cos", "tan", "log1p", "expm1", "pow", "erfc", "erf_inv", "cbrt", "sinh", "atan", "atan2",
    "asin", "acos", "asinh", "acosh", "atanh", "nextafter", "round", "rem", "reduce_precision", "bitcast_convert_type",
}  # fmt: skip
"""What looks at a number's bits, or rounds it."""
FOLDED: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum, "min": np.minimum, "neg": np.negative,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
    "select_n": lambda which, *cases: cases[int(which)],
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
}  # fmt: skip
"""What is computed while tracing if all operands are known then: counters of loops and indices."""


def convert(x: Any, dtype: np.dtype) -> Any:
    """A number in another dtype: a boolean says whether it is 0, since Mosaic has no other way to one."""
    if x.dtype == dtype:
        return x
    if dtype == np.bool_:
        return x != jnp.zeros_like(x)
    return lax.convert_element_type(x, dtype)


def _select(which: Any, *cases: Any) -> Any:
    """Mosaic chooses between two arrays, and by a boolean."""
    if len(cases) == 2:
        return lax.select_n(convert(which, np.dtype(np.bool_)), *cases)
    value = cases[-1]
    for n in reversed(range(len(cases) - 1)):
        value = lax.select_n(which <= n, value, cases[n])
    return value


def _not(x: Any) -> Any:
    return x ^ jnp.full_like(
        x, True if x.dtype == np.bool_ else -1 if jnp.issubdtype(x.dtype, jnp.signedinteger) else np.iinfo(x.dtype).max
    )


def _round(x: Any, rounding_method: lax.RoundingMethod) -> Any:
    away = rounding_method == lax.RoundingMethod.AWAY_FROM_ZERO
    return rewrites.round_away(x) if away else lax.round(x, rounding_method)


def _rem(x: Any, y: Any) -> Any:
    return rewrites.remainder(x, y) if jnp.issubdtype(x.dtype, jnp.floating) else lax.rem(x, y)


_PLAIN: dict[str, Callable[..., Any]] = {
    "not": lambda x: _not(x),
    "add_any": lambda x, y: x + y,
    "square": lambda x: x * x,
    "one_minus_square": lambda x: (1 + x) * (1 - x),
    "sign": rewrites.sign,
    "rem": _rem,
    "round": _round,
    "clamp": lambda low, x, high: jnp.minimum(jnp.maximum(x, low), high),
    "integer_pow": rewrites.integer_power,
    "select_n": _select,
    "population_count": rewrites.population_count,
    "clz": rewrites.leading_zeros,
    "reduce_precision": rewrites.reduce_precision,
    "convert_element_type": lambda x, new_dtype, **_: convert(x, np.dtype(new_dtype)),
    "bitcast_convert_type": lambda x, new_dtype: lax.bitcast_convert_type(x, new_dtype),
    **rewrites.REWRITES,
}
ELEMENTWISE = {*_NATIVE, *_PLAIN}
_ANY_DTYPE = {"convert_element_type", "bitcast_convert_type", "select_n", "eq", "ne", "lt", "le", "gt", "ge"}
_LAX = {"and": lax.bitwise_and, "or": lax.bitwise_or, "xor": lax.bitwise_xor}


def compute(name: str, params: dict[str, Any], *xs: Any) -> Any:
    """A primitive of arrays of one shape, with numbers of 16 bits computed in float32 as XLA does."""
    if name in _PLAIN:
        accepted = {k: v for k, v in params.items() if k != "accuracy"}
        fn = functools.partial(_PLAIN[name], **accepted)
    else:
        fn = _LAX.get(name) or getattr(lax, name)
    narrow = xs[0].dtype
    if name in _ANY_DTYPE or not jnp.issubdtype(narrow, jnp.floating) or narrow == np.float32:
        return fn(*xs)
    wide = (x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in xs)
    result = fn(*wide)
    return result.astype(narrow) if jnp.issubdtype(result.dtype, jnp.floating) else result
