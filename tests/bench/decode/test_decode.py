"""Steps of decoding: which there are, what their rows say, and a run with an answer made up and one of this machine."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from bench.__main__ import main
from bench.decode import _cpu, _programs, _report, _tpu, command
from bench.decode._cases import KINDS, Case, cases
from bench.decode._rows import Row

SMALL = {"n": 64, "h": 4, "g": 2, "d": 8}
COUNTS = {"cycles": 1_500_000, "startup": 0, "dma_stall": 0, "matrix_stall": 0, "dma_bytes": 0, "products": 1}


def test_every_kind_has_cases_and_a_name_of_its_own():
    every = cases()
    assert {case.kind for case in every} == set(KINDS)
    assert len({case.name for case in every}) == len(every)
    assert not cases(fills=(9000,))


def test_bytes_are_those_that_are_seen():
    assert Case("contiguous", 2, 100).bytes(2) == 2 * 2 * 100 * 8 * 128 * 2
    assert Case("int8", 2, 100).bytes(2) == 2 * 2 * 100 * 8 * (128 + 4)
    assert Case("window", 2, 8192).bytes(2) == Case("contiguous", 2, 1024).bytes(2)


@pytest.mark.parametrize("kind", KINDS)
def test_contenders_compute_the_same(kind):
    case = Case(kind, 2, 37, page=16 if kind == "paged" else None, **SMALL)
    given = _cpu.arrays(case)
    steps = {"jattn": _programs.jattn_step(case, "blockwise"), "jax": _programs.jax_step(case)}
    outs = {name: step(*given) for name, step in steps.items()}
    wanted = _programs.plain_step(case)(*given)
    for out in outs.values():
        np.testing.assert_allclose(out, wanted, rtol=2e-5, atol=2e-5)
    assert jnp.isfinite(wanted).all()


def test_an_estimate_is_kernels_and_what_is_around_them():
    case = Case("paged", 8, 8192, page=64)
    answers = {
        "jattn": {"kernels": {"a": COUNTS, "b": COUNTS}, "between_bytes": 819_000_000},
        "ragged": {"error": "MosaicError: no"},
    }
    count = lambda walked, name, setting: answers.get(setting["contender"], answers["jattn"])
    rows = {row.contender: row for row in _tpu.estimate(case, "v5e", count)}
    assert rows["jattn"].milliseconds == pytest.approx(2 * 1.0 + 1.0)
    assert rows["jattn"].tokens == pytest.approx(8e3 / 3)
    assert rows["jattn"].ratio == pytest.approx(3 / (1e3 * case.bytes(2) / 819e9))
    assert rows["ragged"].milliseconds is None and "no" in rows["ragged"].error


def test_the_summary_names_the_worst():
    case = Case("contiguous", 8, 8192)
    met, missed = (Row(case, chip, "jattn", x, 1.0) for chip, x in (("v5e", 1.1), ("v6e", 1.3)))
    mine, peer = Row(case, "cpu", "jattn", 2.0, 1.0), Row(case, "cpu", "jnp", 1.5, 1.0)
    text = _report.summary([met, missed, mine, peer])
    assert "1 of 2 targets met; worst: v6e contiguous-b8-fill8192, 1.30" in text
    assert "0 of 1 met; least: jnp" in text
    assert _report.target(peer) is None


def test_a_run_measures_and_writes(tmp_path, capsys):
    arguments = ["--no-tpu", "--n", "64", "--fill", "32", "--b", "1", "--kind", "contiguous", "--rounds", "1"]
    assert command.main([*arguments, "--out", str(tmp_path)], bandwidth=lambda: 1e9) == 0
    document = json.loads((tmp_path / "decode.json").read_text())
    assert document["complete"]
    assert {row["contender"] for row in document["rows"]} == set(_cpu.CONTENDERS)
    assert (tmp_path / "decode.png").stat().st_size > 1000
    assert "peer over jattn" in capsys.readouterr().out
    assert main(["decode", "--filter", "nothing", "--out", str(tmp_path)]) == 2
