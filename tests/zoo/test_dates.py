"""The zoo: its data, its training loop and checkpoints, its models, its command line."""

import datetime
import functools
import importlib
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jattn
from jattn.zoo import EXTRAS, TASKS, _figure
from jattn.zoo.__main__ import main
from jattn.zoo._errors import ADDRESS, UsageError, how_to_install
from jattn.zoo._task import Task
from jattn.zoo._train import State, train, update
from jattn.zoo.dates import SCORES, data
from jattn.zoo.dates.model import Sizes
from jattn.zoo.dates.task import dates

TINY = Sizes(embedding=8, hidden=12, heads=2, width=4)


@functools.cache
def tiny(score):
    """The dates with a small model."""
    return dates(score, batch=8, sizes=TINY)


def line(**changes):
    """The smallest task there is, for what the training loop does with any: a linear map, fitted to random points."""

    def batch(step):
        return np.random.default_rng(step).normal(size=(4, 3)).astype(np.float32)

    def loss(model, batch):
        return jnp.mean((model(batch) - batch.sum(-1, keepdims=True)) ** 2)

    task = Task(
        settings={"task": "line", "seed": 0},
        model=nnx.Linear(3, 1, rngs=nnx.Rngs(0)),
        optimizer=optax.adam(0.1),
        batch=batch,
        loss=loss,
        evaluate=lambda model: float(1 / (1 + loss(model, batch(99)))),
        metric="fit",
        pictures=lambda model: {},
    )
    return task._replace(**changes)


# data


def test_batches_are_a_pure_function_of_seed_and_step():
    chex.assert_trees_all_equal(data.training_batch(3, 7, 16), data.training_batch(3, 7, 16))
    first = data.training_batch(3, 7, 16).source
    assert not np.array_equal(first, data.training_batch(3, 8, 16).source)
    assert not np.array_equal(first, data.training_batch(4, 7, 16).source)


def test_days_held_out_are_never_learnt_from():
    learnt, held_out = (set(days.tolist()) for days in data.split())
    assert len(held_out) == data.HELD_OUT
    assert not learnt & held_out
    assert len(learnt | held_out) == (data.LAST - data.FIRST).days + 1
    drawn = {data.decode(row) for step in range(20) for row in data.training_batch(0, step, 64).target}
    examined = {data.decode(row) for row in data.held_out_batch().target}
    assert not drawn & examined
    assert drawn <= {datetime.date.fromordinal(day).isoformat() for day in learnt}


def test_a_text_and_its_language_mean_one_date():
    # years whose last two digits, months and days can be taken for one another, and both centuries
    years = (1950, 1999, 2001, 2003, 2010, 2012, 2049)
    days = [datetime.date(year, 1, 1) + datetime.timedelta(day) for year in years for day in range(365)]
    for language in data.LANGUAGES:
        meanings = defaultdict(set)
        for pattern in data.patterns(language):
            for day in days:
                meanings[data.write(day, language, pattern)].add(day)
        assert all(len(dates) == 1 for dates in meanings.values()), language


def test_without_the_language_a_text_can_mean_two_dates():
    march, september = datetime.date(2026, 3, 9), datetime.date(2026, 9, 3)
    english = {data.write(march, "en", pattern) for pattern in data.patterns("en")}
    spanish = {data.write(september, "es", pattern) for pattern in data.patterns("es")}
    assert "3/9/2026" in english & spanish


def test_there_are_sixteen_languages_each_written_in_several_ways():
    assert len(set(data.LANGUAGES)) == 16
    assert all(len(data.patterns(language)) >= 4 for language in data.LANGUAGES)


def test_every_text_fits_and_is_read_back_from_its_tokens():
    characters, longest = data.alphabet()
    batch = data.held_out_batch(500)
    assert batch.source.shape == (500, longest)
    assert batch.length.max() <= longest
    assert batch.source.max() < data.alphabet().size
    for source, length, target in zip(*batch, strict=True):
        tag, *text = source[:length]
        assert not source[length:].any()
        language = data.LANGUAGES[tag - 1]
        written = "".join(characters[token - 1 - len(data.LANGUAGES)] for token in text)
        day = datetime.date.fromisoformat(data.decode(target))
        assert written in {data.write(day, language, pattern) for pattern in data.patterns(language)}


# model


@pytest.mark.parametrize("score", SCORES)
def test_every_score_learns(score):
    task = tiny(score)
    graph, params = nnx.split(task.model, nnx.Param)
    state, batch, losses = State(params, task.optimizer.init(params)), task.batch(0), []
    for _ in range(60):
        state, loss = update(task.loss, task.optimizer, graph, state, batch)
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]
    before, after = (
        jax.tree.leaves(nnx.to_pure_dict(each)["attention"].get("arrays")) for each in (params, state.params)
    )
    assert len(after) == {"dot": 0, "general": 1, "cosine": 1, "concat": 2, "additive": 3}[score]
    if score == "concat":
        before, after = before[1:], after[1:]  # the softmax cancels the query's part: its gradient is rounding
    assert all(np.abs(b - a).max() > 1e-3 for b, a in zip(before, after, strict=True))


def test_padding_changes_nothing():
    model: Any = tiny("dot").model
    batch = data.held_out_batch(8)
    inside = np.arange(batch.source.shape[1]) < batch.length[:, None]
    longer = np.pad(np.where(inside, batch.source, 3), ((0, 0), (0, 5)), constant_values=7)
    np.testing.assert_allclose(model(longer, *batch[1:]), model(*batch), atol=1e-5)


def test_the_decoder_does_not_see_what_it_is_to_write():
    model: Any = tiny("dot").model
    source, length, target = data.held_out_batch(8)
    changed = target.copy()
    changed[:, 5:] = (changed[:, 5:] + 1) % len(data.ISO)
    before, after = model(source, length, target), model(source, length, changed)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert not np.allclose(before[:, 6:], after[:, 6:])


def test_greedy_writes_what_teacher_forcing_finds_most_likely():
    model: Any = tiny("dot").model
    source, length, _ = data.held_out_batch(8)
    written = model.greedy(source, length)
    np.testing.assert_array_equal(model(source, length, written).argmax(-1), written)


def test_an_alignment_is_the_weights_with_which_the_source_is_read():
    model: Any = tiny("dot").model
    batch = data.held_out_batch(8)
    weights = np.asarray(model.alignment(*batch))
    assert weights.shape == (8, TINY.heads, 10, data.alphabet().length)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    outside = np.arange(weights.shape[-1]) >= batch.length[:, None]
    assert (weights.swapaxes(0, 1).swapaxes(1, 2)[:, :, outside] == 0).all()


# training, checkpoints


def final(out, task):
    """The parameters that a finished run left."""
    kept = []
    train(task._replace(pictures=lambda model: kept.append(nnx.state(model)) or {}), 1, out)
    return jax.tree.leaves(kept[0])


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["line", "dates"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, capsys, name):
    task = line() if name == "line" else tiny("dot")._replace(evaluate=lambda model: 0.0, pictures=lambda model: {})

    def interrupted(step):
        if step == 7:
            raise KeyboardInterrupt
        return task.batch(step)

    train(task, 9, tmp_path / "whole", every=3)
    with pytest.raises(KeyboardInterrupt):
        train(task._replace(batch=interrupted), 9, tmp_path / "stopped", every=3)
    capsys.readouterr()
    train(task, 9, tmp_path / "stopped", every=3)
    assert "going on from step 6" in capsys.readouterr().out
    assert_same(final(tmp_path / "whole", task), final(tmp_path / "stopped", task))


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path):
    task = line()
    train(task, 4, tmp_path / "longer")
    shorter = final(tmp_path / "longer", task)
    train(task, 8, tmp_path / "longer")
    train(task, 8, tmp_path / "whole")
    assert_same(final(tmp_path / "whole", task), final(tmp_path / "longer", task))
    assert not np.array_equal(shorter[0], final(tmp_path / "longer", task)[0])


def test_a_finished_run_is_evaluated_again_and_not_changed(tmp_path, capsys):
    first = train(line(), 3, tmp_path)
    before = final(tmp_path, line())

    def forbidden(step):
        raise AssertionError(f"step {step} was taken")

    capsys.readouterr()
    again = train(line(batch=forbidden), 3, tmp_path)
    out, err = capsys.readouterr()
    assert "finished already, at step 3" in out
    assert f"step 3: fit {first:.1%}" in out
    assert err == ""
    assert again == first
    assert_same(before, final(tmp_path, line()))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"task": "line", "seed": 5}, "seed=0, this run has seed=5"),
        ({"task": "curve", "seed": 0}, "task=line, this run has task=curve"),
        ({"task": "line", "seed": 0, "heads": 2}, "heads=None, this run has heads=2"),
    ],
)
def test_a_checkpoint_made_with_other_settings_is_refused(tmp_path, other, message):
    train(line(), 1, tmp_path)
    with pytest.raises(UsageError, match=message):
        train(line(settings=other), 2, tmp_path)


def test_every_choice_that_decides_the_result_is_a_setting():
    settings = lambda *choice, **options: dates(*choice, sizes=TINY, **options).settings
    choices = [
        settings(),
        settings("concat"),
        settings("dot", "gumbel"),
        settings("dot", "soft", "static"),
        settings(seed=1),
        settings(batch=8),
    ]
    assert all(a != b for n, a in enumerate(choices) for b in choices[:n])
    assert settings(implementation="reference") == settings()  # another way to the same result


@pytest.mark.parametrize("part", ["settings", "state"])
def test_a_damaged_checkpoint_is_refused(tmp_path, part):
    train(line(), 1, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "1" / part)
    with pytest.raises(UsageError, match="cannot read the checkpoint of step 1"):
        train(line(), 2, tmp_path)


def test_the_figure_is_kept_with_its_baseline_and_time(tmp_path, capsys):
    task = line(show="{:.3f}".format, baseline=("no fit", 0.25))
    value = train(task, 3, tmp_path)
    first: Any = _figure.load(tmp_path)
    assert first.value == value
    assert (first.metric, first.shown, first.baseline, first.step) == ("fit", f"{value:.3f}", ("no fit", "0.250"), 3)
    assert "for comparison: no fit 0.250" in capsys.readouterr().out
    train(task, 6, tmp_path)
    second: Any = _figure.load(tmp_path)
    assert second.step == 6
    assert second.seconds > first.seconds > 0


def test_the_list_shows_the_last_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    before = capsys.readouterr().out
    figure = _figure.Figure("held-out exact match", 0.5, "50.0%", ("chance", "0.0%"), 7, 61.0)
    (tmp_path / "runs" / "dates").mkdir(parents=True)
    _figure.save(tmp_path / "runs" / "dates", figure)
    assert main([]) == 0
    after = capsys.readouterr().out
    line = "last figure: held-out exact match 50.0% (chance 0.0%) at step 7, 61 s (runs/dates)"
    assert line in after
    assert line not in before


def test_recorded_figures_are_of_variants_there_are():
    for task, found in _figure.recorded().items():
        assert set(found) <= set(importlib.import_module(f"jattn.zoo.{task}").VARIANTS)


def test_progress_evaluations_and_pictures_are_reported(tmp_path, capsys):
    accuracy = train(tiny("dot"), 2, tmp_path, every=1)
    out, err = capsys.readouterr()
    first, *lines = out.splitlines()
    assert first == "compiling"
    assert lines[0].startswith("step 1: loss ")
    assert lines[1].endswith(f"held-out exact match {accuracy:.1%}")
    assert lines[2] == f"picture: {tmp_path / 'alignments.png'}"
    assert (tmp_path / "alignments.png").read_bytes().startswith(b"\x89PNG")
    assert "2/2" in err


# command line


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


@pytest.fixture
def no_data(monkeypatch):
    """Fails where a task begins to make its data."""

    def build(options):
        raise AssertionError("data was made")

    for task in TASKS:
        monkeypatch.setattr(f"jattn.zoo.{task}.build", build)


@pytest.mark.parametrize("task", TASKS)
def test_bad_choices_are_refused_before_data_is_made(tmp_path, capsys, no_data, task):
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
        assert main([task, "--out", str(tmp_path / "out"), *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("python -m jattn.zoo: ")
        assert all(word in err for word in words), err
    assert file.read_text() == "kept"
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_to_is_refused_before_data_is_made(tmp_path, capsys, no_data, monkeypatch):
    def denied(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("jattn.zoo._checkpoint.tempfile.TemporaryFile", denied)  # who runs the tests may be root
    assert main(["boolq", "--out", str(tmp_path)]) == 2
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


def test_what_takes_long_is_said_once_and_before_it_begins(tmp_path, capsys, monkeypatch):
    said = []

    def build(options):
        said.append(capsys.readouterr().out)
        told = lambda model, batch: said.append(capsys.readouterr().out) or line().loss(model, batch)
        return line(settings={"task": "boolq", "seed": 0}, loss=told)

    monkeypatch.setattr("jattn.zoo.boolq.build", build)
    assert main(["boolq", "--steps", "2", "--out", str(tmp_path)]) == 0
    preparing, compiling, *_ = said
    assert preparing.count("\n") == 1 and preparing.startswith("preparing BoolQ")
    assert compiling == "compiling\n"
    assert not any("preparing" in each or "compiling" in each for each in (*said[2:], capsys.readouterr().out))
    said.clear()
    assert main(["boolq", "--steps", "2", "--out", str(tmp_path)]) == 0  # nothing is left to do
    assert said[0].startswith("preparing BoolQ")
    assert "compiling" not in "".join(said) + capsys.readouterr().out


def test_what_a_model_writes_is_printed_at_the_end(tmp_path, capsys):
    for _ in range(2):  # as it is when the run is repeated
        train(line(written=lambda model: f"weights of\n{model.kernel.shape}"), 2, tmp_path)
        assert capsys.readouterr().out.endswith("weights of\n(3, 1)\n")


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_extra_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch, extra):
    monkeypatch.setitem(sys.modules, extra, None)
    assert main(["dates", "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert extra in err
    assert f'pip install -e "{Path(jattn.__file__).parents[1]}[zoo]"' in err


def test_what_is_missing_is_installed_from_a_checkout(tmp_path):
    assert how_to_install("zoo", tmp_path) == f'git clone {ADDRESS} && pip install "./jattn[zoo]"'
    (tmp_path / "pyproject.toml").touch()
    assert how_to_install("zoo", tmp_path) == f'pip install -e "{tmp_path}[zoo]"'


@pytest.mark.parametrize("kept", [None, 250])
def test_an_interrupt_is_not_a_traceback(tmp_path, capsys, monkeypatch, kept):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("jattn.zoo._train.train", stopped)
    if kept:
        _figure.save(tmp_path, _figure.Figure("fit", 0.5, "50.0%", None, kept, 1.0))
    assert main(["dates", "--out", str(tmp_path)]) == 130
    err = capsys.readouterr().err
    assert ("goes on from step 250" if kept else "starts anew") in err
    monkeypatch.setattr("jattn.zoo._archives.fetch", stopped)
    assert main(["fetch", "boolq"]) == 130
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
