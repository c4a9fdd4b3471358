"""Counts of eigenvalues in bins that are equally wide on a symlog axis."""

from __future__ import annotations

import math
from bisect import bisect_right

from curvcli.schema.spectrum import SpectrumResult


def forward(value: float, threshold: float) -> float:
    """Return the coordinate of a value on an axis that is linear within the threshold, logarithmic beyond.

    >>> forward(0.05, 0.1), forward(-10.0, 0.1)
    (0.5, -3.0)
    """
    size = abs(value) / threshold
    return math.copysign(size if size <= 1 else 1 + math.log10(size), value)


def backward(place: float, threshold: float) -> float:
    """Return the value at a coordinate: the inverse of `forward`.

    >>> backward(0.5, 0.1), backward(-3.0, 0.1)
    (0.05, -10.0)
    """
    size = abs(place)
    return math.copysign(threshold * (size if size <= 1 else 10 ** (size - 1)), place)


def edges(low: float, high: float, threshold: float, count: int) -> list[float]:
    """Return the edges of `count` bins that are equally wide on a symlog axis."""
    start, end = forward(low, threshold), forward(high, threshold)
    return [backward(start + (end - start) * index / count, threshold) for index in range(count + 1)]


def counted(result: SpectrumResult, bins: list[float]) -> list[list[float]]:
    """Count eigenvalues in bins, [probe][bin], by each probe's quadrature; for dense results there is one row."""
    rows = []
    for nodes, weights in zip(result.nodes, result.weights, strict=True):
        row = [0.0] * (len(bins) - 1)
        for node, weight in zip(nodes, weights, strict=True):
            place = min(max(bisect_right(bins, node) - 1, 0), len(row) - 1)
            row[place] += weight * result.dim
        rows.append(row)
    return rows
