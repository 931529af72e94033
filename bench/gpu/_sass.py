"""The machine code of a kernel as `nvdisasm` prints it: its loops, and the instructions of the hot ones by pipe.

A loop is a natural loop of the control flow: blocks that reach a jump back to a block that dominates it.  So code that
the assembler put behind the kernel, the retries of a barrier say, is no part of one.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

PIPES = {
    "tensor": r"(HGMMA|HMMA|QGMMA|IMMA|UTC\w*MMA)",
    "special": r"MUFU",
    "float": r"(FFMA|FADD|FMUL|HADD2|HMUL2|HFMA2)",
    "compare": r"(FMNMX|FSETP|FSEL|FSET|FCHK|HSETP2|HMNMX2)",
    "multiply": r"IMAD",
    "convert": r"(F2F|F2FP|I2F|F2I|I2FP|FRND)",
    "integer": r"(IADD|LOP3|SHF(?!L)|ISETP|LEA|PRMT|SEL|VIADD|VIMNMX|IABS|IMNMX|PLOP3|P2R|R2P|POPC|FLO)",
    "wait": r"(SYNCS|BAR|WARPGROUP|WARPSYNC|DEPBAR|LDGDEPBAR|UTCBAR|FENCE|MEMBAR|NANOSLEEP|ERRBAR|ELECT|YIELD|NOP)",
    "shuffle": r"(SHFL|VOTE|MATCH|REDUX)",
    "local": r"(LDL|STL)",
    "memory": r"(LDG|STG|LDS|STS|LDSM|STSM|ATOM|RED|LDC|LD|ST|UTMA|UBLK|UTCCP|LDTM|STTM|LDT|STT)",
    "move": r"(MOV|CS2R|S2R|R2UR|UMOV)",
    "branch": r"(BRA|BRX|JMP|EXIT|BSSY|BSYNC|CALL|RET|BREAK|WARPSYNC)",
    "uniform": r"U[A-Z]",
}
"""By pipe, what an instruction's name begins with; the first that fits counts, and what fits none is `other`."""

_LABEL = re.compile(r"\s*(\.L_x_?\w+):")
_INSTRUCTION = re.compile(
    r"\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+\{?\s*(?:@(?P<guard>!?U?P\w+)\s+)?(?P<name>[A-Z][A-Za-z0-9_.]*)(?P<rest>[^;]*)"
)
_TARGET = re.compile(r"\(?(\.L_x_?\w+)\)?")
_PRODUCT = re.compile(r"(?:HGMMA|QGMMA)\.(?:SP\.)?(\d+)x(\d+)x(\d+)")  # a product of a warpgroup
_WARP_PRODUCT = re.compile(r"HMMA\.(\d+)\.")  # a product of one warp
_WARP_SHAPES = {"1688": 16 * 8 * 8, "16816": 16 * 8 * 16, "16832": 16 * 8 * 32}
_MOVED = r"(?:\.(\d+)dp(\d+)bit)?\S*?\.x(\d+)"  # rows of tensor memory, bits of each, how often
_LOADED, _STORED = re.compile("LDTM" + _MOVED), re.compile("STTM" + _MOVED)


@dataclass(frozen=True)
class Instruction:
    """One line: its name with all suffixes, the predicate that guards it, and its operands."""

    name: str
    guard: str = ""
    operands: str = ""

    @property
    def pipe(self) -> str:
        return next((pipe for pipe, pattern in PIPES.items() if re.match(pattern, self.name)), "other")


@dataclass(frozen=True)
class Loop:
    """A hot loop: the instructions from its head to its jump back, without what was put elsewhere.

    Attributes:
        start: the place of its first instruction in the kernel.
        pipes: how many instructions each pipe gets.
        products: multiply-adds of its tensor instructions that name their shape, by one warp; 0 where none does.
        loaded: numbers of 32 bits that a thread reads from tensor memory.
        stored: those that it writes there.
    """

    start: int
    pipes: Mapping[str, int]
    products: int
    loaded: int
    stored: int = 0

    @property
    def instructions(self) -> int:
        return sum(self.pipes.values())


@dataclass(frozen=True)
class Code:
    """A kernel's instructions, and by label the place of the instruction that follows it."""

    instructions: Sequence[Instruction]
    labels: Mapping[str, int]


def parse(text: str) -> Code:
    """What `nvdisasm -c -ndf` prints for one kernel, or any part of it."""
    instructions, labels = [], {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif match := _INSTRUCTION.match(line):
            instructions.append(Instruction(match["name"], match["guard"] or "", match["rest"].strip()))
    return Code(instructions, labels)


def hot_loops(code: Code) -> list[Loop]:
    """The innermost loops that compute scores: those with tensor instructions, or that read their results.

    On Blackwell one warp issues the products and others read what they made from tensor memory: there the loops that
    exponentiate what they read are the hot ones, if there are any.
    """
    loops = [_loop(code, *span) for span in _innermost(code)]
    reading = [loop for loop in loops if loop.loaded and loop.pipes.get("special")]
    return reading or [loop for loop in loops if loop.pipes.get("tensor")]


def copying_loop(code: Code) -> int:
    """Instructions of the loop of those who copy for others; 0 where nobody does."""
    copies = lambda places: any(code.instructions[place].name.startswith("UTMALDG") for place in places)
    of_tensors = lambda places: any(_counts(code.instructions[place]) for place in places)
    loops = [x for x in _natural_loops(code).values() if copies(x) and not of_tensors(x)]
    return min(map(len, loops), default=0)


def _loop(code: Code, start: int, places: Sequence[int]) -> Loop:
    body = [code.instructions[place] for place in places]
    return Loop(
        start,
        Counter(one.pipe for one in body),
        sum(_products(one.name) for one in body),
        sum(_moved(_LOADED, one.name) for one in body),
        sum(_moved(_STORED, one.name) for one in body),
    )


def _products(name: str) -> int:
    """Multiply-adds of one warp: a quarter of a warpgroup's instruction, all of a warp's."""
    if match := _PRODUCT.match(name):
        m, n, k = map(int, match.groups())
        return m * n * k // 4
    if match := _WARP_PRODUCT.match(name):
        return _WARP_SHAPES.get(match[1], 0)
    return 0


def _moved(pattern: re.Pattern[str], name: str) -> int:
    """Numbers of each thread of a warp: what such an instruction moves in all, over the 32 threads."""
    if not (match := pattern.match(name)):
        return 0
    rows, bits, times = (int(x or 32) for x in match.groups())
    return rows * bits * times // (32 * 32)


def _innermost(code: Code) -> Iterator[tuple[int, list[int]]]:
    """The first instruction and all of each loop that counts and holds no other that counts."""
    loops = sorted(_natural_loops(code).items())
    counts = [x for x in loops if any(_counts(code.instructions[place]) for place in x[1])]
    for head, places in counts:
        if not any(other != head and other in places and set(inner) < set(places) for other, inner in counts):
            yield head, places


def _counts(instruction: Instruction) -> bool:
    return instruction.pipe == "tensor" or instruction.name.startswith("LDTM")


def _natural_loops(code: Code) -> dict[int, list[int]]:
    """By its first instruction, each loop's instructions up to its last jump back."""
    if not code.instructions:
        return {}
    starts = _starts(code)
    ends = dict(zip(starts, [*starts[1:], len(code.instructions)], strict=True))
    after = {start: _successors(code, start, end) for start, end in ends.items()}
    before: dict[int, set[int]] = {start: set() for start in starts}
    for start, following in after.items():
        for one in following:
            before[one].add(start)
    dominators = _dominators(starts, before)
    bodies: dict[int, set[int]] = {}
    last: dict[int, int] = {}
    for start in starts:
        for head in after[start] & dominators[start]:
            bodies.setdefault(head, set()).update(_reaching(start, head, before))
            last[head] = max(last.get(head, 0), ends[start])
    return {
        head: [n for start in sorted(body) if head <= start < last[head] for n in range(start, ends[start])]
        for head, body in bodies.items()
    }


def _starts(code: Code) -> list[int]:
    """Where blocks start: at labels and after jumps."""
    jumps = [n + 1 for n, one in enumerate(code.instructions) if _jumps(one)]
    return sorted({0, *code.labels.values(), *jumps} & set(range(len(code.instructions))))


def _jumps(one: Instruction) -> bool:
    return one.name.startswith(("BRA", "JMP", "EXIT", "RET"))


def _successors(code: Code, start: int, end: int) -> set[int]:
    last = code.instructions[end - 1]
    following = {end} & set(range(len(code.instructions)))
    if not _jumps(last):
        return following
    target = _TARGET.search(last.operands)
    # the unified form writes its predicate as an operand: BRA.U !UP0, `(.L_x_1)
    conditional = (last.guard not in ("", "PT")) or re.match(r"\s*!?U?P\d", last.operands) is not None
    targets = {code.labels[target[1]]} if target and target[1] in code.labels else set()
    return targets & set(range(len(code.instructions))) | (following if conditional else set())


def _dominators(starts: Sequence[int], before: Mapping[int, set[int]]) -> dict[int, set[int]]:
    """By block, those through which every way to it leads; a block that no jump reaches begins a way."""
    dominators = {start: set(starts) if before[start] and start else {start} for start in starts}
    changed = True
    while changed:
        changed = False
        for start in starts:
            if not before[start] or not start:
                continue
            new = set.intersection(*(dominators[one] for one in before[start])) | {start}
            changed = changed or new != dominators[start]
            dominators[start] = new
    return dominators


def _reaching(start: int, head: int, before: Mapping[int, set[int]]) -> set[int]:
    """The blocks from which `start` is reached without passing `head`, and both."""
    reaching, waiting = {head, start}, [start] if start != head else []
    while waiting:
        for one in before[waiting.pop()] - reaching:
            reaching.add(one)
            waiting.append(one)
    return reaching
