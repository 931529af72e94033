"""Useful flops: those of the products of a dense attention, counted the same for everybody."""

from bench import _passes


def test_flops_are_those_of_the_products():
    t, h, d = 8, 3, 16
    product = 2 * h * t * t * d  # flops of one product of a [t, d] and a [d, t] matrix for each head
    assert _passes.flops(h, d, t * t, backward=False) == 2 * product
    assert _passes.flops(h, d, t * t, backward=True) == (2 + 5) * product
