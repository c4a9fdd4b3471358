"""Solutions of the systems of `influence` as the report and the journal have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.linalg.solvers.solution import Solution, Status
from curvcli.schema.influence import InfluenceSolve

STATUSES = get_args(Status)


class Solve(NamedTuple):
    """What became of one system."""

    record: InfluenceSolve
    tol: float  # the relative residual asked for
    scored: bool = True  # whether scores are read off its solution; of a Newton step only the decrement is


class Newton(NamedTuple):
    """The Newton step."""

    step: Array  # (C + λI)⁻¹∇J [D]
    record: InfluenceSolve


def records_of(solution: Solution, names: Sequence[str]) -> list[InfluenceSolve]:
    """What became of each system, named."""
    figures = zip(names, solution.status, solution.residuals, solution.iterations, solution.lowest, strict=True)
    return [
        InfluenceSolve(
            of=name,
            status=status,
            residual=float(residual),
            iterations=int(steps),
            lowest_curvature=None if status == "approximate" else float(low),
        )
        for name, status, residual, steps, low in figures
    ]


def packed(solution: Solution) -> np.ndarray:
    """Solutions and their figures as rows of numbers."""
    status = [STATUSES.index(name) for name in solution.status]
    figures = np.column_stack([status, solution.residuals, solution.iterations, solution.lowest, solution.norm])
    return np.hstack([figures, np.asarray(solution.x, np.float64)])


def unpacked(rows: np.ndarray, dtype: Any) -> Solution:
    """The solutions that `packed` made these rows of."""
    status, residuals, iterations, lowest, norm = rows[:, :5].T
    names = [STATUSES[int(number)] for number in status]
    return Solution(jnp.asarray(rows[:, 5:], dtype), names, residuals, iterations.astype(int), lowest, norm)
