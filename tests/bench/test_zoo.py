"""`python -m bench zoo`: runs every variant once, records figures, keeps those of other tasks."""

import json

import pytest

from bench import __main__ as bench
from bench import zoo
from jattn.zoo import _figure
from jattn.zoo.dates import VARIANTS

KEPT = _figure.Figure("bits per byte", 1.5, "1.500", ("order 0", "4.000"), 9, 12.0)


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """The page and the record in a folder of the test's, the record with a figure of another task."""
    monkeypatch.setattr(zoo, "PAGE", tmp_path / "zoo.md")
    monkeypatch.setattr(zoo, "RECORD", tmp_path / "figures.json")
    monkeypatch.setattr(zoo, "TASKS", ("dates", "other"))
    monkeypatch.setattr(_figure, "recorded", lambda: {"other": {"default": KEPT}})
    return tmp_path


def run(monkeypatch, places, status=0):
    commands = []

    def call(command):
        commands.append(command)
        out = places / "runs" / "dates" / command[command.index("--out") + 1].rsplit("/", 1)[1]
        out.mkdir(parents=True)
        if not status:
            _figure.save(out, _figure.Figure("exact match", 0.5, "50.0%", None, len(commands), 2.0))
        return status

    monkeypatch.setattr(zoo.subprocess, "call", call)
    return bench.main(["zoo", "--task", "dates", "--out", str(places / "runs")]), commands


def test_every_variant_is_run_and_recorded(monkeypatch, places, capsys):
    status, commands = run(monkeypatch, places)
    assert status == 0
    assert [tuple(c[4 : c.index("--seed")]) for c in commands] == [tuple(flags) for flags in VARIANTS.values()]
    assert len({c[-1] for c in commands}) == len(VARIANTS)
    record = json.loads(zoo.RECORD.read_text())
    assert list(record) == ["dates", "other"]
    assert list(record["dates"]) == list(VARIANTS)
    rows = [line for line in zoo.PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(VARIANTS) + 1
    assert rows[-1] == "| other | default | bits per byte | 1.500 | order 0 4.000 | 9 | 12 |"
    assert str(zoo.PAGE) in capsys.readouterr().out


def test_a_run_that_fails_is_one_line_and_records_nothing(monkeypatch, places, capsys):
    status, commands = run(monkeypatch, places, status=2)
    assert (status, len(commands)) == (2, 1)
    assert capsys.readouterr().err == f"bench zoo: dates, {next(iter(VARIANTS))}: the run came to no figure\n"
    assert not zoo.RECORD.exists()


def test_an_unknown_task_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit_:
        bench.main(["zoo", "--task", "nothing"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
