"""What compiling for a GPU that is not there takes: JAX's CUDA plugin, and NVIDIA's assembler and disassembler."""

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench._cli import install, missing

PLUGINS = ("jax-cuda13-plugin", "jax-cuda13-pjrt")
TOOLS = {"ptxas": "nvidia-cuda-nvcc", "nvdisasm": "nvidia-cuda-nvdisasm"}
"""By program, the package that brings it."""
LEAST_JAX = (0, 11)
LEAST_CUDA = 13  # older assemblers do not read the PTX that Mosaic writes


def tool(name: str) -> Path | None:
    """The program in the folder of NVIDIA's packages, else on PATH, else None."""
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec is not None else None
    paths = [path for root in roots or () for path in sorted(Path(root).glob(f"cu*/bin/{name}"), reverse=True)]
    on_path = shutil.which(name)
    return paths[0] if paths else Path(on_path) if on_path else None


@dataclass(frozen=True)
class Installed:
    """What is here of that which compiling takes.

    Attributes:
        jax: its version.
        plugins: by package the versions of `PLUGINS`, None where one is missing.
        tools: by name the programs of `TOOLS`, None where one is missing.
        assembler: what ptxas says of itself, "" where it is missing.
        absent: modules that are missing.
    """

    jax: str
    plugins: Mapping[str, str | None]
    tools: Mapping[str, Path | None]
    assembler: str
    absent: Sequence[str]


def installed() -> Installed:
    """What this machine has."""
    tools = {name: tool(name) for name in TOOLS}
    ptxas = tools["ptxas"]
    said = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=False).stdout if ptxas else ""
    plugins = {name: _version(name) for name in PLUGINS}
    return Installed(importlib.metadata.version("jax"), plugins, tools, said, missing(["absl"]))


def too_old(jax: str | None = None) -> str | None:
    """Why a version of JAX, by default the one that is here, cannot use the GPU kernels at all: a clause, None if it
    can."""
    version = jax or importlib.metadata.version("jax")
    if tuple(map(int, version.split(".")[:2])) >= LEAST_JAX:
        return None
    python = ".".join(map(str, sys.version_info[:2]))
    return f"the GPU kernels need jax 0.11 or newer and so Python 3.12; here are jax {version} and Python {python}"


def obstacle(here: Installed | None = None) -> str | None:
    """Why nothing can be compiled for GPUs with what is installed, by default on this machine, and what to install: one
    line, None if nothing is in the way."""
    here = here or installed()
    if (reason := too_old(here.jax)) is not None:
        return reason
    wrong = [f"{name} {given}" if given else f"no {name}" for name, given in here.plugins.items() if given != here.jax]
    if wrong:
        pins = " ".join(f"{name}=={here.jax}" for name in PLUGINS)
        return f"{' and '.join(wrong)} beside jax {here.jax}, they must be of one version: pip install {pins}"
    absent = [TOOLS[name] for name, path in here.tools.items() if path is None]
    absent += [f"{name}-py" for name in here.absent]
    if absent:
        return f"{' and '.join(absent)} not installed: {install('aot')}"
    release = re.search(r"release (\d+)\.(\d+)", here.assembler)
    if release is None or int(release[1]) < LEAST_CUDA:
        version = f"{release[1]}.{release[2]}" if release else "of unknown version"
        return f"{here.tools['ptxas']} is {version}, Mosaic needs {LEAST_CUDA} or newer: {install('aot')}"
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
