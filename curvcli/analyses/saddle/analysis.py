"""What kind of point is this, and what does gradient descent do here?

Small Hessians are written out and every eigenvalue counted. Of larger ones a Lanczos process from a random start, as
long as the theorem asks, says with which probability no negative curvature was missed; further random vectors serve the
counts. Negative curvature is believed only when float64 and the loss itself confirm it, and no point is
called a minimum beside which the loss falls.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from curvcli.analyses.common import planning, stationarity
from curvcli.analyses.common.answer import Answer
from curvcli.analyses.common.checks import examined, finite_objective
from curvcli.analyses.common.context import Context
from curvcli.analyses.common.dense import DENSE_BLOCK, DENSE_DIM
from curvcli.analyses.common.kinks import kinks
from curvcli.analyses.common.room import room_to_fall
from curvcli.analyses.common.subsampling import eigenvalue_errors, images, subsampled, widened
from curvcli.analyses.saddle import certificate, descent
from curvcli.analyses.saddle.curvature import Findings, from_all, from_samples, is_coarse, long_steps
from curvcli.analyses.saddle.probing import probed
from curvcli.analyses.saddle.verdict import Evidence, classify
from curvcli.analyses.spectrum import learning_rates
from curvcli.curvature import build_for
from curvcli.curvature.flatten import Layout
from curvcli.errors import MemoryLimitError
from curvcli.linalg.meter import Meter
from curvcli.problem import Problem
from curvcli.schema.inspect import Forecast
from curvcli.schema.plan import Plan
from curvcli.schema.saddle import SaddleResult, SaddleSettings


def run(context: Context[descent.AdamState | None], settings: SaddleSettings) -> Answer[SaddleResult]:
    """The verdict, its evidence, and the rates of gradient descent.

    Cost: 1 + ½ ln(2.75 D/δ²)/√ε products for the bound (δ halved), 4 × `steps` for the counts, some 50 to 300 for
    extremes and decrement; D for a dense answer. Some 130 to 600 forward passes in float64 before a minimum is said.
    Where the smallest eigenvalue is not plainly positive, up to three products and 80 forward passes in float64.

    Raises
    ------
    NumericsError
        Something is not finite, or the Hessian is too small for the arithmetic.
    MemoryLimitError
        The bases do not fit.
    """
    problem, monitor, adam = context.problem, context.monitor, context.inputs
    value, gradient = finite_objective(problem)
    meter = Meter()
    operator = meter.count(build_for(problem, settings))
    plan, dense = memory_plan(problem, settings)
    checks, warnings = examined(problem, operator, settings, plan.at_once)
    layout, slope = Layout.of(problem.params), np.asarray(gradient, np.float64)
    weight_size = stationarity.size_of(problem)
    if dense:
        found = from_all(problem, operator, settings, plan.at_once, slope, monitor)
    else:
        found = from_samples(problem, operator, settings, plan.at_once, slope, monitor, warnings)
    room = room_to_fall(problem, value)
    test = stationarity.tested(settings, value, slope, found.decrement, found.norm, weight_size, room)
    if test.model_holds is False:
        warnings.append(
            f"the quadratic model does not hold: it has the loss fall by {test.decrement:.2g}, which can fall by "
            f"{room:.3g} at most"
        )
    stationary = stationarity.is_stationary(test, slope, found.norm, norm_from_above=found.norm_from_above)
    seen = None
    if found.low.value < 0:
        seen = certificate.examine(problem, np.asarray(found.ends[0]), found.norm, weight_size, found.eps)
    certified = seen is not None and seen.certified
    below = certified and seen is not None and seen.certificate.curvature + seen.certificate.error < -found.cut
    evidence = Evidence(
        stationary=stationary, low=found.low, high=found.high, cut=found.cut, certified=below,
        bounded=found.shows_none, exact=found.exact, all_below=found.all_below,
        null_space=found.null_space.interval[0] > 0 or abs(found.low.value) <= found.cut,
    )  # fmt: skip
    probes = None
    if classify(evidence) in ("minimum-within-tolerance", "degenerate"):
        room = max(found.cut, 0.0 if found.bound is None else found.bound.epsilon * found.bound.norm)
        probes = probed(
            problem, slope, np.asarray(found.ends), room, weight_size, found.eps,
            kinked=bool(kinks(problem)), seed=settings.seed,
        )  # fmt: skip
        evidence = replace(evidence, falls=probes.steepest is not None)
    warnings += _remarks(settings, evidence, found, certified)
    if probes is not None and (fall := probes.steepest) is not None:
        warnings.append(
            f"the loss falls with a slope of {fall.slope:.3g} along {'-' if fall.sense < 0 else ''}{fall.direction}, "
            "which neither gradient nor Hessian shows: a kink or a jump, and no minimum"
        )
    if settings.optimizer_state and adam is None:
        warnings.append("--optimizer-state: Adam has taken no step yet, and has no preconditioner")
    moved: dict[str, np.ndarray] = {}
    if settings.escape is not None:
        if certified and seen is not None and seen.witness is not None:
            moved = certificate.moved(problem, np.asarray(found.ends[0]), seen.witness.step)
        else:
            warnings.append("--escape: no checkpoint is written, since no negative curvature is certified here")
    top = found.high
    rising = top.interval[0] > 0 and top.converged
    sharpness = None
    if adam is not None:
        sharpness = descent.adam_sharpness(layout, operator, adam, settings, monitor, warnings)
    rate = 2 / top.value if rising else None
    low, high = found.low, top
    if subsampled(problem, settings):
        values, known = np.array([low.value, high.value]), images(settings, operator)
        errors = eigenvalue_errors(problem, settings, values, found.ends, ("bottom", "top"), known)
        if low.value < -found.noise:  # else no error is known: what few examples leave flat, others may fill
            low = widened(low, errors[0], positive=False)
        high = widened(high, errors[1], positive=high.value > 0)
    result = SaddleResult(
        dim=operator.dim, method="dense" if dense else "lanczos", classification=classify(evidence),
        gradient_norm=float(np.linalg.norm(slope)), stationary=stationary, stationarity=test,
        lambda_min=low, lambda_max=high, tolerance=found.cut, noise_floor=found.noise,
        negative_curvature_certified=certified, certificate=None if seen is None else seen.certificate,
        index=found.index.at_least(1.0) if below else found.index,
        null_space=found.null_space, witness=None if seen is None else seen.witness,
        bound=found.bound if evidence.bounded else None, probes=probes,
        max_stable_learning_rate=rate, max_stable_learning_rate_interval=learning_rates(high, rate),
        condition_number=max(top.value / found.lowest_positive, 1.0) if rising and found.lowest_positive else None,
        condition_number_exact=found.lowest_is_known,
        gradient_descent=descent.gradient_descent(found.values, found.residuals, top, settings.learning_rate),
        adam=sharpness, escape=settings.escape if moved else None,
    )  # fmt: skip
    return Answer(result, meter, value, checks, warnings, params=moved)


def forecast(context: Context[Any], settings: SaddleSettings) -> tuple[Plan, Forecast]:
    """How the work would be cut, the bytes, and an estimate of the products."""
    problem = context.problem
    plan, dense = memory_plan(problem, settings)
    long = long_steps(settings, problem.dim)
    short = min(settings.steps, problem.dim)
    products = problem.dim if dense else long + (settings.max_probes - 1) * short + 100
    passes = -(-problem.dim // plan.at_once) if dense else long + short + 100
    return planning.cut(problem, plan.at_once), planning.forecast(
        problem, products=products, data_passes=passes, bytes=plan.bytes
    )


def memory_plan(problem: Problem, settings: SaddleSettings) -> tuple[planning.MemoryPlan, bool]:
    """Vectors in a block with the bytes, and whether the Hessian is written out.

    Raises
    ------
    MemoryLimitError
        It does not fit.
    """
    if settings.method == "dense" or (settings.method == "auto" and problem.dim <= DENSE_DIM):
        return planning.plan_dense(problem.dim, min(DENSE_BLOCK, problem.dim), settings.max_memory), True
    long, short = long_steps(settings, problem.dim), min(settings.steps, problem.dim)
    try:
        alone = planning.plan_lanczos(problem, settings, probes=1, steps=long, full=True)
    except MemoryLimitError as error:
        raise MemoryLimitError(
            error.message, "use a larger --epsilon, --params for a block of the parameters, or a smaller --batch-size"
        ) from error
    together = planning.plan_lanczos(problem, settings, probes=max(settings.max_probes - 1, 1), steps=short, full=True)
    return planning.MemoryPlan(together.at_once, max(alone.bytes, together.bytes)), False


def _remarks(settings: SaddleSettings, evidence: Evidence, found: Findings, certified: bool) -> list[str]:
    """Why a verdict is weak, and what would help."""
    remarks, low = [], found.low.value
    if is_coarse(settings, found.eps):
        remarks.append(
            f"the model, its loss or its regulariser computes in a coarser type than {settings.dtype}: what counts as "
            f"zero is its rounding, {found.noise:.2g}"
        )
    elif settings.dtype == "float32" and 0 < abs(low) <= found.noise:
        remarks.append(
            f"λ_min {low:.2g} is below the noise of float32 products here ({found.noise:.2g}) and has no sign: "
            "--dtype float64"
        )
    elif settings.dtype == "float32" and certified and low >= -found.cut:
        remarks.append(
            f"negative curvature of {low:.2g} is certified, but within what counts as zero in float32 "
            f"({found.cut:.2g}): --dtype float64 draws the line lower"
        )
    if low < -found.cut and not certified:
        remarks.append(
            "negative curvature was found, but float64 and the loss itself do not confirm it (kinks? a model whose "
            "derivatives are not its loss's?): see result.certificate"
        )
    if evidence.stationary is None:
        remarks.append("the run ended before it could be said whether the point is stationary")
    if found.bound is None:
        remarks.append("the run ended before the bound on negative curvature says anything")
    return remarks
