"""`python -m bench tpu`: its errors, and what it writes."""

import json

import pytest

from bench.tpu import _contenders, command
from bench.tpu._cases import Case
from tests.bench.tpu.estimates import needs_tokamax
from tests.bench.tpu.stand_in import main

NEAR_AND_ALL = (_contenders.near_settings, _contenders.splash_settings)


def setting_of(key: str) -> dict[str, object]:
    """Of an answer that is kept."""
    return json.loads(key[key.index("{") :])


def test_tpu_end_to_end(tmp_path, capsys):
    arguments = ["--chip", "v5e", "--mask", "full", "--pass", "fwd", "--shape", "8x16x2048x128"]
    assert main([*arguments, "--out", str(tmp_path), "--kept", str(tmp_path / "tpu_kept.json")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "v5e full fwd 8x16x2048x128 3.20 44%" in printed
    names = ["tpu.json", "tpu.md", "tpu.txt", "tpu_kept.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    document = json.loads((tmp_path / "tpu.json").read_text())
    assert document["complete"]
    assert [one["name"] for one in document["rows"]] == ["v5e-full-t2048-d128-fwd"]
    near, settings = (f(Case("v5e", "full", 8, 16, 2048, 128, "fwd")) for f in NEAR_AND_ALL)
    kept = [setting_of(key) for key in json.loads((tmp_path / "tpu_kept.json").read_text())]
    assert kept and all(setting in near for setting in kept)
    assert f"splash: {len(kept)} of its {len(settings)} settings are counted" in printed


@pytest.mark.parametrize("which", ["kept", "all"])
def test_tpu_counts_what_is_asked_for(which, tmp_path, capsys):
    arguments = ["--chip", "v5e", "--mask", "full", "--pass", "fwd", "--shape", "8x16x2048x128"]
    path = tmp_path / "tpu_kept.json"
    assert main([*arguments, "--settings", which, "--out", str(tmp_path), "--kept", str(path)]) == 0
    near, settings = (f(Case("v5e", "full", 8, 16, 2048, 128, "fwd")) for f in NEAR_AND_ALL)
    if which == "kept":
        assert not path.exists()
        assert "no estimate for splash: no setting is counted" in capsys.readouterr().out
    else:
        kept = [setting_of(key) for key in json.loads(path.read_text())]
        assert len(kept) > len(near) and all(setting in settings for setting in kept)
        counted = f"{len(kept)} of its {len(settings)} settings are counted, {len(settings) - len(kept)} cannot be the"
        assert counted in capsys.readouterr().out


def test_tpu_coverage(tmp_path, capsys):
    arguments = ["--chip", "v5e", "--mask", "full", "--pass", "fwdbwd", "--shape", "8x16x2048x128"]
    arguments += ["--coverage", "--settings", "all", "--peers", "splash"]
    assert main([*arguments, "--out", str(tmp_path), "--kept", str(tmp_path / "tpu_kept.json")]) == 0
    printed = capsys.readouterr().out
    parts = [Case("v5e", "full", 8, 16, 2048, 128, one) for one in ("lse", "bwd")]
    for part, of in ((part, len(_contenders.splash_settings(part))) for part in parts):
        (row,) = [line for line in printed.splitlines() if line.startswith(f"| {part.name} | splash |")]
        counted, hopeless, total = map(int, row.split("|")[3:6])
        assert counted + hopeless == total == of
        assert hopeless < counted
    assert "cannot be the best\n" in printed
    assert (tmp_path / "tpu_coverage.md").read_text() in printed


@needs_tokamax
def test_tpu_published(tmp_path, capsys):
    arguments = ["--published", "--filter", "full-t2048-d128", "--kept", str(tmp_path / "tpu_kept.json")]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "3 of the 3 times" in printed
    assert (tmp_path / "tpu_published.txt").read_text() in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--filter", "nothing"], "bench tpu: no case matches; names look like v5e-causal-t2048-d128-fwd"),
        (["--chip", "v3"], "bench tpu: argument --chip: 'v3' is not a comma-separated choice of v4,"),
        (["--shape", "1x2x3x4"], "bench tpu: argument --shape: '1x2x3x4' is not a comma-separated choice of"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    assert (status, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert printed.err.startswith(message)


def test_missing_packages_are_a_hint(capsys):
    missing = lambda modules: [name for name in modules if name in ("libtpu", "tokamax")]
    assert command.main([], missing=missing) == 2
    assert capsys.readouterr().err == "bench tpu: libtpu not installed: pip install -e '.[aot,bench]'\n"
    assert command.main(["--peers", "splash"], missing=missing) == 2
    assert "libtpu and tokamax not installed" in capsys.readouterr().err
