"""What programs allocate, by what XLA says of them."""

import jax.numpy as jnp

from bench.cpu import _memory
from bench.cpu._cases import Case


def test_an_array_between_two_products_is_counted():
    case = Case("full", 64, 8, "fwd", b=1, h=2)

    def attend(q, k, v, ids):
        return jnp.einsum("bhts,bshd->bthd", jnp.sort(jnp.einsum("bthd,bshd->bhts", q, k)), v)

    scores = 4 * case.h * case.t**2
    assert scores <= _memory.temporary_bytes(case, attend) < 4 * scores


def test_the_table_is_of_long_lengths_and_eight_heads():
    default = [(case.b, case.t, case.h, case.d) for case in _memory.memory_cases(None, None, None, ("fwd",))]
    assert default == [(1, t, 8, 64) for t in (2048, 4096, 8192, 16384)]
    (case,) = _memory.memory_cases([64], [16], ["window"], ["fwdbwd"])
    assert (case.mask, case.t, case.d, case.direction) == ("window", 64, 16, "fwdbwd")
