"""What are the trace and the Frobenius norm of this matrix, and how much of the trace has each layer?"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import numpy as np

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
from curvcli.analyses.common.subsampling import images, layer_errors, subsampled, trace_errors, widened
from curvcli.curvature import build_for, dimension
from curvcli.curvature.flatten import Layout
from curvcli.errors import UsageError
from curvcli.linalg.iterate import Monitor
from curvcli.linalg.meter import Meter
from curvcli.linalg.normalised import normalised
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.sampling import Look, Looks
from curvcli.linalg.statistics import Law, Sampled, student, student_interval
from curvcli.linalg.trace import quadratic
from curvcli.linalg.trace.estimators import Found, Tracer
from curvcli.linalg.trace.hutchinson import Segments
from curvcli.problem import Problem
from curvcli.schema.estimate import Estimate
from curvcli.schema.inspect import Forecast
from curvcli.schema.plan import Plan
from curvcli.schema.trace import LayerTrace, More, TraceResult, TraceSettings

FIRST_LOOK = 8
"""Products before the interval is first held against a relative tolerance."""

LEAST = {"hutchinson": 1, "hutch++": 3, "xtrace": 4}
"""Products that a method needs: two test vectors for XTrace, one vector of each kind for Hutch++."""

FEWEST_FORMS = {"hutchinson": quadratic.LEAST, "auto": 16}
"""Samples from which on forms may take the place of products; `auto` makes the first half of them products."""

MARGIN = 1.15
"""More products than the forecast says: the next look should be the last."""

WITHIN = (0.1, 0.01, 0.001)
BLOCK = 8


def run(context: Context[None], settings: TraceSettings) -> Answer[TraceResult]:
    """Trace, Frobenius norm and per-layer traces of one curvature matrix.

    Cost: `probes` products (forms, at half of that, without the layers' traces); for a dense answer a product a row of
    the smaller side, parameters or outputs.
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
    names, segments = layer_segments(problem, operator.dim)
    if not settings.layers:
        names, segments = [], (((0, operator.dim),),)
    if method == "dense" and operator.known is not None:
        values, diagonal = operator.known.eigenvalues(), operator.known.diagonal_entries()
        reason = "the eigenvalues are products of those of the factors"
        result = _exact(
            settings, diagonal, float(values @ values), names, segments, "factors", reason, dtype=operator.dtype
        )
    elif method == "dense" and side.name == "outputs":
        result = _from_outputs(problem, settings, names, segments, plan.at_once, monitor, meter)
    elif method == "dense":
        reason = f"{operator.dim} dimensions: the whole matrix was written out"
        result = _dense(operator, settings, names, segments, plan.at_once, monitor, reason)
    else:
        result, doubts = sampled(operator, settings, method, names, segments, plan.at_once, monitor, meter)
        warnings += doubts
    if subsampled(problem, settings):
        result = _with_data_error(problem, settings, operator, result, segments)
    return Answer(result, meter, value, checks, warnings)


def resolved_method(settings: TraceSettings, rows: int) -> str:
    """`dense` where `auto` means it for this many rows of the smaller side; `auto` is decided later, by the spectrum.

    Raises
    ------
    UsageError
        The method needs more probes than are allowed.
    """
    if settings.method == "auto":
        return "dense" if rows <= max(DENSE_DIM, settings.max_probes if settings.rtol is None else 0) else "auto"
    least = LEAST.get(settings.method, 1)
    if settings.max_probes < least:
        raise UsageError(
            f"--method {settings.method} needs at least {least} products",
            f"use --probes {least}, or --method hutchinson",
        )
    return settings.method


def memory_plan(problem: Problem, settings: TraceSettings) -> planning.MemoryPlan:
    """Vectors in a block, and the bytes that the analysis takes.

    Raises
    ------
    MemoryLimitError
        It does not fit.
    """
    dim, side = dimension(problem, settings.matrix), smaller_side(problem, settings)
    method = resolved_method(settings, side.rows)
    count = min(settings.max_probes, dim)
    if method == "dense" and side.name == "factors":
        return plan_factors(problem, settings)
    if method == "dense" and side.name == "outputs":
        return plan_outputs(problem, settings, side.rows)
    if method == "dense":
        block = -(-dim // -(-dim // DENSE_BLOCK))  # blocks of one size
        return planning.plan_vectors(problem, settings, dim, rows=0, block=block)
    # Test vectors, their images, the basis of these and its image: each half as many as the products.
    rows = 0 if method == "hutchinson" else 2 * count
    fewer = planning.Growing("use --probes {}, or --method hutchinson", count, 2, least=4) if rows else None
    return planning.plan_vectors(problem, settings, dim, rows=rows, block=min(BLOCK, count), growing=fewer)


def layer_segments(problem: Problem, dim: int) -> tuple[list[str], Segments]:
    """Names of the layers and where they lie in the vector; one nameless segment where the vector is no parameters."""
    layout = Layout.of(problem.params)
    if layout.dim != dim:
        return [], (((0, dim),),)
    return list(layout.layers), layout.segments


def forecast(context: Context[None], settings: TraceSettings) -> tuple[Plan, Forecast]:
    """How the work would be cut, and at most how many products, passes and bytes."""
    problem = context.problem
    memory, rows = memory_plan(problem, settings), smaller_side(problem, settings).rows
    products = rows if resolved_method(settings, rows) == "dense" else settings.max_probes
    passes = -(-products // memory.at_once)
    return planning.cut(problem, memory.at_once), planning.forecast(
        problem, products=products, data_passes=passes, bytes=memory.bytes
    )


def sampled(
    operator: LinearOperator,
    settings: TraceSettings,
    method: str,
    names: list[str],
    segments: Segments,
    at_once: int,
    monitor: Monitor,
    meter: Meter,
) -> tuple[TraceResult, list[str]]:
    """Look at the interval until it is narrow enough, or once, when all products are spent; the result, and warnings.

    Cost: at most `probes` products, in blocks of `at_once`.
    """
    looks = Looks(
        once=settings.rtol is None,
        first=FIRST_LOOK,
        most=settings.max_probes,
        alpha=1 - settings.confidence,
        exact=operator.dim if method == "auto" else None,
    )
    sampling = _Sampling(operator, settings, method, segments, at_once, monitor, looks)
    outcome = looks.until_narrow(sampling.look, sampling.is_narrow, sampling.next_budget, monitor)
    _without_padding(meter, sampling.tracer, sampling.forms)
    if outcome.end == "exact":
        reason = f"±{settings.rtol:.2g} needs about as many products as the exact answer, a product a dimension"
        return _dense(operator, settings, names, segments, at_once, monitor, reason), []
    (found, trace), level, warnings = outcome.result, outcome.look.level, []
    if outcome.end == "exhausted":
        warnings.append(estimates.not_reached(settings.rtol, found.products, "products"))
    error, layers = rounding.measured(operator, settings.seed), []
    for name, part, law in zip(names, segments, found.parts, strict=False):
        dim = sum(b - a for a, b in part)
        estimate = rounding.widened(_as_estimate(law, found, settings, level, operator), error.trace(dim))
        layers.append(LayerTrace(name=name, dim=dim, trace=estimate))
    widened = rounding.widened(trace, error.trace())
    if sampling.is_narrow(outcome.result) and not estimates.is_narrow(widened, settings.rtol):
        warnings.append(f"--rtol {settings.rtol:g} is below the rounding of {operator.dtype} products")
    result = TraceResult(
        dim=operator.dim, method=found.method, reason=sampling.explanation(found),  # type: ignore[arg-type]
        trace=widened, layers=layers,
        frobenius_norm=rounding.widened(_frobenius(found, settings, level, operator), error.norm),
        more=_more(trace, found.products, settings),
    )  # fmt: skip
    return result, warnings


class _Sampling:
    """Test vectors, what they tell at each look, and which estimator reads them."""

    def __init__(
        self, operator: LinearOperator, settings: TraceSettings, method: str, segments: Segments, at_once: int,
        monitor: Monitor, looks: Looks,
    ) -> None:  # fmt: skip
        self.operator, self.settings, self.method, self.monitor, self.looks = operator, settings, method, monitor, looks
        in_units, self.unit = normalised(operator)
        self.tracer = Tracer(
            in_units, jax.random.key(settings.seed), segments,
            at_once=at_once, keep=method != "hutchinson", monitor=monitor,
            planned=settings.max_probes,
        )  # fmt: skip
        self.forms, fewest = None, FEWEST_FORMS.get(method, settings.max_probes + 1)
        if not settings.layers and operator.forms and at_once >= quadratic.LEAST and settings.max_probes >= fewest:
            self.forms = quadratic.Forms(
                in_units, self.tracer.key, at_once=at_once, monitor=monitor, planned=settings.max_probes
            )
        self.estimator, self.reason = method, f"--method {method} was asked for"
        self.before: tuple[float, int] | None = None  # margin and products of XTrace's last look

    def look(self, look: Look) -> tuple[Found, Estimate]:
        """Draw what the look may rest on, and estimate the trace."""
        if self.estimator == "auto":
            self.estimator, self.reason = _choose(self.tracer, look.budget, self.settings.max_probes)
        estimator = self.estimator if self.estimator != "auto" else "hutchinson"
        found = _estimate(self.tracer, self.forms, estimator, look.budget).scaled(self.unit.value)
        trace = _as_estimate(found.trace, found, self.settings, look.level, self.operator)
        self.monitor.known(f"trace {trace}")
        return found, trace

    def is_narrow(self, result: tuple[Found, Estimate]) -> bool:
        """Whether the interval of the trace is within the relative tolerance."""
        return estimates.is_narrow(result[1], self.settings.rtol)

    def next_budget(self, result: tuple[Found, Estimate], look: Look) -> int:
        """Products in all for an interval that is narrow enough; the estimator is chosen anew where it is `auto`."""
        found, _ = result
        assert self.settings.rtol is not None
        margin = student_margin(found, self.looks.level(look.number + 1))
        budget = _next_budget(found, margin, self.before, self.settings.rtol * abs(found.trace.value))
        self.before = (margin, found.products) if found.method == "xtrace" else None
        if self.estimator == "hutchinson" and self.method == "auto":
            self.estimator = "auto"  # what is left to do may make the other way cheaper
        return budget

    def explanation(self, found: Found) -> str:
        """Why this estimator, in words."""
        reason = self.reason
        if self.forms is not None and self.forms.drawn:
            reason += f"; {self.forms.drawn} samples are quadratic forms alone, half a product each"
        if found.method != self.estimator:
            reason += f"; stopped before that, the answer is that of {found.method}"
        return reason


def _without_padding(meter: Meter, tracer: Tracer, forms: quadratic.Forms | None) -> None:
    """Zero vectors that fill up blocks are no products."""
    meter.products -= tracer.padding
    meter.forms -= forms.padding if forms else 0


def _estimate(tracer: Tracer, forms: quadratic.Forms | None, method: str, budget: int) -> Found:
    """What this many products say by this method; by Hutchinson's if the run was stopped before they were made."""
    if method == "hutchinson" and forms is not None:
        forms.draw(budget - tracer.drawn)
        known = [*tracer.plain.known_forms(), *forms.blocks]
        if forms.drawn and any(len(block.inner) > 1 for block in known):
            trace, square = quadratic.estimates(tracer.operator.dim, known)
            count = tracer.drawn + forms.drawn
            return Found("hutchinson", trace, square, [], count, count)
    if method == "hutchinson":
        tracer.draw(budget)
        return tracer.hutchinson()
    dim = tracer.operator.dim
    if method == "xtrace":
        tracer.draw(min(budget // 2, dim))
        return tracer.xtrace() if tracer.project() else tracer.hutchinson()
    if min(budget // 3, dim) >= 2 * tracer.drawn:  # a larger known space, whose complement needs samples of its own
        tracer.draw(min(budget // 3, dim))
        tracer.fresh = None
    if not tracer.project():
        return tracer.hutchinson()
    fresh = tracer.refine(budget - tracer.products)
    return tracer.hutchpp() if fresh.count or not fresh.dim else tracer.hutchinson()


def _choose(tracer: Tracer, budget: int, most: int) -> tuple[str, str]:
    """XTrace if the images of the test vectors hold so much of the matrix that sampling the rest is the better half.

    With n products, Hutchinson's error is √(2‖B‖²/n), and XTrace's at most √(2‖rest‖²/(n/2)).
    """
    tests = max(tracer.drawn, min(max(budget // 2, 2), tracer.operator.dim))
    tracer.draw(tests)
    if tracer.drawn < 2 or most < LEAST["xtrace"]:
        return "hutchinson", "too few products for anything else"
    whole, rest = tracer.captured()
    share = 1 - rest / whole if whole > 0 else 1.0
    what = f"the images of {tracer.drawn} test vectors hold {max(share, 0):.1%} of ‖A − cI‖²"
    if 2 * tracer.drawn <= most and 2 * rest < whole:
        return "xtrace", f"{what}: half of the products sample what is left better than all would the whole"
    return "hutchinson", f"{what}: too little for a second half of the products to be spent on it"


def student_margin(found: Found, level: float) -> float:
    """Half the width of the interval of the trace."""
    low, high = student_interval(found.trace, level)
    return 0.5 * (high - low)


def _next_budget(found: Found, margin: float, before: tuple[float, int] | None, wanted: float) -> int:
    """Products for the margin wanted, from this look's margin and the one before, with its products.

    A margin falls as n^−p: p = ½ for Hutchinson's; for XTrace's, which falls faster where the spectrum decays, what
    the two looks say, but at least that. Never more than three times as much (of Hutchinson's, whose law is known, 32).
    """
    products, most = found.products, 32.0 if found.method == "hutchinson" else 3.0
    if wanted <= 0:
        return 4 * products
    power = 0.5
    if before is not None and 0 < margin < before[0]:
        power = min(max(math.log(before[0] / margin) / math.log(products / before[1]), 0.5), 8.0)
    growth = (margin / wanted) ** (1 / power) * MARGIN
    return max(math.ceil(products * min(max(growth, 1.125), most)), products + 2)


def _as_estimate(law: Law, found: Found, settings: TraceSettings, level: float, operator: LinearOperator) -> Estimate:
    """A law as an estimate, its interval widened by the rounding of the products."""
    margin = _rounding(found, operator)
    return estimates.estimate(student(law, level, found.probes), settings.confidence, found.method, margin)


def _rounding(found: Found, operator: LinearOperator) -> float:
    """Where sampling leaves no error, rounding still does: eps·‖A‖_F·√D, the size of the trace of a multiple of I."""
    return 4 * float(np.finfo(operator.dtype).eps) * math.sqrt(operator.dim * max(found.square.value, 0.0))


def _frobenius(found: Found, settings: TraceSettings, level: float, operator: LinearOperator) -> Estimate:
    """√ of the estimate of ‖A‖_F², its interval mapped along: a monotone map keeps the coverage."""
    value = math.sqrt(max(found.square.value, 0.0))
    low, high = (math.sqrt(max(end, 0.0)) for end in found.square.interval(level))
    margin = 4 * float(np.finfo(operator.dtype).eps) * value
    stderr = found.square.stderr / (2 * value) if value else 0.0
    norm = Sampled(value, stderr, (max(low - margin, 0.0), high + margin), found.probes)
    return estimates.estimate(norm, settings.confidence, found.method)


def _more(trace: Estimate, products: int, settings: TraceSettings) -> list[More]:
    """Products beyond those spent for ±10 %, ±1 %, ±0.1 % of the value."""
    low, high = trace.interval
    margin, size = 0.5 * (high - low), abs(trace.value)
    targets: list[float] = sorted({*WITHIN, settings.rtol or WITHIN[0]}, reverse=True)
    if size == 0:
        return [More(within=within, products=0) for within in targets] if margin == 0 else []
    ratios = [(margin / (within * size)) ** 2 for within in targets]
    return [
        More(within=within, products=min(max(math.ceil(products * (ratio - 1)), 0), 10**15))
        for within, ratio in zip(targets, ratios, strict=True)
    ]


def _dense(
    operator: LinearOperator,
    settings: TraceSettings,
    names: list[str],
    segments: Segments,
    block: int,
    monitor: Monitor,
    reason: str,
) -> TraceResult:
    """The diagonal and the squares of all entries, a block of rows at a time."""
    diagonal, square = np.empty(operator.dim), 0.0
    for start, rows in rows_written_out(operator, block, monitor):
        diagonal[start : start + len(rows)] = diagonal_of(start, rows)
        square += float(np.square(rows).sum())
    return _exact(settings, diagonal, square, names, segments, "parameters", reason, floor=operator.floor)


def _from_outputs(
    problem: Problem,
    settings: TraceSettings,
    names: list[str],
    segments: Segments,
    block: int,
    monitor: Monitor,
    meter: Meter,
) -> TraceResult:
    """The diagonal and the squares of all entries, from the output side."""
    gram, kernel, diagonal = outputs_written_out(problem, settings, block, monitor, meter)
    square = float(np.square(kernel).sum() + 2 * gram.shift * np.trace(kernel) + problem.dim * gram.shift**2)
    reason = f"{gram.rows} outputs, fewer than the {problem.dim} dimensions: their matrix was written out"
    return _exact(settings, diagonal, square, names, segments, "outputs", reason)


def _exact(
    settings: TraceSettings,
    diagonal: np.ndarray,
    square: float,
    names: list[str],
    segments: Segments,
    side: Literal["parameters", "outputs", "factors"],
    reason: str,
    dtype: Any = "float64",
    floor: float = 0.0,
) -> TraceResult:
    """The result where the diagonal and ‖A‖_F² are known, to the digits of a type, or to `floor` in an entry."""
    size = math.sqrt(square)

    def exact(value: float, dim: int) -> Estimate:
        found = rounding.exact(value, settings.confidence, size, dim, dtype)
        return rounding.widened(found, dim * floor)

    layers = []
    for name, part in zip(names, segments, strict=False):
        dim, total = sum(b - a for a, b in part), float(sum(diagonal[a:b].sum() for a, b in part))
        layers.append(LayerTrace(name=name, dim=dim, trace=exact(total, dim=dim)))
    return TraceResult(
        dim=len(diagonal), method="dense", written_out=side, reason=reason,
        trace=exact(float(diagonal.sum()), dim=len(diagonal)),
        layers=layers, more=[], frobenius_norm=exact(size, dim=len(diagonal)),
    )  # fmt: skip


def _with_data_error(
    problem: Problem, settings: TraceSettings, operator: LinearOperator, result: TraceResult, segments: Segments
) -> TraceResult:
    """The result with the errors that come from the examples left out. Cost: 8 products."""
    known = images(settings, operator)
    trace, frobenius = trace_errors(problem, settings, operator, result.frobenius_norm.value, known)
    errors = layer_errors(problem, settings, segments) if result.layers else []
    layers = [
        layer.model_copy(update={"trace": widened(layer.trace, error, positive=operator.psd)})
        for layer, error in zip(result.layers, errors, strict=True)
    ]
    return result.model_copy(
        update={
            "trace": widened(result.trace, trace, positive=operator.psd),
            "frobenius_norm": widened(result.frobenius_norm, frobenius, positive=True),
            "layers": layers,
        }
    )
