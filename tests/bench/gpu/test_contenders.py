"""Whose kernels are compiled."""

import jax
import pytest

from bench.gpu._cases import Case, static_cases
from bench.gpu._contenders import BIAS, CONTENDERS, FORWARD, JATTN, KEYS, PEERS, QUERIES, jattn_program
from bench.gpu._terms import ASKS


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("jattn_forward", FORWARD),
        ("jattn_backward_keys", KEYS),
        ("jattn_backward_queries", QUERIES),
        ("jattn_backward_pairs", BIAS),
    ],
)
def test_names_of_our_kernels_say_what_they_compute(name, role):
    assert JATTN.may_be(name, 5) == [role]


def test_kernels_without_names_go_by_their_order():
    assert PEERS["mgpu"].may_be("anonymous", 0) == [FORWARD]
    assert PEERS["mgpu"].may_be("anonymous", 1) == [QUERIES, KEYS]
    assert PEERS["mgpu"].may_be("anonymous", 2) == [KEYS, QUERIES]
    assert PEERS["mgpu"].may_be("anonymous", 3) == [QUERIES, KEYS]


@pytest.mark.parametrize("ask", ASKS)
def test_programs_of_ours_have_their_arguments(ask):
    """q, k, v, the ask's arrays, and a cotangent; the program gives a gradient for every array of floats."""
    case = Case(ask, 1, 32, 2, 16, "fwdbwd", "h100")
    fn, shapes = jattn_program(case, "reference")
    out, *gradients = jax.eval_shape(fn, *shapes)
    assert out.shape == (1, 32, 2, 16)
    floats = [x for x in shapes[4:] if x.dtype.kind != "i" and x.dtype.kind != "u"]
    assert [x.shape for x in gradients] == [(1, 32, 2, 16)] * 3 + [x.shape for x in floats]
    fn, shapes = jattn_program(Case(ask, 1, 32, 2, 16, "fwd", "h100"), "reference")
    assert jax.eval_shape(fn, *shapes).shape == (1, 32, 2, 16)


def test_who_sits_out_says_why():
    cases = {case.name: case for case in static_cases()}
    skips = lambda whose, name: CONTENDERS[whose].skips(cases[name])
    assert skips("mgpu", "b200-plain-t4096-d128-fwdbwd") == "it is for Hopper"
    assert skips("mgpu", "h100-causal-t4096-d128-fwdbwd") == "it has no causal backward"
    assert skips("mgpu", "h100-alibi-t4096-d128-fwdbwd") != ""
    assert not skips("mgpu", "h100-plain-t4096-d64-fwdbwd")
    assert skips("tokamax", "a100-plain-t4096-d64-fwdbwd") == "its Mosaic kernels are for Hopper and Blackwell"
    assert skips("tokamax", "h100-user-t4096-d64-fwdbwd") == "it has no user"
    assert not any(JATTN.skips(case) for case in cases.values())
