"""What the solvers of A x = b share: how a system ended, and the residual that its solution truly has."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.devices import on_host
from curvcli.linalg.iterate import Algorithm, Monitor, State, iterate
from curvcli.linalg.krylov.lanczos import normalise, not_finite
from curvcli.linalg.operator import LinearOperator

Status = Literal["converged", "least-squares", "not-converged", "indefinite"]
"""`indefinite`: a direction with pᵀAp < 0 was met by a method that needs A to be positive definite."""


class Solution(NamedTuple):
    """Approximate solutions, and how far they can be trusted."""

    x: Array  # [k, dim]
    status: list[Status]
    residuals: np.ndarray  # [k], ‖b − A x‖ / ‖b‖; 0 for b = 0
    iterations: np.ndarray  # [k]
    lowest: np.ndarray  # [k], the smallest curvature met, an upper bound of λ_min; 0 where none was
    norm: np.ndarray  # [k], a lower estimate of ‖A‖


class Solver(Algorithm[State, Solution], Protocol[State]):
    """An algorithm for right-hand sides [k, dim] of one tolerance."""

    @property
    def rhs(self) -> Array:
        """b."""
        ...

    @property
    def tol(self) -> float:
        """Of ‖b − A x‖ / ‖b‖."""
        ...

    @property
    def max_steps(self) -> int:
        """Products for each, at most."""
        ...


def residual(operator: LinearOperator, rhs: Array, x: Array) -> tuple[Array, np.ndarray]:
    """B − A X [k, dim] and the norms of its rows relative to those of B [k]. Cost: k products.

    By products in float64 where the operator has them: what narrower products lose is then in the residual, and a
    refinement from it solves the system itself.

    Raises
    ------
    NumericsError
        A product is not finite.
    """
    if operator.precise is None:
        left = rhs - operator.matmat(x)
        sizes, norms = (np.asarray(normalise(rows)[1], np.float64) for rows in (left, rhs))
    else:
        exact = on_host(rhs).astype(np.float64)
        difference = exact - operator.precise(x)
        left, sizes, norms = jnp.asarray(difference, rhs.dtype), *(_lengths(rows) for rows in (difference, exact))
    if not np.all(np.isfinite(sizes)):
        raise not_finite(rhs.dtype)
    return left, np.divide(sizes, norms, out=np.zeros_like(sizes), where=norms > 0)


def _lengths(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows, axis=1)


def solved(algorithm: Solver, operator: LinearOperator, monitor: Monitor) -> Solution:
    """Run a solver and measure its residuals: converged only where the true ones are within twice the tolerance.

    Cost: the solver's products, and one each in the end.

    Raises
    ------
    NumericsError
        A product is not finite.
    """
    rhs, planned = algorithm.rhs, algorithm.max_steps * len(algorithm.rhs)
    found = algorithm.result(iterate(algorithm, operator, None, monitor=monitor, stage="solving", planned=planned))
    return with_true_residuals(operator, rhs, found, algorithm.tol)


def with_true_residuals(operator: LinearOperator, rhs: Array, found: Solution, tol: float | np.ndarray) -> Solution:
    """A solution with its true residuals; no longer converged where one is beyond twice the tolerance. k products."""
    residuals = residual(operator, rhs, found.x)[1]
    status: list[Status] = [
        "not-converged" if said == "converged" and size > 2 * limit else said
        for said, size, limit in zip(found.status, residuals, np.broadcast_to(tol, len(residuals)), strict=True)
    ]
    return found._replace(status=status, residuals=residuals)
