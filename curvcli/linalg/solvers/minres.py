"""MINRES for A x = b: symmetric A, possibly indefinite or singular, k right-hand sides in lockstep.

Each right-hand side has a Lanczos process of its own; all share the products of a step. What comes back says how each
system ended: a number without its status is no answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import Array

from curvcli.compiling import jit
from curvcli.linalg.iterate import Monitor
from curvcli.linalg.krylov.lanczos import Lanczos, LanczosState, breakdown, normalise
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.reductions import nonzero_rows
from curvcli.linalg.solvers.solution import Solution, Status, solved


class MinresState(NamedTuple):
    """Everything that a step changes."""

    lanczos: LanczosState
    x: Array  # [k, dim], for right-hand sides of norm 1
    w: Array  # [k, dim], the direction of the last update
    w_before: Array  # [k, dim]
    cosine: np.ndarray  # [k], of the last rotation
    sine: np.ndarray  # [k]
    diagonal: np.ndarray  # [k], δ̄: what the last rotation left for the next step
    above: np.ndarray  # [k], ε: the same, two places above
    residual: np.ndarray  # [k], ‖b − A x‖ / ‖b‖ as the recurrence has it
    ended: np.ndarray  # [k], steps after which each system ended; 0 while it runs
    stationary: np.ndarray  # [k], whether it ended because A r = 0 within the tolerance


@dataclass(frozen=True)
class Minres:
    """Minimum residuals over growing Krylov spaces.

    Parameters
    ----------
    rhs
        b of [k, dim].
    tol
        A system has converged when ‖b − A x‖ ≤ tol ‖b‖; it has ended as a least-squares problem when
        ‖A r‖ ≤ tol ‖A‖ ‖r‖ first: what is left of b lies where A is zero within the tolerance.
    max_steps
        Steps, at most: one product for each system that runs.
    reorthogonalize
        As for Lanczos; `full` keeps a basis of max_steps·k rows.

    Notes
    -----
    ‖r‖ falls monotonically, whatever the signs of A's eigenvalues; conjugate gradients may divide by pᵀAp = 0 there. An
    inconsistent system ends at a least-squares solution, not the shortest one.

    Cost: k products a step, memory 6 k dim.
    Source: Paige and Saunders (1975), *Solution of sparse indefinite systems of linear equations*; the stop at A r = 0:
    Choi, Paige and Saunders (2011), *MINRES-QLP*.
    """

    rhs: Array
    tol: float
    max_steps: int
    reorthogonalize: Literal["full", "none"] = "none"

    def _process(self) -> Lanczos:
        return Lanczos(normalise(self.rhs)[0], self.max_steps, self.reorthogonalize)

    def init(self, operator: LinearOperator, key: Array | None = None) -> MinresState:
        """x = 0; a right-hand side of zero is solved."""
        k, zero = len(self.rhs), jnp.zeros_like(self.rhs)
        lanczos = self._process().init(operator)
        solved = ~np.asarray(nonzero_rows(self.rhs))
        lanczos = lanczos._replace(sizes=solved.astype(int))
        return MinresState(
            lanczos, zero, zero, zero, -np.ones(k), np.zeros(k), np.zeros(k), np.zeros(k),
            np.where(solved, 0.0, 1.0), solved.astype(int), np.zeros(k, bool),
        )  # fmt: skip

    def step(self, operator: LinearOperator, state: MinresState) -> MinresState:
        """One product for each system that runs, one rotation of its tridiagonal matrix."""
        lanczos = self._process().step(operator, state.lanczos)
        running = state.ended == 0
        broken = running & (lanczos.sizes > 0)
        alpha, beta = lanczos.alphas[:, -1], np.where(broken, 0.0, lanczos.betas[:, -1])
        # The rotation before is applied to the new column (…, β_j, α_j, β_{j+1}) of T.
        upper = state.cosine * state.diagonal + state.sine * alpha
        corner = state.sine * state.diagonal - state.cosine * alpha
        above, diagonal = state.sine * beta, -state.cosine * beta
        # ‖A r‖ of the residual before this step, in units of ‖r‖.
        slope = np.hypot(corner, diagonal)
        flat = running & (slope <= np.maximum(self.tol * lanczos.norm, breakdown(lanczos.norm, operator.dtype)))
        moving = running & ~flat
        length = np.where(moving, np.hypot(corner, beta), 1.0)
        # Systems that have ended get no further: their numbers would grow beyond all floats.
        corner, beta, upper, above, diagonal = (
            np.where(moving, one, 0.0) for one in (corner, beta, upper, above, diagonal)
        )
        cosine, sine = corner / length, beta / length
        residual = np.where(moving, sine * state.residual, state.residual)
        phi = np.where(moving, cosine * state.residual, 0.0)
        scalars = np.stack([state.above, upper, 1 / length, phi])
        x, w = _update(state.x, state.w, state.w_before, lanczos.previous, jnp.asarray(scalars, operator.dtype), moving)
        ended = running & (flat | broken | (residual <= self.tol))
        ended = np.where(ended, lanczos.done_steps, state.ended)
        lanczos = lanczos._replace(sizes=ended)
        return MinresState(
            lanczos, x, w, state.w, cosine, sine, diagonal, above, residual, ended, state.stationary | flat
        )

    def done(self, state: MinresState) -> bool:
        """All systems have ended, or all steps are made."""
        return bool(np.all(state.ended > 0)) or state.lanczos.done_steps >= self.max_steps

    def products(self, state: MinresState) -> int:
        """Products spent."""
        return state.lanczos.products

    def result(self, state: MinresState) -> Solution:
        """The solutions so far, with the residuals of the recurrence."""
        norms = normalise(self.rhs)[1]
        status: list[Status] = [
            "converged" if residual <= self.tol else "least-squares" if flat else "not-converged"
            for residual, flat in zip(state.residual, state.stationary, strict=True)
        ]
        iterations = np.where(state.ended > 0, state.ended, state.lanczos.done_steps)
        iterations = np.where(np.asarray(norms) > 0, iterations, 0)
        lowest = np.array([_lowest(state.lanczos, i, m) for i, m in enumerate(iterations)])
        return Solution(state.x * norms[:, None], status, state.residual, iterations, lowest, state.lanczos.norm)


def solve(
    operator: LinearOperator,
    rhs: Array,
    *,
    tol: float,
    max_steps: int,
    monitor: Monitor,
    reorthogonalize: Literal["full", "none"] = "none",
) -> Solution:
    """Solve A x = b for rhs [k, dim] and measure the residuals that the solutions truly have.

    A system counts as converged only if its true residual is within twice the tolerance.

    Notes
    -----
    Cost: k products a step and k in the end.

    Raises
    ------
    NumericsError
        A product is not finite.
    """
    return solved(Minres(rhs, tol, max_steps, reorthogonalize), operator, monitor)


def _lowest(lanczos: LanczosState, index: int, size: int) -> float:
    """The smallest Ritz value of one process; 0 before its first step."""
    if not size:
        return 0.0
    alpha, beta = lanczos.alphas[index, :size], lanczos.betas[index, : size - 1]
    values: Any = scipy.linalg.eigh_tridiagonal(alpha, beta, eigvals_only=True, select="i", select_range=(0, 0))
    return float(values[0])


@jit
def _update(x: Array, w: Array, w_before: Array, v: Array, scalars: Array, moving: Array) -> tuple[Array, Array]:
    """The next direction and x moved along it: [k, dim] each; systems that have ended stay."""
    above, upper, inverse, phi = (scalars[i][:, None] for i in range(4))
    direction = (v - above * w_before - upper * w) * inverse
    direction = jnp.where(moving[:, None], direction, w)
    return x + phi * direction, direction
