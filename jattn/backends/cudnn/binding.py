"""JAX's two calls of cuDNN, which it has for `jax.nn.dot_product_attention(implementation="cudnn")`.

That function rounds lse to the dtype of the query and takes its gradient to be 0; what it is made of does neither.
That is JAX's own and may change with it: `missing` says so, and it is looked for when a call first comes here.

Of its layers these are the ones below custom partitioning, which cannot be lowered inside another primitive.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_PARAMETERS = (
    "scale", "seed", "dropout_rate", "variadic_args", "mask_type", "layout", "sliding_window_length",
)  # fmt: skip


class CudnnOptions(NamedTuple):
    """What is static about a call."""

    scale: float
    causal: bool
    window: int | None
    """Keys that a query sees, its own the last of them; None for all up to its own."""
    padded: bool
    """Whether lengths are given."""


class RealLengths(NamedTuple):
    """How many queries and keys of each batch element are real, `[b]` int32."""

    query: jax.Array
    key: jax.Array


def _module() -> Any:
    from jax._src.cudnn import fused_attention_stablehlo

    return fused_attention_stablehlo


def missing() -> str | None:
    """Why this JAX's binding cannot be called, None if it can."""
    try:
        module = _module()
        passes = module._dot_product_attention_fwd_impl, module._dot_product_attention_bwd_impl
        known = hasattr(module.MaskType, "PADDING_CAUSAL") and hasattr(module.AttentionLayout, "BTNH")
    except (ImportError, AttributeError):
        return f"does not know the binding of jax {jax.__version__}"
    known = known and all(set(_PARAMETERS) <= set(inspect.signature(x).parameters) for x in passes)
    return None if known else f"does not know the binding of jax {jax.__version__}"


def _options(kind: CudnnOptions) -> dict[str, Any]:
    module = _module()
    name = "_".join(x for x, y in (("PADDING", kind.padded), ("CAUSAL", kind.causal)) if y) or "NO_MASK"
    options = {
        "scale": float(kind.scale), "seed": 42, "dropout_rate": 0.0, "variadic_args": (False, False),
        "mask_type": module.MaskType[name], "layout": module.AttentionLayout.BTNH.value,
        "sliding_window_length": kind.window,
    }  # fmt: skip
    if "score_mod" in inspect.signature(module._dot_product_attention_fwd_impl).parameters:  # since jax 0.12
        options |= {"score_mod": None, "score_mod_args": ()}
    return options


def _absent(lengths: RealLengths | None, dtype: jnp.dtype) -> list[jax.Array]:
    """The operands after the values, bias, lengths, offsets of packed sequences and tables of pages: empty for none."""
    none = jnp.zeros(0, dtype)
    return [none, *(lengths or (none, none)), none, none, none, none]


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, lengths: RealLengths | None, kind: CudnnOptions
) -> tuple[jax.Array, jax.Array]:
    """out `[b, t, h, e]` and lse `[b, h, t]` float32 of q `[b, t, h, d]`, k `[b, s, g, d]`, v `[b, s, g, e]`."""
    run = _module()._dot_product_attention_fwd_impl
    out, lse = run(q, k, v, *_absent(lengths, q.dtype), is_training=True, **_options(kind))
    return out, lse


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: RealLengths | None,
    out: jax.Array,
    lse: jax.Array,
    dout: jax.Array,
    kind: CudnnOptions,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v from those of out; lse as `forward` gives it."""
    run = _module()._dot_product_attention_bwd_impl
    dq, dk, dv = run(q, k, v, *_absent(lengths, q.dtype), lse, out, dout, **_options(kind))
    return dq, dk, dv
