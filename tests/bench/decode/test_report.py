"""The table of steps, their targets and the plot."""

from bench._report import header, line
from bench.decode import _report
from bench.decode._cases import Case
from bench.decode._rows import Row

CASE = Case("contiguous", 8, 8192)


def test_the_summary_names_the_worst():
    met, missed = (Row(CASE, chip, "jattn", x, 1.0) for chip, x in (("v5e", 1.1), ("v6e", 1.3)))
    mine, peer = Row(CASE, "cpu", "jattn", 2.0, 1.0), Row(CASE, "cpu", "jnp", 1.5, 1.0)
    text = _report.summary([met, missed, mine, peer])
    assert "1 of 2 targets met; worst: v6e contiguous-b8-fill8192, 1.30" in text
    assert "0 of 1 met; least: jnp" in text
    assert _report.target(peer) is None


def test_small_steps_have_no_target_and_pages_a_wider_one():
    target = lambda **changes: _report.target(
        Row(Case(**{"kind": "paged", "b": 8, "fill": 8192, **changes}), "v5e", "jattn", 1.0, 1.0)
    )
    assert (target(b=1), target(fill=128)) == (None, None)
    assert (target(), target(kind="contiguous"), target(fill=1024)) == (1.35, 1.25, 1.5)


def test_a_row_is_as_wide_as_the_titles_and_says_what_went_wrong():
    titles = header(_report.COLUMNS)
    wrong = line(_report.COLUMNS, Row(CASE, "v5e", "ragged", None, 1.0, error="MosaicError: no"))
    assert wrong.endswith("MosaicError: no")
    assert wrong[: titles.index("x limit") + len("x limit")].endswith(" -")


def test_a_plot_of_what_has_a_time(tmp_path):
    _report.plot([Row(CASE, "v5e", "jattn", None, 1.0, error="no")], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    _report.plot(
        [Row(Case("contiguous", 8, fill), "v5e", "jattn", 1.5, 1.0) for fill in (128, 1024)], tmp_path / "decode.png"
    )
    assert (tmp_path / "decode.png").read_bytes().startswith(b"\x89PNG")
