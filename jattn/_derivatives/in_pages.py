"""Keys and values read from their pages by a backend that can: out and lse, and all else as of gathered ones.

There is no primitive of it: decoding takes no derivatives and no vmap, so that these may gather.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jattn._call.modes import ordinary
from jattn._call.pages import in_a_row
from jattn._derivatives import narrow
from jattn.backends.contract import Spec


def attend(
    spec: Spec, q: jax.Array, k: jax.Array, v: jax.Array, table: jax.Array, operands: Sequence[Any]
) -> tuple[jax.Array, jax.Array]:
    """`narrow.attend` of pools k `[p, page, g, d]` and v `[p, page, g, e]`, and a table `[b, m]` of their pages."""
    return _attend(spec, q, k, v, table, [jnp.asarray(x) for x in operands])


def _gathered(spec: Spec, q: jax.Array, k: jax.Array, v: jax.Array, table: jax.Array, operands: Sequence[Any]) -> Any:
    return narrow.attend(spec, q, in_a_row(k, table), in_a_row(v, table), operands)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(spec: Spec, *args: Any) -> Any:
    @jax.custom_batching.custom_vmap
    def run(*args: Any) -> Any:
        assert spec.backend.in_pages is not None
        out, lse, _ = ordinary(spec.backend.in_pages.forward)(spec, *args)
        return out, lse

    @run.def_vmap
    def _(size: int, batched: Any, *args: Any) -> Any:
        del size
        mapped = jax.vmap(functools.partial(_gathered, spec), jax.tree.map(lambda x: 0 if x else None, tuple(batched)))
        return mapped(*args), (True, True)

    return run(*args)


@_attend.defjvp
def _attend_jvp(spec: Spec, primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
    return jax.jvp(functools.partial(_gathered, spec), tuple(primals), tuple(tangents))
