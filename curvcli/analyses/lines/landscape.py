"""What does the loss look like on this line, or this plane, through the weights?

The grid is evaluated row by row, each row in one pass over the data.
"""

from __future__ import annotations

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
from curvcli.analyses.lines import direction
from curvcli.analyses.lines import directions as lines
from curvcli.analyses.lines.batch_statistics import LineStatistics
from curvcli.analyses.lines.direction import natural_range
from curvcli.analyses.lines.directions import Finder
from curvcli.curvature import along, build_for
from curvcli.errors import NumericsError
from curvcli.linalg.iterate import Monitor, watched
from curvcli.linalg.krylov.lanczos import not_finite
from curvcli.linalg.meter import Meter
from curvcli.problem import Problem
from curvcli.schema.inspect import Forecast
from curvcli.schema.landscape import LandscapeResult, LandscapeSettings
from curvcli.schema.plan import Plan


class Barrier(NamedTuple):
    """Between two ends of a line."""

    height: float  # largest excess over the straight line between the ends
    above_higher_end: float
    at: float
    end_loss: float


def run(context: Context[lines.Inputs], settings: LandscapeSettings) -> Answer[LandscapeResult]:
    """True loss and quadratic model on a line or a plane.

    Raises
    ------
    NumericsError
        A direction does not exist at these weights, or something along it is not finite.

    Notes
    -----
    Cost: a forward pass a point (two where batch statistics are recomputed), the data read once a row; two products,
    and what finding the directions takes.
    """
    problem, monitor = context.problem, context.monitor
    given, statistics = context.inputs.vectors, context.inputs.statistics
    lines.check(problem, settings)
    value, gradient = finite_objective(problem)
    meter = Meter()
    operator = meter.count(build_for(problem, settings))
    checks, warnings = examined(problem, operator, settings, len(settings.along))
    warnings += lines.not_a_curvature(settings)
    found, undefined = Finder(problem, operator, settings, gradient, given, monitor, []).all()
    if undefined:
        raise NumericsError(
            f"--along {undefined[0].direction}: {undefined[0].reason}", "ask for another direction, such as random"
        )
    vectors = jnp.stack([one.vector for one in found])
    # Of unit vectors: a gradient may be so short that its products are below the smallest number of float32. Always
    # two, the shape that the self-checks have compiled.
    norms, exact = np.array([one.norm for one in found]), np.asarray(vectors, np.float64)
    units = jnp.resize(jnp.asarray(exact / norms[:, None], problem.dtype), (2, problem.dim))
    images = norms[:, None] * np.asarray(operator.matmat(units)[: len(found)], np.float64)
    form = 0.5 * (images @ exact.T + exact @ images.T)
    slopes = exact @ np.asarray(gradient, np.float64)
    if not np.all(np.isfinite(form)):
        raise not_finite(problem.dtype)
    reach = weights_norm(problem)
    slope, curvature = slopes / norms, np.diag(form) / norms**2
    natural = [
        natural_range(one.norm, float(slope[i]), float(curvature[i]), value, reach) for i, one in enumerate(found)
    ]
    axes = [lines.grid(settings.bounds(i) or natural[i], settings.points) for i in range(len(found))]
    along_lines = line_statistics.chosen(problem, settings, found, statistics, warnings)
    nudged = lines.with_nudge(problem, vectors, settings.seed)
    losses = _evaluated(problem, nudged, axes, along_lines, monitor, meter, warnings)
    origin = losses.origin if losses.origin is not None else value
    steps = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    # The model is that of J with its statistics fixed, whichever the grid has.
    quadratic = (
        (value if along_lines.moves else origin)
        + steps @ slopes
        + 0.5 * np.einsum("...i,ij,...j->...", steps, form, steps)
    )
    between = barrier(axes[0], losses.grid, origin, losses.end) if len(found) == 1 else None
    result = LandscapeResult(
        directions=[
            direction.line(one, slopes[i] / one.norm, form[i, i] / one.norm**2, gradient) for i, one in enumerate(found)
        ],
        cosine=None if len(found) == 1 else float(np.clip(exact[0] @ exact[1] / norms.prod(), -1, 1)),
        curvature=form.tolist(),
        loss_at_weights=origin,
        a=axes[0].tolist(),
        b=axes[1].tolist() if len(found) == 2 else None,
        loss=lines.finite(losses.grid),
        quadratic=quadratic.tolist(),
        batch_stats=along_lines.kind,
        noise=losses.noise,
        barrier=None if between is None else between.height,
        barrier_above_higher_end=None if between is None else between.above_higher_end,
        barrier_at=None if between is None else between.at,
        end_loss=None if between is None else between.end_loss,
    )
    return Answer(result, meter, value, checks, warnings)


def forecast(context: Context[Any], settings: LandscapeSettings) -> tuple[Plan, Forecast]:
    """How the work would be cut, the bytes, and at most how many products."""
    problem = context.problem
    needed = lines.check(problem, settings)
    products = lines.products(problem, settings) + 2
    rows = settings.points + 1 if len(settings.along) == 2 else 1
    return planning.cut(problem, 2), planning.forecast(
        problem, products=products, data_passes=products + rows, bytes=needed
    )


def barrier(s: np.ndarray, loss: np.ndarray, origin: float, end: float | None) -> Barrier | None:
    """The barrier on the way from s = 0 to s = 1, of the grid points between and both ends.

    Parameters
    ----------
    s, loss
        The line, [p].
    origin, end
        J at 0 and at 1; None where that was not evaluated.

    Returns
    -------
    None where the range does not hold [0, 1], or a loss in it is not finite.

    Notes
    -----
    Source: Frankle et al. (2020), *Linear mode connectivity and the lottery ticket hypothesis*, for the excess over the
    straight line.
    """
    inside = (s >= 0) & (s <= 1)
    if end is None or not np.isfinite(end) or not np.all(np.isfinite(loss[inside])):
        return None
    places, values = np.r_[0.0, s[inside], 1.0], np.r_[origin, loss[inside], end]
    excess = values - ((1 - places) * origin + places * end)
    highest = int(np.argmax(excess))
    above = float(max(values.max() - max(origin, end), 0.0))
    return Barrier(float(max(excess[highest], 0.0)), above, float(places[highest]), float(end))


class _Losses(NamedTuple):
    grid: np.ndarray  # [p] or [p, p], NaN where not finite or not reached
    origin: float | None
    end: float | None  # at s = 1 of a line
    noise: float | None


def _evaluated(
    problem: Problem,
    vectors: Array,
    axes: list[np.ndarray],
    statistics: LineStatistics,
    monitor: Monitor,
    meter: Meter,
    warnings: list[str],
) -> _Losses:
    """The losses of all rows."""
    line, shape = len(axes) == 1, tuple(len(axis) for axis in axes)
    reference, zeros = lines.reference_points(problem, len(axes)), np.zeros(shape[-1])
    # A line is one row, with the weights and the other end; a plane has the weights, and a row for each a.
    if line:
        rows = {"line": np.concatenate([reference, [[1.0, 0.0]], np.column_stack([axes[0], zeros])])}
    else:
        planes = [np.column_stack([np.full(shape[1], a), axes[1], zeros]) for a in axes[0]]
        rows = {"weights": reference, **{f"a {i}": points for i, points in enumerate(planes)}}
    values: dict[str, np.ndarray] = {}
    for name, points in watched(rows.items(), monitor, "losses", unit="rows", least=None):
        at_points = statistics.at(vectors, points, monitor.stop) if statistics.moves else None
        if statistics.moves and at_points is None:
            break
        losses = along.losses(problem, vectors, points, statistics=at_points, stop=monitor.stop)
        if losses is None:
            break
        meter.data_passes += 2 if statistics.kind == "recompute" else 1
        values[name] = np.where(np.isfinite(losses), losses, np.nan)
    missing = len(rows) - len(values)
    if missing:
        warnings.append(f"{missing} of {len(rows)} rows were not reached: their losses are null")
    if any(np.any(np.isnan(row)) for row in values.values()):
        warnings.append("the loss is not finite at some points: they are null")
    none, count = np.full(shape[-1], np.nan), len(reference)
    known = values.get("line" if line else "weights")
    origin = None if known is None else _number(known[0])
    noise = None if known is None or origin is None else lines.rounding(problem, known[:count])
    if line:
        end = _number(known[count]) if known is not None and axes[0][0] <= 0 and axes[0][-1] >= 1 else None
        return _Losses(none if known is None else known[count + 1 :], origin, end, noise)
    return _Losses(np.stack([values.get(f"a {i}", none) for i in range(shape[0])]), origin, None, noise)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
