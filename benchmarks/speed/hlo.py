"""Reads the text of a program that XLA compiled: its kernels and the bytes they move.

`parse` takes what `as_text()` of a compiled JAX function returns. A kernel here is an
instruction that launches work on the device. A convolution, matrix product or
collective of a library counts as one kernel, although the library may launch several.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

# These instructions name values, or run other computations, and launch nothing.
_NO_KERNEL = frozenset(
    "add-dependency after-all bitcast call conditional constant get-tuple-element"
    " opt-barrier parameter partition-id replica-id tuple while".split()
)
_SLICES = ("slice", "dynamic-slice", "gather")
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\](?:\{([\d,]*)[^}]*\})?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([^\s=]+) = (.*)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([^\s(]+) \(.*\{$")
_NAME = re.compile(r"%([\w.\-]+)")


class Array(NamedTuple):
    """The dtype, shape and layout of an array; the layout begins with the minor axis."""

    dtype: str
    shape: tuple[int, ...]
    layout: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """The size in bytes; a dtype such as bf16 has its number of bits in its name."""
        bits = re.search(r"\d+", self.dtype)
        return -(-prod(self.shape) * (int(bits[0]) if bits else 8) // 8)


@dataclass(frozen=True)
class Instruction:
    """An instruction: `name = outputs opcode(operands), attributes`."""

    name: str
    opcode: str
    outputs: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    def called(self, attribute: str) -> str:
        """Returns the name of the computation that an attribute names, "" if none."""
        found = re.search(rf"\b{attribute}=%([\w.\-]+)", self.attributes)
        return found[1] if found else ""

    @property
    def bytes(self) -> int:
        """The size of its outputs in bytes."""
        return sum(array.bytes for array in self.outputs)


Computation = Mapping[str, Instruction]


@dataclass(frozen=True)
class Kernel:
    """An instruction that launches work, and what it does in one run of the program."""

    instruction: Instruction
    times: int  # how often the program launches it
    bytes: int  # what one launch reads and writes


@dataclass(frozen=True)
class Program:
    """The computations of a program by name, and the name of the first to run."""

    computations: Mapping[str, Computation]
    entry: str

    def kernels(self) -> list[Kernel]:
        """Returns the kernels in the order of the text, those in loops only once."""
        return list(self._kernels(self.entry, 1))

    def _kernels(self, name: str, times: int) -> Iterator[Kernel]:
        computation = self.computations[name]
        for step in computation.values():
            if step.opcode == "while":
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', step.attributes)
                if not trips:
                    raise ValueError(f"the loop {step.name} has no known trip count")
                yield from self._kernels(step.called("body"), times * int(trips[1]))
            elif step.opcode == "call":
                yield from self._kernels(step.called("to_apply"), times)
            elif step.opcode == "conditional":
                raise ValueError(f"{step.name} is a branch, which may or may not run")
            elif step.opcode not in _NO_KERNEL and not step.opcode.endswith("-done"):
                yield Kernel(step, times, self._bytes_moved(step, computation))

    def _bytes_moved(self, step: Instruction, computation: Computation) -> int:
        """Returns the bytes that an instruction reads and writes.

        Each operand counts once. Of an operand from which a fusion only takes slices
        the slices count, and of an output of which it updates a slice in place the
        slice counts.
        """
        fused = self.computations.get(step.called("calls"), {})
        if step.opcode != "fusion" or not fused:
            operands = set(step.operands)
            return step.bytes + sum(computation[name].bytes for name in operands)
        return _read(fused.values()) + _written(fused)


def _read(fused: Iterable[Instruction]) -> int:
    """Returns the bytes that a fused computation reads from its parameters."""
    steps = list(fused)
    total = 0
    for parameter in steps:
        if parameter.opcode != "parameter":
            continue
        users = [step for step in steps if parameter.name in step.operands]
        if users and all(user.operands[0] == parameter.name for user in users):
            if all(user.opcode in _SLICES for user in users):
                total += sum(user.bytes for user in users)
                continue
            if all(user.opcode == "dynamic-update-slice" for user in users):
                continue
        total += parameter.bytes
    return total


def _written(fused: Computation) -> int:
    """Returns the bytes that a fused computation writes to its outputs."""
    (root,) = (step for step in fused.values() if step.is_root)
    outputs = [fused[x] for x in root.operands] if root.opcode == "tuple" else [root]
    return sum(_written_by(step, fused) for step in outputs)


def _written_by(step: Instruction, fused: Computation) -> int:
    while step.opcode == "bitcast":
        step = fused[step.operands[0]]
    in_place = step.opcode == "dynamic-update-slice"
    return fused[step.operands[1]].bytes if in_place else step.bytes


def parse(text: str) -> Program:
    """Returns the program whose text XLA printed."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head[2]
            computations[name] = {}
            entry = name if head[1] else entry
        elif name and (found := _INSTRUCTION.match(line)):
            step = _instruction(bool(found[1]), found[2], found[3])
            computations[name][step.name] = step
        elif line.startswith("}"):
            name = ""
    if not entry:
        raise ValueError("the text has no ENTRY computation")
    return Program(computations, entry)


def _instruction(is_root: bool, name: str, rest: str) -> Instruction:
    """Parses the part after `name = ` of an instruction's line."""
    rest = re.sub(r"/\*.*?\*/", "", rest)
    end = _closing(rest, 0) if rest[0] == "(" else rest.index(" ")
    outputs, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = _closing(rest, len(opcode))
    operands = _NAME.findall(rest[len(opcode) : end])
    arrays = tuple(
        Array(dtype, _integers(shape), _integers(layout))
        for dtype, shape, layout in _ARRAY.findall(outputs)
    )
    return Instruction(name, opcode, arrays, tuple(operands), rest[end:], is_root)


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
