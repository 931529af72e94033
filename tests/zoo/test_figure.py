"""Figures: kept beside a run, listed, recorded."""

import importlib
from typing import Any

from jattn.zoo import _figure
from jattn.zoo.__main__ import main
from jattn.zoo._train import train
from tests.zoo.tasks import line


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
    for task, got in _figure.recorded().items():
        assert set(got) <= set(importlib.import_module(f"jattn.zoo.{task}").VARIANTS)
