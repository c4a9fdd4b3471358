"""Where each matrix would go: the damped steps −(A + ∇²R + λI)⁻¹∇J, and the angles between them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax import Array

from curvcli.analyses.compare.candidates import Candidate, Spectral
from curvcli.analyses.influence.solving import SHARE
from curvcli.analyses.spectrum import noise
from curvcli.curvature.flatten import Layout
from curvcli.curvature.products import sums
from curvcli.errors import suggest_float64
from curvcli.linalg.iterate import Monitor
from curvcli.linalg.solvers import cg, minres
from curvcli.problem import Problem
from curvcli.schema.compare import CompareSettings, Step, StepAngles, StepPair, StepSolve
from curvcli.schema.estimate import Estimate
from curvcli.schema.matrices import MATRICES


class Solved(NamedTuple):
    """A step δ [D], float64, how it was found, and a lower estimate of ‖A + λI‖."""

    step: np.ndarray
    solve: StepSolve
    norm: float


def step_angles(
    problem: Problem,
    settings: CompareSettings,
    found: list[Candidate],
    gradient: Array,
    reference: tuple[str, Estimate],
    monitor: Monitor,
    warnings: list[str],
) -> StepAngles | None:
    """The steps of all matrices with one λ; None for ∇J = 0.

    Parameters
    ----------
    reference
        Name and trace of the matrix that `--damping auto` goes by.

    Notes
    -----
    Cost: a solve for each matrix that is not known by its eigenvalues, at most `cg_steps` products.
    """
    down = -np.asarray(gradient, np.float64)
    size = float(np.linalg.norm(down))
    if size == 0:
        return None
    damping, reason = _damping(problem, settings, *reference)
    solved = [_solve(problem, settings, one, gradient, damping, monitor) for one in found]
    steps, units = [], []
    for one, (step, solve, _) in zip(found, solved, strict=True):
        norm = float(np.linalg.norm(step))
        units.append(step / norm if norm else step)
        steps.append(Step(name=one.name, norm=norm, gradient_cosine=_cosine(units[-1], down / size), solve=solve))
    _warn(steps, [noise(settings) * one.norm for one in solved], settings.dtype, warnings)
    pairs = [
        StepPair(a=one.name, b=other.name, cosine=_cosine(units[i], units[j]), norm_ratio=one.norm / other.norm)
        for i, one in enumerate(steps)
        for j, other in enumerate(steps)
        if i < j and one.norm and other.norm
    ]
    return StepAngles(damping=damping, reason=reason, gradient_norm=size, steps=steps, pairs=pairs)


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.clip(one @ other, -1, 1))


def _damping(problem: Problem, settings: CompareSettings, name: str, trace: Estimate) -> tuple[float, str]:
    """λ as given, or a tenth of the mean eigenvalue."""
    if settings.damping != "auto":
        return settings.damping, "as asked for"
    mean = trace.value / problem.dim
    return SHARE * abs(mean), f"{SHARE:g} of the mean eigenvalue {mean:.3g} of the {name}"


def _solve(
    problem: Problem, settings: CompareSettings, candidate: Candidate, gradient: Array, damping: float, monitor: Monitor
) -> Solved:
    """(A + ∇²R + λI) δ = −∇J: every step's curvature has the regulariser's, also where the matrix has not."""
    bare = settings.regulariser and not MATRICES[candidate.name].regularised
    shift = damping + (problem.regulariser.l2 if bare else 0.0)
    curved = bare and problem.regulariser.fn is not None
    if candidate.spectral is not None and not curved:
        return _closed(candidate.spectral, settings, np.asarray(gradient, np.float64), shift)
    operator = candidate.operator
    if curved:
        matmat, curvature = operator.matmat, sums.regulariser_products(problem, Layout.of(problem.params))
        assert curvature is not None
        system = operator.with_products(lambda v: matmat(v) + damping * v + curvature(v), psd=False)
    else:
        system = operator.shifted(shift)
    rhs, steps = -gradient[None], min(settings.cg_steps, 4 * operator.dim)
    solver, answer = "minres", None
    if system.psd and shift > 0:
        solver, answer = "cg", cg.solve(system, rhs, tol=settings.tol, max_steps=steps, monitor=monitor)
    if answer is None or "indefinite" in answer.status:
        solver, answer = "minres", minres.solve(system, rhs, tol=settings.tol, max_steps=steps, monitor=monitor)
    told = StepSolve(
        solver=solver,  # type: ignore[arg-type]
        status=answer.status[0], residual=float(answer.residuals[0]), iterations=int(answer.iterations[0]),
        lowest_curvature=float(answer.lowest[0]),
    )  # fmt: skip
    return Solved(np.asarray(answer.x[0], np.float64), told, float(np.max(answer.norm)))


def _closed(spectral: Spectral, settings: CompareSettings, gradient: np.ndarray, shift: float) -> Solved:
    """By the eigenvalues; along those within rounding of zero nothing is said, and least squares are given."""
    values = spectral.eigenvalues() + shift
    cut = noise(settings) * float(np.abs(values).max(initial=0.0))
    singular = bool(np.any(np.abs(values) <= cut))

    def inverse(found: np.ndarray) -> np.ndarray:
        moved = found + shift
        return np.where(np.abs(moved) > cut, 1 / np.where(np.abs(moved) > cut, moved, 1.0), 0.0)

    step = np.asarray(spectral.function(inverse)(-gradient[None]), np.float64)
    image = np.asarray(spectral.function(lambda found: found + shift)(step), np.float64)
    residual = float(np.linalg.norm(gradient + image[0]) / np.linalg.norm(gradient))
    told = StepSolve(
        solver="closed form", status="least-squares" if singular else "converged", residual=residual, iterations=0,
        lowest_curvature=float(values[0]),
    )  # fmt: skip
    return Solved(step[0], told, float(np.abs(values).max(initial=0.0)))


def _warn(steps: list[Step], rounding: list[float], dtype: str, warnings: list[str]) -> None:
    """Steps that are not what they seem."""
    for one, least in zip(steps, rounding, strict=True):
        solve = one.solve
        if solve.status != "converged":
            warnings.append(
                f"the step of {one.name} is not solved for ({solve.status}, relative residual {solve.residual:.2g}): "
                "its angles are those of what was found; "
                + suggest_float64(dtype, "allow more --cg-steps, or more --damping")
            )
        if solve.lowest_curvature < -least:
            uphill = ", and uphill" if one.gradient_cosine < 0 else ""
            warnings.append(
                f"{one.name} + λI is indefinite (an eigenvalue of {solve.lowest_curvature:.2g} or less): its step goes "
                f"to a stationary point of the model that is no minimum{uphill}"
            )
