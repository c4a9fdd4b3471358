"""The smoothed spectral density and the bounded cumulative density, on a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from curvcli.linalg.krylov.bounds import Measure, cumulative, within
from curvcli.linalg.krylov.quadrature import Quadrature, normal_quantile
from curvcli.linalg.statistics import Sampled

POINTS = 512
WIDTHS = 128
"""The density is smoothed over 1/128 of the spectrum's extent, more where a probe has fewer nodes than that."""


class Smoothed(NamedTuple):
    """A density that was smoothed by a Gaussian, on a grid [n]."""

    grid: np.ndarray
    value: np.ndarray
    stderr: np.ndarray
    sigma: float  # standard deviation of the Gaussian


class Band(NamedTuple):
    """Bounds on a cumulative density, on a grid [n]."""

    grid: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def smooth(quadrature: Quadrature, low: float, high: float) -> Smoothed:
    """Σ weight · N(x; node, σ²) on a grid that covers [low, high] and 4σ beyond; σ scales with high − low."""
    steps = min(len(nodes) for nodes in quadrature.nodes)
    extent = (high - low) or abs(high) or 1.0
    sigma = extent / min(WIDTHS, max(steps, 8))
    grid = np.linspace(low - 4 * sigma, high + 4 * sigma, POINTS)

    def kernel(x: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 * np.square((grid[:, None] - x) / sigma)) / (sigma * np.sqrt(2 * np.pi))

    value, stderr = quadrature.mean(kernel)
    # Deflation subtracts and adds; where the density is 0, what is left may be −1e-20.
    value = np.maximum(value, 0)
    return Smoothed(grid, value, stderr, float(sigma))


def around_zero(low: float, high: float, cut: float) -> np.ndarray:
    """A grid over [low, high], ±cut and a little beyond: equally spaced within ±cut, in equal ratios further out.

    On a grid in equal steps the bulk of a network's spectrum, a millionth of its extent wide, lies between two points.

    >>> around_zero(-2.0, 50.0, 0.5)[[0, -1]].round(1).tolist()
    [-2.4, 50.4]
    """
    # No point is an eigenvalue, where rounding would say on which side it lies: neither the ends are, nor 0.
    margin = ((high - low) or abs(high) or 1.0) / WIDTHS
    low, high = low - margin, high + margin
    cut = max(cut, 1e-12 * max(abs(low), abs(high)), np.finfo(float).tiny)
    sides = [np.geomspace(cut, max(end, cut), POINTS // 2) for end in (-low, high)]
    grid = np.concatenate([-sides[0], np.linspace(-cut, cut, 32), sides[1], [low, high]])
    return np.unique(grid[(grid >= min(low, -cut)) & (grid <= max(high, cut))])


def cumulative_band(quadrature: Quadrature, measures: Sequence[Measure], grid: np.ndarray, alpha: float) -> Band:
    """Bounds on the fraction of eigenvalues ≤ x: the mean of each probe's bounds, widened for sampling."""
    pairs = [cumulative(measure, grid) for measure in measures]
    lower, upper = (np.mean([pair[side] for pair in pairs], axis=0) for side in (0, 1))
    lower, upper = _count_interval(quadrature, lower, upper, alpha)
    # A cumulative function does not fall, so neither need its bounds.
    lower = np.maximum.accumulate(lower)
    upper = np.minimum.accumulate(upper[::-1])[::-1]
    return Band(grid, lower, upper)


def mass(quadrature: Quadrature, measures: Sequence[Measure], low: float, high: float, alpha: float) -> Sampled:
    """The fraction of eigenvalues in [low, high].

    The value is the quadrature's; the interval holds what the quadrature cannot resolve (bounds that hold for every
    matrix with these Ritz values and residuals) and the sampling error on top.
    """
    value, stderr = quadrature.mean(lambda x: ((x >= low) & (x <= high)).astype(float))
    bounds = np.mean([within(measure, low, high) for measure in measures], axis=0)
    value, stderr = float(np.clip(value, 0, 1)), float(stderr)
    least, most = _count_interval(quadrature, bounds[0], bounds[1], alpha)
    return Sampled(value, stderr, (min(float(least), value), max(float(most), value)), len(measures))


def _count_interval(
    quadrature: Quadrature, lower: np.ndarray, upper: np.ndarray, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds on a fraction of eigenvalues, widened for sampling: Wilson's score interval from each bound.

    The weight of p·D eigenvalues in a random unit vector has the variance 2 p(1 − p)/(D + 2); with K probes that is the
    variance of a fraction of n = (D + 2) K/2 draws. A margin from the observed fraction alone would be too short for
    small counts (measured: 0.88 instead of 0.95 for a single eigenvalue and 4 probes).
    """
    n = 0.5 * (quadrature.dim + 2) * len(quadrature.nodes)
    z = normal_quantile(alpha)

    def end(p: np.ndarray, sign: int) -> np.ndarray:
        p = np.clip(p, 0, 1)
        return (p + z**2 / (2 * n) + sign * z * np.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)) / (1 + z**2 / n)

    return np.clip(end(lower, -1), 0, 1), np.clip(end(upper, 1), 0, 1)
