"""The forward kernel behind the contract."""

from __future__ import annotations

import jax

from jattn.backends.contract import Key, Query, Result, Spec, Value
from jattn.backends.pallas.terms import of_32_bits
from jattn.backends.pallas_gpu.call import Call, in_tiles, without_unseen
from jattn.backends.pallas_gpu.decode import decode, fold_of
from jattn.backends.pallas_gpu.kernels import kernels


def forward(spec: Spec, q: Query, k: Key, v: Value, operands: list[jax.Array]) -> Result:
    """Softmax attention; see `jattn.backends.contract.Fused.forward`."""
    with jax.enable_x64(False):
        narrow, width = [of_32_bits(x) for x in operands], v.shape[-1]
        k, v = without_unseen(spec, narrow, q, k, v)
        q, k, v = (in_tiles(spec, x) for x in (q, k, v))
        if fold := fold_of(spec, q, k, v, narrow):
            out, *of_rows = decode(spec, q, k, v, narrow, fold)
            return Result(out[..., :width], *of_rows)
        call = Call(spec, k, v, narrow, q.shape[1], "forward")
        arrays, layouts = call.operands(narrow)
        out, lse, remainder = kernels(spec.target).forward(
            q, k, v, arrays, layouts, call.functions, call.lists, call.listed, call.sizes, interpret=call.interpret
        )
        return Result(out[..., :width], lse, remainder)
