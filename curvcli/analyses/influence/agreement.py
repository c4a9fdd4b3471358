"""How well predicted changes agree with actual ones: correlations and slope, with intervals over the examples.

The queries of one example are moved by one refit, so pairs are not independent; examples are. All statistics are
functions of how often each example counts, which makes the bootstrap over examples a matrix multiplication and the
jackknife another.

Source: Efron (1987), *Better bootstrap confidence intervals* (BCa).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import scipy.special

from curvcli.schema.estimate import Estimate

RESAMPLES = 4000

FEWEST = 3
"""Two points always lie on a line."""

ENOUGH = 8
"""Examples from which on the bootstrap's intervals hold: below, a resample repeats most of them."""

VARIES = 1e-10
"""Standard deviations below this share of the largest number are rounding."""

Statistic = Callable[[np.ndarray], np.ndarray]
"""Counts of the examples [b, K] -> values [b], NaN where undefined."""


class Agreement(NamedTuple):
    """Null where there are fewer than three examples, or nothing varies."""

    pearson: Estimate | None
    spearman: Estimate | None
    slope: Estimate | None


def agreement(predicted: np.ndarray, actual: np.ndarray, *, confidence: float, key: jax.Array) -> Agreement:
    """Pearson's correlation and slope over all pairs, Spearman's correlation over examples as the mean over queries.

    Parameters
    ----------
    predicted, actual
        [K, Q].
    key
        Of the bootstrap.
    """
    count = len(predicted)
    if count < FEWEST:
        return Agreement(None, None, None)
    # Of one dtype whatever jax_enable_x64 says, so that the draws are too.
    drawn = np.asarray(jax.random.randint(key, (RESAMPLES, count), 0, count, dtype="int32"))
    counts = np.stack([np.sum(drawn == example, axis=1) for example in range(count)], axis=1).astype(float)
    line = _Line(predicted, actual)

    def estimate(statistic: Statistic) -> Estimate | None:
        return _estimate(statistic, counts, confidence)

    return Agreement(estimate(line.pearson), estimate(_spearman(predicted, actual)), estimate(line.slope))


class _Line:
    """Moments over all pairs, summed by example."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.smallest = VARIES * np.abs(x).max(), VARIES * np.abs(y).max()
        x, y = x - x.mean(), y - y.mean()  # resampled means are then small, and little cancels
        self.moments = np.stack([x, y, x * x, y * y, x * y]).mean(axis=2).T  # [K, 5]

    def _covariances(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x, y, xx, yy, xy = (counts @ self.moments / counts.sum(axis=1, keepdims=True)).T
        return _unless_tiny(xx - x * x, self.smallest[0]), _unless_tiny(yy - y * y, self.smallest[1]), xy - x * y

    def pearson(self, counts: np.ndarray) -> np.ndarray:
        xx, yy, xy = self._covariances(counts)
        return np.clip(xy / np.sqrt(xx * yy), -1, 1)

    def slope(self, counts: np.ndarray) -> np.ndarray:
        xx, _, xy = self._covariances(counts)
        return xy / xx


def _unless_tiny(variance: np.ndarray, smallest: float) -> np.ndarray:
    return np.where(variance > smallest**2, variance, np.nan)


def _spearman(predicted: np.ndarray, actual: np.ndarray) -> Statistic:
    """Pearson's correlation of mid-ranks; ranks in a resample are sums of counts of what lies below."""
    below = [(_below(x), _below(y)) for x, y in zip(predicted.T, actual.T, strict=True)]

    def statistic(counts: np.ndarray) -> np.ndarray:
        by_query = [_rank_correlation(counts, counts @ x, counts @ y) for x, y in below]
        defined = np.isfinite(by_query)
        total, number = np.where(defined, by_query, 0).sum(axis=0), defined.sum(axis=0)
        return np.where(number > 0, total / np.maximum(number, 1), np.nan)

    return statistic


def _below(x: np.ndarray) -> np.ndarray:
    """[K, K]: 1 where the row's entry is below the column's, ½ where they are equal."""
    return (x[:, None] < x[None]) + 0.5 * (x[:, None] == x[None])


def _rank_correlation(counts: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlation of x and y [b, K], each example counted as often as the resample has it: [b]."""
    share = counts / counts.sum(axis=1, keepdims=True)
    x, y = (one - np.sum(share * one, axis=1, keepdims=True) for one in (x, y))
    xx, yy, xy = (np.sum(share * product, axis=1) for product in (x * x, y * y, x * y))
    return np.clip(xy / np.sqrt(_unless_tiny(xx, 1e-6) * _unless_tiny(yy, 1e-6)), -1, 1)  # ranks are half integers


def _estimate(statistic: Statistic, counts: np.ndarray, confidence: float) -> Estimate | None:
    """The statistic with its bias-corrected and accelerated interval."""
    count = counts.shape[1]
    value = float(statistic(np.ones((1, count)))[0])
    resampled = statistic(counts)
    resampled = resampled[np.isfinite(resampled)]  # a resample of one example alone has no correlation
    if not np.isfinite(value) or len(resampled) < RESAMPLES / 2:
        return None
    without = statistic(np.ones((count, count)) - np.eye(count))
    low, high = np.quantile(resampled, _levels(value, resampled, without[np.isfinite(without)], 1 - confidence))
    stderr, interval = float(np.std(resampled, ddof=1)), (min(float(low), value), max(float(high), value))
    return Estimate(
        value=value, stderr=stderr, interval=interval, confidence=confidence, samples=count, method="refits"
    )


def _levels(value: float, resampled: np.ndarray, without: np.ndarray, alpha: float) -> np.ndarray:
    """Which quantiles of the resampled values bound the interval: Efron's correction for bias and skewness."""
    below = np.mean(resampled < value) + 0.5 * np.mean(resampled == value)
    shift = scipy.special.ndtri(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    ends = scipy.special.ndtri(np.array([alpha / 2, 1 - alpha / 2]))
    away = without.mean() - without if len(without) else np.zeros(1)
    spread = np.sum(away**2) ** 1.5
    acceleration = np.sum(away**3) / (6 * spread) if spread > 0 else 0.0
    return scipy.special.ndtr(shift + (shift + ends) / np.maximum(1 - acceleration * (shift + ends), 0.1))
