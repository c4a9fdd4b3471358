"""What a product moves between devices, read off the compiled programs: nothing runs.

XLA's partitioner decides which collectives a program has; so they are counted where it has decided, in the text of the
optimised program of one device, and not predicted.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from curvcli.curvature.products.programs import product_programs
from curvcli.problem import Problem

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_OPERATION = re.compile(rf"= (?P<type>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
_SHAPE = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')


class Traffic(NamedTuple):
    """Of one product with a block of vectors, on one device."""

    bytes: dict[str, int]  # of the arrays that collectives work on, by kind
    flops: float  # by XLA's own count
    accessed: float  # bytes read and written, likewise


def product_traffic(problem: Problem, name: str, count: int, *, mc_samples: int = 1, seed: int = 0) -> Traffic | None:
    """What one product of this matrix with `count` vectors moves, all batches together; R left out.

    None where no devices share the work, or the matrix is no sum of linearised batches (`ntk`, `kfac`, `ekfac`).
    Linear maps that are kept from product to product are not counted.

    Notes
    -----
    Cost: two compilations.
    """
    made = None
    if problem.batches.mesh is not None:
        made = product_programs(problem, name, count, mc_samples=mc_samples, seed=seed)
    if made is None:
        return None
    parts = [made.apply] * made.times + ([] if problem.way.kept_bytes else [made.linearise])
    return times(sum_of(traffic(one) for one in parts), len(problem.batches))


def traffic(program: Any) -> Traffic:
    """Of one run of a compiled program."""
    cost = program.cost_analysis() or {}
    return Traffic(collective_bytes(program.as_text()), cost.get("flops", 0.0), cost.get("bytes accessed", 0.0))


def sum_of(parts: Iterable[Traffic]) -> Traffic:
    """One after the other."""
    total: Counter[str] = Counter()
    flops = accessed = 0.0
    for part in parts:
        total.update(part.bytes)
        flops, accessed = flops + part.flops, accessed + part.accessed
    return Traffic(dict(total), flops, accessed)


def times(part: Traffic, count: int) -> Traffic:
    """So many times."""
    return Traffic({kind: count * size for kind, size in part.bytes.items()}, count * part.flops, count * part.accessed)


def collective_bytes(text: str) -> dict[str, int]:
    """Bytes by kind of collective in a compiled program's text: those of the whole array that it makes or takes.

    That is the result's size, but for `reduce-scatter` the operand's. What goes over the wire is for the algorithm to
    say: a ring's all-reduce among n devices sends 2 (n − 1)/n of it from each, a gather (n − 1)/n. Loops count as often
    as they run, those of unknown length once.

    Parameters
    ----------
    text
        `compiled.as_text()`.
    """
    bodies: dict[str, list[str]] = {}
    entry, inside = "", None
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            inside = bodies.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        elif inside is not None:
            inside.append(line.strip())
    total: Counter[str] = Counter()
    _count(bodies, entry, 1, total)
    return dict(sorted(total.items()))


def _count(bodies: dict[str, list[str]], name: str, runs: int, total: Counter[str]) -> None:
    for line in bodies.get(name, ()):
        if found := _OPERATION.search(line):
            total[found["kind"]] += runs * _bytes(found, line)
            continue
        trips = _TRIPS.search(line)
        branches = [name for group in _BRANCHES.findall(line) for name in group.replace("%", "").split(", ")]
        for called in [*_CALLED.findall(line), *branches]:
            _count(bodies, called, runs * (int(trips[1]) if trips else 1), total)


def _bytes(found: re.Match[str], line: str) -> int:
    sizes = [_size(*shape) for shape in _SHAPE.findall(found["type"])]
    if found["start"] and found["kind"] == "all-gather":
        sizes = sizes[len(sizes) // 2 :]  # operands, then results
    elif found["start"] and found["kind"] == "collective-permute":
        sizes = sizes[1:2]  # operand, result, two counters
    return sum(sizes) * (_group_size(line) if found["kind"] == "reduce-scatter" else 1)


def _size(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return -(-math.prod(int(length) for length in shape.split(",") if length) * bits // 8)


def _group_size(line: str) -> int:
    """Devices that take part together, in the three ways in which XLA writes them."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(axes[name]) for name in re.findall(r"'(\w+)'", found[2]))
    return 1
