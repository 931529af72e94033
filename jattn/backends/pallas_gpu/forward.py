"""The forward kernel behind the contract."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jattn._terms import AnyArray
from jattn.backends.contract import Key, Query, Result, Spec, Value
from jattn.backends.pallas.terms import of_32_bits
from jattn.backends.pallas_gpu.call import Call, cleaned, in_tiles, shows_all, without_unseen
from jattn.backends.pallas_gpu.decode import Fold, decode, fold_of
from jattn.backends.pallas_gpu.kernels import kernels


def forward(spec: Spec, q: Query, k: Key, v: Value, operands: list[jax.Array]) -> Result:
    """Softmax attention; see `jattn.backends.contract.Fused.forward`."""
    with jax.enable_x64(False):
        narrow, width = [of_32_bits(x) for x in operands], v.shape[-1]
        q, k, v = (in_tiles(spec, x) for x in (q, k, v))
        if fold := fold_of(spec, q, k, v, narrow):
            out, *of_rows = _decoded(spec, q, k, v, narrow, fold)
            return Result(out[..., :width], *of_rows)
        k, v = without_unseen(spec, narrow, q, k, v)
        call = Call(spec, k, v, narrow, q.shape[1], "forward")
        arrays, layouts = call.operands(narrow)
        out, lse, remainder = kernels(spec.target).forward(
            q, k, v, arrays, layouts, call.functions, call.lists, call.listed, call.sizes, interpret=call.interpret
        )
        return Result(out[..., :width], lse, remainder)


def _decoded(spec: Spec, q: jax.Array, k: jax.Array, v: jax.Array, operands: Sequence[AnyArray], fold: Fold) -> Result:
    """`decode`; what no query sees reaches nothing.

    A look at all keys and values beforehand would take as long as decoding does.  A value that nobody sees has weight
    0, so it shows as NaN in the output or not at all: then all is computed once more, of keys and values that are seen.
    """
    attend = lambda k, v: decode(spec, q, k, v, operands, fold)
    result = attend(k, v)
    if shows_all(spec, operands, q, k):
        return result
    again = lambda k, v: attend(*cleaned(spec, operands, q, k, v))
    return jax.lax.cond(jnp.any(jnp.isnan(result.out)), again, lambda k, v: result, k, v)
