"""A backward pass in 32 bits: kernels have no 64, even where the code around them has."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec

import jax

from jattn._terms import AnyArray
from jattn.backends.contract import Gradients, Spec
from jattn.backends.pallas.terms import of_32_bits

P = ParamSpec("P")
Given = Callable[Concatenate[Spec, jax.Array, jax.Array, jax.Array, Sequence[AnyArray], P], Gradients]
BackwardPass = Callable[Concatenate[Spec, jax.Array, jax.Array, jax.Array, list[jax.Array], P], Gradients]


def in_32_bits(backward: Given[P]) -> BackwardPass[P]:
    """The backward pass, given operands of 32 bits; their gradients come back in the dtypes of the caller's."""

    @functools.wraps(backward)
    def wide(
        spec: Spec,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        operands: list[jax.Array],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Gradients:
        narrow = [of_32_bits(x) for x in operands]
        with jax.enable_x64(False):
            gradients = backward(spec, q, k, v, narrow, *args, **kwargs)
        own = [None if x is None else x.astype(y.dtype) for x, y in zip(gradients.operands, operands, strict=True)]
        return gradients._replace(operands=own)

    return wide
