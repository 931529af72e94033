"""The forward kernel behind the contract."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jattn._call.pages import flat, in_a_row
from jattn._terms import AnyArray
from jattn._terms.moved import moved
from jattn._terms.reach import seen_run
from jattn.backends.contract import Key, Query, Result, Shaped, Spec, Value
from jattn.backends.pallas.terms import of_32_bits
from jattn.backends.pallas_gpu.call import Call, cleaned, in_tiles, shows_all, without_unseen
from jattn.backends.pallas_gpu.decode import Fold, decode, fold_of, is_narrow, stored
from jattn.backends.pallas_gpu.kernels import kernels


def forward(spec: Spec, q: Query, k: Key, v: Value, operands: list[jax.Array]) -> Result:
    """Softmax attention; see `jattn.backends.contract.Fused.forward`."""
    with jax.enable_x64(False):
        narrow, width = [of_32_bits(x) for x in operands], v.shape[-1]
        q = in_tiles(spec, q)
        k, v = (x if is_narrow(stored(spec, x)) else in_tiles(spec, x) for x in (k, v))
        if fold := fold_of(spec, q, k, v, narrow):
            out, *of_rows = _decoded(spec, q, k, v, narrow, fold)
            return Result(out[..., :width], *of_rows)
        k, v = (in_tiles(spec, x) for x in (k, v))
        k, v = without_unseen(spec, narrow, q, k, v)
        call = Call(spec, k, v, narrow, q.shape[1], "forward")
        arrays, layouts = call.operands(narrow)
        out, lse, remainder = kernels(spec.target).forward(
            q, k, v, arrays, layouts, call.functions, call.lists, call.listed, call.sizes, interpret=call.interpret
        )
        return Result(out[..., :width], lse, remainder)


def takes_pages(spec: Spec, q: Shaped, k: Shaped, v: Shaped, table: Shaped, operands: Sequence[Shaped]) -> bool:
    """Where few queries see pools that need no copy, of pages that make up tiles or are made up of them; see
    `jattn.backends.contract.InPages.takes`."""
    fold, page = fold_of(spec, q, flat(k, table), flat(v, table), operands), k.shape[1]
    if fold is None or page % 8 or q.dtype != spec.dtype or any(stored(spec, x).dtype != x.dtype for x in (k, v)):
        return False
    if any(x.shape[-1] % 16 for x in (q, k, v)):
        return False
    return page % fold.sizes.columns == 0 or fold.sizes.columns % page == 0


def forward_in_pages(
    spec: Spec, q: jax.Array, k: jax.Array, v: jax.Array, table: jax.Array, operands: list[jax.Array]
) -> Result:
    """`forward` of pages that `takes_pages`; see `jattn.backends.contract.InPages.forward`."""
    with jax.enable_x64(False):
        narrow = [of_32_bits(x) for x in operands]
        fold = fold_of(spec, q, flat(k, table), flat(v, table), narrow)
        assert fold is not None
        return _decoded(spec, q, k, v, narrow, fold, table)


def _decoded(
    spec: Spec,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    operands: Sequence[AnyArray],
    fold: Fold,
    table: jax.Array | None = None,
) -> Result:
    """`decode`; what no query sees reaches nothing.

    A look at all keys and values beforehand would take as long as decoding does.  Where what is seen is a run of keys,
    the tiles at its ends alone have values that nobody sees.  Of other masks such a value has weight 0, so it shows as
    NaN in the output or not at all: then all is computed once more, of keys and values that are seen.
    """
    keys = k if table is None else flat(k, table)
    run = seen_run(moved(spec.terms(operands)), q.shape[1], keys.shape[1])
    result = decode(spec, q, k, v, operands, fold, table, run)
    if run or shows_all(spec, operands, q, keys):
        return result

    def again(k: jax.Array, v: jax.Array) -> Result:
        k, v = (x if table is None else in_a_row(x, table) for x in (k, v))
        return decode(spec, q, *cleaned(spec, operands, q, k, v), operands, fold)

    return jax.lax.cond(jnp.any(jnp.isnan(result.out)), again, lambda k, v: result, k, v)
