"""How far a result may be from the reference in float64: one table, keyed by dtype.

|got - wanted| <= tolerance * (1 + |wanted|), for inputs and cotangents of order 1.  Values come out rounded to the dtype, so
theirs is about a unit in the last place; gradients are made from outputs already rounded.
"""

from typing import NamedTuple

import numpy as np


class Tolerance(NamedTuple):
    value: float
    gradient: float


TOLERANCES = {
    "float64": Tolerance(2e-14, 2e-13),
    "float32": Tolerance(2e-6, 8e-6),
    "float16": Tolerance(0.75 * 2.0**-10, 2 * 2.0**-10),
    "bfloat16": Tolerance(0.75 * 2.0**-7, 2 * 2.0**-7),
}


def assert_close(got, wanted, tolerance: float, what: str = "") -> None:
    """Raises unless every number is close; infinities must be the same, NaN never passes."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert got.shape == wanted.shape, f"{what}: shape {got.shape}, wanted {wanted.shape}"
    assert not np.isnan(wanted).any(), f"{what}: the reference is NaN"
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance, equal_nan=False, err_msg=what)
