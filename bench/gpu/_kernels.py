"""From the folder into which Mosaic dumps to what each kernel takes: registers, spills, shared memory, hot loops."""

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jattn_kernels.chips import Gpu

from bench.gpu._sass import Loop, copying_loop, hot_loops, parse
from bench.gpu._tools import tool
from bench.gpu._topology import architecture

_WARP = 32


@dataclass(frozen=True)
class CompiledKernel:
    """One compiled kernel.

    Attributes:
        name: of the dump, without its number.
        threads: of a block (CTA).
        registers: of a thread, as the assembler divides them; a kernel may move them between warpgroups as it runs.
        spilled: bytes that the assembler spills, stores and loads together.
        shared: bytes of shared memory of a block; None where the dump does not say.
        loops: its hot loops, in the order of the code.
        copying: instructions of the loop of those who copy for others.
    """

    name: str
    threads: int
    registers: int
    spilled: int
    shared: int | None
    loops: Sequence[Loop]
    copying: int = 0

    def blocks_per_core(self, chip: Gpu) -> int:
        """How many blocks a multiprocessor holds at once."""
        warps = -(-self.threads // _WARP)
        fits = [
            chip.threads // self.threads,
            chip.registers // (warps * -(-self.registers * _WARP // 256) * 256),
        ]
        if self.shared is not None:
            fits.append(chip.fast_memory // (self.shared + chip.reserved))
        return min(fits)

    def as_json(self, chip: Gpu) -> dict[str, Any]:
        """Everything; loops with how many instructions they have."""
        loops = [{**asdict(loop), "pipes": dict(loop.pipes), "instructions": loop.instructions} for loop in self.loops]
        return {**asdict(self), "blocks_per_core": self.blocks_per_core(chip), "loops": loops}


def from_json(row: Mapping[str, Any]) -> CompiledKernel:
    """What `CompiledKernel.as_json` made."""
    loops = [Loop(one["start"], one["pipes"], one["products"], one["loaded"], one["stored"]) for one in row["loops"]]
    fields = ("name", "threads", "registers", "spilled", "shared")
    return CompiledKernel(**{name: row[name] for name in fields}, loops=loops, copying=row.get("copying", 0))


def kernels(dump: Path, chip: Gpu) -> list[CompiledKernel]:
    """Every kernel of a dump, in the order in which they were lowered."""
    number = lambda path: int(re.findall(r"\d+", path.stem)[-1])
    return [_kernel(path, chip) for path in sorted(dump.glob("*.ptx"), key=number)]


def _kernel(ptx: Path, chip: Gpu) -> CompiledKernel:
    cubin = ptx.with_suffix(".cubin")
    report = _run([tool("ptxas"), "-v", "--gpu-name", architecture(chip), ptx, "-o", cubin]).stderr
    code = parse(_run([tool("nvdisasm"), "-c", "-ndf", cubin]).stdout)
    registers, spilled = assembler_report(report)
    resources = ptx.with_suffix(".resources.txt")
    return CompiledKernel(
        name=re.sub(r"_\d+$", "", ptx.stem),
        threads=threads(ptx.read_text()),
        registers=registers,
        spilled=spilled,
        shared=shared_bytes(resources.read_text()) if resources.exists() else None,
        loops=hot_loops(code),
        copying=copying_loop(code),
    )


def _run(command: Sequence[Any]) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(str(command[0])).name}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    return done


def assembler_report(text: str) -> tuple[int, int]:
    """Registers of a thread and bytes spilled, from what `ptxas -v` prints."""
    used = re.findall(r"Used (\d+) registers", text)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
    if not used:
        raise RuntimeError("ptxas did not say how many registers it used")
    return max(map(int, used)), sum(int(store) + int(load) for store, load in spills)


def threads(ptx: str) -> int:
    """Threads of a block, by the kernel's own bound."""
    match = re.search(r"\.(?:max|req)ntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", ptx)
    if match is None:
        raise RuntimeError("the kernel does not say how many threads it has")
    x, y, z = (int(n or 1) for n in match.groups())
    return x * y * z


def shared_bytes(resources: str) -> int | None:
    """Bytes of shared memory of a block, in what Mosaic dumps of a kernel's resources."""
    match = re.search(r"smem_scratch_bytes=(\d+)", resources)
    return int(match[1]) if match else None
