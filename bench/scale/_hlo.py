"""What an optimised program sends while it computes: its permutes, and the kernels that each of them encloses.

The text of a scheduled HLO module has the instructions of a computation in the order in which they are issued.  So a
permute hides behind a kernel if it starts before it and is done after it, in the computation in which both stand; the
kernel may be inside of what that calls, as in a branch or in a loop.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

KERNELS = "tpu_custom_call", "mosaic_gpu"  # how the targets of Pallas kernels begin
_PERMUTES = "collective-permute", "collective-permute-start"
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_CALLED = re.compile(r"\b(?:calls|body|condition|to_apply|\w+_computation)=%?([\w.-]+)|branch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+)\[([\d,]*)\]")


class Permute(NamedTuple):
    """A collective-permute.

    Attributes:
        name: of the instruction that starts it.
        computation: in which it stands.
        loop: whether that is the body of a loop, or is called by one.
        asynchronous: whether it is started and waited for by two instructions.
        encloses: the kernels that run in between, in order.
        bytes: that a device sends.
    """

    name: str
    computation: str
    loop: bool
    asynchronous: bool
    encloses: tuple[str, ...]
    bytes: int


class _Instruction(NamedTuple):
    name: str
    kind: str
    op: str
    rest: str

    @property
    def called(self) -> list[str]:
        callees = (one or some for one, some in _CALLED.findall(self.rest))
        return [name.strip(" %") for names in callees for name in names.split(",")]


_Computations = Mapping[str, Sequence[_Instruction]]


def permutes(text: str) -> list[Permute]:
    """All permutes of a scheduled module, in the order of its text.

    Raises:
        ValueError: the module is not scheduled, so that nothing can be said.
    """
    if "is_scheduled=true" not in text.partition("\n")[0]:
        raise ValueError("the module is not scheduled: its text says nothing of when an instruction is issued")
    computations = _parse(text)
    looped = set(_reached(computations, [x for body in _bodies(computations) for x in body]))
    return [
        _permute(computations, name, at, name in looped)
        for name, instructions in computations.items()
        if not _wrapped(computations, name)
        for at, one in enumerate(instructions)
        if one.op in _PERMUTES or (one.op == "async-start" and _sends(computations, one))
    ]


def _parse(text: str) -> dict[str, list[_Instruction]]:
    computations: dict[str, list[_Instruction]] = {}
    inside: list[_Instruction] = []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            inside = computations.setdefault(header[1], [])
        elif instruction := _INSTRUCTION.match(line):
            inside.append(_Instruction(*instruction.groups()))
    return computations


def _bodies(computations: _Computations) -> Iterator[list[str]]:
    for instructions in computations.values():
        yield from (one.called for one in instructions if one.op == "while")


def _reached(computations: _Computations, names: Sequence[str]) -> Iterator[str]:
    """Those computations, and whatever they call."""
    seen, ahead = set(), list(names)
    while ahead:
        name = ahead.pop()
        if name in computations and name not in seen:
            seen.add(name)
            yield name
            ahead += [x for one in computations[name] for x in one.called]


def _wrapped(computations: _Computations, name: str) -> bool:
    """Whether a computation is what an `async-start` calls, which then stands for it."""
    return any(one.op.startswith("async-") and name in one.called for x in computations.values() for one in x)


def _sends(computations: _Computations, start: _Instruction) -> bool:
    return any(one.op == "collective-permute" for x in start.called for one in computations.get(x, ()))


def _permute(computations: _Computations, name: str, at: int, loop: bool) -> Permute:
    instructions = computations[name]
    start = instructions[at]
    arrays = sum(_bytes(*x) for x in _ARRAY.findall(start.kind) if x[1])  # without flags, which have no axes
    if not start.op.endswith("-start"):
        return Permute(start.name, name, loop, False, (), arrays)
    waits = re.compile(rf"%{re.escape(start.name)}(?![\w.-])")
    rest = instructions[at + 1 :]
    done = next(n for n, one in enumerate(rest) if waits.search(one.rest))
    return Permute(start.name, name, loop, True, tuple(_kernels(computations, rest[:done])), arrays // 2)


def _kernels(computations: _Computations, instructions: Sequence[_Instruction]) -> Iterator[str]:
    for one in instructions:
        if one.op == "custom-call" and any(f'custom_call_target="{x}' in one.rest for x in KERNELS):
            yield one.name
        for name in _reached(computations, one.called):
            own = [x._replace(rest=re.sub(_CALLED, "", x.rest)) for x in computations[name]]
            yield from _kernels(computations, own)


def _bytes(element: str, axes: str) -> int:
    bits = 8 if element == "pred" else int(element.lstrip("bfsuc"))
    return bits // 8 * math.prod(int(axis) for axis in axes.split(",") if axis)
