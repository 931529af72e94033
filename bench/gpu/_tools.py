"""What compiling for a GPU that is not there takes: JAX's CUDA plugin, and NVIDIA's assembler and disassembler."""

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
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


def too_old() -> str | None:
    """Why this Python cannot use the GPU kernels at all: a clause, None if it can."""
    version = importlib.metadata.version("jax")
    if tuple(map(int, version.split(".")[:2])) >= LEAST_JAX:
        return None
    python = ".".join(map(str, sys.version_info[:2]))
    return f"the GPU kernels need jax 0.11 or newer and so Python 3.12; here are jax {version} and Python {python}"


def obstacle() -> str | None:
    """Why nothing can be compiled for GPUs here, and what to install: one line, None if nothing is in the way."""
    if (reason := too_old()) is not None:
        return reason
    jax = importlib.metadata.version("jax")
    versions = {name: _version(name) for name in PLUGINS}
    wrong = [f"{name} {given}" if given else f"no {name}" for name, given in versions.items() if given != jax]
    if wrong:
        pins = " ".join(f"{name}=={jax}" for name in PLUGINS)
        return f"{' and '.join(wrong)} beside jax {jax}, they must be of one version: pip install {pins}"
    absent = [TOOLS[name] for name in TOOLS if tool(name) is None]
    absent += [f"{name}-py" for name in missing(["absl"])]
    if absent:
        return f"{' and '.join(absent)} not installed: {install('aot')}"
    ptxas = tool("ptxas")
    assert ptxas is not None
    said = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)\.(\d+)", said)
    if release is None or int(release[1]) < LEAST_CUDA:
        version = f"{release[1]}.{release[2]}" if release else "of unknown version"
        return f"{ptxas} is {version}, Mosaic needs {LEAST_CUDA} or newer: {install('aot')}"
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
