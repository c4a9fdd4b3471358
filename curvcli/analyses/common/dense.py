"""Small matrices, written out row by row: exact answers, by products in float64 whatever the arithmetic asked for.

A matrix Jᵀ C J is written out on the side that is smaller: parameters, or outputs of all examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from curvcli.analyses.common import planning
from curvcli.analyses.common.preconditioners import recipe_of
from curvcli.curvature import dimension
from curvcli.curvature.kronecker import kfac
from curvcli.curvature.products.gram import Gram, build_gram, output_rows
from curvcli.errors import NumericsError
from curvcli.linalg.iterate import Monitor, watched
from curvcli.linalg.meter import Meter
from curvcli.linalg.operator import LinearOperator, dense_rows
from curvcli.problem import Problem, in_float64
from curvcli.schema.matrices import MATRICES
from curvcli.schema.settings import AnalysisSettings

DENSE_DIM = 1500
"""Below this the whole matrix is cheaper than 10 probes of 80 steps and the refinement, and it is exact."""

DENSE_BLOCK = 64
"""Rows of the matrix that are computed together."""

FEW = 8

PULLED_BYTES = 256 << 20
"""What the rows of an output side may take on their way through the parameters, unless it is a single one."""


class Side(NamedTuple):
    """The side of a matrix that is written out, and its rows."""

    name: Literal["parameters", "outputs", "factors"]
    rows: int  # that take a product each


class OutputSide(NamedTuple):
    """What the output side tells of A: its nonzero eigenvalues are the kernel's plus the shift."""

    gram: Gram
    kernel: np.ndarray  # [rows, rows]
    diagonal: np.ndarray  # of A, [dim]


def smaller_side(problem: Problem, settings: AnalysisSettings) -> Side:
    """Outputs where they are fewer than the parameters and tell everything; Kronecker factors; else its own rows.

    Raises
    ------
    SpecError
        The matrix needs a likelihood that the loss does not have.
    """
    dim, rows = dimension(problem, settings.matrix), output_rows(problem, settings)
    if MATRICES[settings.matrix].closed_form:
        return Side("factors", 0)
    return Side("parameters", dim) if rows is None or rows >= dim else Side("outputs", rows)


def products_at_once(plan: planning.MemoryPlan, side: Side, *, dense: bool) -> int:
    """Vectors in a block of the matrix's own products, of which an output side needs few."""
    return min(plan.at_once, FEW) if dense and side.name != "parameters" else plan.at_once


def plan_outputs(problem: Problem, settings: AnalysisSettings, rows: int) -> planning.MemoryPlan:
    """Rows of an output side at once, and the bytes: the kernel, its diagonalisation, vectors of parameters in flight.

    Raises
    ------
    MemoryLimitError
        It does not fit.
    """
    whole = planning.plan_dense(rows, 1, settings.max_memory).bytes
    itemsize = 8  # float64 whatever the arithmetic asked for
    block = int(np.clip(PULLED_BYTES // (4 * problem.dim * itemsize), 1, min(DENSE_BLOCK, rows)))
    held = -(-(whole + 16 * problem.dim) // (rows * problem.dtype.itemsize))
    return planning.plan_vectors(problem, settings, rows, rows=held, block=block)


def factor_rows(problem: Problem, recipe: kfac.Recipe) -> int:
    """The bytes of Kronecker factors, and of what they are made of, as vectors of parameters."""
    return -(-kfac.held_bytes(problem, recipe) // (problem.dim * problem.dtype.itemsize))


def plan_factors(
    problem: Problem, settings: AnalysisSettings, *, rows: int = FEW, block: int = FEW
) -> planning.MemoryPlan:
    """What a factored matrix takes, and beside it so many vectors: its eigenvalues, and what is asked for.

    Raises
    ------
    MemoryLimitError
        They do not fit.
    """
    rows += factor_rows(problem, recipe_of(settings))
    return planning.plan_vectors(problem, settings, problem.dim, rows=rows, block=block)


def outputs_written_out(
    problem: Problem, settings: AnalysisSettings, block: int, monitor: Monitor, meter: Meter
) -> OutputSide:
    """The output side of the matrix that was asked for. Cost: a product a row.

    Raises
    ------
    NumericsError
        An entry is not finite.
    """
    with jax.enable_x64(True):
        gram = build_gram(in_float64(problem), settings)
        kernel, diagonal = np.empty((gram.rows, gram.rows)), np.full(problem.dim, gram.shift)
        blocks = gram.blocks(block)
        stage = "writing the outputs' side out"
        for start, rows, squares in watched(blocks, monitor, stage, gram.rows, size=_rows_of, least=None):
            _check_finite(rows)
            kernel[start : start + len(rows)] = rows
            diagonal += squares
            meter.products += len(rows)
            meter.data_passes += 1
    return OutputSide(gram, 0.5 * (kernel + kernel.T), diagonal)


def rows_written_out(operator: LinearOperator, block: int, monitor: Monitor) -> Iterator[tuple[int, np.ndarray]]:
    """Rows in blocks, `(first row, rows [b, dim])`, in float64. Cost: dim products.

    Raises
    ------
    NumericsError
        An entry is not finite.
    """
    blocks, stage = dense_rows(operator, block), "writing the matrix out"
    for start, rows in watched(blocks, monitor, stage, operator.dim, size=_rows_of, least=None):
        _check_finite(rows)
        yield start, rows


def _rows_of(block: tuple[Any, ...]) -> int:
    """How many rows are in a block of them, which follow the number of the first."""
    return len(block[1])


def _check_finite(rows: np.ndarray) -> None:
    if not np.all(np.isfinite(rows)):
        raise NumericsError("a product of the matrix is not finite", "check the loss and the data with: curv inspect")


def written_out(operator: LinearOperator, block: int, monitor: Monitor) -> np.ndarray:
    """The whole matrix, symmetrised: [dim, dim]. Raises as `rows_written_out`."""
    matrix = np.empty((operator.dim, operator.dim))
    for start, rows in rows_written_out(operator, block, monitor):
        matrix[start : start + len(rows)] = rows
    return 0.5 * (matrix + matrix.T)


def diagonal_of(start: int, rows: np.ndarray) -> np.ndarray:
    """The diagonal entries that rows start, start + 1, … hold: [b]."""
    index = np.arange(len(rows))
    return rows[index, start + index]
