"""Block conjugate gradients for A X = B: symmetric positive definite A, all right-hand sides in one Krylov space.

An outlying eigenvalue is found once for all of them, where conjugate gradients one by one find it for each. The
residuals are kept as R = C Q with orthonormal rows Q, so that nothing depends on how nearly dependent they become.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from curvcli.compiling import jit
from curvcli.linalg.cutting import cut, cut_operator, through, whole
from curvcli.linalg.iterate import Monitor, Offset, iterate
from curvcli.linalg.krylov.lanczos import breakdown, normalise, not_finite
from curvcli.linalg.krylov.orthonormal import orthonormalise
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.solvers.solution import Solution, Status, residual, with_true_residuals

Root = Callable[[Array], Array]
"""M^{-1/2}, symmetric, of a preconditioner M ≈ A: [k, dim] -> [k, dim]."""
Each = Callable[[int, Array], None]
"""Told the steps done and x [k, dim]."""

HOPELESS = 0.01
"""Systems end whose residual working precision cannot bring below this part of the right-hand side."""

REFINEMENTS = 4
"""Restarts from the true residual, at most."""


class CgState(NamedTuple):
    """Everything that a step changes."""

    steps: int
    x: Array  # [k, dim]
    q: Array  # [r, dim], orthonormal or zero rows: N R = C Q, where N is the preconditioner's root or I
    p: Array  # [r, dim], the search directions
    left: Array | None  # [k, dim], R; None where it is C Q
    c: np.ndarray  # [k, r]; zero for systems that have ended
    start: np.ndarray  # [k], ‖b‖
    residuals: np.ndarray  # [k], ‖b − A x‖ as the recurrence has it
    ended: np.ndarray  # [k], steps after which each system ended; 0 while it runs
    lowest: float  # the smallest pᵀAp/pᵀp met, of those beyond rounding; inf before
    norm: float  # a lower estimate of ‖A‖
    halted: bool  # whether no direction is left to move along
    indefinite: bool
    products: int


@dataclass(frozen=True)
class BlockCg:
    """Block conjugate gradients from x = 0.

    Parameters
    ----------
    rhs
        B of [k, dim], of any rank.
    targets
        [k]: a system has converged when ‖b − A x‖ is at most this. It is not updated from then on, though its
        directions stay in the block. It also ends, unconverged, where ‖r‖ ≤ eps ‖A‖ ‖x‖: the true residual can follow
        the recurrence's no further. ‖x‖ grows on the way (Hestenes and Stiefel 1952, theorem 6:3); where
        eps ‖A‖ ‖x‖ > ‖b‖/100 nothing can come of it any more.
    max_steps
        Steps, at most.
    root
        N = M^{-1/2}: the systems solved are N A N y = N b. Directions, x and residuals are those of the original.
    each
        Called after every step; x is the state's own, and the next step overwrites it.

    Notes
    -----
    One step, vectors being rows: T = P A; X += C (P Tᵀ)⁻¹ P; L Q' = Q − (P Tᵀ)⁻¹ T; P' = Q' + Lᵀ P; C' = C L. All small
    matrices are float64 on the host. P Tᵀ is inverted in directions orthonormal in R^dim, and only along those where
    the curvature is beyond rounding.

    Where Q − (P Tᵀ)⁻¹ T is numerically dependent the block gets narrower: nothing random takes the place. Systems that
    have ended are not deflated that way: conjugacy to the space already built would be lost with them.

    Cost: r products a step, 14 to 22 k² dim operations. Memory: X, Q, P and T, and one more block while one of them is
    updated; R with a root.
    Source: Dubrulle (2001), *Retooling the method of block conjugate gradients*, algorithm BCGrQ; O'Leary (1980).
    """

    rhs: Array
    targets: np.ndarray
    max_steps: int
    root: Root | None = None
    each: Each | None = None

    def init(self, operator: LinearOperator, key: Array | None = None) -> CgState:
        """x = 0; a right-hand side within its target is solved."""
        unit, norms = normalise(self.rhs)
        norms = np.asarray(norms, np.float64)
        running = norms > self.targets
        unit = unit * jnp.asarray(running[:, None], unit.dtype)
        hat = unit if self.root is None else self.root(unit)
        hat, lengths = normalise(hat)
        q, lower = orthonormalise(hat)
        c = (norms * np.asarray(lengths, np.float64))[:, None] * lower
        p = jnp.array(q) if self.root is None else self.root(q)
        left = None if self.root is None else jnp.array(self.rhs)
        return CgState(
            0, jnp.zeros_like(self.rhs), q, p, left, c, norms, norms, np.where(running, 0, -1),
            np.inf, 0.0, not len(q), False, 0,
        )  # fmt: skip

    def step(self, operator: LinearOperator, state: CgState) -> CgState:
        """One product for each direction."""
        eps = float(np.finfo(operator.dtype).eps)
        image = operator.matmat(state.p)
        forms, gram, stretch = (np.asarray(one, np.float64) for one in _forms(state.p, image))
        if not np.all(np.isfinite(forms)):
            raise not_finite(operator.dtype)
        curvature, directions, rounding = _curvatures(forms, gram, eps)
        norm = max(state.norm, float(stretch.max()), float(np.abs(curvature).max(initial=0.0)))
        rounding = rounding * norm
        known = np.abs(curvature) > rounding
        lowest = min(state.lowest, float(curvature[known].min(initial=np.inf)))
        negative = not operator.psd and bool(np.any(curvature < -breakdown(1.0, operator.dtype) / eps * rounding))
        movable = curvature > rounding
        steps, products = state.steps + 1, state.products + len(state.p)
        if negative or not np.any(movable):
            return state._replace(
                steps=steps, lowest=lowest, norm=norm, halted=True, indefinite=negative, products=products
            )
        alpha = directions[:, movable] / curvature[movable] @ directions[:, movable].T
        along = jnp.asarray(state.c @ alpha, operator.dtype)
        x, sizes = _advance(state.x, along, state.p)
        hat = image if self.root is None else self.root(image)
        q, lower = orthonormalise(_advance(state.q, jnp.asarray(-alpha, operator.dtype), hat)[0])
        c, left = state.c @ lower, state.left
        residuals, running = np.linalg.norm(c, axis=1), state.ended == 0
        if left is not None:
            left, lengths = _advance(left, -along, image)
            residuals = np.asarray(lengths, np.float64)
        residuals = np.where(running, residuals, state.residuals)
        reachable = eps * norm * np.asarray(sizes, np.float64)
        over = (residuals <= np.maximum(self.targets, reachable)) | (reachable > HOPELESS * state.start)
        ended = np.where(running & over, steps, state.ended)
        c[ended != 0] = 0
        p = _directions(q if self.root is None else self.root(q), jnp.asarray(lower.T, operator.dtype), state.p)
        if self.each is not None:
            self.each(steps, x)
        return CgState(
            steps, x, q, p, left, c, state.start, residuals, ended, lowest, norm, not len(q), False, products,
        )  # fmt: skip

    def done(self, state: CgState) -> bool:
        """All systems have ended, no direction is left, or all steps are made."""
        return bool(np.all(state.ended != 0)) or state.halted or state.steps >= self.max_steps

    def products(self, state: CgState) -> int:
        """Products spent."""
        return state.products

    def said(self, state: CgState) -> str:
        """The largest residual relative to its right-hand side, and how many systems run on."""
        start = np.where(state.start > 0, state.start, 1.0)
        return f"residual {np.max(state.residuals / start):.1e}, {int(np.sum(state.ended == 0))} to go"

    def result(self, state: CgState) -> Solution:
        """The solutions so far, with the residuals of the recurrence."""
        otherwise: Status = "indefinite" if state.indefinite else "not-converged"
        status: list[Status] = [
            "converged" if size <= target else otherwise
            for size, target in zip(state.residuals, self.targets, strict=True)
        ]
        iterations = np.where(state.ended == 0, state.steps, np.maximum(state.ended, 0))
        k, lowest = len(self.rhs), state.lowest if np.isfinite(state.lowest) else 0.0
        return Solution(state.x, status, state.residuals, iterations, np.full(k, lowest), np.full(k, state.norm))


def solve(
    operator: LinearOperator,
    rhs: Array,
    *,
    tol: float | np.ndarray,
    max_steps: int,
    monitor: Monitor,
    root: Root | None = None,
    each: Each | None = None,
) -> Solution:
    """Solve A x = b for rhs [k, dim]; residuals are measured, and what they lack of the tolerance is solved for again.

    Parameters
    ----------
    tol
        For ‖b − A x‖ / ‖b‖, one for all or [k]. A system counts as converged if its true residual is within twice the
        tolerance.
    max_steps
        Steps at most, restarts included.
    root
        A preconditioner's M^{-1/2}: a symmetric linear map of blocks of vectors.
    each
        Called after every step, with the steps done and x [k, dim].

    Returns
    -------
    Solution
        `lowest` and `norm` are of the whole block. `indefinite`: negative curvature beyond rounding was met, and the
        minimum that is sought does not exist; x is what was found before. What working precision attains is
        ‖r‖ ~ eps ‖A‖ ‖x‖: a system that gets there first is `not-converged`, and no products are spent on the rest. So
        is one without solution (A singular), for which `minres` finds the least squares.

    Notes
    -----
    The recurrence's residual drifts from the true one by rounding. A restart begins with the true one and corrects x
    (iterative refinement), as long as this halves some residual and the tolerance is not below what is attainable.

    Cost: at most k products a step, and k for each measuring of the residuals: one, and one a restart. Memory: that of
    `BlockCg`, B, and in restarts x and the residuals.
    Source: as for `BlockCg`; what limits the accuracy: van der Vorst and Ye (2000), *Residual replacement strategies*.

    Raises
    ------
    NumericsError
        A product is not finite.
    """
    if operator.mesh is not None:
        return _solve_cut(operator, operator.mesh, rhs, tol, max_steps, monitor, root, each)
    eps, k, x = float(np.finfo(operator.dtype).eps), len(rhs), jnp.zeros_like(rhs)
    norms = np.asarray(normalise(rhs)[1], np.float64)
    left, relative, targets = rhs, np.where(norms > 0, 1.0, 0.0), tol * norms
    iterations, steps, products, lowest, norm = np.zeros(k, int), 0, 0, np.inf, 0.0
    indefinite = False
    for _ in range(1 + REFINEMENTS):
        told = None if each is None else partial(_told, each, steps, x)
        algorithm = BlockCg(left, targets, max_steps - steps, root, told)
        state = iterate(
            algorithm, operator, None, monitor=Offset(monitor, products), stage="solving", planned=max_steps * k
        )
        iterations = np.where(state.ended >= 0, steps + algorithm.result(state).iterations, iterations)
        tried, state = x + state.x, state._replace(x=None, q=None, p=None, left=None)
        again, measured = residual(operator, rhs, tried)
        steps, products = steps + state.steps, products + state.products + k
        lowest, norm, indefinite = min(lowest, state.lowest), max(norm, state.norm), state.indefinite
        cut = indefinite or not (state.halted or np.all(state.ended != 0))
        # Stopped on the way, x is nearer to the solution, be its residual larger; not so where rounding has its say.
        rounding = eps * norm * np.asarray(normalise(tried)[1], np.float64)
        better = (measured < relative) | (cut & (relative == 1) & (rounding <= tol * norms))
        halved = measured <= relative / 2
        x, left = (jnp.where(jnp.asarray(better)[:, None], new, old) for new, old in ((tried, x), (again, left)))
        relative = np.where(better, measured, relative)
        wanting = (relative > 2 * tol) & (rounding <= tol * norms)
        if cut or steps >= max_steps or not np.any(wanting & halved):
            break
        targets = np.where(wanting, tol * norms, np.inf)
    otherwise: Status = "indefinite" if indefinite else "not-converged"
    status: list[Status] = ["converged" if met else otherwise for met in relative <= 2 * np.asarray(tol)]
    lowest = lowest if np.isfinite(lowest) else 0.0
    return Solution(x, status, relative, iterations, np.full(k, lowest), np.full(k, norm))


def _solve_cut(
    operator: LinearOperator,
    mesh: Mesh,
    rhs: Array,
    tol: float | np.ndarray,
    max_steps: int,
    monitor: Monitor,
    root: Root | None,
    each: Each | None,
) -> Solution:
    """`solve` with all blocks cut along dim across devices; the residuals measured at last are those of whole rows."""
    dim = operator.dim
    found = solve(
        cut_operator(operator), cut(mesh, rhs), tol=tol, max_steps=max_steps, monitor=monitor,
        root=None if root is None else through(mesh, dim, root),
        each=None if each is None else lambda steps, x: each(steps, whole(mesh, dim, x)),
    )  # fmt: skip
    found = found._replace(x=whole(mesh, dim, found.x))
    return found if operator.precise is None else with_true_residuals(operator, rhs, found, tol)


def _told(each: Each, behind: int, base: Array, steps: int, x: Array) -> None:
    """Tell of steps and solutions in a restart as those of the whole solve."""
    each(behind + steps, base + x)


def _curvatures(forms: np.ndarray, gram: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """P A Pᵀ along directions Uᵀ P that are orthonormal: curvatures [m], U [r, m], and their rounding over ‖A‖ [m].

    A row of length 1 has its curvature to within eps ‖A‖; a direction is uᵀP with rows so long that they cancel, and
    its rounding the larger by their squares.
    """
    live = np.flatnonzero(np.diag(gram) > 0)
    lengths = np.sqrt(np.diag(gram)[live])
    scale, block = np.outer(lengths, lengths), np.ix_(live, live)
    values, vectors = np.linalg.eigh(gram[block] / scale)
    basis = vectors / np.sqrt(np.maximum(values, np.finfo(float).eps))
    curvature, rotation = np.linalg.eigh(basis.T @ (0.5 * (forms + forms.T)[block] / scale) @ basis)
    basis = basis @ rotation
    directions = np.zeros((len(gram), len(live)))
    directions[live] = basis / lengths[:, None]
    return curvature, directions, eps * np.maximum(1.0, np.sum(basis**2, axis=0))


@jit
def _forms(p: Array, image: Array) -> tuple[Array, Array, Array]:
    """P A Pᵀ, P Pᵀ and ‖A p‖/‖p‖ of the rows, which is at most ‖A‖."""
    lengths = normalise(p)[1]
    return p @ image.T, p @ p.T, normalise(image)[1] / jnp.where(lengths > 0, lengths, 1)


@jit(donate_argnums=0)
def _advance(rows: Array, weights: Array, along: Array) -> tuple[Array, Array]:
    """rows + weights @ along, and the lengths of its rows."""
    rows = rows + weights @ along
    return rows, normalise(rows)[1]


@jit
def _directions(q: Array, weights: Array, p: Array) -> Array:
    return q + weights @ p
