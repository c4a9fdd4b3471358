"""What does the spectrum of this matrix look like?

Small matrices are written out and diagonalised. Larger ones are probed: Lanczos quadrature in lockstep for the density,
then both extremes are refined from the density's own Krylov spaces until their true residuals meet the tolerance.
"""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from curvcli.analyses.common import estimates, krylov_memory, planning, rounding
from curvcli.analyses.common.all_eigenvalues import Written, eigenvalues_from_outputs, eigenvalues_from_parameters
from curvcli.analyses.common.answer import Answer
from curvcli.analyses.common.checks import examined, finite_objective
from curvcli.analyses.common.context import Context
from curvcli.analyses.common.dense import (
    DENSE_BLOCK,
    DENSE_DIM,
    Side,
    plan_factors,
    plan_outputs,
    products_at_once,
    smaller_side,
)
from curvcli.analyses.common.subsampling import eigenvalue_errors, images, subsampled, trace_errors, widened
from curvcli.analyses.common.tuning import product_seconds
from curvcli.curvature import build_for, curves_the_loss, dimension
from curvcli.linalg.iterate import Monitor, iterate
from curvcli.linalg.krylov import bounds, density, eigen, slq
from curvcli.linalg.krylov import spaces as krylov
from curvcli.linalg.krylov.quadrature import NO_OUTLIERS, Exact, Quadrature
from curvcli.linalg.meter import Meter
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.probes import sphere
from curvcli.linalg.sampling import Look, Looks, block_sizes
from curvcli.linalg.statistics import Sampled
from curvcli.problem import Problem
from curvcli.schema.estimate import Beyond, Bounded, Eigenvalue, Estimate
from curvcli.schema.inspect import Forecast
from curvcli.schema.plan import Plan
from curvcli.schema.settings import AnalysisSettings
from curvcli.schema.spectrum import SpectrumResult, SpectrumSettings
from curvcli.streams import Stream

FIRST_LOOK = 4
"""Probes before the interval is first held against a relative tolerance."""

BEYOND_PROBABILITY = 0.99
NEAR_ZERO = {"float32": 1e-5, "float64": 1e-10}
"""Relative to the largest magnitude: below it an eigenvalue in this arithmetic counts as zero."""

REFINING, FURTHER = 60.0, (20, 100)
"""Expected seconds that each extreme may be refined for, however few products were spent; within these products."""


def run(context: Context[None], settings: SpectrumSettings) -> Answer[SpectrumResult]:
    """Spectral density, extremes, trace, Frobenius norm and masses of one curvature matrix.

    Cost: `probes`·`steps` products and what the extremes need beyond them; for a dense answer a product a
    row of the smaller side, parameters or outputs.
    """
    problem, monitor = context.problem, context.monitor
    value, _ = finite_objective(problem)
    meter = Meter()
    operator = meter.count(build_for(problem, settings))
    side = smaller_side(problem, settings)
    method = resolved_method(settings, side.rows)
    plan = memory_plan(problem, settings)
    block = products_at_once(plan, side, dense=method == "dense")
    checks, warnings = examined(problem, operator, settings, block)
    if method == "dense":
        if operator.known is not None:
            values, ends = operator.known.eigenvalues(), operator.known.eigenvectors(np.array([0, -1]))
            spectrum = Written(values, np.ones(len(values), int), ends.astype(operator.dtype))
        elif side.name == "outputs":
            spectrum = eigenvalues_from_outputs(problem, operator, settings, plan.at_once, monitor, meter)
        else:
            spectrum = eigenvalues_from_parameters(operator, plan.at_once, monitor)
        result, ends = _dense(operator, settings, spectrum, side)
    else:
        further = int(np.clip(REFINING / max(product_seconds(problem), 1e-9), *FURTHER))
        result, ends, doubts = _sampled(operator, settings, method, plan, monitor, further)
        warnings += doubts
    if subsampled(problem, settings):
        result = _with_data_error(problem, settings, operator, result, ends)
    return Answer(result, meter, value, checks, warnings)


def resolved_method(settings: SpectrumSettings, rows: int) -> str:
    """The method that `auto` means where the smaller side has this many rows."""
    if settings.method != "auto":
        return settings.method
    return "dense" if rows <= DENSE_DIM else "xtrace"


def memory_plan(problem: Problem, settings: SpectrumSettings) -> planning.MemoryPlan:
    """Vectors in a block, and the bytes that the analysis takes.

    Raises
    ------
    MemoryLimitError
        It does not fit.
    """
    dim, side = dimension(problem, settings.matrix), smaller_side(problem, settings)
    if resolved_method(settings, side.rows) == "dense":
        if side.name == "factors":
            return plan_factors(problem, settings)
        if side.name == "outputs":
            return plan_outputs(problem, settings, side.rows)
        return planning.plan_dense(dim, min(DENSE_BLOCK, dim), settings.max_memory)
    # With a relative tolerance the probes come in fours, so that every look at the interval finds whole blocks.
    probes = settings.max_probes if settings.rtol is None else min(settings.max_probes, FIRST_LOOK)
    return krylov_memory.plan(
        problem,
        settings,
        probes=probes,
        steps=min(settings.steps, dim),
        deflate=resolved_method(settings, side.rows) == "xtrace",
        dim=dim,
    )


def tolerance(settings: AnalysisSettings) -> float:
    """The residual asked for, relative to ‖A‖, but not below the noise of the products."""
    return max(settings.tol, 2 * noise(settings))


def noise(settings: AnalysisSettings) -> float:
    """Rounding of a product relative to ‖A‖ ‖v‖, at its largest: along a top eigenvector (measured: up to 14 eps)."""
    return 16 * float(np.finfo(settings.dtype).eps)


class Sampling(NamedTuple):
    """The answer from probes."""

    result: SpectrumResult
    ends: Any  # vectors [2, dim] of λ_min and λ_max
    warnings: list[str]


def _sampled(
    operator: LinearOperator,
    settings: SpectrumSettings,
    method: str,
    plan: planning.MemoryPlan,
    monitor: Monitor,
    further: int,
) -> Sampling:
    """Lanczos quadrature until the trace is known well enough, then the refined extremes."""
    steps, full = min(settings.steps, operator.dim), plan.basis != "none"
    key = jax.random.key(settings.seed)
    store = krylov_memory.store(plan, settings.state)
    runs = slq.Slq(steps, "full" if full else "none", deflate=full and method == "xtrace", store=store)
    collected = slq.Collected()
    schedule = look_schedule(settings.max_probes, settings.rtol)
    looks = Looks(
        once=settings.rtol is None,
        first=schedule[0],
        most=settings.max_probes,
        alpha=1 - settings.confidence,
        share=lambda alpha, _: alpha / len(schedule),
    )

    def stopped() -> bool:
        return collected.probes > 0 and monitor.stop() is not None

    def look(now: Look) -> Estimate:
        for count in block_sizes(now.budget, plan.at_once, lambda: collected.probes, stopped):
            runs.round(operator, key, count, collected, monitor, settings.max_probes * steps)
        sampled = slq.quadrature(collected, key, operator).estimate(lambda x: x, now.level, operator.dim)
        trace = estimates.estimate(sampled, settings.confidence, method)
        monitor.known(f"trace {trace}")
        return trace

    outcome = looks.until_narrow(
        look, lambda trace: estimates.is_narrow(trace, settings.rtol), lambda _, now: schedule[now.number], monitor
    )
    low, high, ends, doubts = refined_extremes(
        operator,
        settings,
        collected,
        key,
        monitor,
        capacity=2 * slq.KEPT + steps if plan.capacity is None else plan.capacity,
        further=further,
        beyond=_beyond(operator, collected) if full else (None, None),  # the theorem: of exact arithmetic
    )
    quadrature, error = slq.quadrature(collected, key, operator), rounding.measured(operator, settings.seed)
    largest = float(rounding.along(operator, ends).max())
    trace = rounding.widened(outcome.result, error.trace())
    warnings = [plan.reason] if plan.reason else []
    warnings += doubts
    if settings.rtol is not None and not estimates.is_narrow(trace, settings.rtol):
        warnings.append(estimates.not_reached(settings.rtol, trace.samples, "probes"))
    level = outcome.look.level
    result = _result(
        operator, settings, method, collected.measures, quadrature, low, high, trace, level, largest, error.norm
    )
    return Sampling(result, ends, warnings)


def look_schedule(probes: int, rtol: float | None) -> list[int]:
    """After how many probes the interval is looked at: at the end, or at 4, 8, 16, … with a relative tolerance.

    >>> look_schedule(10, None), look_schedule(50, 0.01)
    ([10], [4, 8, 16, 32, 50])
    """
    if rtol is None or probes <= FIRST_LOOK:
        return [probes]
    doubling = [FIRST_LOOK * 2**i for i in range(int(math.log2(probes / FIRST_LOOK)) + 1)]
    return sorted({*doubling, probes})


class Extremes(NamedTuple):
    """Both extreme eigenvalues."""

    low: Eigenvalue
    high: Eigenvalue
    vectors: Any  # [2, dim], of λ_min and λ_max
    warnings: list[str]


def refined_extremes(
    operator: LinearOperator,
    settings: AnalysisSettings,
    collected: slq.Collected,
    key: Any,
    monitor: Monitor,
    *,
    capacity: int,
    further: int = 100,
    beyond: tuple[float | None, float | None] = (None, None),
) -> Extremes:
    """λ_min and λ_max, each refined from the Krylov space that reaches furthest, with true residuals.

    `capacity` is how many rows the basis may have before a restart; an end takes at most half the products spent so
    far, or `further` if that is more; `beyond` is what no eigenvalue lies beyond.
    """
    start = sphere(Stream.STARTS.key(settings.seed), 0, 1, operator.dim, operator.dtype)  # where no basis was kept
    spent = sum(len(t.alpha) for t in collected.tridiagonals)
    pairs = []
    for name, wanted, space in (("λ_min", (1, 0), collected.low), ("λ_max", (0, 1), collected.high)):
        algorithm = eigen.ThickRestart(
            *wanted, tol=0.5 * tolerance(settings), capacity=capacity,
            max_products=max(spent // 2, further), start=space or krylov.from_vectors(start, operator.mesh),
        )  # fmt: skip
        state = algorithm.init(operator)
        if monitor.stop() is None or not state.space.size:
            state = iterate(algorithm, operator, key, monitor=monitor, stage=f"refining {name}", state=state)
        pairs.append(algorithm.result(state))
    vectors = jax.numpy.concatenate([pair.vectors for pair in pairs])
    values, residuals = eigen.true_residuals(operator, vectors)
    norm = float(np.abs(values).max())
    extremes, warnings = [], []
    for side, name in enumerate(("λ_min", "λ_max")):
        # A residual below the noise of a product is not knowledge.
        residual = max(float(residuals[side]), rounding.least_residual(operator, noise(settings), norm))
        converged = residual <= tolerance(settings) * norm
        if not converged:
            advice = _advice(settings, residual, norm, monitor)
            warnings.append(
                f"{name} has not converged: residual {residual:.2g}, asked for {tolerance(settings) * norm:.2g}{advice}"
            )
        extremes.append(eigenvalue(values[side], residual, converged, beyond[side]))
    return Extremes(extremes[0], extremes[1], vectors, warnings)


def _advice(settings: AnalysisSettings, residual: float, norm: float, monitor: Monitor) -> str:
    """What would help an eigenvalue to converge."""
    if monitor.stop() is not None:
        return "; the run was stopped first"
    if settings.dtype == "float32" and residual <= 64 * noise(settings) * norm:
        return "; it may be rounding: try --dtype float64"
    return "; more --steps give it a better start and more products"


def eigenvalue(value: float, residual: float, converged: bool, bound: float | None) -> Eigenvalue:
    """An eigenvalue with its residual interval and, for an extreme, the bound on what may lie beyond."""
    beyond = None if bound is None else Beyond(bound=bound, probability=BEYOND_PROBABILITY)
    interval = (value - residual, value + residual)
    return Eigenvalue(value=value, residual=residual, interval=interval, converged=converged, beyond=beyond)


def _beyond(operator: LinearOperator, collected: slq.Collected) -> tuple[float | None, float | None]:
    """Bounds below and above which no eigenvalue lies, with probability `BEYOND_PROBABILITY`."""
    measures = collected.measures
    interval = bounds.beyond_extremes(
        min(m.nodes[0] for m in measures), max(m.nodes[-1] for m in measures),
        steps=min(len(m.nodes) for m in measures), starts=len(measures), dim=operator.dim,
        probability=BEYOND_PROBABILITY,
    )  # fmt: skip
    return interval or (None, None)


def _dense(
    operator: LinearOperator, settings: SpectrumSettings, spectrum: Written, side: Side
) -> tuple[SpectrumResult, Any]:
    """The result where every eigenvalue is known; and the vectors [2, dim] of λ_min and λ_max."""
    values, weights = spectrum.values, spectrum.copies / operator.dim
    norm = float(np.abs(values).max())
    least = rounding.least_residual(operator, noise(settings), norm)
    low, high = (
        eigenvalue(float(values[end]), residual, residual <= tolerance(settings) * norm, float(values[end]) + beyond)
        for end, residual, beyond in ((0, least, -least), (-1, max(spectrum.residual, least), least))
    )
    measure = bounds.Measure(values, weights, np.zeros(len(values)))
    quadrature = Exact(operator.dim, [values], [weights], [NO_OUTLIERS])
    size = math.sqrt(spectrum.copies @ np.square(values))
    dtype = operator.dtype if side.name == "factors" else "float64"
    total = float(spectrum.copies @ values)
    trace = rounding.exact(total, settings.confidence, size, operator.dim, dtype)
    trace = rounding.widened(trace, operator.dim * operator.floor)
    result = _result(operator, settings, "dense", [measure], quadrature, low, high, trace, 1 - settings.confidence)
    return result.model_copy(update={"written_out": side.name}), spectrum.ends


def _with_data_error(
    problem: Problem, settings: SpectrumSettings, operator: LinearOperator, result: SpectrumResult, ends: Any
) -> SpectrumResult:
    """The result with the errors that come from the examples left out. Cost: 8 products."""
    known = images(settings, operator)
    trace, frobenius = trace_errors(problem, settings, operator, result.frobenius_norm.value, known)
    values = np.array([result.lambda_min.value, result.lambda_max.value])
    low, high = eigenvalue_errors(problem, settings, values, ends, ["bottom", "top"], known)
    whole = widened(result.trace, trace, positive=operator.psd)
    # How far a smallest eigenvalue of few examples, 0 or near it, lies below that of all, perturbation theory does
    # not tell: their examples fill its null space. It is at most tr A/D.
    flat = operator.psd or values[0] >= -noise(settings) * np.abs(values).max()
    reach = max(whole.interval[1] / operator.dim - values[0], 0.0) if flat else 0.0
    low = low._replace(above=max(low.above, float(reach)))
    widest = widened(result.lambda_max, high, positive=result.lambda_max.value > 0)
    return result.model_copy(
        update={
            "trace": whole,
            "frobenius_norm": widened(result.frobenius_norm, frobenius, positive=True),
            "lambda_min": widened(result.lambda_min, low, positive=operator.psd),
            "lambda_max": widest,
            "max_stable_learning_rate_interval": learning_rates(widest, result.max_stable_learning_rate),
        }
    )


def learning_rates(sharpness: Eigenvalue, rate: float | None) -> tuple[float, float | None] | None:
    """Where 2/λ_max lies by the interval of λ_max, without an upper end where that reaches 0; None without 2/λ_max."""
    low, high = sharpness.interval
    return None if rate is None else (2 / high, 2 / low if low > 0 else None)


def _result(
    operator: LinearOperator,
    settings: SpectrumSettings,
    method: str,
    measures: list[bounds.Measure],
    quadrature: Quadrature,
    low: Eigenvalue,
    high: Eigenvalue,
    trace: Estimate,
    level: float,
    largest: float = 0.0,
    spread: float = 0.0,
) -> SpectrumResult:
    """Everything that is read from the quadrature and the extremes.

    Parameters
    ----------
    level
        Error probability of an interval.
    largest, spread
        Rounding of the products: along the extremes' vectors, and in the Frobenius norm.
    """
    cut = max(NEAR_ZERO[settings.dtype] * max(abs(low.value), abs(high.value)), largest, operator.floor)
    if method == "dense":
        values, copies = measures[0].nodes, np.rint(operator.dim * measures[0].weights)
        size = math.sqrt(copies @ np.square(values))
        frobenius = rounding.widened(Estimate.exact(size, settings.confidence), trace.interval[1] - trace.value)
        negative, near_zero = (
            Bounded.exact(float(copies[counted].sum() / operator.dim), settings.confidence)
            for counted in (values < -cut, np.abs(values) <= cut)
        )
    else:
        square = quadrature.estimate(np.square, level, operator.dim)
        frobenius = estimates.estimate(_square_root(square), settings.confidence, method, spread)
        below = -np.nextafter(cut, np.inf)
        negative = (
            Bounded.exact(0.0, settings.confidence)  # a theorem, not a measurement
            if operator.psd
            else estimates.mass(density.mass(quadrature, measures, -np.inf, below, level), settings.confidence)
        )
        near_zero = estimates.mass(density.mass(quadrature, measures, -cut, cut, level), settings.confidence)
    ends = min(m.nodes[0] for m in measures), max(m.nodes[-1] for m in measures)
    grid = density.around_zero(*ends, cut)
    if method == "dense":
        reached = np.searchsorted(measures[0].nodes, grid, side="right")
        counts = np.r_[0, np.rint(operator.dim * measures[0].weights).cumsum()][reached] / operator.dim
        band = density.Band(grid, counts, counts)
    else:
        band = density.cumulative_band(quadrature, measures, grid, level)
    rate = 2 / high.value if high.interval[0] > 0 and curves_the_loss(settings.matrix) else None
    return SpectrumResult(
        dim=operator.dim,
        method=method,  # type: ignore[arg-type]
        nodes=[m.nodes.tolist() for m in measures],
        weights=[m.weights.tolist() for m in measures],
        lambda_max=high,
        lambda_min=low,
        trace=trace,
        frobenius_norm=frobenius,
        negative_mass=negative,
        near_zero_mass=near_zero,
        near_zero_tolerance=cut,
        deflated=operator.dim if method == "dense" else max(len(known.values) for known in quadrature.outliers),
        density=estimates.density(density.smooth(quadrature, *ends)),
        cumulative=estimates.cumulative(band),
        max_stable_learning_rate=rate,
        max_stable_learning_rate_interval=learning_rates(high, rate),
    )


def _square_root(square: Sampled) -> Sampled:
    """The square root of an estimate, its interval mapped along: a monotone map keeps the coverage."""
    low, high = (math.sqrt(max(end, 0.0)) for end in square.interval)
    value = math.sqrt(max(square.value, 0.0))
    return square._replace(value=value, stderr=square.stderr / (2 * value) if value else 0.0, interval=(low, high))


def forecast(
    context: Context[Any], settings: SpectrumSettings, operator: LinearOperator | None = None
) -> tuple[Plan, Forecast]:
    """How the work would be cut, and products, passes and bytes; seconds too if there is an operator to time."""
    problem, rows = context.problem, smaller_side(context.problem, settings).rows
    dense, steps = resolved_method(settings, rows) == "dense", min(settings.steps, dimension(problem, settings.matrix))
    memory = memory_plan(problem, settings)
    block = memory.at_once
    products = rows if dense else settings.max_probes * steps
    passes = -(-rows // block) if dense else -(-settings.max_probes // block) * steps
    seconds = None
    if operator is not None:
        vectors = sphere(jax.random.key(settings.seed), 0, block, operator.dim, operator.dtype)
        jax.block_until_ready(operator.matmat(vectors))
        start = time.perf_counter()
        jax.block_until_ready(operator.matmat(vectors))
        seconds = passes * (time.perf_counter() - start)
    plan = planning.cut(problem, memory.at_once, memory)
    return plan, planning.forecast(problem, products=products, data_passes=passes, bytes=memory.bytes, seconds=seconds)
