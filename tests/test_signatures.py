"""Signatures between modules are checked while tests run; those of users are not, whose errors are the library's own."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import jaxtyping
import pytest
from jattn_kernels.tpu.sizes import TileSizes

import jattn
from jattn._call import targets
from jattn._call.problem import reduce
from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import Spec
from tests.problems import problem


def test_a_wrong_type_is_refused():
    q, k, v, operands, signature = reduce(problem((jnp.ones((1, 4, 2, 3)),) * 3, {}))
    spec = Spec(BLOCKWISE, signature, q.dtype, None, None, targets.current())
    assert BLOCKWISE.forward(spec, q, k, v, operands).out.shape == q.shape
    wrongs: list[Any] = [(None, q, k, v, operands), (spec, "q", k, v, operands), (spec, q, k, v, q)]
    for wrong in wrongs:
        with pytest.raises(jaxtyping.TypeCheckError, match="forward"):
            BLOCKWISE.forward(*wrong)
    with pytest.raises(jaxtyping.TypeCheckError, match="'dtype'|'precision'|'target'"):
        dataclasses.replace(spec, target="tpu")


def test_a_wrong_shape_is_refused():
    q, k, v, operands, signature = reduce(problem((jnp.ones((1, 4, 2, 3)),) * 3, {}))
    spec = Spec(BLOCKWISE, signature, q.dtype, None, None, targets.current())
    axes, width, length, dtype = (q[0], k, v), (q, k[..., :2], v), (q, k, v[:, :3]), (q.astype(int), k, v)
    for wrong in (axes, width, length, dtype):
        with pytest.raises(jaxtyping.TypeCheckError, match="forward"):
            BLOCKWISE.forward(spec, *wrong, operands)


def test_kernels_are_checked_too():
    with pytest.raises(jaxtyping.TypeCheckError, match="'query'"):
        TileSizes("128", 128, 128, 128)  # pyright: ignore[reportArgumentType]  # wrong on purpose


def test_what_users_call_has_its_own_errors():
    with pytest.raises(TypeError, match="mask must be"):
        jattn.attention(*[jnp.ones((1, 4, 2, 3))] * 3, mask="causal")  # pyright: ignore[reportArgumentType]  # wrong on purpose
