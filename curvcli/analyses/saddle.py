"""What kind of point is this, and what does gradient descent do here?

Small Hessians are written out and every eigenvalue counted. Of larger ones a Lanczos process from a random start, as
long as the theorem asks, says with which probability no negative curvature was missed; further random vectors serve the
counts. Negative curvature is believed only when float64 and the loss itself confirm it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from curvcli.analyses import certificate, descent, planning
from curvcli.analyses.answer import Answer
from curvcli.analyses.checks import examined, finite_objective
from curvcli.analyses.dense import DENSE_BLOCK, DENSE_DIM, written_out
from curvcli.analyses.spectrum import NEAR_ZERO, eigenvalue, noise, refined_extremes
from curvcli.analyses.verdict import Evidence, classify
from curvcli.curvature import build_for
from curvcli.curvature.flatten import Layout
from curvcli.errors import MemoryLimitError
from curvcli.linalg import bounds, density, slq
from curvcli.linalg.gauss import SettledForm
from curvcli.linalg.iterate import Monitor, iterate
from curvcli.linalg.meter import Meter
from curvcli.linalg.operator import LinearOperator
from curvcli.problem import Problem
from curvcli.schema.estimate import Beyond, Eigenvalue, Estimate
from curvcli.schema.inspect import Forecast
from curvcli.schema.plan import Plan
from curvcli.schema.saddle import Bound, SaddleResult, SaddleSettings, Stationarity

Array = Any

WEIGHT_FLOOR = 0.01
"""The size of w is at least this times √D, so that w = 0 has one too."""

DECREMENT = 1e-3
"""Share of |J| that the decrement of a stationary point may have."""

DECREMENT_STEPS = 200


@dataclass(frozen=True)
class Spectrum:
    """What either method finds of the Hessian."""

    low: Eigenvalue
    high: Eigenvalue
    ends: Array  # [2, D], unit vectors of both
    index: Estimate
    null_space: Estimate
    bound: Bound | None  # as if no negative curvature showed
    lowest_positive: float | None  # above the tolerance
    exact: bool  # whether `lowest_positive` is an eigenvalue
    all_below: bool  # no eigenvalue is above −tolerance
    values: np.ndarray  # of the pairs at both ends
    residuals: np.ndarray
    decrement: float
    noise: float
    cut: float


def run(
    problem: Problem, settings: SaddleSettings, monitor: Monitor, adam: descent.AdamState | None = None
) -> Answer[SaddleResult]:
    """The verdict, its evidence, and the rates of gradient descent.

    Cost: 1 + ½ ln(2.75 D/δ²)/√ε products for the bound (δ halved), 4 × `steps` for the counts, some 50 to 200 for
    extremes and decrement; D for a dense answer. Where the smallest eigenvalue is not plainly positive, up to three
    products and 80 forward passes in float64.
    """
    value, gradient = finite_objective(problem)
    meter = Meter()
    operator = meter.count(build_for(problem, settings))
    plan, dense = memory_plan(problem, settings)
    checks, warnings = examined(problem, operator, settings, plan.at_once)
    layout = Layout.of(problem.params)
    weights = np.asarray(layout.ravel(problem.params), np.float64)
    weight_size = max(float(np.linalg.norm(weights)), WEIGHT_FLOOR * operator.dim**0.5)
    slope = np.asarray(gradient, np.float64)
    if dense:
        found = _written_out(problem, operator, settings, plan.at_once, slope, monitor)
    else:
        found = _sampled(problem, operator, settings, plan.at_once, slope, monitor, warnings)
    norm = _norm(found)
    test = _stationarity(settings, value, slope, found.decrement, norm, weight_size)
    stationary = not slope.any() or (
        test.gradient <= test.gradient_tolerance and test.decrement <= test.decrement_tolerance
    )
    seen = None
    if found.low.value < 0:
        seen = certificate.examine(problem, np.asarray(found.ends[0]), norm, weight_size)
    certified = seen is not None and seen.certified
    evidence = Evidence(
        stationary=stationary, low=found.low, high=found.high, cut=found.cut, certified=certified,
        bounded=_shows_none(found, dense), exact=dense, all_below=found.all_below,
        null_space=found.null_space.interval[0] > 0 or abs(found.low.value) <= found.cut,
    )  # fmt: skip
    verdict = classify(evidence)
    _remarks(settings, evidence, found, verdict, warnings)
    if settings.optimizer_state and adam is None:
        warnings.append("--optimizer-state: Adam has taken no step yet, and has no preconditioner")
    moved: dict[str, np.ndarray] = {}
    if settings.escape is not None:
        if certified and seen is not None and seen.witness is not None:
            moved = certificate.moved(problem, np.asarray(found.ends[0]), seen.witness.step)
        else:
            warnings.append("--escape: no checkpoint is written, since no negative curvature is certified here")
    top = found.high
    positive = top.interval[0] > 0
    result = SaddleResult(
        dim=operator.dim, method="dense" if dense else "lanczos", classification=verdict,
        gradient_norm=float(np.linalg.norm(slope)), stationary=bool(stationary), stationarity=test,
        lambda_min=found.low, lambda_max=top, tolerance=found.cut, noise_floor=found.noise,
        negative_curvature_certified=certified, certificate=None if seen is None else seen.certificate,
        index=_at_least(found.index, 1.0) if certified and found.low.value < -found.cut else found.index,
        null_space=found.null_space, witness=None if seen is None else seen.witness,
        bound=found.bound if evidence.bounded else None,
        max_stable_learning_rate=2 / top.value if positive else None,
        condition_number=top.value / found.lowest_positive if positive and found.lowest_positive else None,
        condition_number_exact=found.exact,
        gradient_descent=descent.gradient_descent(found.values, found.residuals, top.value, settings.learning_rate),
        adam=None if adam is None else descent.adam_sharpness(
            layout, operator, adam, settings, monitor, warnings
        ),
        escape=settings.escape if moved else None,
    )  # fmt: skip
    return Answer(result, meter, value, checks, warnings, params=moved)


def forecast(problem: Problem, settings: SaddleSettings) -> tuple[Plan, Forecast]:
    """How the work would be cut, the bytes, and an estimate of the products."""
    plan, dense = memory_plan(problem, settings)
    long = _long_steps(settings, problem.dim)
    short = min(settings.steps, problem.dim)
    products = problem.dim if dense else long + (settings.max_probes - 1) * short + 100
    passes = -(-problem.dim // plan.at_once) if dense else long + short + 100
    return planning.cut(problem, plan.at_once), Forecast(products=products, data_passes=passes, bytes=plan.bytes)


def memory_plan(problem: Problem, settings: SaddleSettings) -> tuple[planning.MemoryPlan, bool]:
    """Vectors in a block with the bytes, and whether the Hessian is written out.

    Raises
    ------
    MemoryLimitError
        It does not fit.
    """
    if settings.method == "dense" or (settings.method == "auto" and problem.dim <= DENSE_DIM):
        return planning.plan_dense(problem.dim, min(DENSE_BLOCK, problem.dim), settings.max_memory), True
    long, short = _long_steps(settings, problem.dim), min(settings.steps, problem.dim)
    limit = settings.max_memory
    try:
        alone = planning.plan_lanczos(problem, probes=1, steps=long, full=True, max_memory=limit)
    except MemoryLimitError as error:
        raise MemoryLimitError(
            error.message, "use a larger --epsilon, --params for a block of the parameters, or a smaller --batch-size"
        ) from error
    together = planning.plan_lanczos(
        problem, probes=max(settings.max_probes - 1, 1), steps=short, full=True, max_memory=limit
    )
    return planning.MemoryPlan(together.at_once, max(alone.bytes, together.bytes)), False


def _long_steps(settings: SaddleSettings, dim: int) -> int:
    """Steps of the process that the bound rests on; half of δ is for the bound on ‖H‖."""
    return max(bounds.certifying_steps(settings.epsilon, dim, 0.5 * settings.delta), min(settings.steps, dim))


def _written_out(
    problem: Problem,
    operator: LinearOperator,
    settings: SaddleSettings,
    block: int,
    slope: np.ndarray,
    monitor: Monitor,
) -> Spectrum:
    """Every eigenvalue."""
    values, vectors = scipy.linalg.eigh(written_out(operator, block, monitor))
    norm = float(np.abs(values).max())
    rounding = 0.5 * noise(settings) * norm
    ends = jnp.asarray(vectors[:, [0, -1]].T, operator.dtype)
    floor = _noise_floor(problem, operator, settings, ends, norm)
    cut = max(NEAR_ZERO[settings.dtype] * norm, floor)
    low, high = (
        eigenvalue(float(values[end]), rounding, True, float(values[end]) + beyond)
        for end, beyond in ((0, -rounding), (-1, rounding))
    )
    negative, null = int(np.sum(values < -cut)), int(np.sum(np.abs(values) <= cut))
    positive = values[values > cut]
    along = vectors.T @ slope
    shift = settings.stationary_tol * norm
    shown, residuals = descent.ends(values, np.full(len(values), rounding))
    return Spectrum(
        low, high, ends, *(Estimate.exact(float(count), settings.confidence) for count in (negative, null)),
        bound=Bound(epsilon=min(cut / norm, 1.0) if norm else 0.0, probability=1.0, norm=norm + rounding, steps=0),
        lowest_positive=float(positive[0]) if len(positive) else None, exact=True,
        all_below=bool(values[-1] < -cut), values=shown, residuals=residuals,
        decrement=0.5 * float(np.sum(np.square(along) / (np.abs(values) + shift))) if slope.any() else 0.0,
        noise=floor, cut=cut,
    )  # fmt: skip


def _sampled(
    problem: Problem,
    operator: LinearOperator,
    settings: SaddleSettings,
    at_once: int,
    slope: np.ndarray,
    monitor: Monitor,
    warnings: list[str],
) -> Spectrum:
    """Extremes, counts and the bound from random vectors: one followed for long, the others for the counts."""
    dim, key = operator.dim, jax.random.key(settings.seed)
    long, short = _long_steps(settings, dim), min(settings.steps, dim)
    collected, planned = slq.Collected(), long + (settings.max_probes - 1) * short
    slq.Slq(long, "full", deflate=True).round(operator, key, 1, collected, monitor, planned)
    runs = slq.Slq(short, "full", deflate=True)
    while len(collected.tridiagonals) < settings.max_probes and monitor.stop() is None:
        count = min(at_once, settings.max_probes - len(collected.tridiagonals))
        runs.round(operator, key, count, collected, monitor, planned)
    low, high, ends = refined_extremes(operator, settings, collected, key, monitor, warnings, capacity=short)
    bound, outside = _bound(collected, settings, dim)
    low, high = (one.model_copy(update={"beyond": end}) for one, end in zip((low, high), outside, strict=True))
    norm = max(abs(low.value) + low.residual, abs(high.value) + high.residual)
    floor = _noise_floor(problem, operator, settings, ends, norm)
    cut = max(NEAR_ZERO[settings.dtype] * norm, floor)
    quadrature, measures = slq.quadrature(collected, key, operator), collected.measures
    below = -np.nextafter(cut, np.inf)
    index, null = (
        _times(density.mass(quadrature, measures, *ends_of, settings.confidence), dim)
        for ends_of in ((-np.inf, below), (-cut, cut))
    )
    nodes = np.concatenate([m.nodes for m in measures])
    positive = nodes[nodes > cut]
    lowest_positive = low.value if low.value > cut else float(positive.min()) if len(positive) else None
    values, residuals = descent.ritz_pairs(collected.low, collected.high)
    residuals = np.maximum(residuals, 0.5 * noise(settings) * norm)
    values, residuals = (
        np.r_[getattr(low, name), pairs[1:-1], getattr(high, name)]
        for name, pairs in (("value", values), ("residual", residuals))
    )
    return Spectrum(
        low, high, ends, index, null, bound, lowest_positive, exact=low.converged and low.value > cut,
        all_below=high.beyond is not None and high.beyond.bound < -cut, values=values, residuals=residuals,
        decrement=_decrement(operator, slope, settings, norm, monitor), noise=floor, cut=cut,
    )  # fmt: skip


def _bound(
    collected: slq.Collected, settings: SaddleSettings, dim: int
) -> tuple[Bound | None, tuple[Beyond | None, Beyond | None]]:
    """What the long process proves, at the ε it was asked for or the smallest it reached; and bounds on both ends."""
    first, failure = collected.measures[0], 0.5 * settings.delta
    steps, invariant = len(first.nodes), collected.tridiagonals[0].invariant
    seen_all = invariant or steps >= dim
    if seen_all:  # with probability one a random vector meets every eigenspace
        rounding = 0.5 * noise(settings) * float(np.abs(first.nodes).max())
        outside = float(first.nodes[0]) - rounding, float(first.nodes[-1]) + rounding
    else:
        ends = first.nodes[0], first.nodes[-1]
        outside = bounds.beyond_extremes(*ends, steps=steps, starts=1, dim=dim, probability=1 - failure)
    if outside is None:
        return None, (None, None)
    norm = max(abs(outside[0]), abs(outside[1]))
    reached = settings.epsilon if seen_all else max(settings.epsilon, bounds.certified_epsilon(steps, dim, failure))
    beyond = (Beyond(bound=outside[0], probability=1 - failure), Beyond(bound=outside[1], probability=1 - failure))
    if reached >= 1:
        return None, beyond
    return Bound(epsilon=reached, probability=1 - settings.delta, norm=float(norm), steps=steps), beyond


def _decrement(
    operator: LinearOperator, slope: np.ndarray, settings: SaddleSettings, norm: float, monitor: Monitor
) -> float:
    """½ gᵀ(|H| + τ‖H‖I)⁻¹g by the Lanczos process that begins at g."""
    size = float(np.linalg.norm(slope))
    if not size or not norm:
        return 0.0
    start = jnp.asarray(slope / size, operator.dtype)[None]
    shift = settings.stationary_tol * norm
    form = SettledForm(start, min(DECREMENT_STEPS, operator.dim), f=lambda x: 1 / (np.abs(x) + shift))
    state = iterate(form, operator, None, monitor=monitor, stage="decrement")
    return 0.5 * size**2 * form.form(state)


def _stationarity(
    settings: SaddleSettings, value: float, slope: np.ndarray, decrement: float, norm: float, weight_size: float
) -> Stationarity:
    tau, scale = settings.stationary_tol, norm * weight_size
    size = float(np.linalg.norm(slope))
    return Stationarity(
        gradient=size / scale if scale else float(size > 0), gradient_tolerance=tau, weight_size=weight_size,
        decrement=decrement, decrement_tolerance=max(DECREMENT * abs(value), tau**2 * scale * weight_size),
    )  # fmt: skip


def _noise_floor(
    problem: Problem, operator: LinearOperator, settings: SaddleSettings, ends: Array, norm: float
) -> float:
    """Rounding of products along both ends: measured against float64, or that of float64 itself."""
    if settings.dtype == "float64":
        return 0.5 * noise(settings) * norm
    return certificate.product_noise(problem, ends, operator.matmat(ends))


def _shows_none(found: Spectrum, dense: bool) -> bool:
    """Whether the smallest value found lets the bound be said."""
    if found.bound is None:
        return False
    return found.low.value >= -(found.cut if dense else 0.5 * found.bound.epsilon * found.bound.norm)


def _norm(found: Spectrum) -> float:
    largest = max(abs(found.low.value), abs(found.high.value))
    return max(largest, found.bound.norm) if found.bound is not None else largest


def _times(mass: Estimate, dim: int) -> Estimate:
    """A fraction of the eigenvalues as a number of them."""
    low, high = mass.interval
    scaled = {"value": dim * mass.value, "stderr": dim * mass.stderr, "interval": (dim * low, dim * high)}
    return mass.model_copy(update=scaled)


def _at_least(count: Estimate, least: float) -> Estimate:
    """A count that is known to be no smaller."""
    low, high = count.interval
    value, interval = max(count.value, least), (max(low, least), max(high, least))
    return count.model_copy(update={"value": value, "interval": interval})


def _remarks(settings: SaddleSettings, evidence: Evidence, found: Spectrum, verdict: str, warnings: list[str]) -> None:
    """Why a verdict is weak, and what would help."""
    sign_lost = 0 < abs(found.low.value) <= found.noise
    if sign_lost and settings.dtype == "float32":
        warnings.append(
            f"λ_min {found.low.value:.2g} is below the noise of float32 products here ({found.noise:.2g}) and has no "
            "sign: --dtype float64"
        )
    elif evidence.certified and -found.cut <= found.low.value and settings.dtype == "float32":
        warnings.append(
            f"negative curvature of {found.low.value:.2g} is certified, but within what counts as zero in float32 "
            f"({found.cut:.2g}): --dtype float64 draws the line lower"
        )
    if verdict == "undecided" and found.low.value < -found.cut and not evidence.certified:
        warnings.append(
            "negative curvature was found, but float64 and the loss itself do not confirm it (kinks? a model whose "
            "derivatives are not its loss's?): see result.certificate"
        )
    if not evidence.exact and found.bound is None:
        warnings.append("the run ended before the bound on negative curvature says anything")
