"""Reads the HLO text of programs compiled for GPUs: the kernels of each loop, and what they move.

A program is a tree of regions: its entry, and the body of every `while` in it. A kernel is an
instruction of a region that runs on the device: a fusion, a library call, a sort, a copy. Those in
the bodies of `call` and `conditional` belong to the region around them. Collectives are counted
apart. The condition of a loop is mostly a kernel of its own; it is not counted, because a loop
whose number of trips is known has none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_FREE |= {"opt-barrier", "partition-id", "replica-id", "add-dependency", "domain"}
_FREE |= {"while", "conditional", "call"}
_COLLECTIVES = {"all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"}
_COLLECTIVES |= {"collective-broadcast", "ragged-all-to-all", "send", "recv"}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
# Operations that read as many entries of their first operand as they return.
_PARTIAL = frozenset(("slice", "dynamic-slice", "gather"))


class Instruction(NamedTuple):
    """One line of an HLO computation; `result` and `attributes` are text.

    The attributes of a parameter are its index.
    """

    name: str
    result: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool


class Region(NamedTuple):
    """The entry of a program, or the body of a loop, without the loops in it.

    Attributes:
      depth: how many loops are around it.
      kernels: the kernels that one trip starts.
      n_read: bytes that these kernels read, from the shapes of their operands.
      n_written: bytes of their results.
      collectives: kind, and bytes of the result, of each collective.
    """

    depth: int
    kernels: list[Instruction]
    n_read: int
    n_written: int
    collectives: list[tuple[str, int]]


def regions(hlo: str) -> list[Region]:
    """The entry of a compiled program, then every loop body in it, outer ones first."""
    computations, entry = _parsed(hlo)
    queue, all_regions = [(entry, 0)], []
    while queue:
        name, depth = queue.pop(0)
        region = Region(depth, [], 0, 0, [])
        for home, instruction in _in_region(name, computations):
            if instruction.opcode == "while":
                queue.append((_called(instruction, "body"), depth + 1))
            kind = _collective(instruction)
            if kind:
                region.collectives.append((kind, n_bytes(instruction.result)))
            elif _is_kernel(instruction):
                n_read, n_written = _moved(instruction, computations[home], computations)
                region.kernels.append(instruction)
                region = region._replace(
                    n_read=region.n_read + n_read, n_written=region.n_written + n_written
                )
        all_regions.append(region)
    return all_regions


def n_bytes(result: str) -> int:
    """Bytes of all arrays in the text of an HLO type."""
    return sum(
        math.ceil(_bits(dtype) * math.prod(int(n) for n in shape.split(",") if n) / 8)
        for dtype, shape in _ARRAY.findall(result)
    )


def workspace(all_regions: Iterable[Region]) -> int:
    """Bytes of the largest scratch memory that a library call asks for, as an array of int8."""
    calls = [k for r in all_regions for k in r.kernels if k.opcode == "custom-call"]
    scratch = [size for call in calls for size in re.findall(r"\bs8\[(\d+)\]", call.result)]
    return max(map(int, scratch), default=0)


def _bits(dtype: str) -> int:
    if dtype == "token":
        return 0
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8  # pred


def _collective(instruction: Instruction) -> str:
    """The kind of a collective, "" for any other instruction and for the end of an async one."""
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in _COLLECTIVES else ""


def _is_kernel(instruction: Instruction) -> bool:
    opcode = instruction.opcode
    return opcode not in _FREE and not opcode.endswith(("-done", "-update"))


def _in_region(
    name: str, computations: dict[str, list[Instruction]]
) -> Iterator[tuple[str, Instruction]]:
    """Every instruction of a region, with the computation in which it is."""
    for instruction in computations.get(name, []):
        yield name, instruction
        if instruction.opcode in ("call", "conditional"):
            branches = _BRANCHES.search(instruction.attributes)
            names = re.findall(r"[\w.\-]+", branches[1]) if branches else []
            for called in names or _CALLED.findall(instruction.attributes):
                yield from _in_region(called, computations)


def _called(instruction: Instruction, attribute: str) -> str:
    match = re.search(rf"\b{attribute}=%?([\w.\-]+)", instruction.attributes)
    return match[1] if match else ""


def _moved(
    kernel: Instruction,
    around: list[Instruction],
    computations: dict[str, list[Instruction]],
) -> tuple[int, int]:
    """Bytes that a kernel reads and writes. What it reads twice counts once."""
    results = {i.name: i.result for i in around}
    fused = computations.get(_called(kernel, "calls"), [])
    n_read = 0
    for index, operand in enumerate(kernel.operands):
        if operand in kernel.operands[:index]:
            continue
        whole = n_bytes(results.get(operand, ""))
        n_read += min(whole, _read_by_fusion(fused, index, whole))
    return n_read, n_bytes(kernel.result)


def _read_by_fusion(fused: list[Instruction], index: int, whole: int) -> int:
    """Bytes of parameter `index` that a fusion reads: of its slices, if only they use it."""
    parameters = {i.attributes: i.name for i in fused if i.opcode == "parameter"}
    name = parameters.get(str(index), "")
    names, n_read = {name}, 0
    for instruction in fused:
        if not names.intersection(instruction.operands):
            continue
        if instruction.opcode == "bitcast":
            names.add(instruction.name)
        elif instruction.opcode in _PARTIAL and instruction.operands[0] in names:
            n_read += n_bytes(instruction.result)
        else:
            return whole
    return n_read if name else whole


def _parsed(hlo: str) -> tuple[dict[str, list[Instruction]], str]:
    """The instructions of every computation, and the name of the entry."""
    computations: dict[str, list[Instruction]] = {}
    entry, instructions = "", []
    for line in hlo.splitlines():
        if header := _HEADER.match(line):
            instructions = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif match := _NAME.match(line):
            instructions.append(_instruction(line[match.end() :], match[2], bool(match[1])))
    return computations, entry


def _instruction(text: str, name: str, is_root: bool) -> Instruction:
    end = _closing(text) + 1 if text.startswith("(") else text.index(" ")
    result, rest = text[:end], text[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    close = _closing("(" + rest) - 1
    arguments, attributes = rest[:close], rest[close + 1 :]
    if opcode == "parameter":
        attributes = arguments  # its index
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(name, result, opcode, operands, attributes, is_root)


def _closing(text: str) -> int:
    """The index of the parenthesis that closes the one at index 0."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return i
    return len(text) - 1
