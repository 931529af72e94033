"""The command line: what is refused and before what, what is said, how it ends."""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import jattn
from jattn.zoo import EXTRAS, TASKS, _figure
from jattn.zoo.__main__ import main, run
from jattn.zoo._train import train
from tests.zoo.tasks import line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "'nothing'"),
        (["dates", "--steps", "-3"], "'-3'"),
        (["dates", "--steps", "0"], "'0'"),
        (["dates", "--steps", "1.5"], "'1.5'"),
        (["dates", "--seed", "-1"], "'-1'"),
        (["dates", "--score", "cosign"], "'cosign'"),
        (["dates", "--attention", "loose"], "'loose'"),
        (["dates", "--summary", "short"], "'short'"),
        (["dates", "--implementation", "fast"], "'fast'"),
        (["dates", "--colour", "blue"], "--colour"),
        (["dates", "--steps"], "--steps"),
        (["--steps", "3"], "TASK"),
        (["boolq", "--attention", "loose"], "'loose'"),
        (["pairs", "--pooling", "deep"], "'deep'"),
        (["documents", "--pooling", "max"], "'max'"),
        (["vowels", "--summary", "first"], "'first'"),
        (["text", "--window", "0.5"], "'0.5'"),
        (["translate", "--kv-heads", "3"], "3"),
        (["fetch"], "NAME"),
        (["fetch", "nothing"], "'nothing'"),
        (["dates", "--out", "{file}"], "--out"),
        (["dates", "--out", "{file}/below"], "--out"),
    ],
)
def test_a_bad_argument_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, words):
    file = tmp_path / "file"
    file.write_text("kept")
    assert main([argument.format(file=file) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("python -m jattn.zoo: ")
    assert words in err
    assert file.read_text() == "kept"


def no_data(options):
    """Fails where a task begins to make its data."""
    raise AssertionError("data was made")


def main_with(arguments, build):
    """The command line, which trains what `build` makes."""
    return main(arguments, run=functools.partial(run, build=build))


@pytest.mark.parametrize("task", TASKS)
def test_bad_choices_are_refused_before_data_is_made(tmp_path, capsys, task):
    file = tmp_path / "file"
    file.write_text("kept")
    train(line(settings={"task": task, "seed": 5}), 1, tmp_path / "other")
    capsys.readouterr()
    for arguments, words in (
        (["--implementation", "nonsense"], ("'nonsense'", "blockwise", "reference")),
        (["--implementation", "cudnn"], ("cudnn", "blockwise", "reference")),
        (["--implementation", "pallas_tpu"], ("runs on TPU", "blockwise", "reference")),
        (["--out", str(file)], ("--out", str(file))),
        (["--out", str(file / "below")], ("--out", str(file))),
        (["--out", str(tmp_path / "other")], ("made with seed=5", "seed=0")),
    ):
        assert main_with([task, "--out", str(tmp_path / "out"), *arguments], no_data) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("python -m jattn.zoo: ")
        assert all(word in err for word in words), err
    assert file.read_text() == "kept"
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_to_is_refused_before_data_is_made(tmp_path, capsys, monkeypatch):
    def denied(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", denied)  # who runs the tests may be root
    assert main_with(["boolq", "--out", str(tmp_path)], no_data) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "--out must be" in err and "Permission denied" in err and str(tmp_path) in err


def test_a_backend_that_lacks_a_feature_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JATTN_INTERPRET", "1")
    arguments = ["--score", "additive", "--implementation", "pallas_tpu", "--out", str(tmp_path)]
    assert main(["dates", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("python -m jattn.zoo: ") and "score additive" in err


def test_what_takes_long_is_said_once_and_before_it_begins(tmp_path, capsys):
    said = []

    def build(options):
        said.append(capsys.readouterr().out)
        told = lambda model, batch: said.append(capsys.readouterr().out) or line().loss(model, batch)
        return line(settings={"task": "boolq", "seed": 0}, loss=told)

    assert main_with(["boolq", "--steps", "2", "--out", str(tmp_path)], build) == 0
    preparing, compiling, *_ = said
    assert preparing.count("\n") == 1 and preparing.startswith("preparing BoolQ")
    assert compiling == "compiling\n"
    assert not any("preparing" in each or "compiling" in each for each in (*said[2:], capsys.readouterr().out))
    said.clear()
    assert main_with(["boolq", "--steps", "2", "--out", str(tmp_path)], build) == 0  # nothing is left to do
    assert said[0].startswith("preparing BoolQ")
    assert "compiling" not in "".join(said) + capsys.readouterr().out


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_extra_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch, extra):
    monkeypatch.setitem(sys.modules, extra, None)
    assert main(["dates", "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert extra in err
    assert f'pip install -e "{Path(jattn.__file__).parents[1]}[zoo]"' in err


@pytest.mark.parametrize("kept", [None, 250])
def test_an_interrupt_is_not_a_traceback(tmp_path, capsys, kept):
    def stopped(*arguments):
        raise KeyboardInterrupt

    if kept:
        _figure.save(tmp_path, _figure.Figure("fit", 0.5, "50.0%", None, kept, 1.0))
    assert main(["dates", "--out", str(tmp_path)], run=stopped) == 130
    err = capsys.readouterr().err
    assert ("goes on from step 250" if kept else "starts anew") in err
    assert main(["fetch", "boolq"], fetch=stopped) == 130
    assert capsys.readouterr().err == "\nstopped\n"


def test_as_a_program(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "jattn.zoo", "dates", "--steps", "many"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "'many'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_list_and_the_help_name_every_task(capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"python -m jattn.zoo {task} --help" in listed for task in TASKS)
    with pytest.raises(SystemExit) as exit_:
        main(["dates", "--help"])
    assert exit_.value.code == 0
    described = capsys.readouterr().out
    assert all(
        flag in described
        for flag in ("--steps", "--seed", "--out", "--implementation", "--score", "--attention", "--summary")
    )
