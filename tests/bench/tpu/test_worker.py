"""What the compiler dumps, and what it answers."""

import dataclasses

import pytest

from bench.tpu import _worker
from bench.tpu._cases import Case


def test_a_dump_is_the_one_that_matches(tmp_path):
    (tmp_path / "1-TLP-hlo.txt").write_text("HloModule m")
    assert _worker._only(tmp_path, r"\d+-TLP-hlo\.txt") == "HloModule m"
    with pytest.raises(RuntimeError, match="0 dumps match"):
        _worker._only(tmp_path, "bundles")


def test_what_fails_is_the_answer_and_leaves_no_dump(tmp_path):
    (tmp_path / "old.txt").write_text("of a program that was cut off")
    case = dataclasses.asdict(Case("v5e", "full", 1, 1, 128, 128, "fwd"))
    request = {"case": case, "contender": "nobody", "setting": {}}
    assert _worker._answer(request, tmp_path) == {"error": "KeyError: 'nobody'"}
    assert not list(tmp_path.iterdir())
