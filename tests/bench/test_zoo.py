"""`python -m bench zoo`: runs every variant once, records figures, keeps those of other tasks."""

import json

import pytest

from bench import __main__ as bench
from bench import zoo
from jattn.zoo import _figure
from jattn.zoo.dates import VARIANTS

KEPT = _figure.Figure("bits per byte", 1.5, "1.500", ("order 0", "4.000"), 9, 12.0)


def run(folder, status=0):
    """What the command gives, and the commands that it runs; there is a figure of another task."""
    commands = []

    def call(command):
        commands.append(command)
        out = folder / "runs" / "dates" / command[command.index("--out") + 1].rsplit("/", 1)[1]
        out.mkdir(parents=True)
        if not status:
            _figure.save(out, _figure.Figure("exact match", 0.5, "50.0%", None, len(commands), 2.0))
        return status

    (folder / "figures.json").write_text(json.dumps({"text": {"default": KEPT._asdict()}}))
    arguments = ["--task", "dates", "--out", str(folder / "runs")]
    return zoo.main(arguments, folder / "zoo.md", folder / "figures.json", call=call), commands


def test_every_variant_is_run_and_recorded(tmp_path, capsys):
    status, commands = run(tmp_path)
    assert status == 0
    assert [tuple(c[4 : c.index("--seed")]) for c in commands] == [tuple(flags) for flags in VARIANTS.values()]
    assert len({c[-1] for c in commands}) == len(VARIANTS)
    record = json.loads((tmp_path / "figures.json").read_text())
    assert set(record) == {"dates", "text"}
    assert list(record["dates"]) == list(VARIANTS)
    rows = [line for line in (tmp_path / "zoo.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(VARIANTS) + 1
    assert "| text | default | bits per byte | 1.500 | order 0 4.000 | 9 | 12 |" in rows
    assert str(tmp_path / "zoo.md") in capsys.readouterr().out


def test_a_run_that_fails_is_one_line_and_records_nothing(tmp_path, capsys):
    status, commands = run(tmp_path, status=2)
    assert (status, len(commands)) == (2, 1)
    assert capsys.readouterr().err == f"bench zoo: dates, {next(iter(VARIANTS))}: the run came to no figure\n"
    assert list(json.loads((tmp_path / "figures.json").read_text())) == ["text"]
    assert not (tmp_path / "zoo.md").exists()


def test_an_unknown_task_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit_:
        bench.main(["zoo", "--task", "nothing"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
