"""Small matrices, written out row by row: exact answers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from curvcli.errors import NumericsError
from curvcli.linalg.iterate import Monitor
from curvcli.linalg.operator import LinearOperator, dense_rows

DENSE_DIM = 1500
"""Below this the whole matrix is cheaper than 10 probes of 80 steps and the refinement, and it is exact."""

DENSE_BLOCK = 64
"""Rows of the matrix that are computed together."""


def rows_written_out(operator: LinearOperator, block: int, monitor: Monitor) -> Iterator[tuple[int, np.ndarray]]:
    """Rows in blocks, `(first row, rows [b, dim])`, in float64. Cost: dim products.

    Raises
    ------
    NumericsError
        An entry is not finite.
    """
    for start, rows in dense_rows(operator, block):
        if not np.all(np.isfinite(rows)):
            raise NumericsError(
                "a product of the matrix is not finite", "check the loss and the data with: curv inspect"
            )
        monitor.progress("writing the matrix out", start + len(rows), operator.dim)
        yield start, rows


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
