"""The tables of tile sizes: what they hold, and which entry a case goes by."""

import pytest
from jattn_kernels import tables
from jattn_kernels.chips import CHIPS
from jattn_kernels.tpu.sizes import Sizes

SIZES = {"tpu": Sizes}


@pytest.mark.parametrize("family", tables.ELSEWHERE)
def test_every_entry_is_one_that_kernels_take(family):
    entries = tables.read(family)
    assert {CHIPS[entry.chip].platform for entry in entries} == {family}
    for entry in entries:
        SIZES[family](**entry.sizes)
        assert entry.mask in tables.MASKS
        assert entry.direction in tables.PASSES
        assert min(entry.milliseconds, entry.pairs) > 0
    assert len({entry.name for entry in entries}) == len(entries)


def test_a_case_goes_by_its_own_entry_else_the_nearest():
    own = tables.find("tpu", "v5p", 128, 2048, "causal", "forward")
    assert str(own) == "tuned for v5p, forward, causal, d 128, t 2048"
    assert tables.find("tpu", "v5p", 128, 1900, "causal", "forward") == own
    other = tables.find("tpu", "v5p", 80, 1000, "causal", "backward")
    assert str(other).startswith("nearest of the table: v5p, backward, causal, d 128, t 2048")
    assert tables.find("tpu", None, 128, 2048, "full", "forward").entry.chip == tables.ELSEWHERE["tpu"]
