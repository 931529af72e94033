"""Keys and values read from their pages by a backend that can: out and lse, and all else as of gathered ones.

Decoding takes no derivatives and no vmap, so that these may gather.  So do many devices: how the gathered arrays lie is
what the primitives of attention say, where a loop over pages would have each device fetch the others' heads.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive

from jattn._call.modes import ordinary
from jattn._call.pages import in_a_row
from jattn._derivatives import lowering, narrow
from jattn._derivatives.primitives import effects
from jattn.backends.contract import Spec


def attend(
    spec: Spec, q: jax.Array, k: jax.Array, v: jax.Array, table: jax.Array, operands: Sequence[Any]
) -> tuple[jax.Array, jax.Array]:
    """`narrow.attend` of pools k `[p, page, g, d]` and v `[p, page, g, e]`, and a table `[b, m]` of their pages."""
    return _attend(spec, q, k, v, table, *(jnp.asarray(x) for x in operands))


@ordinary
def _gathered(q: jax.Array, k: jax.Array, v: jax.Array, table: jax.Array, *operands: Any, spec: Spec) -> Any:
    return narrow.attend(spec, q, in_a_row(k, table), in_a_row(v, table), operands)


@ordinary
def _in_place(q: jax.Array, k: jax.Array, v: jax.Array, table: jax.Array, *operands: Any, spec: Spec) -> Any:
    assert spec.backend.in_pages is not None
    return list(spec.backend.in_pages.forward(spec, q, k, v, table, list(operands))[:2])


def _abstract(*args: ShapedArray, spec: Spec) -> Any:
    shapes = jax.eval_shape(functools.partial(_gathered, spec=spec), *args)
    return [ShapedArray(x.shape, x.dtype) for x in shapes], effects(_in_place, args, {"spec": spec})


attend_in_pages = Primitive("attend_in_pages")
attend_in_pages.multiple_results = True
attend_in_pages.def_impl(_in_place)
attend_in_pages.def_effectful_abstract_eval(_abstract)
lowering.register_alternatives(attend_in_pages, _in_place, _gathered)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(spec: Spec, *args: Any) -> Any:
    @jax.custom_batching.custom_vmap
    def run(*args: Any) -> Any:
        return tuple(attend_in_pages.bind(*args, spec=spec))

    @run.def_vmap
    def _(size: int, batched: Any, *args: Any) -> Any:
        del size
        mapped = jax.vmap(functools.partial(_gathered, spec=spec), tuple(0 if x else None for x in batched))
        return mapped(*args), (True, True)

    return run(*args)


@_attend.defjvp
def _attend_jvp(spec: Spec, primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
    return jax.jvp(functools.partial(_gathered, spec=spec), tuple(primals), tuple(tangents))
