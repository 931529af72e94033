"""What a kernel's block tables hold: the values of the small integer operands of the kernels of a lowered program.

A kernel's control flow depends on them, and they are computed by the program around it, often from constants alone.
The slice of the program that computes them is copied into a program of its own, which runs on the CPU.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jaxlib.mlir import ir

Op: TypeAlias = ir.Operation | ir.OpView

LARGEST = 2**20  # bytes: SMEM holds no more


class KernelTables(NamedTuple):
    """The integer operands of a kernel, by index, but for those that depend on the program's arguments: of each run, as
    a kernel in a loop has several."""

    kernel: str
    runs: list[dict[int, np.ndarray]]


@dataclass(eq=False)
class _Scope:
    """A run of a block: the values outside that its arguments stand for, None for the program's own arguments; and the
    run of the block around it, for that of a loop."""

    block: ir.Block
    arguments: list[tuple[ir.Value, "_Scope"]] | None
    outside: "_Scope | None" = None


@dataclass
class _Kernel:
    name: str
    runs: list[dict[int, tuple[ir.Value, _Scope]]]


class _FromArguments(Exception):
    """A value that depends on the program's arguments, or on what a kernel makes of them."""


def block_tables(module: ir.Module) -> list[KernelTables]:
    """The integer operands of every kernel of a program in StableHLO, in the order of the calls."""
    with module.context, ir.Location.unknown():
        functions = {
            ir.StringAttr(op.operation.attributes["sym_name"]).value: op
            for op in module.body.operations
            if op.operation.name == "func.func"
        }
        kernels = list(_kernels(functions, _Scope(_block(functions["main"]), None)))
        slices = _Slice(functions)
        wanted = [
            [{n: at for n, one in run.items() if (at := slices.try_to_add(*one)) is not None} for run in kernel.runs]
            for kernel in kernels
        ]
        values = slices.run()
    return [
        KernelTables(kernel.name, [{n: values[at] for n, at in run.items()} for run in runs])
        for kernel, runs in zip(kernels, wanted, strict=True)
    ]


def _kernels(functions: Mapping[str, Op], scope: _Scope) -> Iterator[_Kernel]:
    """The kernels that a block calls, through functions and loops too."""
    for op in scope.block.operations:
        match op.operation.name:
            case "func.call":
                arguments = [(value, scope) for value in op.operands]
                yield from _kernels(functions, _Scope(_block(functions[_callee(op)]), arguments))
            case _ if _is_kernel(op):
                operands = {index: (value, scope) for index, value in enumerate(op.operands) if _is_small(value)}
                yield _Kernel(_text(op, "kernel_name"), [operands])
            case "stablehlo.while" as name if _holds_kernels(functions, op):
                try:
                    trips = _trips(functions, op, scope)
                except _FromArguments:
                    raise NotImplementedError(f"a kernel inside {name}: arguments say how often it runs") from None
                for same in zip(*(list(_kernels(functions, trip)) for trip in trips), strict=True):
                    yield _Kernel(same[0].name, [run for kernel in same for run in kernel.runs])
            case name if _holds_kernels(functions, op):
                raise NotImplementedError(f"a kernel inside {name}: how often it runs is not known")


def _holds_kernels(functions: Mapping[str, Op], op: Op) -> bool:
    """Whether an operation's regions, or the functions that they call, call kernels."""
    return any(
        _is_kernel(one)
        or _holds_kernels(functions, one)
        or (one.operation.name == "func.call" and _holds_kernels(functions, functions[_callee(one)]))
        for region in op.operation.regions
        for block in region.blocks
        for one in block.operations
    )


def _trips(functions: Mapping[str, Op], loop: Op, scope: _Scope) -> list[_Scope]:
    """The runs of a loop's body."""
    condition, body = (region.blocks[0] for region in loop.operation.regions)
    trips, arguments = [], [(value, scope) for value in loop.operands]
    while True:
        again = _Slice(functions)
        again.add(_results(condition)[0], _Scope(condition, arguments, scope))
        if not again.run()[0]:
            return trips
        trips.append(_Scope(body, arguments, scope))
        arguments = [(value, trips[-1]) for value in _results(body)]


class _Slice:
    """The program that computes the values added to it."""

    def __init__(self, functions: Mapping[str, Op]):
        self.functions = functions
        self.module = ir.Module.create()
        self.values: list[ir.Value] = []
        self.copies: dict[tuple[ir.Value, _Scope], ir.Value] = {}
        kind = ir.TypeAttr.get(ir.FunctionType.get([], []))
        with ir.InsertionPoint(self.module.body):
            attributes = {"sym_name": ir.StringAttr.get("main"), "function_type": kind}
            self.main = ir.Operation.create("func.func", attributes=attributes, regions=1)
            for name, function in functions.items():
                if name != "main" and not _holds_kernels(functions, function):
                    function.operation.clone()  # a loop that is copied may call it
        self.block = self.main.regions[0].blocks.append()

    def add(self, value: ir.Value, scope: _Scope) -> int:
        """Have the value computed: its place among the results.

        Raises:
            _FromArguments: it cannot be.
        """
        self.values.append(self._copy(value, scope))
        return len(self.values) - 1

    def try_to_add(self, value: ir.Value, scope: _Scope) -> int | None:
        """The same, but None for a value that cannot be computed."""
        try:
            return self.add(value, scope)
        except _FromArguments:
            return None

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

    def _copy(self, value: ir.Value, scope: _Scope) -> ir.Value:
        key = (value, scope)
        if key not in self.copies:
            self.copies[key] = self._make(value, scope)
        return self.copies[key]

    def _make(self, value: ir.Value, scope: _Scope) -> ir.Value:
        if isinstance(value, ir.BlockArgument):
            while value.owner != scope.block:
                assert scope.outside is not None
                scope = scope.outside
            if scope.arguments is None:
                raise _FromArguments
            return self._copy(*scope.arguments[value.arg_number])
        result = ir.OpResult(value)
        op, number = result.owner, result.result_number
        if op.operation.name == "func.call":
            block = _block(self.functions[_callee(op)])
            return self._copy(_results(block)[number], _Scope(block, [(one, scope) for one in op.operands]))
        if _is_kernel(op):
            raise _FromArguments
        if op.operation.name == "stablehlo.while" and _holds_kernels(self.functions, op):
            trips = _trips(self.functions, op, scope)
            last = (_results(trips[-1].block)[number], trips[-1]) if trips else (op.operands[number], scope)
            return self._copy(*last)
        operands = [self._copy(one, scope) for one in op.operands]
        copy = op.clone(ir.InsertionPoint(self.block))
        for index, operand in enumerate(operands):
            copy.operation.operands[index] = operand
        return copy.operation.results[number]


def _block(function: Op) -> ir.Block:
    return function.operation.regions[0].blocks[0]


def _results(block: ir.Block) -> Sequence[ir.Value]:
    """What a block returns."""
    return block.operations[len(block.operations) - 1].operands


def _is_kernel(op: Op) -> bool:
    return op.operation.name == "stablehlo.custom_call" and _text(op, "call_target_name") == "tpu_custom_call"


def _text(op: Op, name: str) -> str:
    return ir.StringAttr(op.operation.attributes[name]).value if name in op.operation.attributes else ""


def _callee(op: Op) -> str:
    return ir.FlatSymbolRefAttr(op.operation.attributes["callee"]).value


def _is_small(value: ir.Value) -> bool:
    kind = ir.RankedTensorType(value.type)
    if not isinstance(kind.element_type, ir.IntegerType):
        return False
    return kind.element_type.width * int(np.prod(kind.shape)) <= 8 * LARGEST
