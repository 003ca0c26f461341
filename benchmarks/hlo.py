"""Reads the HLO text of compiled programs: copies, and collectives with the loops around them."""

from __future__ import annotations

import math
import re

# How many loops are around a pass of the search in an update: one makes the trip of a fire, one in
# it the new masks, and one in that the passes.
LOOPS_AROUND_A_PASS = 3
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$", re.M)
_COPY = re.compile(r"= (\w+?)\[([\d,]*)\]\S* copy(?:-start)?\(")
_COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
_ITEM_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}


def large_copies(hlo: str, least_entries: int) -> list[str]:
    """Copies of buffers of at least `least_entries` entries that a quiet step makes.

    These are the `copy` instructions in the entry computation and in the computations that it
    calls, except the bodies of `while` and `conditional`: only a fire enters those.
    """
    bodies = _computations(hlo)
    entry = next(name for name, (is_entry, _) in bodies.items() if is_entry)
    visited, copies, queue = set(), [], [entry]
    while queue:
        name = queue.pop()
        if name in visited or name not in bodies:
            continue
        visited.add(name)
        for line in bodies[name][1]:
            if match := _COPY.search(line):
                shape = [int(d) for d in match[2].split(",") if d]
                if math.prod(shape) >= least_entries:
                    copies.append(f"{match[1]}[{match[2]}]")
            if " while(" not in line and " conditional(" not in line:
                queue += re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", line)
    return copies


def _computations(hlo: str) -> dict[str, tuple[bool, list[str]]]:
    """From the name of every computation in an HLO text to (whether it is the entry, its lines)."""
    computations: dict[str, tuple[bool, list[str]]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():
        if (match := _COMPUTATION.match(line)) and "->" in line:
            lines = []
            computations[match[2]] = bool(match[1]), lines
        else:
            lines.append(line)
    return computations


def collectives_in(hlo: str) -> list[tuple[str, int]]:
    """Kind, and bytes of the result, of every collective in the HLO text of a program."""
    collectives = []
    for line in hlo.splitlines():
        if match := _COLLECTIVE.search(line):
            arrays = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", match[1])
            n_bytes = 0
            for dtype, shape in arrays:
                item = 1 if dtype in ("s8", "u8") else _ITEM_BYTES.get(dtype, 4)
                n_bytes += item * math.prod(int(n) for n in shape.split(",") if n)
            collectives.append((match[2], n_bytes))
    return collectives


def lines_with_depth(hlo: str) -> list[tuple[int, str]]:
    """Every line of a compiled program, each with the number of loops around it.

    `LOOPS_AROUND_A_PASS` says which are those of a fire.
    """
    lines: dict[str, list[str]] = {}
    name = entry = ""
    for line in hlo.splitlines():
        if line.endswith("{") and " -> " in line:
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            entry = name if line.startswith("ENTRY ") else entry
        lines.setdefault(name, []).append(line)
    lines_and_depths: list[tuple[int, str]] = []
    queue = [(entry, 0)]
    while queue:
        name, depth = queue.pop()
        for line in lines.pop(name, []):  # every computation has one caller
            lines_and_depths.append((depth, line))
            words = line.replace(",", " ").replace("{", " ").replace("}", " ").split()
            for word in words:
                key, _, called = word.partition("=%")
                inside = key in ("body", "condition")
                if called in lines and (inside or key in ("to_apply", "calls")):
                    queue.append((called, depth + inside))
                elif word.startswith("%") and "branch_computations=" in line:
                    queue += [(word[1:], depth)] * (word[1:] in lines)
    return lines_and_depths
