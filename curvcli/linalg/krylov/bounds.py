"""What is certain: bounds on how much of the spectrum lies where, and on what a Krylov space can have missed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from curvcli.linalg.krylov.lanczos import Tridiagonal

PRODUCT_ROUNDING = 16
"""Rounding of a product in eps ‖A‖: up to 14 measured, whatever the dimension (`lanczos.Lanczos`)."""


class Measure(NamedTuple):
    """The quadrature of one probe with what is needed to bound its error."""

    nodes: np.ndarray  # [m], ascending
    weights: np.ndarray  # [m], sum 1
    residuals: np.ndarray  # [m], ‖A y_l − θ_l y_l‖ of the Ritz vectors, rounding included

    @classmethod
    def of(cls, tridiagonal: Tridiagonal, eps: float = float(np.finfo(np.float64).eps)) -> Measure:
        """The measure that T represents, from products with relative rounding `eps`."""
        values, vectors = tridiagonal.eigh()
        weights = np.square(vectors[0])
        # Where the Krylov space is invariant β is 0, and a Ritz value is still some rounding away from its eigenvalue.
        rounding = PRODUCT_ROUNDING * eps * np.abs(values).max()
        return cls(values, weights / weights.sum(), tridiagonal.beta[-1] * np.abs(vectors[-1]) + rounding)


def cumulative(measure: Measure, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds on F(x), the weight of the probe's spectral measure at or below x [n].

    The tighter of two bounds. Chebyshev, Markov and Stieltjes: for θ_j ≤ x < θ_{j+1},
    Σ_{i<j} τ_i² ≤ F(x) ≤ Σ_{i≤j+1} τ_i² (Szegő, *Orthogonal Polynomials*, 3.41). And that of `_by_residuals`, which is
    far tighter where the Ritz pairs around x have converged.
    """
    total = np.concatenate([[0.0], np.cumsum(measure.weights)])
    below = np.searchsorted(measure.nodes, x, side="right")
    lower, upper = total[np.maximum(below - 1, 0)], total[np.minimum(below + 1, len(measure.nodes))]
    first, second = _by_residuals(measure, np.full_like(x, -np.inf), x)
    return np.maximum(lower, first), np.minimum(np.minimum(upper, second), 1.0)


def within(measure: Measure, low: float, high: float) -> tuple[float, float]:
    """Bounds on the weight of the probe's spectral measure in [low, high]."""
    lower, upper = cumulative(measure, np.array([np.nextafter(low, -np.inf), high]))
    first, second = _by_residuals(measure, np.array([low]), np.array([high]))
    return max(float(lower[1] - upper[0]), float(first[0]), 0.0), min(float(upper[1] - lower[0]), float(second[0]))


def _by_residuals(measure: Measure, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds on the weight in [low, high] from the residuals of the Ritz vectors.

    With P the spectral projector of [low, high] and v = Σ τ_l y_l, a Ritz vector inside has
    ‖(I − P) y_l‖ ≤ r_l / distance of θ_l to the outside, one outside has ‖P y_l‖ ≤ r_l / distance of θ_l to the inside;
    hence ‖P v‖ differs from √(Σ_inside τ_l²) by at most Σ τ_l r_l / distance_l.
    """
    nodes = measure.nodes[:, None]
    inside = (nodes >= low) & (nodes <= high)
    distance = np.minimum(np.abs(nodes - low), np.abs(nodes - high))
    with np.errstate(divide="ignore", invalid="ignore"):
        leak = np.where(measure.residuals[:, None] > 0, measure.residuals[:, None] / distance, 0.0)
    error = np.sqrt(measure.weights) @ np.minimum(leak, 1.0)
    norm = np.sqrt(measure.weights @ inside)
    return np.square(np.maximum(norm - error, 0)), np.minimum(np.square(norm + error), 1.0)


def shortfall(steps: int, dim: int, failure: float) -> float:
    """ε by which the largest Ritz value of `steps` ≥ 1 Lanczos steps falls short of λ_max, relative to λ_max − λ_min.

    Exceeded with probability `failure` at most, for a start uniform on the sphere. Source: Kuczyński and Woźniakowski
    (1992), theorem 4.2.
    """
    return float((max(np.log(1.648 * np.sqrt(dim) / failure), 0.0) / (2 * steps - 1)) ** 2)


def certifying_steps(epsilon: float, dim: int, failure: float) -> int:
    """Lanczos steps after which a smallest Ritz value above −εU/2 says that no eigenvalue lies below −εU, U ≥ ‖A‖.

    Wrong with probability `failure` at most, for a start uniform on the sphere: k = 1 + ½ ln(2.75 D/δ²)/√ε.
    Source: Royer, O'Neill and Wright (2020), *A Newton-CG algorithm with complexity guarantees*, lemma 2.
    """
    return min(dim, 1 + int(np.ceil(0.5 * np.log(2.75 * dim / failure**2) / np.sqrt(epsilon))))


def certified_epsilon(steps: int, dim: int, failure: float) -> float:
    """The ε that so many steps permit, by the same theorem; infinite for a single step."""
    return float((0.5 * np.log(2.75 * dim / failure**2) / (steps - 1)) ** 2) if steps > 1 else float("inf")


def beyond_extremes(
    lowest: float, highest: float, *, steps: int, starts: int, dim: int, probability: float
) -> tuple[float, float] | None:
    """An interval outside which no eigenvalue lies, with at least this probability; None if the runs were too short.

    Theorem: after k Lanczos steps from a start uniform on the sphere, the largest Ritz value ξ satisfies
    P(λ_max − ξ > ε (λ_max − λ_min)) ≤ 1.648 √D exp(−√ε (2k − 1)). Independent starts multiply; both ends share the
    failure probability. Source: Kuczyński and Woźniakowski (1992), theorem 4.2.

    Parameters
    ----------
    lowest, highest
        The extreme Ritz values over all runs.
    steps, starts, dim, probability
        k, the number of independent runs, D, and the probability asked for.
    """
    epsilon = shortfall(steps, dim, (0.5 * (1 - probability)) ** (1 / starts))
    if epsilon >= 0.25:
        return None
    # λ_max − λ_min ≤ (ξ_max − ξ_min) / (1 − 2ε), since each end falls short by at most ε of it.
    margin = epsilon / (1 - 2 * epsilon) * (highest - lowest)
    return lowest - margin, highest + margin
