"""What `curv saddle` finds of the Hessian: written out, or from random vectors."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import Array

from curvcli.analyses.common import estimates, stationarity
from curvcli.analyses.common.dense import written_out
from curvcli.analyses.common.precision import coarsest
from curvcli.analyses.common.rounding import along as rounding_along
from curvcli.analyses.saddle import descent
from curvcli.analyses.spectrum import NEAR_ZERO, eigenvalue, noise, refined_extremes
from curvcli.errors import NumericsError
from curvcli.linalg.iterate import Monitor, watched
from curvcli.linalg.krylov import bounds, density, slq
from curvcli.linalg.operator import LinearOperator
from curvcli.problem import Problem
from curvcli.schema.estimate import Beyond, Bounded, Eigenvalue
from curvcli.schema.saddle import Bound, SaddleSettings


@dataclass(frozen=True)
class Findings:
    """What either method finds."""

    exact: bool  # every eigenvalue is known
    low: Eigenvalue
    high: Eigenvalue
    ends: Array  # [2, D], unit vectors of both
    index: Bounded
    null_space: Bounded
    bound: Bound | None  # as if no negative curvature showed
    all_below: bool  # no eigenvalue is above −cut
    lowest_positive: float | None  # no smaller than the smallest eigenvalue above the cut …
    lowest_is_known: bool  # … and that eigenvalue itself
    values: np.ndarray  # of the pairs at both ends
    residuals: np.ndarray
    decrement: stationarity.Decrement
    norm: float  # ‖H‖ …
    norm_from_above: bool  # … or more; else perhaps less
    noise: float  # rounding of products along both ends
    cut: float  # an eigenvalue counts as zero up to here
    eps: float  # of the coarsest type that J is computed in

    @property
    def shows_none(self) -> bool:
        """Whether the smallest value found lets the bound be said."""
        if self.bound is None:
            return False
        return self.low.value >= -(self.cut if self.exact else 0.5 * self.bound.epsilon * self.bound.norm)


def from_all(
    problem: Problem,
    operator: LinearOperator,
    settings: SaddleSettings,
    block: int,
    gradient: np.ndarray,
    monitor: Monitor,
) -> Findings:
    """Every eigenvalue. Cost: D products."""
    values, vectors = scipy.linalg.eigh(written_out(operator, block, monitor))
    norm, eps = _resolvable(float(np.abs(values).max()), settings), coarsest(problem)
    rounding = _rounding(settings, eps) * norm
    ends = jnp.asarray(vectors[:, [0, -1]].T, operator.dtype)
    floor = _noise_floor(operator, settings, ends, rounding, eps)
    cut = max(NEAR_ZERO[settings.dtype] * norm, floor)
    low, high = (
        eigenvalue(float(values[end]), rounding, True, float(values[end]) + beyond)
        for end, beyond in ((0, -rounding), (-1, rounding))
    )
    counts = (np.sum(values < -cut), np.sum(np.abs(values) <= cut))
    index, null_space = (Bounded.exact(float(count), settings.confidence) for count in counts)
    positive = values[values > cut]
    shown, residuals = descent.ends(values, np.full(len(values), rounding))
    return Findings(
        exact=True, low=low, high=high, ends=ends, index=index, null_space=null_space,
        bound=Bound(epsilon=min(cut / norm, 1.0) if norm else 0.0, probability=1.0, norm=norm + rounding, steps=0),
        all_below=bool(values[-1] < -cut), values=shown, residuals=residuals,
        lowest_positive=float(positive[0]) if len(positive) else None, lowest_is_known=True,
        decrement=stationarity.exact_decrement(values, vectors.T @ gradient, settings.stationary_tol * norm),
        norm=norm + rounding, norm_from_above=True, noise=floor, cut=cut, eps=eps,
    )  # fmt: skip


def from_samples(
    problem: Problem,
    operator: LinearOperator,
    settings: SaddleSettings,
    at_once: int,
    gradient: np.ndarray,
    monitor: Monitor,
    warnings: list[str],
) -> Findings:
    """Extremes, counts and the bound from random vectors: one followed for long, the others for the counts."""
    dim, key = operator.dim, jax.random.key(settings.seed)
    long, short = long_steps(settings, dim), min(settings.steps, dim)
    collected, planned = slq.Collected(), long + (settings.max_probes - 1) * short
    rounds = [(long, 1)] + [
        (short, min(at_once, settings.max_probes - first)) for first in range(1, settings.max_probes, at_once)
    ]
    for steps, count in watched(rounds, monitor):
        slq.Slq(steps, "full", deflate=True).round(operator, key, count, collected, monitor, planned)
    low, high, ends, doubts = refined_extremes(
        operator, settings, collected, key, monitor, capacity=2 * slq.KEPT + short
    )
    warnings += doubts

    found_norm = _resolvable(max(abs(low.value), abs(high.value)), settings)
    eps = coarsest(problem)
    rounding = _rounding(settings, eps) * found_norm
    bound, outside = _bound(collected, settings, dim, rounding)
    low, high = (_told(one, end, rounding) for one, end in zip((low, high), outside, strict=True))
    norm = max([found_norm, *(abs(end.bound) for end in outside if end is not None)])
    floor = _noise_floor(operator, settings, ends, rounding, eps)
    cut = max(NEAR_ZERO[settings.dtype] * norm, floor)
    quadrature, measures = slq.quadrature(collected, key, operator), collected.measures
    index, null_space = (
        estimates.mass(density.mass(quadrature, measures, *inside, 1 - settings.confidence), settings.confidence).times(
            dim
        )
        for inside in ((-np.inf, -np.nextafter(cut, np.inf)), (-cut, cut))
    )
    values, residuals = descent.ritz_pairs(collected.low, collected.high)
    values[0], values[-1] = low.value, high.value
    residuals = np.maximum(residuals, rounding)
    residuals[0], residuals[-1] = low.residual, high.residual
    known = low.converged and low.interval[0] > cut
    return Findings(
        exact=False, low=low, high=high, ends=ends, index=index, null_space=null_space, bound=bound,
        all_below=high.beyond is not None and high.beyond.bound < -cut, values=values, residuals=residuals,
        lowest_positive=low.value if known else _lowest_placed(measures, rounding, cut), lowest_is_known=known,
        decrement=stationarity.sampled_decrement(operator, gradient, settings.stationary_tol * norm, monitor),
        norm=norm, norm_from_above=outside[0] is not None, noise=floor, cut=cut, eps=eps,
    )  # fmt: skip


def long_steps(settings: SaddleSettings, dim: int) -> int:
    """Steps of the process that the bound rests on; half of δ is for the bound on ‖H‖."""
    return max(bounds.certifying_steps(settings.epsilon, dim, 0.5 * settings.delta), min(settings.steps, dim))


def _bound(
    collected: slq.Collected, settings: SaddleSettings, dim: int, rounding: float
) -> tuple[Bound | None, tuple[Beyond | None, Beyond | None]]:
    """What the long process proves, at the ε it was asked for or the smallest it reached; and bounds on both ends."""
    first, failure = collected.measures[0], 0.5 * settings.delta
    steps, ends = len(first.nodes), (float(first.nodes[0]), float(first.nodes[-1]))
    seen_all = collected.tridiagonals[0].invariant or steps >= dim
    if seen_all:  # with probability one a random vector meets every eigenspace
        outside = (ends[0] - rounding, ends[1] + rounding)
    else:
        outside = bounds.beyond_extremes(*ends, steps=steps, starts=1, dim=dim, probability=1 - failure)
    if outside is None:
        return None, (None, None)
    beyond = (Beyond(bound=outside[0], probability=1 - failure), Beyond(bound=outside[1], probability=1 - failure))
    reached = settings.epsilon if seen_all else max(settings.epsilon, bounds.certified_epsilon(steps, dim, failure))
    if reached >= 1:
        return None, beyond
    norm = max(abs(outside[0]), abs(outside[1]))
    return Bound(epsilon=reached, probability=1 - settings.delta, norm=norm, steps=steps), beyond


def _told(found: Eigenvalue, beyond: Beyond | None, rounding: float) -> Eigenvalue:
    """An extreme with what may lie beyond it, and no residual below the rounding of the whole model."""
    residual = max(found.residual, rounding)
    interval = (found.value - residual, found.value + residual)
    return found.model_copy(update={"beyond": beyond, "residual": residual, "interval": interval})


def _lowest_placed(measures: list[bounds.Measure], rounding: float, cut: float) -> float | None:
    """An upper bound on the smallest eigenvalue above `cut`: a Ritz value's residual r places one in θ ± r."""
    ends = [(m.nodes - m.residuals - rounding, m.nodes + m.residuals + rounding) for m in measures]
    placed = [upper[lower > cut].min() for lower, upper in ends if np.any(lower > cut)]
    return float(min(placed)) if placed else None


def is_coarse(settings: SaddleSettings, eps: float) -> bool:
    """Whether a type of this eps is coarser than the arithmetic asked for."""
    return eps > float(np.finfo(settings.dtype).eps)


def _rounding(settings: SaddleSettings, eps: float) -> float:
    """Rounding of a product relative to ‖H‖, of the coarsest type."""
    return 0.5 * noise(settings) * max(eps / float(np.finfo(settings.dtype).eps), 1.0)


def _noise_floor(operator: LinearOperator, settings: SaddleSettings, ends: Array, rounding: float, eps: float) -> float:
    """Rounding of products along both ends: measured against float64, or what that of the coarsest type may be."""
    if settings.dtype == "float64" or is_coarse(settings, eps):
        return rounding
    return float(rounding_along(operator, ends).max())


def _resolvable(norm: float, settings: SaddleSettings) -> float:
    """‖H‖, which must be so far from the smallest number that there is room for small eigenvalues."""
    if 0 < norm < 1e8 * float(np.finfo(settings.dtype).tiny):
        raise NumericsError(
            f"the Hessian is of size {norm:.2g}: {settings.dtype} has no room for its small eigenvalues",
            "use --dtype float64" if settings.dtype == "float32" else "scale the loss",
        )
    return norm
