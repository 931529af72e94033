"""What an optimised program does beside its kernels, by its text."""

import math
import re

_INSTRUCTION = re.compile(r"^ *(?:ROOT )?%(\S+) = (.*?) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+)\[([\d,]*)\]")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "custom-call", "after-all"}
_LEFT_OUT = {"while", "conditional"}


def between(optimised: str) -> list[int]:
    """What each instruction of the entry computation of an optimised program reads and writes outside its kernels:
    operands and results, in bytes.

    What is started and done later is taken for a copy.  What a loop does besides its kernels is left out, and a branch
    is: of attention one where something is computed once more that was NaN, or cleaned of it.
    """
    entry = optimised[optimised.index("\nENTRY ") :].splitlines()[1:]
    sizes: dict[str, int] = {}
    moved = []
    for match in filter(None, map(_INSTRUCTION.match, entry)):
        name, kind, op, rest = match.groups()
        sizes[name] = sum(_bytes(element, axes) for element, axes in _ARRAY.findall(kind))
        if op.endswith("-done"):
            moved.append(2 * sizes[name])
        elif op not in _FREE | _LEFT_OUT and not op.endswith(("-start", "-update")):
            operands = re.findall(r"%([^\s,()]+)", rest.partition(")")[0])
            called = re.search(r"calls=%([^\s,]+)", rest)
            parts = _parts_read(optimised, called[1]) if called else {}
            moved.append(sizes[name] + sum(parts.get(n, sizes.get(one, 0)) for n, one in enumerate(operands)))
    return moved


def _parts_read(optimised: str, computation: str) -> dict[int, int]:
    """Of which parameters a fusion reads slices or gathers alone, and how many bytes those have."""
    body = optimised.partition(f"\n%{computation} (")[2].partition("\n}")[0].splitlines()
    lines = [match.groups() for match in filter(None, map(_INSTRUCTION.match, body))]
    found = {}
    for name, _, op, rest in lines:
        users = [x for x in lines if re.search(rf"%{re.escape(name)}[,)]", x[3])]
        if (
            op == "parameter"
            and users
            and all(x[2] in ("gather", "dynamic-slice") and x[3].startswith(f"%{name},") for x in users)
        ):
            found[int(rest.partition(")")[0])] = sum(_bytes(*y) for x in users for y in _ARRAY.findall(x[1]))
    return found


def _bytes(element: str, axes: str) -> int:
    bits = 8 if element == "pred" else int(element.lstrip("bfsuc"))
    return bits // 8 * math.prod(int(axis) for axis in axes.split(",") if axis)
