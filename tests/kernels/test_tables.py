"""The tables of tile sizes: what they hold, and which entry a case goes by."""

import json
import pathlib

import pytest
from jattn_kernels import tables
from jattn_kernels.chips import CHIPS
from jattn_kernels.gpu import sizes as gpu
from jattn_kernels.tpu.sizes import TileSizes

SIZES = {"tpu": TileSizes, "gpu": gpu.TileSizes}


@pytest.mark.parametrize("family", SIZES)
def test_every_entry_is_one_that_kernels_take(family):
    entries = tables.read(family)
    assert {CHIPS[entry.chip].platform for entry in entries} <= {family}
    for entry in entries:
        SIZES[family](**entry.sizes)
        assert entry.mask in tables.MASKS
        assert entry.direction in tables.PASSES
        assert min(entry.milliseconds, entry.pairs) > 0
    assert len({entry.name for entry in entries}) == len(entries)


def test_a_case_goes_by_its_own_entry_else_the_nearest():
    own = tables.find("v5p", 128, 2048, "causal", "forward")
    assert str(own) == "tuned for v5p, forward, causal, d 128, t 2048"
    assert tables.find("v5p", 128, 1900, "causal", "forward") == own
    other = tables.find("v5p", 80, 1000, "causal", "backward")
    assert str(other).startswith("nearest of the table: v5p, backward, causal, d 128, t 2048")
    assert tables.find(None, 128, 2048, "full", "forward").entry.chip == tables.ELSEWHERE


def test_a_pass_without_entries_has_none_to_go_by():
    with pytest.raises(LookupError, match=r"tpu.json has no queries entries of v5p or v5e"):
        tables.find("v5p", 128, 2048, "full", "queries")


RUN = {
    "chip": "h100", "backend": "cudnn", "dtype": "bfloat16", "passes": ["forward"],
    "device": "NVIDIA H100 80GB HBM3", "date": "2026-12-31", "run": "bench/results/h100.json",
}  # fmt: skip


def test_a_file_is_a_list_of_entries_or_says_what_is_confirmed_too():
    entry = tables.read("tpu")[0]._asdict()
    assert tables.parse(json.dumps([entry])) == tables.FamilyTable(tables.read("tpu")[:1])
    got = tables.parse(json.dumps({"entries": [entry], "confirmed": [RUN]}))
    assert got.entries == tables.read("tpu")[:1]
    assert got.confirmed[0]._asdict() == {**RUN, "passes": ("forward",)}
    assert str(got.confirmed[0]) == "NVIDIA H100 80GB HBM3, 2026-12-31, bench/results/h100.json"
    with pytest.raises(TypeError, match="gpu"):
        tables.parse(json.dumps({"entries": [], "confirmed": [{**RUN, "gpu": 1}]}))


def test_what_is_confirmed_was_run_and_the_record_is_kept():
    root = pathlib.Path(__file__).parents[2]
    for run in tables.confirmed("gpu"):
        assert CHIPS[run.chip].is_kind(run.device)
        assert CHIPS[run.chip].platform == "gpu"
        assert run.backend in ("pallas_gpu", "cudnn")
        assert run.passes and set(run.passes) <= {*tables.PASSES, tables.PAGES, tables.NARROW}
        assert (root / run.run).is_file(), f"{run.run} is not there"
