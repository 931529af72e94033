"""The forward kernel behind the contract."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jattn_kernels.tpu.forward import forward as run

from jattn.backends.contract import Key, Query, Result, Shaped, Spec, Value
from jattn.backends.pallas.terms import of_32_bits
from jattn.backends.pallas_tpu.call import Call
from jattn.backends.pallas_tpu.decode import decode, fold_of
from jattn.backends.pallas_tpu.terms import heads_first


def forward(spec: Spec, q: Query, k: Key, v: Value, operands: list[jax.Array]) -> Result:
    """Softmax attention; see `jattn.backends.contract.Fused.forward`."""
    narrow = [of_32_bits(x) for x in operands]
    with jax.enable_x64(False):
        fold = fold_of(spec, q, k, v)
        if fold is not None:
            return decode(spec, q, k, v, narrow, fold)
        k, v = (x.astype(q.dtype) if x.dtype.itemsize == 1 else x for x in (k, v))
        call = Call(spec, q, k, v, narrow, "forward")
        out, *of_rows = run(
            call.terms.query(q), heads_first(k), heads_first(v),
            call.terms.arrays(narrow), call.layouts,
            call.terms.functions(), call.work, call.frame.sizes, dtype=spec.dtype, **call.options,
        )  # fmt: skip
        return Result(heads_first(out), *(jnp.swapaxes(x[:, :, 0], 1, 2) for x in of_rows))


def takes_pages(spec: Spec, q: Shaped, k: Shaped, v: Shaped, table: Shaped, operands: Sequence[Shaped]) -> bool:
    """Whether pages are read where they lie; see `jattn.backends.contract.InPages.takes`."""
    del operands
    return fold_of(spec, q, k, v, table) is not None


def forward_in_pages(
    spec: Spec, q: jax.Array, k: jax.Array, v: jax.Array, table: jax.Array, operands: list[jax.Array]
) -> Result:
    """`forward` of pages that `takes_pages`; see `jattn.backends.contract.InPages.forward`."""
    with jax.enable_x64(False):
        fold = fold_of(spec, q, k, v, table)
        assert fold is not None
        return decode(spec, q, k, v, [of_32_bits(x) for x in operands], fold, table)
