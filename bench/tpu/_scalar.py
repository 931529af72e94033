"""The scalar core of a TPU, as far as the control flow of a kernel needs it: registers, SMEM, integers, addresses.

Whatever is not understood has the value None, and what is computed from None is None. That is harmless until a branch
or a DMA depends on it, which is an error. Addresses stay symbolic: the name of an allocation and an offset in it.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.tpu._bundles import Instruction

_NUMBER = re.compile(r"\$?(-?\d+|0x[0-9a-f]+)(?:\.0)?")
_WORD = 1 << 32


class WalkError(RuntimeError):
    """The dump cannot be walked: something that decides its control flow is not known."""


@dataclass(frozen=True)
class Address:
    """A place in some memory: an allocation or an operand, and an offset from its beginning."""

    base: str
    offset: int = 0

    def __add__(self, offset: int) -> "Address":
        return Address(self.base, self.offset + offset)


Value = int | bool | Address | None


def wrap(value: int) -> int:
    """The value as a signed 32-bit integer."""
    return (value + _WORD // 2) % _WORD - _WORD // 2


def unsigned(value: int) -> int:
    """The value as an unsigned 32-bit integer."""
    return value % _WORD


def words(array: np.ndarray) -> list[int]:
    """The 32-bit words that an integer vector fills in SMEM.

    Narrower elements share words, 128 words to a tile: of int8, element i is byte (i % 512) // 128 of word
    (i // 512) * 128 + i % 128.

    Raises:
        WalkError: the array has more axes; how they lie in SMEM is not known.
    """
    if array.ndim != 1:
        raise WalkError(f"a table of shape {array.shape} in SMEM: only vectors are understood")
    bits = 8 * array.dtype.itemsize
    packed = 32 // bits
    padded = np.pad(array, (0, -array.size % (128 * packed))).astype(np.int64)
    parts = padded.reshape(-1, packed, 128) % (1 << bits)
    shifts = bits * np.arange(packed)[:, None]
    return [wrap(word) for word in np.sum(parts << shifts, axis=1).ravel().tolist()]


@dataclass
class ScalarCore:
    """Registers and SMEM.

    Attributes:
        operands: values of the kernel's integer operands by index: an array is copied to SMEM by a DMA, one of a
            single element is in a register from the start.
        strange: the instructions so far whose meaning is not known.
    """

    operands: Mapping[int, np.ndarray] = field(default_factory=dict)
    registers: dict[str, Value] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    memory: dict[Address, Value] = field(default_factory=lambda: {Address("#allocation0"): 0})  # the megacore's core 0
    filled: set[str] = field(default_factory=set)
    strange: set[str] = field(default_factory=set)
    steps: int = 0

    def value(self, text: str) -> Value:
        """What a literal, register or address stands for."""
        if text.startswith("%"):
            return self.registers.get(text)
        if number := _NUMBER.fullmatch(text):
            return wrap(int(number.group(1), 0))
        return self.address(text)

    def address(self, text: str) -> Address | None:
        """What `[#allocation3 + %s7]`, `[smem:[#allocation3 + $0x1]]` or `[%s9]` stands for."""
        base, *offsets = (part.strip() for part in text.removeprefix("[smem:").strip("[] ").split("+"))
        place = Address(base) if base.startswith("#") else self.value(base) if base.startswith("%") else None
        for part in offsets:
            offset = self.value(part)
            if not isinstance(place, Address) or not isinstance(offset, int):
                return None
            place += offset
        return place if isinstance(place, Address) else None

    def holds(self, predicate: str | None) -> bool | None:
        """Whether a guard such as `!%p3` holds; None if that is not known. No guard always holds."""
        if predicate is None:
            return True
        value = self.registers.get(predicate.removeprefix("!"))
        return None if value is None else bool(value) != predicate.startswith("!")

    def must_hold(self, instruction: Instruction) -> bool:
        """Whether the guard of an instruction holds that decides the control flow or the DMAs.

        Raises:
            WalkError: the guard is not known.
        """
        holds = self.holds(instruction.predicate)
        if holds is None:
            strange = f"; not understood so far: {', '.join(sorted(self.strange))}" if self.strange else ""
            raise WalkError(f"depends on an unknown predicate {instruction.predicate}: {instruction.text!r}{strange}")
        return holds

    def fill(self, source: Value, target: Value) -> None:
        """Copy the operand at an address, if its value is known, to SMEM."""
        if not isinstance(source, Address) or not isinstance(target, Address):
            return
        array = self.operands.get(int(source.base.removeprefix("operand"))) if "operand" in source.base else None
        if array is not None:
            self.filled.add(target.base)
            self.memory.update({target + at: word for at, word in enumerate(words(array))})

    def store(self, instruction: Instruction) -> None:
        """`sst [address], value`: registers spilled to SMEM."""
        place, value = instruction.args
        address = self.address(place)
        if address is not None and self.holds(instruction.predicate) is not False:
            self.memory[address] = self.value(value)

    def execute(self, instruction: Instruction) -> None:
        """Carry out an instruction that writes a register."""
        dest = instruction.dest
        assert dest is not None, instruction.text
        self.steps += 1
        if instruction.op == "sphi":  # where paths meet: whichever was written last
            known = [name for name in instruction.args if name in self.written]
            self._write(dest, self.registers[max(known, key=self.written.__getitem__)] if known else None)
            return
        holds = self.holds(instruction.predicate)
        if holds or (holds is None and dest.startswith("%s")):
            self._write(dest, self._result(instruction))
        elif instruction.otherwise is not None:
            self._write(dest, None if holds is None else self.value(instruction.otherwise))
        elif holds is None:
            self._write(dest, None)
        elif dest.startswith("%p"):  # in the delay slots of a taken branch: it skips what this guards
            self.registers.setdefault(dest, False)

    def _write(self, name: str, value: Value) -> None:
        self.registers[name] = value
        self.written[name] = self.steps

    def _result(self, instruction: Instruction) -> Value:
        op, args = instruction.op.split("."), instruction.args
        if op[0] in _PREDICATES:
            return _PREDICATES[op[0]]([self.holds(one) for one in args])
        if op[0] == "operand":
            return self._operand(int(args[0]), op[1] == "register") if args else None
        if op[0] == "sld":
            at = self.address(args[0])
            return None if at is None else self.memory.get(at, 0 if at.base in self.filled else None)
        if op[0] == "scalar_select":
            holds = self.holds(args[0])
            return None if holds is None else self.value(args[1] if holds else args[2])
        values = [self.value(one) for one in args]
        if op[0] == "spop":  # from the vector units: our kernels ask of numbers alone whether one of them is NaN
            return 0
        if op[0] in ("smov", "int_to_ptr"):
            return values[0]
        if op[0] == "scalar_lea":
            return _sum(values)
        if op[0] == "scmp":
            return _compare(op[1], op[2], values)
        if op[0] in _ARITHMETIC:
            return _arithmetic(op[0], values)
        self.strange.add(instruction.op)
        return None

    def _operand(self, index: int, in_register: bool) -> Value:
        if not in_register:
            return Address(f"operand{index}")
        array = self.operands.get(index)
        return int(array.item()) if array is not None and array.size == 1 else None


def _sum(values: Sequence[Value]) -> Value:
    """A base and, perhaps, an offset."""
    base, offset = (*values, 0)[:2]
    if not isinstance(base, int | Address) or not isinstance(offset, int):
        return None
    return base + offset


def _arithmetic(name: str, values: Sequence[Value]) -> Value:
    if isinstance(values[0], Address) and name in ("sshll", "sshra") and values[0].offset == 0:
        return values[0]  # a shift of an address only changes the unit that it is counted in
    if not all(isinstance(value, int) for value in values):
        return None
    return wrap(_ARITHMETIC[name](*values))


def _compare(relation: str, kind: str, values: Sequence[Value]) -> bool | None:
    left, right = values
    if not isinstance(left, int) or not isinstance(right, int):
        return None
    if kind.startswith("u"):
        left, right = unsigned(left), unsigned(right)
    return getattr(operator, relation)(left, right)


def _negate(value: bool | None) -> bool | None:
    return None if value is None else not value


def _any(values: Sequence[bool | None]) -> bool | None:
    return True if True in values else None if None in values else False


def _all(values: Sequence[bool | None]) -> bool | None:
    return False if False in values else None if None in values else True


_PREDICATES: dict[str, Callable[[Sequence[bool | None]], bool | None]] = {
    "por": _any,
    "pand": _all,
    "pnor": lambda values: _negate(_any(values)),
    "pnand": lambda values: _negate(_all(values)),
    "pneg": lambda values: _negate(values[0]),
    "pmov": lambda values: values[0],
    "pxor": lambda values: None if None in values else values[0] != values[1],
}
_ARITHMETIC: dict[str, Callable[..., int]] = {
    "sadd": operator.add,
    "ssub": operator.sub,
    "smul": operator.mul,
    "sand": operator.and_,
    "sor": operator.or_,
    "sxor": operator.xor,
    "smin": min,
    "smax": max,
    "sshll": lambda value, by: value << by,
    "sshra": lambda value, by: value >> by,
    "sshrl": lambda value, by: unsigned(value) >> by,
}
