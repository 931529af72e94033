"""Which steps of decoding there are, and what they read."""

from bench.decode._cases import KINDS, PAGES, Case, cases


def test_every_kind_has_cases_and_a_name_of_its_own():
    every = cases()
    assert {case.kind for case in every} == set(KINDS)
    assert {case.page for case in every if case.kind == "paged"} == set(PAGES)
    assert len({case.name for case in every}) == len(every)
    assert not cases(fills=(9000,))


def test_bytes_are_those_that_are_seen():
    assert Case("contiguous", 2, 100).bytes(2) == 2 * 2 * 100 * 8 * 128 * 2
    assert Case("int8", 2, 100).bytes(2) == 2 * 2 * 100 * 8 * (128 + 4)
    assert Case("window", 2, 8192).bytes(2) == Case("contiguous", 2, 1024).bytes(2)
