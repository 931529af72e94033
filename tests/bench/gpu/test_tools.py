"""What compiling for a GPU takes, and what is said where it is missing."""

import subprocess
from types import SimpleNamespace

import pytest

from bench.gpu import _tools


@pytest.fixture
def complete(monkeypatch):
    """A machine that has everything, in jax's version."""
    versions = {"jax": "0.11.2", "jax-cuda13-plugin": "0.11.2", "jax-cuda13-pjrt": "0.11.2"}
    monkeypatch.setattr(_tools.importlib.metadata, "version", lambda name: versions[name])
    monkeypatch.setattr(_tools, "_version", versions.get)
    monkeypatch.setattr(_tools, "tool", lambda name: f"/somewhere/{name}")
    monkeypatch.setattr(_tools, "missing", lambda names: [])
    said = SimpleNamespace(stdout="Cuda compilation tools, release 13.5, V13.5.37")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: said)
    return SimpleNamespace(versions=versions, said=said)


def test_nothing_is_in_the_way(complete):
    assert _tools.obstacle() is None


def test_an_old_jax_is_an_obstacle(complete):
    complete.versions["jax"] = "0.10.2"
    assert "need jax 0.11 or newer and so Python 3.12; here are jax 0.10.2" in str(_tools.obstacle())


def test_plugins_of_another_version_are_an_obstacle(complete):
    complete.versions["jax-cuda13-plugin"] = "0.11.1"
    del complete.versions["jax-cuda13-pjrt"]
    assert _tools.obstacle() == (
        "jax-cuda13-plugin 0.11.1 and no jax-cuda13-pjrt beside jax 0.11.2, they must be of one version: "
        "pip install jax-cuda13-plugin==0.11.2 jax-cuda13-pjrt==0.11.2"
    )


def test_missing_tools_are_an_obstacle(complete, monkeypatch):
    monkeypatch.setattr(_tools, "tool", lambda name: None)
    assert _tools.obstacle() == "nvidia-cuda-nvcc and nvidia-cuda-nvdisasm not installed: pip install -e '.[aot]'"


def test_an_old_assembler_is_an_obstacle(complete):
    complete.said.stdout = "Cuda compilation tools, release 12.8, V12.8.93"
    assert _tools.obstacle() == "/somewhere/ptxas is 12.8, Mosaic needs 13 or newer: pip install -e '.[aot]'"


def test_tools_are_found_on_path(monkeypatch, tmp_path):
    monkeypatch.setattr(_tools.importlib.util, "find_spec", lambda name: None)
    program = tmp_path / "ptxas"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _tools.tool("ptxas") == program
    assert _tools.tool("nvdisasm") is None


def test_tools_of_the_packages_come_first(monkeypatch, tmp_path):
    program = tmp_path / "nvidia" / "cu13" / "bin" / "ptxas"
    program.parent.mkdir(parents=True)
    program.write_text("")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(_tools.importlib.util, "find_spec", lambda name: spec)
    assert _tools.tool("ptxas") == program
