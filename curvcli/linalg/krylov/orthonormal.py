"""Orthonormal rows from a few long rows of any rank, by nothing but Gram matrices: [k, dim] with dim ≫ k."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.compiling import jit
from curvcli.linalg.krylov.lanczos import breakdown

PASSES = 4
"""At most; two are the rule. Each divides a condition number by up to 1/√eps, and one more cleans up."""

ROUND = 10.0
"""A Gram matrix of unit rows conditioned no worse leaves rows orthonormal to rounding after one pass."""


def orthonormalise(rows: Array) -> tuple[Array, np.ndarray]:
    """Q and L with rows = L Q: [k, dim] -> [r, dim], [k, r], L in float64. The rows given are consumed.

    The first rows of Q are orthonormal, as many as the numerical rank: directions shorter than the breakdown threshold
    are rounding and are given up. The others are zero, as are their columns of L; r is k, or the rank where that is
    at most half of k: every r is another shape to compile products for.

    Notes
    -----
    Of Y Yᵀ = D V Γ Vᵀ D, with D the lengths of the rows, Γ^{-1/2} Vᵀ D⁻¹ Y is orthonormal but for eps times the
    condition number of Γ; so it is done again. Eigenvalues below the rounding of Y Yᵀ are lifted to it, and the next
    pass sees what was behind them. Unlike Cholesky QR nothing fails for dependent rows, and unlike Householder's QR the
    large arrays meet matrix products only.

    Cost: 4 k² dim operations a pass. Memory: one block beside the rows.
    Source: Stathopoulos and Wu (2002), *A block orthogonalization procedure with constant synchronization
    requirements*.
    """
    k, dtype = len(rows), rows.dtype
    floor = k * float(np.finfo(dtype).eps)
    lower = np.eye(k)
    for _ in range(PASSES):
        gram = np.asarray(_gram(rows), np.float64)
        live = np.flatnonzero(np.diag(gram) > 0)
        if not len(live):
            return rows[:0], lower[:, :0]
        lengths = np.sqrt(np.diag(gram)[live])
        values, vectors = np.linalg.eigh(gram[np.ix_(live, live)] / np.outer(lengths, lengths))
        sizes = np.sqrt(np.maximum(values, floor * values[-1]))
        weights = np.zeros((k, k))
        weights[: len(live), live] = vectors.T / lengths / sizes[:, None]
        rows, lower = _transform(jnp.asarray(weights, dtype), rows), lower[:, live] * lengths @ vectors * sizes
        lower = np.pad(lower, ((0, 0), (0, k - len(live))))
        if values[-1] <= ROUND * values[0]:
            break
    u, sigma, wt = np.linalg.svd(lower)
    rank = int(np.sum(sigma > breakdown(max(1.0, sigma[0]), dtype)))
    if rank == k:  # as it nearly always is: no rotation needed
        return rows, lower
    sigma[rank:], wt[rank:] = 0, 0
    width = k if 2 * rank > k else rank
    return _transform(jnp.asarray(wt, dtype), rows)[:width], u[:, :width] * sigma[:width]


@jit
def _gram(rows: Array) -> Array:
    return rows @ rows.T


@jit(donate_argnums=1)
def _transform(weights: Array, rows: Array) -> Array:
    return weights @ rows
