"""What a kernel's block tables hold: the values of the small integer operands of the kernels of a lowered program.

A kernel's control flow depends on them, and they are computed by the program around it, often from constants alone.
The slice of the program that computes them is copied into a program of its own, which runs on the CPU.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxlib.mlir import ir

LARGEST = 2**20  # bytes: SMEM holds no more


class Table(NamedTuple):
    """The integer operands of a call of a kernel, by index, but for those that depend on the program's arguments."""

    kernel: str
    operands: dict[int, np.ndarray]


@dataclass(eq=False)
class _Scope:
    """A call of a function: the caller's values that its arguments stand for. None for the program's own arguments."""

    arguments: list[tuple[Any, "_Scope"]] | None


@dataclass
class _Kernel:
    name: str
    operands: dict[int, tuple[Any, _Scope]]


class _FromArguments(Exception):
    """A value that depends on the program's arguments."""


def tables(module: ir.Module) -> list[Table]:
    """The integer operands of every kernel of a program in StableHLO, in the order of the calls."""
    with module.context, ir.Location.unknown():
        functions = {
            ir.StringAttr(op.operation.attributes["sym_name"]).value: op
            for op in module.body.operations
            if op.operation.name == "func.func"
        }
        kernels = list(_kernels(functions, "main", _Scope(None)))
        slices = _Slice(functions)
        wanted = [
            {index: at for index, operand in kernel.operands.items() if (at := slices.add(*operand)) is not None}
            for kernel in kernels
        ]
        values = slices.run()
    return [
        Table(kernel.name, {index: values[at] for index, at in indices.items()})
        for kernel, indices in zip(kernels, wanted, strict=True)
    ]


def _kernels(functions: Mapping[str, Any], name: str, scope: _Scope) -> Iterator[_Kernel]:
    """The kernels that a function calls, through other functions too."""
    yield from _in_block(functions, _block(functions[name]), scope)


def _in_block(functions: Mapping[str, Any], block: Any, scope: _Scope) -> Iterator[_Kernel]:
    for op in block.operations:
        match op.operation.name:
            case "func.call":
                arguments = [(value, scope) for value in op.operands]
                yield from _kernels(functions, _callee(op), _Scope(arguments))
            case "stablehlo.custom_call" if _text(op, "call_target_name") == "tpu_custom_call":
                operands = {index: (value, scope) for index, value in enumerate(op.operands) if _is_small(value)}
                yield _Kernel(_text(op, "kernel_name"), operands)
            case _:
                inner = (inner for region in op.regions for inner in region.blocks)
                if any(True for one in inner for _ in _in_block(functions, one, _Scope(None))):
                    raise NotImplementedError(f"a kernel inside {op.operation.name}: how often it runs is not known")


class _Slice:
    """The program that computes the values added to it."""

    def __init__(self, functions: Mapping[str, Any]):
        self.functions = functions
        self.module = ir.Module.create()
        self.values: list[Any] = []
        self.copies: dict[tuple[Any, _Scope], Any] = {}
        kind = ir.TypeAttr.get(ir.FunctionType.get([], []))
        with ir.InsertionPoint(self.module.body):
            attributes = {"sym_name": ir.StringAttr.get("main"), "function_type": kind}
            self.main = ir.Operation.create("func.func", attributes=attributes, regions=1)
        self.block = self.main.regions[0].blocks.append()

    def add(self, value: Any, scope: _Scope) -> int | None:
        """Have the value computed: its place among the results, or None if it depends on the program's arguments."""
        try:
            self.values.append(self._copy(value, scope))
        except _FromArguments:
            return None
        return len(self.values) - 1

    def run(self) -> list[np.ndarray]:
        """The values, in the order in which they were added."""
        if not self.values:
            return []
        with ir.InsertionPoint(self.block):
            ir.Operation.create("func.return", operands=self.values)
        kind = ir.FunctionType.get([], [value.type for value in self.values])
        self.main.attributes["function_type"] = ir.TypeAttr.get(kind)
        device = jax.devices("cpu")[0]
        program = device.client.compile_and_load(str(self.module), [device])
        return [np.asarray(one) for one in program.execute([])]

    def _copy(self, value: Any, scope: _Scope) -> Any:
        key = (value, scope)
        if key not in self.copies:
            self.copies[key] = self._make(value, scope)
        return self.copies[key]

    def _make(self, value: Any, scope: _Scope) -> Any:
        if isinstance(value, ir.BlockArgument):
            if scope.arguments is None:
                raise _FromArguments
            return self._copy(*scope.arguments[value.arg_number])
        op, number = value.owner, value.result_number
        if op.name == "func.call":
            block = _block(self.functions[_callee(op)])
            arguments = [(one, scope) for one in op.operands]
            return self._copy(block.operations[len(block.operations) - 1].operands[number], _Scope(arguments))
        operands = [self._copy(one, scope) for one in op.operands]
        copy = op.clone(ir.InsertionPoint(self.block))
        for index, operand in enumerate(operands):
            copy.operation.operands[index] = operand
        return copy.operation.results[number]


def _block(function: Any) -> Any:
    return function.operation.regions[0].blocks[0]


def _text(op: Any, name: str) -> str:
    return ir.StringAttr(op.operation.attributes[name]).value if name in op.operation.attributes else ""


def _callee(op: Any) -> str:
    return ir.FlatSymbolRefAttr(op.operation.attributes["callee"]).value


def _is_small(value: Any) -> bool:
    kind = ir.RankedTensorType(value.type)
    if not isinstance(kind.element_type, ir.IntegerType):
        return False
    return kind.element_type.width * int(np.prod(kind.shape)) <= 8 * LARGEST
