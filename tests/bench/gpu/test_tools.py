"""What compiling for a GPU takes, and what is said where it is missing."""

import dataclasses
import importlib.metadata
import importlib.util
from pathlib import Path
from types import SimpleNamespace

from bench.gpu import _tools
from bench.gpu._tools import PLUGINS, TOOLS, Installed

COMPLETE = Installed(
    jax="0.11.2",
    plugins=dict.fromkeys(PLUGINS, "0.11.2"),
    tools={name: Path("/somewhere") / name for name in TOOLS},
    assembler="Cuda compilation tools, release 13.5, V13.5.37",
    absent=(),
)


def obstacle(**changes):
    return _tools.obstacle(dataclasses.replace(COMPLETE, **changes))


def test_nothing_is_in_the_way():
    assert obstacle() is None


def test_an_old_jax_is_an_obstacle():
    assert "need jax 0.11 or newer and so Python 3.12; here are jax 0.10.2" in str(obstacle(jax="0.10.2"))


def test_plugins_of_another_version_are_an_obstacle():
    assert obstacle(plugins={"jax-cuda13-plugin": "0.11.1", "jax-cuda13-pjrt": None}) == (
        "jax-cuda13-plugin 0.11.1 and no jax-cuda13-pjrt beside jax 0.11.2, they must be of one version: "
        "pip install jax-cuda13-plugin==0.11.2 jax-cuda13-pjrt==0.11.2"
    )


def test_missing_tools_are_an_obstacle():
    assert obstacle(tools=dict.fromkeys(TOOLS), assembler="", absent=["absl"]) == (
        "nvidia-cuda-nvcc and nvidia-cuda-nvdisasm and absl-py not installed: pip install -e '.[aot]'"
    )


def test_an_old_assembler_is_an_obstacle():
    wanted = "Mosaic needs 13 or newer: pip install -e '.[aot]'"
    old = "Cuda compilation tools, release 12.8, V12.8.93"
    assert obstacle(assembler=old) == f"/somewhere/ptxas is 12.8, {wanted}"
    assert obstacle(assembler="segmentation fault") == f"/somewhere/ptxas is of unknown version, {wanted}"


def test_what_this_machine_has():
    here = _tools.installed()
    assert here.jax == importlib.metadata.version("jax")
    assert (set(here.plugins), set(here.tools)) == (set(PLUGINS), set(TOOLS))
    assert ("release" in here.assembler) == (here.tools["ptxas"] is not None)
    assert (here.absent == ["absl"]) == (importlib.util.find_spec("absl") is None)


def test_tools_are_found_on_path(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
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
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert _tools.tool("ptxas") == program
