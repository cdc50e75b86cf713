"""Reads the text of a program that XLA compiled: its kernels and the bytes they move.

`parse` takes what `as_text()` of a compiled JAX function returns. A kernel is an
instruction that launches work on the device. A convolution, matrix product or
collective is one kernel, although the library that does it may launch several.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

# These instructions launch nothing.
_NO_KERNEL = {"after-all", "bitcast", "constant", "get-tuple-element", "opt-barrier",
              "parameter", "partition-id", "replica-id", "tuple"}  # fmt: skip
_SLICES = {"dynamic-slice", "gather", "slice"}
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\](?:\{([\d,]*)[^}]*\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([^\s(]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([^\s=]+) = (.*)")


class Array(NamedTuple):
    """An array's dtype, shape and layout, which lists its axes from minor to major."""

    dtype: str
    shape: tuple[int, ...]
    layout: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """The size in bytes. A dtype such as bf16 names its number of bits."""
        bits = re.search(r"\d+", self.dtype)
        return -(-self.size * (int(bits[0]) if bits else 8) // 8)


@dataclass(frozen=True)
class Instruction:
    """An instruction, whose line is `name = outputs opcode(operands), attributes`."""

    name: str
    opcode: str
    outputs: tuple[Array, ...]
    operands: tuple[str, ...]  # the names of instructions of the same computation
    attributes: str
    is_root: bool

    @property
    def bytes(self) -> int:
        """The size of the outputs in bytes."""
        return sum(array.bytes for array in self.outputs)

    def attribute(self, pattern: str) -> str:
        """Returns group 1 of a pattern in the attributes, or "" if it is not there."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""


Computation = Mapping[str, Instruction]


class Kernel(NamedTuple):
    """An instruction that launches work, and how often one run launches it."""

    instruction: Instruction
    operands: tuple[Instruction, ...]
    fused: Computation  # the instructions of a fusion, or {}
    times: int

    @property
    def bytes(self) -> int:
        """The bytes that one launch reads and writes.

        An operand counts once. If a fusion reads only slices of an operand, or updates
        only a slice of an output in place, the size of the slices counts.
        """
        read = sum(operand.bytes for operand in set(self.operands))
        if self.instruction.opcode.endswith("-start"):
            return 2 * read  # the listed outputs of a -start may repeat its operands
        if self.instruction.opcode != "fusion":
            return read + self.instruction.bytes
        return _read(self.fused) + _written(self.fused)


class Program(NamedTuple):
    """The computations of a program by name, and the name of its entry computation."""

    computations: Mapping[str, Computation]
    entry: str

    def kernels(self) -> list[Kernel]:
        """Returns the kernels. A kernel in a loop is listed once, with its `times`.

        Raises ValueError if the program has a branch, or a loop of unknown trip count.
        """
        return list(self._kernels(self.entry, 1))

    def _kernels(self, name: str, times: int) -> Iterator[Kernel]:
        steps = self.computations[name]
        for step in steps.values():
            if step.opcode == "conditional":
                raise ValueError(f"{step.name} is a branch, which may not always run")
            if step.opcode == "while":
                trips = step.attribute(r'"known_trip_count":\{"n":"(\d+)"')
                if not trips:
                    raise ValueError(f"the loop {step.name} has no known trip count")
                body = step.attribute(r"body=%([^\s,]+)")
                yield from self._kernels(body, times * int(trips))
            elif step.opcode == "call":
                called = step.attribute(r"to_apply=%([^\s,]+)")
                yield from self._kernels(called, times)
            elif step.opcode not in _NO_KERNEL and not step.opcode.endswith("-done"):
                operands = tuple(steps[name] for name in step.operands)
                fused = self.computations.get(step.attribute(r"calls=%([^\s,]+)"), {})
                yield Kernel(step, operands, fused, times)


def _read(fused: Computation) -> int:
    """Returns the bytes that a fusion reads from its operands."""
    total = 0
    for operand in fused.values():
        if operand.opcode != "parameter":
            continue
        users = [step for step in fused.values() if operand.name in step.operands]
        first = all(operand.name not in step.operands[1:] for step in users)
        opcodes = {step.opcode for step in users}
        if users and first and opcodes <= _SLICES:
            total += sum(step.bytes for step in users)
        elif not (first and opcodes == {"dynamic-update-slice"}):
            total += operand.bytes
    return total


def _written(fused: Computation) -> int:
    """Returns the bytes that a fusion writes to its outputs."""
    (root,) = (step for step in fused.values() if step.is_root)
    outputs = [fused[x] for x in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for output in outputs:
        while output.opcode == "bitcast":
            output = fused[output.operands[0]]
        in_place = output.opcode == "dynamic-update-slice"
        total += fused[output.operands[1]].bytes if in_place else output.bytes
    return total


def parse(text: str) -> Program:
    """Returns the program whose text is given. Raises ValueError if there is none."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head[2]
            computations[name] = {}
            entry = name if head[1] else entry
        elif line.startswith("}"):
            name = ""
        elif name and (found := _INSTRUCTION.match(line)):
            step = _instruction(found[2], found[3], is_root=bool(found[1]))
            computations[name][step.name] = step
    if not entry:
        raise ValueError("the text has no ENTRY computation")
    return Program(computations, entry)


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    """Returns the instruction whose line has `text` after `name = `."""
    text = re.sub(r"/\*.*?\*/", "", text)
    end = _closing(text, 0) if text[0] == "(" else text.index(" ")
    outputs, text = text[:end], text[end:].lstrip()
    opcode = text[: text.index("(")]
    end = _closing(text, len(opcode))
    arrays = tuple(
        Array(dtype, _integers(shape), _integers(layout))
        for dtype, shape, layout in _ARRAY.findall(outputs)
    )
    operands = tuple(re.findall(r"%([^\s,)]+)", text[len(opcode) : end]))
    return Instruction(name, opcode, arrays, operands, text[end:], is_root)


def _closing(text: str, start: int) -> int:
    """Returns the index after the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i + 1
    raise ValueError(f"a parenthesis is not closed in {text}")


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
