"""The plot of what was measured."""

from bench.cpu import _cases, _plot
from tests.bench.cpu.recorded import recorded, row


def test_plot_of_recorded_results(tmp_path):
    rows = recorded()
    _plot.plot(rows, ["jattn", "torch", "jax"], "recorded", tmp_path / "cpu.png")
    _plot.plot(rows[:1], ["jattn", "torch"], "one point", tmp_path / "one.png")
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "cpu.png").stat().st_size > (tmp_path / "one.png").stat().st_size > 1000


def test_cases_of_their_own_have_no_curve(tmp_path):
    named = [row(case, 0.1, 0.1) for case in _cases.named_cases()]
    _plot.plot(named, ["jattn", "torch"], "named", tmp_path / "cpu.png")
    assert not (tmp_path / "cpu.png").exists()
