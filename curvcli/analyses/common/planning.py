"""How many probes at once, and the bytes that an analysis takes: said before they are spent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax

from curvcli.analyses.common.free_memory import available_bytes
from curvcli.curvature.jaxprs.work import network_work
from curvcli.curvature.products import sums
from curvcli.curvature.products.programs import product_programs, room
from curvcli.devices import least, processes
from curvcli.errors import MemoryLimitError
from curvcli.linalg.krylov.basis import CHUNK
from curvcli.problem import Problem
from curvcli.schema.inspect import Forecast
from curvcli.schema.plan import Plan
from curvcli.schema.settings import AnalysisSettings


@dataclass(frozen=True)
class MemoryPlan:
    """Probes in lockstep and the bytes that they take.

    Parameters
    ----------
    basis
        Where a Krylov basis is kept: on the device, in the host's memory, on the disk, or nowhere.
    reason
        Why not on the device.
    capacity
        Rows that a basis may have where the extremes are refined; None: as many as are wanted.
    """

    at_once: int
    bytes: int
    basis: Literal["device", "host", "disk", "none"] = "device"
    reason: str = ""
    capacity: int | None = None


def cut(problem: Problem, at_once: int, memory: MemoryPlan | None = None) -> Plan:
    """How the work is cut, for a forecast; `memory` tells of a Krylov basis."""
    batches = problem.batches
    return Plan(
        batch_size=batches.batch_size,
        batches=len(batches),
        padded=len(batches) * batches.batch_size - batches.num_examples,
        resident=not sums.streams(batches),
        probes_at_once=at_once,
        basis="device" if memory is None else memory.basis,
        reason=(memory.reason or None) if memory else None,
        application=problem.way.application,
        residuals="kept" if problem.way.kept_bytes else "fresh",
        chosen=problem.way.chosen,
    )


RUNTIME_BYTES = {
    "one matrix": (290_000_000, 900_000),
    "step": (270_000_000, 900_000),
    "written out": (330_000_000, 900_000),
    "solves": (390_000_000, 2_800_000),
    "several matrices": (430_000_000, 1_300_000),
}
"""What compilation and compiled programs take beside the arrays, and how much more for each equation of the network's
jaxpr, with which programs grow. More, the more programs there are. Measured on a CPU by `benchmarks/memory.py`."""

IN_FLIGHT = 2
"""Linear maps that are there at once while none is kept: the host is one batch ahead of the device. They count also
where they are kept, which is from the second product on: what the first has freed is not all found again (measured)."""


def forecast(
    problem: Problem,
    *,
    products: int,
    data_passes: int,
    bytes: int,
    seconds: float | None = None,
    programs: Literal["one matrix", "step", "written out", "solves", "several matrices"] = "one matrix",
) -> Forecast:
    """What an analysis will take beyond a bare process; `bytes` are those of its arrays."""
    least, each = RUNTIME_BYTES[programs]
    runtime = least + each * network_work(problem).equations
    return Forecast(
        products=products, data_passes=data_passes, bytes=bytes + runtime, runtime_bytes=runtime, seconds=seconds
    )


def plan_lanczos(
    problem: Problem,
    settings: AnalysisSettings,
    *,
    probes: int,
    steps: int,
    full: bool,
    dim: int | None = None,
    beside: int = 0,
    after: int = 0,
) -> MemoryPlan:
    """As many probes at once as the memory permits, with the bytes of data, batch, products and Krylov bases.

    Parameters
    ----------
    dim
        Rows of the matrix, where they are not the parameters.
    beside, after
        Vectors that are kept beside the bases, and those that are kept after these have been given up.

    Raises
    ------
    MemoryLimitError
        Not even one probe fits; the hint names a number of steps that does.
    """
    limit = memory_limit(settings.max_memory)
    dim = problem.dim if dim is None else dim
    vector = dim * problem.dtype.itemsize
    parts = memories(problem)
    rows, beside, after = (-(-one // parts) for one in (-(-steps // CHUNK) * CHUNK if full else 0, beside, after))
    working = working_bytes(problem, settings, dim)

    def needed(count: int) -> int:
        # A block of k vectors: the bases, and six blocks in flight in a step.
        return vector * (beside + max(count * (rows + 6), after)) + working(count)

    fitting = largest(lambda count: needed(count) <= limit, probes)
    if fitting == 0:
        spare = (limit - working(1)) // vector - 6 - beside if after <= rows + 6 else 0
        smaller = spare // CHUNK * CHUNK
        raise MemoryLimitError(
            f"one probe of {steps} steps takes {human_bytes(needed(1))}, the limit is {human_bytes(limit)}",
            f"use --steps {smaller}"
            if smaller >= 2
            else "use --reorthogonalize none, --params, or a smaller --batch-size",
        )
    count = even(probes, fitting)
    return MemoryPlan(count, needed(count))


def even(probes: int, most: int) -> int:
    """Rounds of equal size: a smaller last one would be compiled anew."""
    return -(-probes // -(-probes // most))


def memories(problem: Problem) -> int:
    """In how many memories the devices of a problem keep what they share: one an accelerator, or one a host."""
    mesh = problem.batches.mesh
    if mesh is None:
        return 1
    return processes() if jax.default_backend() == "cpu" else mesh.size


def memory_limit(max_memory: int | None) -> int:
    """Bytes that may be taken; where several processes compute, in the one that has least, so that all plan alike."""
    return max_memory or int(least(0.7 * available_bytes()))


def working_bytes(problem: Problem, settings: AnalysisSettings, dim: int) -> Callable[[int], int]:
    """Bytes by the vectors in a block, dim being the rows of the matrix: data, weights, and what products take.

    What they take is read off their compiled programs, which are those that will run: for the first block that is asked
    about, others in proportion. So ask about the widest first. Where the matrix has no such programs (`ntk`, factors)
    it is reckoned from the sizes of the network's intermediate values.
    """
    parts = memories(problem)
    data = sums.held_bytes(problem.batches) // parts + 4 * problem.dim * problem.dtype.itemsize
    kept = problem.way.kept_bytes // parts
    if dim != problem.dim:
        reckoned = _reckoned(problem, dim)
        return lambda count: data + kept + reckoned(count)
    # One after the other, or in pieces.
    most = 1 if problem.way.application == "map" else problem.way.width
    found: list[Callable[[int], int]] = []

    def needed(count: int) -> int:
        width = min(count, most)
        if not found:
            found.append(_compiled(problem, settings, width) or _reckoned(problem, dim))
        return data + kept + found[0](width)

    return needed


def _compiled(problem: Problem, settings: AnalysisSettings, width: int) -> Callable[[int], int] | None:
    """What products with a block of vectors take, from their programs for a block of this width."""
    made = product_programs(problem, settings.matrix, width, mc_samples=settings.mc_samples, seed=settings.seed)
    taken = None if made is None else room(made)
    if taken is None:
        return None
    mesh = problem.batches.mesh
    sharing = 1 if mesh is None else mesh.size // memories(problem)  # devices in one memory
    once = min(IN_FLIGHT, len(problem.batches)) * taken.linear + taken.making
    return lambda count: sharing * (once + -(-taken.applying * count // width))


def _reckoned(problem: Problem, dim: int) -> Callable[[int], int]:
    """The same from the sizes of intermediate values."""
    parts = memories(problem)
    # A vector of the kernel goes through the parameters: a sum, its correction, a term.
    pulled = 0 if dim == problem.dim else 3 * problem.dim * problem.dtype.itemsize
    batch = problem.batches.batch_size * network_work(problem).bytes // parts + pulled
    return lambda count: (count + 3) * batch


class Growing(NamedTuple):
    """A setting that the number of vectors kept grows with."""

    hint: str  # what to do about it, `{}` standing for the largest value that fits
    value: int
    each: int  # vectors for 1 of it
    least: int = 1  # the smallest value that makes sense


def plan_vectors(
    problem: Problem,
    settings: AnalysisSettings,
    dim: int,
    *,
    rows: int,
    block: int,
    growing: Growing | None = None,
) -> MemoryPlan:
    """Vectors in a block, beside `rows` vectors of length dim that are kept.

    Raises
    ------
    MemoryLimitError
        Not even blocks of one vector fit; the hint names the largest value of `growing` with which they do.
    """
    limit, working = memory_limit(settings.max_memory), working_bytes(problem, settings, dim)
    vector = dim * problem.dtype.itemsize

    def needed(count: int) -> int:
        return (rows + 6 * count) * vector + working(count)

    fitting = largest(lambda count: needed(count) <= limit, block)
    if fitting == 0:
        raise MemoryLimitError(
            f"{rows + 6} vectors of {dim:,} numbers and a batch take {human_bytes(needed(1))}, "
            f"the limit is {human_bytes(limit)}",
            _fewer(growing, rows - max((limit - working(1)) // vector - 6, 0)) + SMALLER,
        )
    return MemoryPlan(fitting, needed(fitting))


SMALLER = "use a smaller --batch-size, or --params for a block of the parameters"


def _fewer(growing: Growing | None, excess: int) -> str:
    """A hint at the value of a setting with which so many vectors less are kept; empty where there is none."""
    if growing is None:
        return ""
    value = growing.value - -(-excess // growing.each)
    return growing.hint.format(value) + "; or " if value >= growing.least else ""


def plan_dense(dim: int, block: int, max_memory: int | None) -> MemoryPlan:
    """The whole matrix in float64 and what its diagonalisation works on.

    Raises
    ------
    MemoryLimitError
        It does not fit.
    """
    limit, needed = memory_limit(max_memory), 3 * 8 * dim**2
    if needed > limit:
        raise MemoryLimitError(
            f"the matrix written out ({dim:,} rows) takes {human_bytes(needed)}, the limit is {human_bytes(limit)}",
            "use another --method than dense, or --params for a block of at most "
            f"{int((limit / (3 * 8)) ** 0.5):,} parameters",
        )
    return MemoryPlan(block, needed)


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest count ≤ most that fits; 0 if none does."""
    if fits(most):
        return most
    low, high = 0, max(most - 1, 0)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def human_bytes(count: float) -> str:
    """`1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError
