"""Where benchmarks read and write: in the checkout, and in a folder of it that is never committed."""

import tomllib

from bench import _paths


def test_the_root_is_the_checkout_of_the_library():
    project = tomllib.loads((_paths.ROOT / "pyproject.toml").read_text())
    assert project["project"]["name"] == "jattn"
    assert (_paths.ROOT / "jattn" / "__init__.py").is_file()


def test_what_runs_write_is_kept_out_of_the_repository():
    folder = _paths.OUT.relative_to(_paths.ROOT).as_posix()
    assert f"/{folder}/" in (_paths.ROOT / ".gitignore").read_text().splitlines()
