"""Where a Krylov basis is kept: on the device, outside of it where it does not fit, or nowhere."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import jax

from curvcli.analyses.common.free_memory import free_host_bytes
from curvcli.analyses.common.planning import (
    MemoryPlan,
    even,
    human_bytes,
    largest,
    memory_limit,
    plan_lanczos,
    working_bytes,
)
from curvcli.errors import MemoryLimitError
from curvcli.linalg.krylov.basis import CHUNK
from curvcli.linalg.krylov.offload import Store
from curvcli.linalg.krylov.slq import KEPT, OUTLIERS_IN_ALL, OUTLIERS_PER_PROBE
from curvcli.problem import Problem
from curvcli.schema.spectrum import SpectrumSettings

LEAST_ROWS = 8
"""Of a basis that refines an extreme."""

WORDS = {
    "host": "the Krylov basis is kept in the host's memory",
    "disk": "the Krylov basis is kept on the disk",
    "none": "the run goes without reorthogonalisation (--reorthogonalize none), which makes copies of eigenvalues "
    "among the nodes and leaves the quadrature valid",
}


def plan(
    problem: Problem, settings: SpectrumSettings, *, probes: int, steps: int, deflate: bool, dim: int
) -> MemoryPlan:
    """Fewer probes at once; if not one fits, the basis outside of the device; if there is no room, none where `auto`.

    Parameters
    ----------
    settings
        With `state`, the folder where a basis on the disk would be.
    deflate
        Whether outlying Ritz vectors are kept.

    Raises
    ------
    MemoryLimitError
        None of these fits.
    """
    if settings.reorthogonalize == "none":
        return _without(problem, settings, probes, steps, dim)
    # Low and high end are kept, then one of them is refined, and compressed to three fifths where its basis is full.
    outliers = min(OUTLIERS_PER_PROBE * probes, OUTLIERS_IN_ALL) if deflate else 0
    ends, refining = 2 * _whole(3 * KEPT // 2), _refining(2 * KEPT + steps)
    ends, refining = (0, 0) if steps >= dim else (ends, refining)
    try:
        return plan_lanczos(
            problem, settings, probes=probes, steps=steps, full=True, dim=dim,
            beside=outliers, after=ends + refining,
        )  # fmt: skip
    except MemoryLimitError as error:
        outside = _outside(problem, settings, probes, steps, dim, outliers + ends + refining)
        if outside is None and settings.reorthogonalize == "auto":
            outside = _without(problem, settings, probes, steps, dim)
        if outside is None:
            raise
        return replace(outside, reason=f"{error.message}: {WORDS[outside.basis]}")


def store(found: MemoryPlan, state: str | None) -> Store | None:
    """Where the plan keeps the basis."""
    return {"host": Store(), "disk": Store(_folder(state))}.get(found.basis)


def _outside(
    problem: Problem, settings: SpectrumSettings, probes: int, steps: int, dim: int, kept: int
) -> MemoryPlan | None:
    """Two chunks at a time on the device, where the disk (on accelerators, the host) has the room for all.

    Not where devices share the basis.
    """
    if problem.batches.mesh is not None:
        return None
    vector, working = dim * problem.dtype.itemsize, working_bytes(problem, settings, dim)
    limit = memory_limit(settings.max_memory)
    on_disk = jax.default_backend() == "cpu"
    room = shutil.disk_usage(_folder(settings.state)).free if on_disk else free_host_bytes()

    def needed(count: int) -> int:
        return count * vector * (6 + 2 * CHUNK) + working(count)

    def fits(count: int) -> bool:
        return needed(count) <= limit and vector * (count * _whole(steps) + kept) <= 0.8 * room

    most = largest(fits, probes)
    if not most:
        return None
    return MemoryPlan(even(probes, most), needed(even(probes, most)), "disk" if on_disk else "host")


def _without(problem: Problem, settings: SpectrumSettings, probes: int, steps: int, dim: int) -> MemoryPlan:
    """No basis but those that refine the extremes, as large as fits.

    Raises
    ------
    MemoryLimitError
        The smallest does not fit.
    """
    vector, working = dim * problem.dtype.itemsize, working_bytes(problem, settings, dim)
    limit = memory_limit(settings.max_memory)
    spare = (limit - working(1)) // vector - 6
    capacity = largest(lambda rows: _refining(rows) <= spare, 2 * KEPT + steps)
    if capacity < LEAST_ROWS:
        takes = vector * (_refining(LEAST_ROWS) + 6) + working(1)
        raise MemoryLimitError(
            f"{_refining(LEAST_ROWS) + 6} vectors of {dim:,} numbers and a batch take {human_bytes(takes)}, "
            f"the limit is {human_bytes(limit)}",
            "use --params for a block of the parameters, or a smaller --batch-size",
        )
    found = plan_lanczos(problem, settings, probes=probes, steps=steps, full=False, dim=dim, after=_refining(capacity))
    return replace(found, basis="none", capacity=capacity)


def _refining(capacity: int) -> int:
    """Rows of a basis that is compressed when it is full, and of what it is compressed to."""
    return _whole(capacity) + _whole(capacity) * 3 // 5 + CHUNK


def _whole(rows: int) -> int:
    """Rows of whole chunks."""
    return -(-rows // CHUNK) * CHUNK


def _folder(state: str | None) -> Path:
    return Path(tempfile.gettempdir() if state is None else state)
