"""A backward pass in 32 bits, whatever the code around it has."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from jattn._call.problem import reduce
from jattn._call.targets import Target
from jattn.backends.blockwise import BLOCKWISE
from jattn.backends.contract import Gradients, Spec
from jattn.backends.pallas.backward import in_32_bits
from tests.problems import problem

Q = jnp.ones((1, 2, 1, 3), jnp.float32)
SPEC = Spec(BLOCKWISE, reduce(problem((Q, Q, Q), {})).signature, Q.dtype, None, None, Target("tpu"))


@pytest.mark.usefixtures("x64")
def test_operands_go_in_narrow_and_their_gradients_come_out_in_their_own_dtype():
    seen = []

    def backward(spec, q, k, v, operands, factor, *, scale):
        seen.append(([x.dtype.name for x in operands], jnp.arange(2).dtype.name))
        return Gradients(
            q, k, v, [None if jnp.issubdtype(x.dtype, jnp.integer) else factor * scale * x for x in operands]
        )

    given = [jnp.ones(3, x) for x in ("float64", "int64", "bfloat16", "uint64", "float32")]
    got = in_32_bits(backward)(SPEC, Q, Q, Q, given, 2, scale=3)
    assert seen == [(["float32", "int32", "bfloat16", "uint32", "float32"], "int32")]
    assert [None if x is None else x.dtype.name for x in got.operands] == ["float64", None, "bfloat16", None, "float32"]
    assert got.operands[0] is not None and got.operands[0].tolist() == [6] * 3
    assert in_32_bits(backward).__name__ == "backward"


def test_a_backward_pass_that_forgets_an_operand_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        in_32_bits(lambda spec, q, k, v, operands: Gradients(q, k, v, []))(SPEC, Q, Q, Q, [Q])
