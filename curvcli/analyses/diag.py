"""What is the diagonal of this matrix, and which weights could be pruned?"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.special

from curvcli.analyses import pruning
from curvcli.analyses.common import estimates, planning, rounding
from curvcli.analyses.common.answer import Answer
from curvcli.analyses.common.checks import examined, finite_objective
from curvcli.analyses.common.context import Context
from curvcli.analyses.common.dense import (
    DENSE_BLOCK,
    DENSE_DIM,
    diagonal_of,
    outputs_written_out,
    plan_factors,
    plan_outputs,
    products_at_once,
    rows_written_out,
    smaller_side,
)
from curvcli.analyses.common.subsampling import DataError, layer_errors, subsampled, widened
from curvcli.curvature import build_for, dimension
from curvcli.curvature.flatten import Layout
from curvcli.errors import UsageError
from curvcli.linalg.diagonal.entries import Found, Ranges, Segments
from curvcli.linalg.diagonal.estimators import Sampler
from curvcli.linalg.iterate import Monitor
from curvcli.linalg.krylov.lanczos import not_finite
from curvcli.linalg.meter import Meter
from curvcli.linalg.normalised import normalised
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.sampling import Look, Looks
from curvcli.linalg.statistics import Law, Sampled, student_interval
from curvcli.problem import Problem
from curvcli.schema.diag import DiagResult, DiagSettings, LayerDiagonal
from curvcli.schema.estimate import Estimate
from curvcli.schema.inspect import Forecast
from curvcli.schema.matrices import refusal
from curvcli.schema.plan import Plan

LEAST = {"hutchinson": 2, "xdiag": 4}
"""Products that a method needs: two samples for a standard error."""

FEWEST_TO_CHOOSE = 8
"""Products below which `auto` does not take XDiag: with two or three test vectors its own error is hardly known."""

FIRST_LOOK = 16
"""Products before the intervals are first held against a relative tolerance."""

MARGIN = 1.15
"""More products than the forecast says: the next look should be the last."""

BLOCK = 8


def run(context: Context[None], settings: DiagSettings) -> Answer[DiagResult]:
    """Diagonal, per-layer summary, saliencies, and a trial of pruning.

    Cost: `probes` products; for a dense answer a product a row of the smaller side, parameters or outputs. `--prune`
    takes up to 17 more and two losses.
    """
    problem, monitor = context.problem, context.monitor
    pruning.check(settings)
    value, gradient = finite_objective(problem)
    meter = Meter()
    operator = meter.count(build_for(problem, settings))
    side = smaller_side(problem, settings)
    method = resolved_method(settings, side.rows)
    plan = memory_plan(problem, settings)
    block = products_at_once(plan, side, dense=method == "dense")
    checks, warnings = examined(problem, operator, settings, block)
    layout = Layout.of(problem.params)
    names, segments = layer_segments(layout, operator.dim)
    if method == "dense":
        level, reason = 1 - settings.confidence, "--method dense was asked for"
        if settings.method == "auto":
            reason = f"{side.rows} products give all {operator.dim} entries exactly"
        if operator.known is not None:
            reason = "the diagonal is that of the factors"
            found = exact(operator.known.diagonal_entries(), segments)
        elif side.name == "outputs":
            diagonal = outputs_written_out(problem, settings, plan.at_once, monitor, meter).diagonal
            found = exact(diagonal, segments)
        else:
            found = dense(operator, segments, plan.at_once, monitor)
    else:
        found, level, reason, doubts = sampled(operator, settings, method, segments, plan, monitor, meter)
        warnings += doubts
    if not np.all(np.isfinite(found.value)):
        raise not_finite(operator.dtype)
    saliency, prune = None, None
    if refusal(settings.matrix, "saliencies") is None:
        saliency = pruning.saliencies(problem, settings, found)
        if settings.prune is not None:
            prune = pruning.trial(problem, settings, operator, found, value, gradient, block, meter)
    sampling = found.samples > 0
    error = rounding.measured(operator, settings.seed) if sampling else rounding.Rounding(0.0, operator.dim)
    arithmetic = operator.dtype if sampling or operator.known is not None else np.dtype("float64")
    eps, floor = float(np.finfo(arithmetic).eps), 0.0 if sampling else operator.floor  # which is in a measured error
    layers = _layers(names, segments, found, settings.confidence, level, error, eps, floor)
    if subsampled(problem, settings):
        errors = (
            DataError(*(one / sum(stop - start for start, stop in part) for one in error))
            for part, error in zip(segments, layer_errors(problem, settings, segments), strict=True)
        )
        layers = [
            layer.model_copy(update={"mean": widened(layer.mean, error, positive=operator.psd)})
            for layer, error in zip(layers, errors, strict=True)
        ]
    result = DiagResult(
        dim=operator.dim, method=found.method, reason=reason, path=settings.arrays,  # type: ignore[arg-type]
        layers=layers, saliency=saliency, prune=prune, written_out=side.name if method == "dense" else None,
    )  # fmt: skip
    return Answer(result, meter, value, checks, warnings, arrays(layout, found, operator))


def resolved_method(settings: DiagSettings, rows: int) -> str:
    """`dense` where `auto` means it for this many rows of the smaller side; `auto` is decided later, by the spectrum.

    Raises
    ------
    UsageError
        The method needs more products than are allowed.
    """
    if settings.method == "auto" and rows <= max(DENSE_DIM, settings.max_probes if settings.rtol is None else 0):
        return "dense"
    least = LEAST.get(settings.method, 2)
    if settings.method != "dense" and settings.max_probes < least:
        raise UsageError(f"--method {settings.method} needs at least {least} products", f"use --probes {least}")
    return settings.method


def memory_plan(problem: Problem, settings: DiagSettings) -> planning.MemoryPlan:
    """Vectors in a block, and the bytes that the analysis takes.

    Raises
    ------
    MemoryLimitError
        It does not fit.
    """
    dim, side = dimension(problem, settings.matrix), smaller_side(problem, settings)
    method = resolved_method(settings, side.rows)
    if method == "dense" and side.name == "factors":
        return plan_factors(problem, settings)
    if method == "dense" and side.name == "outputs":
        return plan_outputs(problem, settings, side.rows)
    count = min(settings.max_probes, dim)
    # Sums of samples and of their squares, in float64; for XDiag test vectors, their images, a basis and its images:
    # each half as many as the products.
    rows = {"dense": 2, "hutchinson": 8}.get(method, 2 * count + 8)
    block = min(DENSE_BLOCK if method == "dense" else BLOCK, count if method != "dense" else dim)
    fewer = None
    if method not in ("dense", "hutchinson"):
        fewer = planning.Growing("use --probes {}, or --method hutchinson", count, 2, least=4)
    return planning.plan_vectors(problem, settings, dim, rows=rows, block=block, growing=fewer)


def forecast(context: Context[Any], settings: DiagSettings) -> tuple[Plan, Forecast]:
    """How the work would be cut, and at most how many products, passes and bytes."""
    problem = context.problem
    pruning.check(settings)
    memory, rows = memory_plan(problem, settings), smaller_side(problem, settings).rows
    exact = resolved_method(settings, rows) == "dense"
    products = rows if exact else settings.max_probes
    passes = -(-products // memory.at_once)
    if settings.prune is not None:
        fresh = 0 if exact else pruning.PROBES
        products, passes = products + fresh + 1, passes + -(-fresh // memory.at_once) + 1
    return planning.cut(problem, memory.at_once), planning.forecast(
        problem, products=products, data_passes=passes, bytes=memory.bytes
    )


def layer_segments(layout: Layout, dim: int) -> tuple[list[str], Segments]:
    """Names of the layers and where their parameters lie; one, `outputs`, where the vector is no parameters."""
    if layout.dim != dim:
        return ["outputs"], (((0, dim),),)
    return list(layout.layers), layout.segments


def dense(operator: LinearOperator, segments: Segments, block: int, monitor: Monitor) -> Found:
    """Every entry, by the products of the unit vectors."""
    value = np.empty(operator.dim)
    for start, rows in rows_written_out(operator, block, monitor):
        value[start : start + len(rows)] = diagonal_of(start, rows)
    return exact(value, segments)


def exact(value: np.ndarray, segments: Segments) -> Found:
    """A diagonal that is known, as what is found."""
    layout = Ranges.of(segments)
    sums = [Law(float(total), 0.0, 1.0) for total in layout.gathered(layout.sums(value))]
    return Found("dense", value, np.zeros(len(value)), np.ones(len(layout.ends)), sums, 0)


class Diagonal(NamedTuple):
    """A diagonal from samples, or exact where that costs no more."""

    found: Found
    level: float  # error probability of its intervals
    reason: str  # why by this method
    warnings: list[str]


def sampled(
    operator: LinearOperator,
    settings: DiagSettings,
    method: str,
    segments: Segments,
    plan: planning.MemoryPlan,
    monitor: Monitor,
    meter: Meter,
) -> Diagonal:
    """Look at the intervals until they are narrow enough, or once, when all products are spent."""
    in_units, unit = normalised(operator)
    sampler = Sampler(
        in_units, jax.random.key(settings.seed), segments,
        at_once=plan.at_once, keep=method != "hutchinson", monitor=monitor,
        planned=settings.max_probes,
    )  # fmt: skip
    reason = f"--method {method} was asked for"
    looks = Looks(
        once=settings.rtol is None,
        first=FIRST_LOOK,
        most=settings.max_probes,
        alpha=1 - settings.confidence,
        exact=operator.dim if settings.method == "auto" else None,
    )
    if method == "auto":
        method, reason = _choose(sampler, settings.max_probes if looks.once else min(FIRST_LOOK, settings.max_probes))

    def look(now: Look) -> tuple[Found, float]:
        """The diagonal, and the half-width of its intervals relative to the entries; 0 where that is not asked for."""
        found = _estimate(sampler, method, now.budget).scaled(unit.value)
        if looks.once:
            return found, 0.0
        relative = _half_width(found, sampler.layout, now.level) / (_rms(found.value) or 1.0)
        monitor.known(f"entries ± {relative:.1%} (root mean square)")
        return found, relative

    def is_narrow(result: tuple[Found, float]) -> bool:
        return settings.rtol is None or result[1] <= settings.rtol

    def next_budget(result: tuple[Found, float], now: Look) -> int:
        assert settings.rtol is not None
        growth = min(max((result[1] / settings.rtol) ** 2 * MARGIN, 1.25), 4.0)
        return math.ceil(now.budget * growth)

    outcome = looks.until_narrow(look, is_narrow, next_budget, monitor)
    meter.products -= sampler.padding
    found, level, warnings = outcome.result[0], outcome.look.level, []
    if outcome.end == "exact":
        reason = f"±{settings.rtol:.2g} needs about as many products as the exact answer, one an entry"
        return Diagonal(dense(operator, segments, plan.at_once, monitor), looks.alpha, reason, [])
    if outcome.end == "exhausted":
        warnings.append(estimates.not_reached(settings.rtol, sampler.products, "products"))
    if found.method != method:
        reason += f"; stopped before that, the answer is that of {found.method}"
    return Diagonal(found, level, reason, warnings)


def _choose(sampler: Sampler, budget: int) -> tuple[str, str]:
    """XDiag if the images of half as many test vectors leave less than half of the variance.

    With n products, the squared error of all entries is Σ_{d≠j} A_dj²/n for Hutchinson's estimator, and at most
    ‖P(A − cI)‖_F²/(n/2) for XDiag's.
    """
    if budget < FEWEST_TO_CHOOSE:
        return "hutchinson", "too few products for anything else"
    sampler.draw(min(budget // 2, sampler.operator.dim))
    if sampler.drawn < budget // 2:
        return "hutchinson", "stopped before there was a choice"
    whole, rest = sampler.captured()
    share = rest / whole if whole > 0 else 1.0
    what = f"what the images of {sampler.drawn} test vectors leave has {share:.2g} of the variance"
    if 2 * rest < whole:
        return "xdiag", f"{what}: worth the other half of the products"
    sampler.forget()
    return "hutchinson", f"{what}: not worth the other half of the products"


def _estimate(sampler: Sampler, method: str, budget: int) -> Found:
    """What this many products say by this method; by Hutchinson's if the run was stopped before they were made."""
    if method == "hutchinson":
        sampler.draw(budget)
        return sampler.hutchinson()
    sampler.draw(min(budget // 2, sampler.operator.dim))
    return sampler.xdiag() if sampler.project() else sampler.hutchinson()


def quantiles(found: Found, level: float) -> np.ndarray:
    """Half-widths of the entries' intervals in standard errors, by range [G]: Student's."""
    return -scipy.special.stdtrit(found.dof, level / 2) if found.samples else np.zeros(len(found.dof))


def _half_width(found: Found, layout: Ranges, level: float) -> float:
    return _rms(found.stderr * layout.spread(quantiles(found, level)))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _layers(
    names: list[str],
    segments: Segments,
    found: Found,
    confidence: float,
    level: float,
    error: rounding.Rounding,
    eps: float,
    floor: float,
) -> list[LayerDiagonal]:
    """The layers' means; `error` is the rounding of products where these were sampled, `eps` that of exact entries.

    `floor` is what an exact entry may be off by however small it is.
    """
    layout, layers = Ranges.of(segments), []
    factors = quantiles(found, level)
    for index, (name, part, law) in enumerate(zip(names, segments, found.sums, strict=True)):
        value = np.concatenate([found.value[a:b] for a, b in part])
        stderr = np.concatenate([found.stderr[a:b] for a, b in part])
        # Of a mean: what rounding may change the sum by, over the number of entries.
        margin = error.trace(len(value)) / len(value) + rounding.OWN * eps * _rms(value) + floor
        factor = max(float(f) for f, owner in zip(factors, layout.owner, strict=True) if owner == index)
        layers.append(
            LayerDiagonal(
                name=name, dim=len(value), mean=as_estimate(law, 1 / len(value), found, confidence, level, margin),
                min=float(value.min()), max=float(value.max()), stderr=_rms(stderr), factor=factor,
            )
        )  # fmt: skip
    return layers


def as_estimate(law: Law, scale: float, found: Found, confidence: float, level: float, margin: float) -> Estimate:
    """A sum times `scale` as an estimate, its interval longer by `margin` at both ends."""
    if not found.samples:
        return rounding.widened(Estimate.exact(law.value * scale, confidence), margin)
    low, high = student_interval(law, level)
    mean = Sampled(law.value * scale, law.stderr * scale, (low * scale, high * scale), found.samples)
    return estimates.estimate(mean, confidence, found.method, margin)


def arrays(layout: Layout, found: Found, operator: LinearOperator) -> dict[str, Any]:
    """Entries and standard errors by parameter path and in the parameter's shape; `outputs` where there is none."""
    value, stderr = (np.asarray(part, operator.dtype) for part in (found.value, found.stderr))
    if layout.dim != operator.dim:
        return {"outputs": value, "outputs.stderr": stderr}
    shaped = zip(layout.unravel(value).items(), layout.unravel(stderr).values(), strict=True)
    return {key: np.asarray(a) for (name, v), e in shaped for key, a in ((name, v), (f"{name}.stderr", e))}
