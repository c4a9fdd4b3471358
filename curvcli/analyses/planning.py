"""How the work is cut: examples in a batch, probes at once; and what that takes, said before it is spent."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from curvcli.curvature import sums
from curvcli.errors import MemoryLimitError
from curvcli.linalg.basis import CHUNK
from curvcli.problem import Batch, Problem
from curvcli.schema.inspect import Plan

BLOCK_BYTES = 32 << 20
"""Intermediate values of one batch times the vectors of a block: about what the caches of a CPU hold. Larger batches
run slower there (measured: 448 to 896 examples are best for a 26,000-parameter network in blocks of 8)."""

MAX_BATCH = 1024
EXPECTED_BLOCK = 8


@dataclass(frozen=True)
class MemoryPlan:
    """Probes in lockstep and the bytes that they take."""

    at_once: int
    bytes: int


def cut(problem: Problem, at_once: int) -> Plan:
    """How the work is cut, for a forecast."""
    batches = problem.batches
    return Plan(
        batch_size=batches.batch_size,
        batches=len(batches),
        padded=len(batches) * batches.batch_size - batches.num_examples,
        resident=batches.nbytes <= sums.RESIDENT_BYTES,
        probes_at_once=at_once,
    )


def with_batch_size(problem: Problem, batch_size: int | None) -> Problem:
    """The problem with batches of this size, or of one chosen from the size of the network's intermediate values.

    A chosen size divides the examples evenly, so that the last batch has little padding.
    """
    total = problem.batches.num_examples
    if batch_size is None:
        per_example = max(activation_bytes(problem), 1)
        fitting = BLOCK_BYTES // (per_example * (EXPECTED_BLOCK + 2))
        largest = int(np.clip(fitting, 1, MAX_BATCH))
        batch_size = -(-total // -(-total // largest))
    return replace(problem, batches=problem.batches.resized(min(batch_size, total)))


def activation_bytes(problem: Problem) -> int:
    """Bytes of all intermediate values of the network for one example, from its jaxpr; nothing is computed."""
    batch = abstract_batch(problem, 1)
    jaxpr = jax.make_jaxpr(problem.predict)(problem.params, problem.frozen, batch.inputs)
    return _intermediate_bytes(jaxpr.jaxpr, {leaf.shape for leaf in problem.params.values()})


def abstract_batch(problem: Problem, batch_size: int) -> Batch:
    """Shapes and dtypes of a batch."""
    batch = next(iter(problem.batches))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype), batch)


def _intermediate_bytes(jaxpr: Any, parameter_shapes: set[tuple[int, ...]]) -> int:
    """Bytes of what a jaxpr computes; transposes and casts of parameters are not counted."""
    total = 0
    for equation in equations(jaxpr):
        for variable in equation.outvars:
            shape = getattr(variable.aval, "shape", None)
            if shape is not None and shape not in parameter_shapes and shape[::-1] not in parameter_shapes:
                total += int(np.prod(shape)) * getattr(variable.aval.dtype, "itemsize", 4)
    return total


def equations(jaxpr: Any) -> Iterator[Any]:
    """The equations of a jaxpr, those of inner jaxprs (jit, loops, custom derivatives) in place of their calls."""
    for equation in jaxpr.eqns:
        inner = inner_jaxprs(equation)
        if not inner:
            yield equation
        for one in inner:
            yield from equations(one)


def inner_jaxprs(equation: Any) -> list[Any]:
    """The jaxprs that an equation calls."""
    values = jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr)
    return [getattr(value, "jaxpr", value) for value in values if _is_jaxpr(value)]


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def plan_lanczos(
    problem: Problem, *, probes: int, steps: int, full: bool, max_memory: int | None, dim: int | None = None
) -> MemoryPlan:
    """As many probes at once as the memory permits, with the bytes of data, batch, products and Krylov bases.

    Parameters
    ----------
    dim
        Rows of the matrix, where they are not the parameters.

    Raises
    ------
    MemoryLimitError
        Not even one probe fits; the hint names a number of steps that does.
    """
    limit = max_memory or int(0.7 * available_bytes())
    dim = problem.dim if dim is None else dim
    vector = dim * problem.dtype.itemsize
    rows = -(-steps // CHUNK) * CHUNK if full else 0
    resident = min(problem.batches.nbytes, sums.RESIDENT_BYTES) + 4 * problem.dim * problem.dtype.itemsize
    batch = problem.batches.batch_size * activation_bytes(problem) + pulled_bytes(problem, dim)

    def needed(count: int) -> int:
        # A block of k vectors: the bases, six blocks in flight in a step, and the tangents of one batch.
        return resident + count * vector * (rows + 6) + (count + 3) * batch

    fitting = _largest(lambda count: needed(count) <= limit, probes)
    if fitting == 0:
        spare = (limit - resident - 4 * batch) // vector - 6
        smaller = spare // CHUNK * CHUNK
        raise MemoryLimitError(
            f"one probe of {steps} steps takes {human_bytes(needed(1))}, the limit is {human_bytes(limit)}",
            f"use --steps {smaller}"
            if smaller >= 2
            else "use --reorthogonalize none, --params, or a smaller --batch-size",
        )
    # Rounds of equal size: a smaller last one would be compiled anew.
    even = -(-probes // -(-probes // fitting))
    return MemoryPlan(even, needed(even))


def pulled_bytes(problem: Problem, dim: int) -> int:
    """Bytes that a vector of the kernel takes on its way through the parameters: a sum, its correction, a term."""
    return 0 if dim == problem.dim else 3 * problem.dim * problem.dtype.itemsize


def plan_vectors(problem: Problem, dim: int, *, rows: int, block: int, max_memory: int | None) -> MemoryPlan:
    """Vectors in a block, beside `rows` vectors of length dim that are kept.

    Raises
    ------
    MemoryLimitError
        Not even blocks of one vector fit.
    """
    limit = max_memory or int(0.7 * available_bytes())
    vector = dim * problem.dtype.itemsize
    resident = min(problem.batches.nbytes, sums.RESIDENT_BYTES) + 4 * problem.dim * problem.dtype.itemsize
    batch = problem.batches.batch_size * activation_bytes(problem) + pulled_bytes(problem, dim)

    def needed(count: int) -> int:
        return resident + (rows + 6 * count) * vector + (count + 3) * batch

    fitting = _largest(lambda count: needed(count) <= limit, block)
    if fitting == 0:
        raise MemoryLimitError(
            f"{rows + 6} vectors of {dim:,} numbers and a batch take {human_bytes(needed(1))}, "
            f"the limit is {human_bytes(limit)}",
            "use fewer --probes, --method hutchinson, a smaller --batch-size, or --params",
        )
    return MemoryPlan(fitting, needed(fitting))


def plan_dense(dim: int, block: int, max_memory: int | None) -> MemoryPlan:
    """The whole matrix in float64 and what its diagonalisation works on.

    Raises
    ------
    MemoryLimitError
        It does not fit.
    """
    limit, needed = max_memory or int(0.7 * available_bytes()), 3 * 8 * dim**2
    if needed > limit:
        raise MemoryLimitError(
            f"the matrix written out ({dim:,} rows) takes {human_bytes(needed)}, the limit is {human_bytes(limit)}",
            "use --method xtrace, or --params for a block of the parameters",
        )
    return MemoryPlan(block, needed)


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest count ≤ most that fits; 0 if none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def available_bytes() -> int:
    """Free memory of the first device, or of the machine where the device is a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min(free, _cgroup_bytes() or free)


def _cgroup_bytes() -> int | None:
    """What the control group leaves free, where it sets a limit."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
        return max(int(limit) - int(used), 0)
    except (OSError, ValueError):
        return None


def human_bytes(count: float) -> str:
    """`1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError
