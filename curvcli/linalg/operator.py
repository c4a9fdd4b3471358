"""Symmetric linear operators on blocks of vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from curvcli.devices import on_host
from curvcli.linalg.reductions import combinations


class Known(Protocol):
    """A matrix whose eigenvalues and eigenvectors are there without a product."""

    def eigenvalues(self) -> np.ndarray:
        """All of them, ascending: [dim]."""
        ...

    def eigenvectors(self, places: np.ndarray) -> np.ndarray:
        """Unit vectors [k, dim] of the eigenvalues at these places of that order."""
        ...

    def diagonal_entries(self) -> np.ndarray:
        """The diagonal: [dim]."""
        ...


@dataclass(frozen=True)
class LinearOperator:
    """A symmetric matrix A known by its products.

    Parameters
    ----------
    matmat
        [k, dim] -> [k, dim], the rows of the result being A times the rows given. A host function of jitted pieces.
    dim
        D.
    dtype
        Floating dtype of the products.
    psd
        Whether A is known to be positive semi-definite.
    forms
        [k, dim] -> [k, k], V A Vᵀ of the rows V given; None where it costs no less than products.
    known
        The eigendecomposition, where the matrix has one in closed form.
    mesh
        Devices that share what is kept of size dim.
    by_another
        Makes the same matrix with its products computed by another program, to check this one by; None where there is
        none.
    precise
        The products of the same matrix in float64, [k, dim] -> [k, dim] on the host, where `dtype` is narrower: for
        residuals and for matrices that are written out. None where `matmat` is the most precise product that there is.
    floor
        What the most precise products of unit vectors may be off by however small the matrix is: rounding of terms that
        cancel in it.
    """

    matmat: Callable[[Array], Array]
    dim: int
    dtype: np.dtype
    psd: bool = False
    forms: Callable[[Array], Array] | None = None
    known: Known | None = None
    mesh: Mesh | None = None
    by_another: Callable[[], LinearOperator] | None = None
    precise: Callable[[Array | np.ndarray], np.ndarray] | None = None
    floor: float = 0.0

    def with_products(self, matmat: Callable[[Array], Array], **changed: Any) -> LinearOperator:
        """Another matrix of the same size and place; of it, no more is known than its products."""
        unknown = dict.fromkeys(("forms", "known", "by_another", "precise"))
        return replace(self, matmat=matmat, **{**unknown, **changed})

    def shifted(self, shift: float, **changed: Any) -> LinearOperator:
        """A + shift·I."""
        matmat, precise = self.matmat, self.precise
        exactly = None if precise is None else lambda v: precise(v) + shift * on_host(v).astype(np.float64)
        return self.with_products(lambda v: matmat(v) + shift * v, precise=exactly, **changed)

    def images(self, vectors: Array | np.ndarray) -> np.ndarray:
        """A times vectors [k, dim] in float64 on the host, by the most precise product that there is. k products."""
        if self.precise is not None:
            return self.precise(vectors)
        return on_host(self.matmat(jnp.asarray(vectors, self.dtype))).astype(np.float64)


def dense_operator(matrix: Array, *, psd: bool = False) -> LinearOperator:
    """An explicit symmetric matrix [dim, dim] as an operator."""
    matrix = jnp.asarray(matrix)
    return LinearOperator(lambda vectors: combinations(vectors, matrix), len(matrix), np.dtype(matrix.dtype), psd)


def to_dense(operator: LinearOperator, block: int = 64) -> np.ndarray:
    """The whole matrix, symmetrised, in float64: [dim, dim]. Cost: dim products, memory O(dim²)."""
    matrix = np.empty((operator.dim, operator.dim))
    for start, rows in dense_rows(operator, block):
        matrix[start : start + len(rows)] = rows
    return 0.5 * (matrix + matrix.T)


def dense_rows(operator: LinearOperator, block: int) -> Iterator[tuple[int, np.ndarray]]:
    """Rows of the matrix in blocks of one shape, `(first row, rows)`, in float64: products with unit vectors."""
    for start in range(0, operator.dim, block):
        # Made by numpy, with zero rows past the end: one shape, and no compilation for each offset.
        rows = operator.images(np.eye(block, operator.dim, start, dtype=operator.dtype))
        yield start, rows[: operator.dim - start]
