"""Archives of data: fetched whole or not at all, checked, read without importing the packages."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jattn.zoo import TASKS, _archives
from jattn.zoo.__main__ import main
from jattn.zoo._errors import UsageError

MEMBER, CONTENT = "sample/data.txt", b"some data\n"


@pytest.fixture(autouse=True)
def archive(tmp_path, monkeypatch):
    """A small archive `sample` on an index that is a folder, and a cache of its own."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "jattn_sample-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(MEMBER, CONTENT)
        file.writestr(
            "jattn_sample-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: jattn-sample\nVersion: 1.0\n"
        )
        file.writestr(
            "jattn_sample-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr("jattn_sample-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    found = _archives.Archive("jattn-sample", "1.0", wheel.name, digest, wheel.stat().st_size, "CC0")
    monkeypatch.setitem(_archives.ARCHIVES, "jattn-sample", found)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    _archives.fetch.cache_clear()
    yield wheel
    _archives.fetch.cache_clear()


def cached():
    return sorted(path.name for path in _archives.cache().iterdir())


def test_a_member_is_read_out_of_an_archive_fetched_once(archive, capsys):
    assert _archives.read("jattn-sample", MEMBER) == CONTENT
    assert "fetching jattn-sample 1.0 (0.0 MB, CC0) into" in capsys.readouterr().err
    assert cached() == [archive.name]
    archive.unlink()
    _archives.fetch.cache_clear()
    assert _archives.read("jattn-sample", MEMBER) == CONTENT
    assert capsys.readouterr().err == ""


def test_an_archive_that_is_not_whole_is_fetched_again(archive):
    path = _archives.fetch("jattn-sample")
    path.write_bytes(archive.read_bytes()[:100])
    assert not _archives.is_here("jattn-sample")
    _archives.fetch.cache_clear()
    assert _archives.read("jattn-sample", MEMBER) == CONTENT


def test_other_bytes_than_those_recorded_are_refused(archive, monkeypatch):
    other = _archives.ARCHIVES["jattn-sample"]._replace(sha256="0" * 64)
    monkeypatch.setitem(_archives.ARCHIVES, "jattn-sample", other)
    with pytest.raises(UsageError, match="its SHA-256 is"):
        _archives.fetch("jattn-sample")
    assert cached() == []


def test_offline_is_one_line_that_says_what_to_run(archive, capsys):
    archive.unlink()
    assert main(["fetch", "jattn-sample"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("python -m jattn.zoo: cannot fetch jattn-sample 1.0 (")
    assert "run `python -m jattn.zoo fetch jattn-sample` where there is a network" in error
    assert str(_archives.cache()) in error
    assert cached() == []


def test_an_interrupted_fetch_leaves_nothing(monkeypatch):
    def interrupted(command, **options):
        folder = Path(command[command.index("--dest") + 1])
        (folder / "part").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _archives.fetch("jattn-sample")
    assert cached() == []


def test_a_cache_that_cannot_be_made_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="cannot fetch"):
        _archives.fetch("jattn-sample")


def test_the_cache_is_where_its_specification_says(monkeypatch):
    assert _archives.cache().parts[-2:] == ("cache", "jattn")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert _archives.cache() == Path.home() / ".cache" / "jattn"


@pytest.mark.parametrize(("version", "installed"), [("1.0", True), ("2.0", False)])
def test_an_installed_package_is_read_where_it_is_the_version_recorded(
    archive, tmp_path, monkeypatch, version, installed
):
    site = tmp_path / "site"
    with zipfile.ZipFile(archive) as file:
        file.extractall(site)
    (site / MEMBER).write_bytes(b"installed")
    metadata = site / "jattn_sample-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.0\n", f"Version: {version}\n"))
    monkeypatch.syspath_prepend(site)
    assert _archives.read("jattn-sample", MEMBER) == (b"installed" if installed else CONTENT)
    assert "sample" not in sys.modules


def test_fetch_takes_tasks_and_archives(capsys):
    assert main(["fetch", "jattn-sample", "dates"]) == 0
    out = capsys.readouterr().out
    assert str(_archives.cache() / _archives.ARCHIVES["jattn-sample"].file) in out
    assert "dates: nothing to fetch" in out
    assert main(["fetch", "nothing"]) == 2


def test_every_task_names_archives_that_are_recorded():
    for name in TASKS:
        task = __import__(f"jattn.zoo.{name}", fromlist=["ARCHIVES"])
        assert set(task.ARCHIVES) <= set(_archives.ARCHIVES)
        assert next(iter(task.VARIANTS), None) is not None
