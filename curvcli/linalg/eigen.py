"""Extreme eigenpairs by thick-restart Lanczos, from any Krylov space that exists already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from curvcli.linalg import basis as bases
from curvcli.linalg.basis import Basis
from curvcli.linalg.lanczos import LanczosState, breakdown, normalise, not_finite
from curvcli.linalg.operator import LinearOperator

Array = Any


class KrylovSpace(NamedTuple):
    """V with orthonormal rows, T = V A Vᵀ, and the one direction in which A leads out of the space.

    A Vᵀ = Vᵀ T + β f eᵀ, with f the unit `front` and e the last coordinate (before a restart), so that a Ritz pair
    (θ, Vᵀs) has the residual β |s_last|.
    """

    basis: Basis  # one space: rows [1, j, dim]
    projected: np.ndarray  # T [j, j], float64
    front: Array  # [1, dim]
    outgoing: np.ndarray  # [j], the coefficients of f in A Vᵀ: β e
    norm: float  # a lower estimate of ‖A‖
    invariant: bool
    products: int


class EigenResult(NamedTuple):
    """Approximate eigenpairs, in ascending order."""

    values: np.ndarray  # [r]
    vectors: Array  # [r, dim], orthonormal
    residuals: np.ndarray  # [r], ‖A y − θ y‖ as the recurrence has it
    invariant: bool


@dataclass(frozen=True)
class ThickRestart:
    """The `low` smallest and `high` largest eigenpairs.

    Parameters
    ----------
    low, high
        How many eigenpairs at each end.
    tol
        Residual relative to ‖A‖ at which a pair has converged.
    capacity
        Rows of the basis before it is compressed to the Ritz vectors at both ends.
    max_products
        Products that may be spent.

    Notes
    -----
    All of T is formed from the coefficients that the orthogonalisation removes, so that a restart needs no case of its
    own: what couples the kept Ritz vectors to the new one appears as coefficients.

    Cost: one product a step; memory capacity·dim.
    Source: Wu and Simon (2000), *Thick-restart Lanczos method for large symmetric eigenvalue problems*.
    """

    low: int
    high: int
    tol: float
    capacity: int
    max_products: int
    start: KrylovSpace

    def init(self, operator: LinearOperator, key: Any = None) -> KrylovSpace:
        """The space given."""
        return self.start

    def step(self, operator: LinearOperator, state: KrylovSpace) -> KrylovSpace:
        """One product, after a restart where the basis is full."""
        if state.basis.size >= self.capacity:
            state = compress(state, self._kept())
        basis = bases.append(state.basis, state.front)
        image, removed = bases.orthogonalise(basis, operator.matmat(state.front))
        front, norms = normalise(image)
        column, beta = bases.coefficients(basis, removed)[0], float(norms[0])
        if not (np.isfinite(beta) and np.all(np.isfinite(column))):
            raise not_finite()

        size = basis.size
        projected = np.zeros((size, size))
        projected[:-1, :-1] = state.projected
        projected[-1, :], projected[:, -1] = column, column
        norm = max(state.norm, float(np.hypot(np.linalg.norm(column), beta)))
        invariant = bool(beta <= breakdown(norm, operator.dtype)) or size >= operator.dim
        outgoing = np.zeros(size)
        outgoing[-1] = beta
        return KrylovSpace(basis, projected, front, outgoing, norm, invariant, state.products + 1)

    def done(self, state: KrylovSpace) -> bool:
        """Converged, exhausted, or out of products."""
        return state.invariant or state.products >= self.max_products or self._converged(state)

    def products(self, state: KrylovSpace) -> int:
        """Products spent here; those that built the starting space were counted before."""
        return state.products

    def result(self, state: KrylovSpace) -> EigenResult:
        """The wanted Ritz pairs."""
        values, vectors = np.linalg.eigh(state.projected)
        wanted = self._wanted(len(values))
        rows = bases.combine(state.basis, vectors[:, wanted].T[None])[0]
        return EigenResult(values[wanted], rows, np.abs(state.outgoing @ vectors[:, wanted]), state.invariant)

    def _wanted(self, size: int) -> np.ndarray:
        """Indices of the wanted pairs among `size` ascending ones."""
        return np.unique(np.r_[: min(self.low, size), max(size - self.high, 0) : size].astype(int))

    def _kept(self) -> tuple[int, int]:
        """Ritz vectors kept at each end in a restart: the wanted ones, a margin, and a third at either end.

        Without the other end the large eigenvalues there would have to be found anew after every restart before small
        ones can be told apart.
        """
        room = self.capacity * 3 // 5
        third, wanted = room // 3, max(self.low + self.high, 1)
        low = third + (room - 2 * third) * self.low // wanted
        return max(low, self.low), max(room - low, self.high)

    def _converged(self, state: KrylovSpace) -> bool:
        if state.basis.size < self.low + self.high:
            return False
        values, vectors = np.linalg.eigh(state.projected)
        residuals = np.abs(state.outgoing @ vectors[:, self._wanted(len(values))])
        return bool(np.all(residuals <= self.tol * max(np.abs(values).max(), state.norm)))


def compress(space: KrylovSpace, keep: tuple[int, int]) -> KrylovSpace:
    """The space reduced to its `keep` = (lowest, highest) Ritz vectors: what a thick restart keeps."""
    low, high = keep
    size = space.basis.size
    if low + high >= size:
        return space
    values, vectors = np.linalg.eigh(space.projected)
    kept = np.r_[:low, size - high : size].astype(int)
    rows = bases.combine(space.basis, vectors[:, kept].T[None])  # [1, r, dim]
    basis = bases.EMPTY
    for i in range(len(kept)):
        basis = bases.append(basis, bases.row(rows[0], i))
    return space._replace(basis=basis, projected=np.diag(values[kept]), outgoing=space.outgoing @ vectors[:, kept])


def from_lanczos(state: LanczosState, probe: int) -> KrylovSpace:
    """One of the Krylov spaces that a lockstep Lanczos run has built; needs its basis."""
    size = int(state.sizes[probe]) or state.done_steps
    alpha, beta = state.alphas[probe, :size], state.betas[probe, :size]
    projected = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
    outgoing = np.zeros(size)
    outgoing[-1] = beta[-1]
    # A process that broke down early has zero rows behind its basis: they are cut off here.
    chunks = bases.single(state.basis, probe).chunks[: -(-size // bases.CHUNK)]
    return KrylovSpace(
        Basis(chunks, size), projected, bases.row(state.current, probe), outgoing,
        float(state.norm[probe]), bool(state.sizes[probe]), 0,
    )  # fmt: skip


def from_vector(vector: Array) -> KrylovSpace:
    """The empty space before a start vector [1, dim]."""
    return KrylovSpace(bases.EMPTY, np.zeros((0, 0)), vector, np.zeros(0), 0.0, False, 0)


def true_residuals(operator: LinearOperator, vectors: Array) -> tuple[np.ndarray, np.ndarray]:
    """Rayleigh quotients and residual norms of unit vectors [r, dim].

    Cost: r products, one by one: a product of a single vector is compiled already.
    """
    rows = [bases.row(vectors, i) for i in range(len(vectors))]
    pairs = [_residuals(operator.matmat(row), row) for row in rows]
    values, residuals = (np.array([float(pair[side][0]) for pair in pairs]) for side in (0, 1))
    if not np.all(np.isfinite(values + residuals)):
        raise not_finite()
    return values, residuals


@jax.jit
def _residuals(images: Array, vectors: Array) -> tuple[Array, Array]:
    values = jnp.sum(images * vectors, axis=1) / jnp.sum(jnp.square(vectors), axis=1)
    return values, normalise(images - values[:, None] * vectors)[1]
