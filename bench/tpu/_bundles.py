"""Reading the compiler's final VLIW bundles: what each issues on the scalar core and to the matrix units.

The text is what libtpu writes as `*-final_bundles.txt` under `--xla_jf_dump_to=DIR --xla_jf_dump_llo_text=true`. A line
`0x1f : > { one ;; two ;; three } /* Start region 25 */` is a bundle: its instructions issue in the same cycle. Branches
name a region, and a comment says at which bundle that starts. Vector instructions are dropped: they decide no branch.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_BUNDLE = re.compile(r"(?m)^ *(?:0x[0-9a-f]+|0) +(?:[A-Z]{2}:?)? *: ")
_REGION = re.compile(r"Start(?:/End empty)? region (\d+)")
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_BODY = re.compile(r"\{(.*)\}", re.DOTALL)
_MATMUL = re.compile(r"= vmatmul\.(?:mubr\.)?(\w+)\.\S*mxu(\d)")
_PARTS = re.compile(r"(?:(%\w+) = )?(\S+)\s*(.*)$", re.DOTALL)
_PREDICATE = re.compile(r"\((!?%p\w+)(?:, ([^)]+))?\),?")
_NOTE = re.compile(r"\[(?:thread|resolvable):\$\w+\]")
_TARGET = re.compile(r"target = \$region(\d+)")
_INDEX = re.compile(r"index: (\d+)")


@dataclass(frozen=True)
class Instruction:
    """One instruction of the scalar core: `dest = op (predicate, otherwise), args`.

    A branch's only argument is its region, an operand's its index; its op says whether it is passed in a register.
    """

    text: str
    op: str
    dest: str | None = None
    predicate: str | None = None
    otherwise: str | None = None
    args: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bundle:
    """What one cycle issues: scalar instructions, and (matrix unit, share of a full feed) of each `vmatmul`.

    The scalar instructions stand in the order in which they take effect: where paths meet first, stores last.
    """

    scalar: tuple[Instruction, ...] = ()
    products: tuple[tuple[int, float], ...] = ()

    @property
    def plain(self) -> bool:
        """Whether it costs its cycle and does nothing else that is modelled."""
        return not self.scalar and not self.products


@dataclass(frozen=True)
class Listing:
    """The bundles in order, and the index of the bundle at which each region starts."""

    bundles: tuple[Bundle, ...]
    regions: Mapping[int, int]


def parse(text: str) -> Listing:
    """Read a dump.

    Raises:
        ValueError: there is no bundle in the text.
    """
    starts = list(_BUNDLE.finditer(text))
    if not starts:
        raise ValueError("no bundles: expected the text of a *-final_bundles.txt dump")
    ends = [start.start() for start in starts[1:]] + [len(text)]
    bundles: list[Bundle] = []
    regions: dict[int, int] = {}
    for at, (start, end) in enumerate(zip(starts, ends, strict=True)):
        line = text[start.end() : end]
        for region in _REGION.findall(line):
            regions.setdefault(int(region), at)
        bundles.append(_bundle(_COMMENT.sub("", line)))
    return Listing(tuple(bundles), regions)


def _bundle(line: str) -> Bundle:
    body = _BODY.search(line)
    texts = [one.strip() for one in body.group(1).split(";;")] if body else []
    products = [_MATMUL.search(one) for one in texts]
    scalar = [instruction for one in texts if (instruction := _instruction(one)) is not None]
    return Bundle(
        scalar=tuple(sorted(scalar, key=lambda one: {"sphi": 0, "sst": 2}.get(one.op, 1))),
        products=tuple((int(m.group(2)), 1.0 if m.group(1) == "bf16" else 0.5) for m in products if m),
    )


def _instruction(text: str) -> Instruction | None:
    """The instruction, or None if it neither writes a scalar or predicate register nor stores, branches or copies."""
    match = _PARTS.match(text)
    if match is None:
        return None
    dest, op, rest = match.groups()
    scalar = dest is not None and dest.startswith(("%s", "%p"))
    if not scalar and not op.startswith(("sbr", "sst", "dma.")):
        return None
    if op.startswith("inlined_call_operand"):
        index = _INDEX.search(rest)
        where = "register" if "<no memory space>" in text else "memory"
        return Instruction(text, f"operand.{where}", dest, args=(index.group(1),) if index else ())
    predicate, otherwise = None, None
    if guard := _PREDICATE.search(rest):
        predicate, otherwise = guard.groups()
        rest = rest[: guard.start()] + rest[guard.end() :]
    if target := _TARGET.search(rest):
        return Instruction(text, op, None, predicate, otherwise, (target.group(1),))
    rest = _NOTE.sub("", rest)
    args = tuple(rest.rsplit(maxsplit=1) if op == "sst" else split(rest))  # no comma before what is stored
    return Instruction(text, op, dest if scalar else None, predicate, otherwise, args)


def split(text: str) -> list[str]:
    """Split at the commas that are in no bracket."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    return [part for part in (*parts, text[start:].strip()) if part]
