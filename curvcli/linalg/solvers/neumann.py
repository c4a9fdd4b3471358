"""The Neumann series A⁻¹ = (1/s) Σ_j (I − A/s)^j for A x = b: what LiSSA sums for influence functions.

Slower than conjugate gradients on every positive definite matrix; here to compare with, and for what was published so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.compiling import jit
from curvcli.linalg.iterate import Monitor, iterate
from curvcli.linalg.krylov.lanczos import Lanczos, breakdown, normalise, not_finite
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.probes import sphere
from curvcli.linalg.solvers.solution import Solution, Status, solved

LANCZOS_STEPS = 10
SAFETY = 1.1
"""For the scale: the series converges for s > λ_max / 2, so that Lanczos' estimate may be wrong by nearly as much."""


class NeumannState(NamedTuple):
    """Everything that a step changes."""

    steps: int
    x: Array  # [k, dim], for right-hand sides of norm 1
    term: Array  # [k, dim], (I − A/s)^j b, which is the residual too
    residuals: np.ndarray  # [k], ‖b − A x‖ / ‖b‖ as the recurrence has it
    ended: np.ndarray  # [k], steps after which each system ended; 0 while it runs, −1 for b = 0
    flat: np.ndarray  # [k], whether A is zero within rounding on what is left of b
    lowest: np.ndarray  # [k], the smallest rᵀAr/rᵀr met; inf before
    norm: np.ndarray  # [k], the largest ‖A r‖/‖r‖ met
    products: int


@dataclass(frozen=True)
class Neumann:
    """Partial sums of the Neumann series.

    Parameters
    ----------
    rhs
        b of [k, dim].
    scale
        s.
    tol
        A system has converged when ‖b − A x‖ ≤ tol ‖b‖.
    max_steps
        Terms, at most: one product each.

    Notes
    -----
    The residual after j terms is the next term. Its squared norm is a moment of b's spectral measure, so that the ratio
    of one to the one before never falls: once it is 1 the series diverges for good, and the system ends with the sum so
    far.

    Cost: k products a step. Memory: 3 k dim.
    Source: Agarwal, Bullins and Hazan (2017), *Second-order stochastic optimization for machine learning in
    linear time*.
    """

    rhs: Array
    scale: float
    tol: float
    max_steps: int

    def init(self, operator: LinearOperator, key: Array | None = None) -> NeumannState:
        """x = 0, which solves b = 0."""
        term, norms = normalise(self.rhs)
        nonzero, k = np.asarray(norms) > 0, len(self.rhs)
        return NeumannState(
            0, jnp.zeros_like(term), term, nonzero * 1.0, np.where(nonzero, 0, -1), np.zeros(k, bool),
            np.full(k, np.inf), np.zeros(k), 0,
        )  # fmt: skip

    def step(self, operator: LinearOperator, state: NeumannState) -> NeumannState:
        """One product for each system that runs."""
        running = state.ended == 0
        image, scale = operator.matmat(state.term), jnp.asarray(self.scale, operator.dtype)
        x, term, moved, *measured = _add(state.x, state.term, image, scale, jnp.asarray(running))
        curvature, stretch, following = (np.asarray(one, np.float64) for one in measured)
        if not np.all(np.isfinite(stretch + following)):
            raise not_finite(operator.dtype)
        lowest = np.where(running, np.minimum(state.lowest, curvature), state.lowest)
        norm = np.where(running, np.maximum(state.norm, stretch), state.norm)
        residuals = np.where(np.asarray(moved), following, state.residuals)
        steps, stuck = state.steps + 1, running & ~np.asarray(moved)
        # Where ‖A r‖ ≪ ‖A‖ ‖r‖ a term shortens ‖r‖ by the square of that: it is rounding already below √eps.
        flat = stuck & (stretch <= np.sqrt(breakdown(1.0, operator.dtype)) * norm)
        ended = np.where(running & (stuck | (residuals <= self.tol)), steps, state.ended)
        products = state.products + int(running.sum())
        return NeumannState(steps, x, term, residuals, ended, state.flat | flat, lowest, norm, products)

    def done(self, state: NeumannState) -> bool:
        """All systems have ended, or all terms are added."""
        return bool(np.all(state.ended != 0)) or state.steps >= self.max_steps

    def products(self, state: NeumannState) -> int:
        """Products spent."""
        return state.products

    def result(self, state: NeumannState) -> Solution:
        """The solutions so far, with the residuals of the recurrence."""
        iterations = np.where(state.ended == 0, state.steps, np.maximum(state.ended, 0))
        lowest = np.where(np.isfinite(state.lowest), state.lowest, 0.0)
        negative = lowest < -breakdown(state.norm, self.rhs.dtype)
        status: list[Status] = [
            "converged" if size <= self.tol else "indefinite" if below else "least-squares" if flat else "not-converged"
            for size, below, flat in zip(state.residuals, negative, state.flat, strict=True)
        ]
        x = state.x * (normalise(self.rhs)[1] / self.scale)[:, None]
        return Solution(x, status, state.residuals, iterations, lowest, state.norm)


def safe_scale(operator: LinearOperator, key: Array, monitor: Monitor) -> float:
    """A scale s with which the series converges for positive definite A: λ_max and somewhat more.

    The largest Ritz value of a few Lanczos steps from a random vector, and its residual. Cost: 10 products.
    """
    algorithm = Lanczos(sphere(key, 0, 1, operator.dim, operator.dtype), min(LANCZOS_STEPS, operator.dim))
    state = iterate(algorithm, operator, key, monitor=monitor, stage="scale", planned=LANCZOS_STEPS)
    found = algorithm.result(state)[0]
    values, vectors = found.eigh()
    return SAFETY * float(values[-1] + found.beta[-1] * abs(vectors[-1, -1]))


def solve(
    operator: LinearOperator,
    rhs: Array,
    *,
    tol: float,
    max_steps: int,
    monitor: Monitor,
    scale: float,
    damping: float = 0.0,
) -> Solution:
    """Solve (A + s d I) x = b for rhs [k, dim] by h ← b + (1 − d) h − A h/s, x = h/s, and measure the residuals.

    Parameters
    ----------
    tol
        For the residual relative to b. A system counts as converged if the true one is within twice of it.
    max_steps
        Products for each system, at most.
    scale
        s > 0; see `safe_scale`.
    damping
        d ≥ 0 of LiSSA. Damping that is in A already needs none.

    Returns
    -------
    Solution
        `indefinite`: a residual had negative curvature, in which direction the series diverges; `least-squares`: A is
        zero to rounding on what is left of b; `not-converged`: too few terms, or too small a scale. `lowest` and `norm`
        are of A + s d I.

    Notes
    -----
    Cost: k products a step and k in the end.

    Raises
    ------
    NumericsError
        A product is not finite.
    """
    if damping:
        operator = operator.shifted(scale * damping)
    return solved(Neumann(rhs, scale, tol, max_steps), operator, monitor)


@jit(donate_argnums=(0, 1))
def _add(
    x: Array, term: Array, image: Array, scale: Array, running: Array
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """The sum, the next term, and which systems moved; rᵀAr/rᵀr, ‖A r‖/‖r‖, and the next term's length."""
    size, following = normalise(term)[1], term - image / scale
    length = normalise(following)[1]
    moved = running & (length < size)
    divisor = jnp.where(size > 0, size, 1)
    curvature = jnp.sum(term / divisor[:, None] * (image / divisor[:, None]), axis=1)
    stretch = normalise(image)[1] / divisor
    x = jnp.where(moved[:, None], x + term, x)
    return x, jnp.where(moved[:, None], following, term), moved, curvature, stretch, length
