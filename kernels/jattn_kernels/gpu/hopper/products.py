"""Products that the backward kernels begin together."""

from __future__ import annotations

import jax

from jattn_kernels.gpu.machine import Warpgroup

_WIDE = 128  # heads wider than this leave no registers for a second product under way


def of_scores(
    machine: Warpgroup, product: tuple[jax.Ref, jax.Ref], of_values: tuple[jax.Ref, jax.Ref]
) -> tuple[jax.Array, jax.Array]:
    """The products of queries and keys, and of cotangents and values: what is made of the first need not wait for the
    second."""
    if product[0].shape[-1] > _WIDE:
        return machine.product(*product), machine.product(*of_values)
    first, second = machine.products([product, of_values])
    return first, second
