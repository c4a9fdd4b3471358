"""What does the loss do along this direction?

Exact derivatives at the weights (slope, curvature, third derivative, change of the outputs), and the true loss along
the line beside its quadratic model. All points of all lines are evaluated in one pass over the data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.analyses.common import planning
from curvcli.analyses.common.answer import Answer
from curvcli.analyses.common.checks import examined, finite_objective
from curvcli.analyses.common.context import Context
from curvcli.analyses.common.precision import weights_norm
from curvcli.analyses.lines import batch_statistics as line_statistics
from curvcli.analyses.lines import directions as lines
from curvcli.analyses.lines.batch_statistics import LineStatistics
from curvcli.analyses.lines.directions import Direction, Finder
from curvcli.curvature import along, build_for
from curvcli.curvature.batch_norm import Statistics
from curvcli.curvature.flatten import Layout
from curvcli.curvature.operators import example_forms
from curvcli.errors import NumericsError, suggest_float64
from curvcli.linalg.iterate import Monitor
from curvcli.linalg.meter import Meter
from curvcli.problem import Problem
from curvcli.schema.direction import (
    DirectionResult,
    Directions,
    DirectionSettings,
    OutputChange,
    Profile,
    Quotients,
)
from curvcli.schema.inspect import Forecast
from curvcli.schema.lines import Line, LineSettings
from curvcli.schema.plan import Plan

WITHIN = 0.1
"""Of the change that the quadratic predicts: how far the loss may be from it inside the radius."""

HALVINGS = 8
"""Of the first step, in the search for a radius below it."""


class Local(NamedTuple):
    """Derivatives along k unit vectors."""

    slope: np.ndarray  # [k], ∇J·u
    curvature: np.ndarray  # [k], uᵀAu of the matrix asked for
    hessian: np.ndarray  # [k]
    ggn: np.ndarray  # [k]
    third: np.ndarray  # [k]

    def along(self, index: int) -> tuple[float, float]:
        """Slope and curvature along one of them."""
        return float(self.slope[index]), float(self.curvature[index])


class Parabola(NamedTuple):
    """The quadratic model along a vector, s in multiples of it."""

    origin: float
    slope: float
    curvature: float

    def at(self, s: np.ndarray) -> np.ndarray:
        """Its values."""
        return self.origin + s * self.slope + 0.5 * s**2 * self.curvature

    @property
    def minimum(self) -> float | None:
        """Where it is least."""
        lowest = -self.slope / self.curvature if self.curvature > 0 else np.inf
        return float(lowest) if np.isfinite(lowest) else None


def run(context: Context[lines.Inputs], settings: DirectionSettings) -> Answer[DirectionResult | Directions]:
    """Derivatives and profiles along the directions asked for.

    Raises
    ------
    NumericsError
        No direction exists at these weights, or something along one is not finite.

    Notes
    -----
    Cost: about 12 forward passes a direction for the derivatives, one a point for the profiles, in four passes over
    the data; the products of MINRES for `newton`, those of `curv eigs` for eigenvectors.
    """
    problem, monitor = context.problem, context.monitor
    given, statistics = context.inputs.vectors, context.inputs.statistics
    lines.check(problem, settings)
    value, gradient = finite_objective(problem)
    meter = Meter()
    operator = meter.count(build_for(problem, settings))
    checks, warnings = examined(problem, operator, settings, len(settings.along))
    warnings += lines.not_a_curvature(settings)
    found, undefined = Finder(problem, operator, settings, gradient, given, monitor, warnings).all()
    units = jnp.stack([one.vector / one.norm for one in found])
    local = derivatives(problem, settings, operator.matmat, units, meter)
    changes = _output_changes(problem, units, meter)
    reach = weights_norm(problem)
    natural = [natural_range(one.norm, *local.along(i), value, reach) for i, one in enumerate(found)]
    grids = [lines.grid(settings.bounds(one.index) or natural[i], settings.points) for i, one in enumerate(found)]

    by_line = [line_statistics.chosen(problem, settings, [one], statistics, warnings) for one in found]

    def measure(chosen: list[np.ndarray]) -> Measured | None:
        return _losses(problem, settings, found, chosen, by_line, monitor, meter)

    measured = measure(grids)
    origin = value if measured is None else measured.origin
    parabolas = [
        Parabola(origin, slope * one.norm, curvature * one.norm**2)
        for one, (slope, curvature) in zip(found, map(local.along, range(len(found))), strict=True)
    ]
    radii: list[tuple[float | None, bool]] = [(None, False)] * len(found)
    if measured is None:
        warnings.append("the profile was not reached: its losses are null")
    else:
        radii = _nearer(parabolas, grids, measured, measure, [one.moves for one in by_line])
        warnings += _remarks(found, parabolas, grids, measured, problem.dtype)
    results = [
        _result(one, local, i, changes[i], grids[i], measured, parabolas[i], radii[i], gradient, by_line[i])
        for i, one in enumerate(found)
    ]
    arrays = {}
    if settings.arrays:
        vectors = jnp.stack([one.vector for one in found])
        by_path = Layout.of(problem.params).unravel(vectors)
        arrays = {f"vectors/{name}": np.asarray(rows) for name, rows in by_path.items()}
        arrays["outputs"] = along.output_tangents(problem, vectors)
        meter.data_passes += 1
    several = len(settings.along) > 1
    result = Directions(directions=results, undefined=undefined) if several else results[0]
    return Answer(result, meter, value, checks, warnings, arrays)


def forecast(context: Context[Any], settings: DirectionSettings) -> tuple[Plan, Forecast]:
    """How the work would be cut, the bytes, and at most how many products."""
    problem = context.problem
    needed = lines.check(problem, settings)
    products = lines.products(problem, settings)
    plan = planning.cut(problem, len(settings.along))
    return plan, planning.forecast(problem, products=products, data_passes=products + 4, bytes=needed)


def derivatives(
    problem: Problem, settings: LineSettings, matmat: Callable[[Array], Array], units: Array, meter: Meter
) -> Local:
    """Slope, curvatures and third derivative along unit vectors [k, dim].

    The quotients of Hessian and GGN come from forward derivatives; another matrix costs a product a vector.

    Raises
    ------
    NumericsError
        One is not finite.
    """
    data, rest = along.derivatives(problem, units)
    ggn = example_forms(problem, "ggn", units).mean(axis=1)
    meter.forms += 2 * len(units)
    meter.data_passes += 2
    curved = rest[:, 1] if settings.regulariser else np.zeros(len(units))
    hessian, ggn = data[:, 1] + curved, ggn + curved
    if settings.matrix in (known := {"hessian": hessian, "ggn": ggn}):
        curvature = known[settings.matrix] + settings.damping
    else:
        images = np.asarray(matmat(units), np.float64)
        curvature = np.einsum("kd,kd->k", images, np.asarray(units, np.float64))
    found = Local(data[:, 0] + rest[:, 0], curvature, hessian, ggn, data[:, 2] + rest[:, 2])
    if not all(np.all(np.isfinite(one)) for one in found):
        hint = suggest_float64(problem.dtype, "check the model and the loss at these weights")
        raise NumericsError("a derivative along the direction is not finite", hint)
    return found


def line(found: Direction, slope: float, curvature: float, gradient: Array) -> Line:
    """What the report says of every direction."""
    size = float(np.linalg.norm(np.asarray(gradient, np.float64)))
    return Line(
        direction=found.name, norm=found.norm, slope=slope, rayleigh_quotient=curvature,
        gradient_cosine=float(np.clip(slope / size, -1, 1)) if size else None,
        solve=found.solve, eigenvalue=found.eigenvalue,
    )  # fmt: skip


def model_radius(
    s: np.ndarray, loss: np.ndarray, quadratic: np.ndarray, origin: float, noise: float
) -> tuple[float | None, bool]:
    """The largest r such that the quadratic holds for |s| ≤ r, and whether only the range ends there.

    It holds at s where |loss − quadratic| is at most a tenth of the largest change that the quadratic predicts between
    0 and s, plus the rounding. (Of the change at s itself it would be nothing where the parabola comes back to J.)

    Parameters
    ----------
    s, loss, quadratic
        The profile, [p] each; a loss that is not finite is a failure.
    origin
        J at s = 0.
    noise
        Of a difference of losses.

    Returns
    -------
    The radius, linear between grid points; None where the model fails between 0 and the first point, or no point of
    the range lies on either side of 0.
    """
    error = np.where(np.isfinite(loss), np.abs(loss - quadratic), np.inf)
    ends, failed = [], []
    for side in (s[s < 0][::-1], s[s > 0]):
        order = np.searchsorted(s, side)
        allowed = WITHIN * np.maximum.accumulate(np.abs(quadratic[order] - origin)) + noise
        excess = error[order] - allowed
        over = np.flatnonzero(excess > 0)
        if not len(over):
            ends += [abs(side[-1])] if len(side) else []
            continue
        first = over[0]
        if first == 0:
            return None, False
        inside, outside = excess[first - 1], excess[first]
        share = 0.0 if np.isinf(outside) else -inside / (outside - inside)
        failed.append(abs(side[first - 1]) + share * (abs(side[first]) - abs(side[first - 1])))
    if failed:
        return float(min(failed)), False
    return (float(max(ends)), True) if ends else (None, False)


def natural_range(norm: float, slope: float, curvature: float, loss: float, reach: float) -> tuple[float, float]:
    """As far as the quadratic changes the loss by its own size, or twice as far as its minimum where that is more; no
    further than ‖w‖.

    The length of a gradient, or 1 for a unit vector, says nothing of how far to look; the curvature does.
    """
    slope, curvature = abs(slope), abs(curvature)
    if not curvature > 0:
        return -1.0, 1.0
    far = max(2 * slope / curvature, float(np.sqrt(2 * abs(loss) / curvature)))
    far = (min(far, reach) if reach > 0 else far) / norm
    return (-far, far) if np.isfinite(far) and far > 0 else (-1.0, 1.0)


class Measured(NamedTuple):
    """True losses along lines."""

    origin: float  # J(w)
    noise: float  # of a difference of losses
    rows: list[np.ndarray]  # one a line


def _losses(
    problem: Problem,
    settings: LineSettings,
    found: list[Direction],
    grids: list[np.ndarray],
    by_line: list[LineStatistics],
    monitor: Monitor,
    meter: Meter,
) -> Measured | None:
    """The losses over each grid, all from one pass over the data; None where it was given up."""
    first = lines.reference_points(problem, len(found))
    points = [first, *(np.outer(s, np.eye(len(found) + 1)[i]) for i, s in enumerate(grids))]
    directions = lines.with_nudge(problem, jnp.stack([one.vector for one in found]), settings.seed)
    rows = None
    if any(one.moves for one in by_line):
        rows = _statistics(problem, found, directions, first, grids, by_line, monitor)
        if rows is None:
            return None
        meter.data_passes += sum(one.kind == "recompute" for one in by_line)
    losses = along.losses(problem, directions, np.concatenate(points), statistics=rows, stop=monitor.stop)
    meter.data_passes += 1
    if losses is None:
        return None
    reference, *rows = np.split(losses, np.cumsum([len(part) for part in points])[:-1])
    return Measured(float(reference[0]), lines.rounding(problem, reference), rows)


def _statistics(
    problem: Problem,
    found: list[Direction],
    directions: Array,
    first: np.ndarray,
    grids: list[np.ndarray],
    by_line: list[LineStatistics],
    monitor: Monitor,
) -> Statistics | None:
    """The statistics of the reference points, which are the checkpoint's, and of all grids: [p, ...] by path."""
    parts = [LineStatistics("fixed", problem, {}).at(directions, first, monitor.stop)]
    for i, (s, one) in enumerate(zip(grids, by_line, strict=True)):
        if len(s):
            parts.append(one.at(directions[i : i + 1], s[:, None], monitor.stop))
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return {name: np.concatenate([part[name] for part in known]) for name in known[0]}


def _nearer(
    parabolas: list[Parabola],
    grids: list[np.ndarray],
    measured: Measured,
    finer: Callable[..., Measured | None],
    moves: list[bool],
) -> list[tuple[float | None, bool]]:
    """The radius of each model; where it is less than the first step, from points nearer to 0 in a second pass.

    Parameters
    ----------
    moves
        Whether a line's losses have other statistics than its model, which then has no radius.
    finer
        Takes further grids, one a direction (empty where none is needed), and gives their losses.
    """

    def radius(i: int, s: np.ndarray, loss: np.ndarray) -> tuple[float | None, bool]:
        return model_radius(s, loss, parabolas[i].at(s), parabolas[i].origin, measured.noise)

    radii = [
        (None, False) if moves[i] else radius(i, s, loss)
        for i, (s, loss) in enumerate(zip(grids, measured.rows, strict=True))
    ]
    near = [
        _near(s) if at is None and not moves[i] and np.any(s != 0) else s[:0]
        for i, (s, (at, _)) in enumerate(zip(grids, radii, strict=True))
    ]
    if not any(map(len, near)) or (more := finer(near)) is None:
        return radii
    for i, (s, loss) in enumerate(zip(near, more.rows, strict=True)):
        if moves[i]:
            continue
        everywhere, losses = np.r_[grids[i], s], np.r_[measured.rows[i], loss]
        order = np.argsort(everywhere, kind="stable")
        radii[i] = radius(i, everywhere[order], losses[order])
    return radii


def _remarks(
    found: list[Direction], parabolas: list[Parabola], grids: list[np.ndarray], measured: Measured, dtype: Any
) -> list[str]:
    """Warnings where a profile says little."""
    remarks = [
        f"{one.name}: the quadratic changes the loss by no more than rounding over this range: "
        + suggest_float64(dtype, "widen --range")
        for one, parabola, s in zip(found, parabolas, grids, strict=True)
        if np.max(np.abs(parabola.at(s) - parabola.origin)) <= measured.noise
    ]
    if not all(np.all(np.isfinite(row)) for row in measured.rows):
        remarks.append("the loss is not finite at some points: they are null")
    return remarks


def _near(s: np.ndarray) -> np.ndarray:
    """Between 0 and the first point of each side, halved again and again."""
    sides = [side[np.argmin(np.abs(side))] for side in (s[s < 0], s[s > 0]) if len(side)]
    return np.outer(sides, 0.5 ** np.arange(1, HALVINGS + 1)).ravel()


def _result(
    found: Direction,
    local: Local,
    index: int,
    change: OutputChange,
    s: np.ndarray,
    measured: Measured | None,
    parabola: Parabola,
    radius: tuple[float | None, bool],
    gradient: Array,
    statistics: LineStatistics,
) -> DirectionResult:
    """One direction as the report has it."""
    loss = lines.finite(np.full(len(s), np.nan) if measured is None else measured.rows[index])
    return DirectionResult(
        **dict(line(found, *local.along(index), gradient)),
        rayleigh_quotients=Quotients(hessian=float(local.hessian[index]), ggn=float(local.ggn[index])),
        third_derivative=float(local.third[index]),
        output_change=change,
        quadratic_minimum=parabola.minimum,
        profile=Profile(s=s.tolist(), loss=loss, quadratic=parabola.at(s).tolist()),
        noise=None if measured is None else measured.noise, model_radius=radius[0], model_radius_censored=radius[1],
        batch_stats=statistics.kind,
    )  # fmt: skip


def _output_changes(problem: Problem, units: Array, meter: Meter) -> list[OutputChange]:
    """How far each example's outputs move along unit vectors: the examples' shares of the classical Gauss–Newton form.

    Weights select the tokens that count for an example, whose change is then in the units of the outputs. The mean over
    the examples is weighted by them; a sequence has the mean weight of its tokens that count.

    Source: vᵀ(Σ J_nᵀJ_n)v = Σ ‖J_n v‖².
    """
    batches = problem.batches
    weight = np.asarray(batches.weight, np.float64).reshape(batches.num_examples, -1)
    counted = weight > 0
    selected = replace(batches, weight=counted.astype(batches.weight.dtype).reshape(batches.weight.shape))
    scale = problem.normaliser / batches.num_examples
    squares = example_forms(replace(problem, batches=selected), "gauss-newton", units) * scale
    meter.forms += len(units)
    meter.data_passes += 1
    weight = weight.sum(axis=1) / np.maximum(counted.sum(axis=1), 1)
    return [
        OutputChange(
            rms=float(np.sqrt(np.average(row, weights=weight))),
            max=float(np.sqrt(row.max())),
            example=int(row.argmax()),
        )
        for row in np.maximum(squares, 0)
    ]
