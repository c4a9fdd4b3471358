"""Eigenvalues counted between values of λ that are near each other around zero and far apart beyond."""

from __future__ import annotations

import math
from bisect import bisect_right

from curvcli.schema.spectrum import SpectrumResult


def forward(value: float, threshold: float) -> float:
    """Where a value stands on an axis that is linear within the threshold, logarithmic beyond.

    >>> forward(0.05, 0.1), forward(-10.0, 0.1)
    (0.5, -3.0)
    """
    size = abs(value) / threshold
    return math.copysign(size if size <= 1 else 1 + math.log10(size), value)


def backward(place: float, threshold: float) -> float:
    """The value that stands there.

    >>> backward(0.5, 0.1), backward(-3.0, 0.1)
    (0.05, -10.0)
    """
    size = abs(place)
    return math.copysign(threshold * (size if size <= 1 else 10 ** (size - 1)), place)


def edges(low: float, high: float, threshold: float, count: int) -> list[float]:
    """Edges of `count` bins, equally wide on such an axis."""
    start, end = forward(low, threshold), forward(high, threshold)
    return [backward(start + (end - start) * index / count, threshold) for index in range(count + 1)]


def counted(result: SpectrumResult, bins: list[float]) -> list[list[float]]:
    """[probe][bin], the eigenvalues between neighbouring edges by each probe's quadrature; dense: all of them, once."""
    rows = []
    for nodes, weights in zip(result.nodes, result.weights, strict=True):
        row = [0.0] * (len(bins) - 1)
        for node, weight in zip(nodes, weights, strict=True):
            place = min(max(bisect_right(bins, node) - 1, 0), len(row) - 1)
            row[place] += weight * result.dim
        rows.append(row)
    return rows
