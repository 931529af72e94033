"""What is predicted."""

from bench.scale._cases import cases

T = 2**20


def test_cases_that_make_sense():
    found = cases(["v5e", "h100"], [T], ["full", "causal"], ["fwd"])
    assert not [one for one in found if one.mask == "full" and one.way.order == "zigzag"]
    assert not [one for one in found if one.chip == "h100" and one.way.kernels == "splash"]
    assert len({one.name for one in found}) == len(found)
