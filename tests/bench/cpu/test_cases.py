"""What the CPU benchmark times: cases, masks, flops, inputs."""

import itertools

import numpy as np
import pytest

from bench import _passes
from bench.cpu import _cases
from bench.cpu._cases import Case
from tests.bench.cpu.recorded import SMALL


def test_cases_cover_what_is_promised():
    got = _cases.cases()
    promised = itertools.product(_cases.MASKS, _cases.LENGTHS, _cases.WIDTHS, _passes.DIRECTIONS)
    assert sorted((case.mask, case.t, case.d, case.direction) for case in got) == sorted(promised)
    assert _cases.LENGTHS == (256, 512, 1024, 2048, 4096, 8192, 16384)
    assert (_cases.WIDTHS, _cases.WINDOW) == ((64, 128), 512)
    assert set(_cases.MASKS) == {"causal", "full", "window", "segments"}
    assert {case.b * case.t * case.h for case in got} == {16384}
    assert len({case.name for case in got}) == len(got)
    assert set(_cases.QUICK) < {case.name for case in got}


def test_named_cases_are_the_shapes_that_are_promised():
    got = {case.group: case for case in _cases.named_cases(("fwd",))}
    shape = lambda case: (case.t, case.keys, case.b, case.h, case.key_heads)
    assert shape(got["decode"]) == (1, 8192, 8, 32, 8)
    assert shape(got["small"]) == (64, 64, 64, 8, 8)
    assert shape(got["pooling"]) == (1, 40, 512, 8, 8)
    assert shape(got["cross"]) == (16, 4096, 4, 8, 8)
    assert (got["window-32k"].t, got["window-32k"].window) == (32768, 128)
    assert (got["additive"].t, got["additive"].score) == (1024, "additive")
    assert {x.normalizer for x in got.values()} == set(_cases.NORMALIZERS)
    assert set(_cases.SMALL) < set(got)
    names = [case.name for case in [*_cases.cases(), *_cases.named_cases()]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_flops_agree_with_brute_force(case):
    ids = _cases.inputs(case).ids
    mask = np.broadcast_to(_cases.dense_mask(case, ids), (case.b, case.h, case.t, case.t))
    factor = 3.5 if case.backward else 1.0
    assert _cases.useful_flops(case, ids) == 4 * case.d * int(mask.sum()) * factor
    assert _cases.attended_pairs(case, ids) * case.h == mask.sum()


def test_window_counts_short_sequences():
    case = Case("window", 100, 8, "fwd", b=1, h=1)
    assert _cases.attended_pairs(case, np.zeros((1, 100), np.int32)) == 100 * 101 // 2


def test_documents_are_packed_in_order():
    ids = _cases.documents(3, 4096, np.random.default_rng(0))
    assert ids.shape == (3, 4096)
    assert set(np.unique(np.diff(ids, axis=1))) == {0, 1}
    assert ids.min(axis=1).tolist() == [0, 0, 0]
    assert ids.max(axis=1).tolist() == [7, 7, 7]


def test_inputs_repeat():
    case = Case("segments", 64, 8, "fwd", b=2, h=1)
    for once, again in zip(_cases.inputs(case), _cases.inputs(case), strict=True):
        np.testing.assert_array_equal(once, again)
