"""Optimal brain damage: saliencies from a diagonal, and what zeroing the weights of least saliency does to the loss.

Source: LeCun, Denker and Solla (1990), *Optimal brain damage*.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.analyses.common.rounding import exact
from curvcli.curvature import build
from curvcli.curvature.flatten import Layout
from curvcli.curvature.products import sums
from curvcli.devices import on_host
from curvcli.errors import UsageError
from curvcli.linalg.diagonal.entries import Found
from curvcli.linalg.diagonal.estimators import Sampler
from curvcli.linalg.iterate import Silent
from curvcli.linalg.meter import Meter
from curvcli.linalg.normalised import normalised
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.statistics import student_interval
from curvcli.problem import Problem
from curvcli.schema.diag import DiagSettings, LayerPruned, LayerSaliency, Pruning
from curvcli.schema.estimate import Estimate
from curvcli.schema.matrices import refusal, taken_by
from curvcli.streams import Stream

PROBES = 16
"""Fresh probes for the predicted change."""


def check(settings: DiagSettings) -> None:
    """Pruning needs a curvature of J.

    Raises
    ------
    UsageError
        The matrix is none.
    """
    if settings.prune is not None and (why := refusal(settings.matrix, "saliencies")) is not None:
        raise UsageError(
            f"--prune needs a curvature of the loss, and {settings.matrix} is none: {why}",
            f"use --matrix {', '.join(taken_by('saliencies'))}",
        )


def curvature(settings: DiagSettings, found: Found) -> np.ndarray:
    """The diagonal [D] without the damping, which is no part of J."""
    return found.value - settings.damping


def score(settings: DiagSettings, found: Found, weights: np.ndarray) -> np.ndarray:
    """What weights are ranked by [D]: ½ H_ii w_i², where a sampled H_ii is taken no smaller than its standard error.

    Without that floor the first to go would be the weights whose estimate is lowest by chance, and chance is largest
    where the row is: ranked so by 64 products, 30 % of a small network cost it a thousand times the loss.
    """
    diagonal = curvature(settings, found)
    return 0.5 * np.where(found.stderr > 0, np.maximum(diagonal, found.stderr), diagonal) * weights**2


def saliencies(problem: Problem, settings: DiagSettings, found: Found) -> list[LayerSaliency]:
    """½ H_ii w_i² by layer, the largest mean first."""
    layout, weights, diagonal = Layout.of(problem.params), flat_weights(problem), curvature(settings, found)
    layers = []
    for name, index in layer_indices(layout).items():
        half = 0.5 * weights[index] ** 2
        each = half * diagonal[index]
        # Errors of the entries are correlated: a sum over E has the variance tr EBEB + tr EB²E ≤ 2 tr EB²E.
        stderr = float(np.sqrt(2 * np.square(half * found.stderr[index]).sum()))
        layers.append(
            LayerSaliency(
                name=name, dim=len(index), total=float(each.sum()), stderr=stderr, mean=float(each.mean()),
                max=float(each.max()), negative_fraction=float(np.mean(diagonal[index] < 0)),
            )
        )  # fmt: skip
    return sorted(layers, key=lambda layer: -layer.mean)


def trial(
    problem: Problem,
    settings: DiagSettings,
    operator: LinearOperator,
    found: Found,
    value: float,
    gradient: Array,
    at_once: int,
    meter: Meter,
) -> Pruning:
    """J after zeroing the weights of least saliency, beside what was foreseen, and after zeroing the smallest weights.

    Cost: one product, 16 where the diagonal was sampled, and two losses.
    """
    assert settings.prune is not None
    layout, weights = Layout.of(problem.params), flat_weights(problem)
    count = max(round(settings.prune * layout.dim), 1)
    ranks = score(settings, found, weights)
    pruned = np.zeros(layout.dim, bool)
    pruned[np.argsort(ranks, kind="stable")[:count]] = True
    smallest = np.zeros(layout.dim, bool)
    smallest[np.argsort(np.abs(weights), kind="stable")[:count]] = True
    delta = np.where(pruned, -weights, 0.0)
    hessian = meter.count(build(problem, "hessian"))
    image = np.asarray(hessian.matmat(jnp.asarray(delta, operator.dtype)[None])[0], np.float64)
    first = float(np.asarray(gradient, np.float64) @ delta)
    changes = [loss_without(problem, layout, weights, gone) - value for gone in (pruned, smallest)]
    return Pruning(
        fraction=settings.prune, weights=count, threshold=float(ranks[pruned].max()),
        predicted_by_diagonal=_predicted(settings, operator, found, np.where(pruned, weights, 0.0), at_once, meter),
        first_order=first, predicted_by_quadratic=first + 0.5 * float(delta @ image),
        actual=changes[0], magnitude_actual=changes[1],
        resolution=8 * float(np.finfo(operator.dtype).eps) * max(abs(value), *(abs(value + c) for c in changes)),
        layers=[
            LayerPruned(name=name, dim=len(index), weights=int(pruned[index].sum()))
            for name, index in layer_indices(layout).items()
        ],
    )  # fmt: skip


def _predicted(
    settings: DiagSettings, operator: LinearOperator, found: Found, weights: np.ndarray, at_once: int, meter: Meter
) -> Estimate:
    """½ Σ H_ii w_i² over the pruned weights (`weights`, zero elsewhere), that is ½ tr WHW with W = diag w."""
    if not found.samples:
        terms = 0.5 * curvature(settings, found) * weights**2
        return exact(float(terms.sum()), settings.confidence, float(np.linalg.norm(terms)), len(terms))
    scale = jnp.asarray(weights, operator.dtype)[None]
    scaled = operator.with_products(lambda v: scale * (operator.matmat(scale * v) - settings.damping * scale * v))
    in_units, unit = normalised(scaled)
    key = Stream.PRUNING_TRIALS.key(settings.seed)
    sampler = Sampler(in_units, key, (((0, operator.dim),),), at_once=at_once, keep=False, monitor=Silent())
    sampler.draw(PROBES)
    meter.products -= sampler.padding
    (law,) = sampler.hutchinson().scaled(unit.value).sums
    low, high = student_interval(law, 1 - settings.confidence)
    return Estimate(
        value=0.5 * law.value, stderr=0.5 * law.stderr, interval=(0.5 * low, 0.5 * high),
        confidence=settings.confidence, samples=PROBES, method="hutchinson",
    )  # fmt: skip


def loss_without(problem: Problem, layout: Layout, weights: np.ndarray, gone: np.ndarray) -> float:
    """J with some weights zeroed. One forward pass over the data."""
    return sums.objective(problem, layout.unravel(jnp.asarray(np.where(gone, 0.0, weights), problem.dtype)))


def flat_weights(problem: Problem) -> np.ndarray:
    """w [D], in float64."""
    return on_host(Layout.of(problem.params).ravel(problem.params)).astype(np.float64)


def layer_indices(layout: Layout) -> dict[str, np.ndarray]:
    """The entries of each layer."""
    parts = zip(layout.layers, layout.segments, strict=True)
    return {name: np.concatenate([np.arange(start, stop) for start, stop in part]) for name, part in parts}
