"""What is compiled and what is timed."""

from bench._passes import flops
from bench.gpu._cases import Case, static_cases, timed_cases
from bench.gpu._terms import names as asks


def test_the_most_important_come_first():
    cases = timed_cases()
    assert [case.name for case in cases[:2]] == ["causal-t16384-d128-fwd", "causal-t16384-d128-fwdbwd"]
    assert len({case.name for case in cases}) == len(cases)
    assert {case.d for case in cases} == {64, 128, 256}
    assert {case.t for case in cases} >= {1024, 2048, 4096, 8192, 16384, 32768}
    assert {case.ask for case in cases} >= {"plain", "causal", "window", "segments", "alibi", "bias", "dropout"}


def test_cases_have_names_of_their_own():
    names = [case.name for case in static_cases()]
    assert len(set(names)) == len(names) == 3 * 3 * (len(asks()) + 1)  # and decoding


def test_a_step_that_decodes_has_keys_and_key_heads_of_its_own():
    case = Case("decode", 8, 1, 32, 128, "fwd", s=8192, g=8)
    assert (case.query, case.key) == ((8, 1, 32, 128), (8, 8192, 8, 128))
    assert case.name == "decode-b8-s8192-d128-fwd"
    assert case.flops == flops(8 * 32, 128, 8192, backward=False)
