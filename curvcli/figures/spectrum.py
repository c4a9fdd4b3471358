"""The picture of `curv spectrum`: spectral density, counts of eigenvalues, and cumulative density."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import stdev

from curvcli.figures import bins
from curvcli.figures.naming import eigenvalue, labels, matrix, number
from curvcli.figures.picture import Axis, Panel, Rule, Series, Table, linear_within
from curvcli.schema.spectrum import Cumulative, SpectrumReport, SpectrumResult

TITLE = "Spectrum"
COVERS_ALL_EXAMPLES = False
"""Whether all that is drawn has its interval for all examples, where a part was used."""

NAMES_MATRIX = True
"""Whether the title names the matrix of the reports."""

SHOWS_IMAGES = False
"""Whether inputs that are images are shown: those that `wanted_images(report)` names."""
BINS, FAINTEST, VISIBLE = 90, 1e-2, 5e-3


def parts(reports: Sequence[SpectrumReport]) -> list[Panel | Table]:
    """Return the panels: density on a logarithmic scale, counts on a symlog axis, and cumulative density."""
    names = labels(reports)
    kept = [(report.result, name or matrix(report.matrix)) for report, name in zip(reports, names, strict=True)]
    edges = max(max(abs(result.lambda_max.value), abs(result.lambda_min.value)) for result, _ in kept)
    # Eigenvalues between ± this are told apart on a linear scale; below it they are rounding.
    threshold = linear_within(*(result.near_zero_tolerance for result, _ in kept), 1e-6 * edges)
    return [_density(kept), _counts(kept, threshold), _cumulative(kept, threshold)]


def _density(resolved: list[tuple[SpectrumResult, str]]) -> Panel:
    """Return the panel of the smoothed density: eigenvalues per unit of λ."""
    series, floors = [], []
    for colour, (result, name) in enumerate(resolved):
        density, dim = result.density, result.dim
        # One eigenvalue alone makes a bump of height 1/(σ√2π): what lies far below it is the Gaussian's tail.
        if density.sigma > 0:
            floors.append(0.03 / (density.sigma * math.sqrt(2 * math.pi)))
        value = [dim * height for height in density.value]
        margin = [1.96 * dim * height for height in density.stderr]
        band = any(margin)
        series.append(
            Series(
                name, density.grid, value, colour=colour,
                low=[max(height - by, 0.0) for height, by in zip(value, margin, strict=True)] if band else None,
                high=[height + by for height, by in zip(value, margin, strict=True)] if band else None,
            )
        )  # fmt: skip
    floor = min(floors, default=0.0)
    top = max(max(value for value in curve.y if value is not None) for curve in series)
    sigma = ", ".join(dict.fromkeys(number(result.density.sigma) for result, _ in resolved))
    method = "from all of them" if _exact(resolved) else "by stochastic Lanczos quadrature"
    return Panel(
        "Spectral density",
        f"How many eigenvalues there are for a unit of λ, {method}, smoothed by a Gaussian of width σ = {sigma}"
        + (", the band ± 1.96 standard errors" if any(curve.low for curve in series) else "")
        + ". "
        + " ".join(_extremes(result, name, many=len(resolved) > 1) for result, name in resolved),
        Axis("eigenvalue λ"),
        Axis(
            "eigenvalues per unit of λ",
            ("log", "linear") if floor else ("linear",),
            limits=(floor, 2.0 * top) if 0 < floor < top else None,
        ),
        series,
        [Rule(extreme.value, name) for result, _ in resolved[:1] for extreme, name in (
            (result.lambda_max, f"λ_max {number(result.lambda_max.value)}"),
            (result.lambda_min, f"λ_min {number(result.lambda_min.value)}"),
        )] if len(resolved) == 1 else [],
    )  # fmt: skip


def _exact(kept: list[tuple[SpectrumResult, str]]) -> bool:
    return all(result.method == "dense" for result, _ in kept)


def _extremes(result: SpectrumResult, name: str, *, many: bool) -> str:
    high, low = result.lambda_max, result.lambda_min
    said = f"λ_max is {eigenvalue(high)}, λ_min {eigenvalue(low)}."
    return f"{name}: {said}" if many else said


def _counts(resolved: list[tuple[SpectrumResult, str]], threshold: float) -> Panel:
    """Return the panel of counts of eigenvalues by size, which shows the bulk beside the outliers."""
    low = min(min(row[0] for row in result.nodes) for result, _ in resolved)
    high = max(max(row[-1] for row in result.nodes) for result, _ in resolved)
    edges = bins.edges(min(1.2 * low, -threshold), max(1.2 * high, threshold), threshold, BINS)
    centres = [
        bins.backward(0.5 * (bins.forward(a, threshold) + bins.forward(b, threshold)), threshold)
        for a, b in pairwise(edges)
    ]
    series = []
    for colour, (result, name) in enumerate(resolved):
        rows = bins.counted(result, edges)
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        visible = [index for index, mean in enumerate(means) if mean > FAINTEST]
        errors = [0.0 if result.method == "dense" else _error([row[i] for row in rows]) for i in visible]
        series.append(
            Series(
                name, [centres[i] for i in visible], [means[i] for i in visible], "stems", colour=colour,
                low=[max(means[i] - 1.96 * error, 0.3 * FAINTEST) for i, error in zip(visible, errors, strict=True)],
                high=[means[i] + 1.96 * error for i, error in zip(visible, errors, strict=True)],
                notes=[f"λ from {number(edges[i])} to {number(edges[i + 1])}" for i in visible],
            )
        )  # fmt: skip
    origin = "" if _exact(resolved) else ", by the probes alone; the bars are ± 1.96 standard errors"
    return Panel(
        "How many eigenvalues of which size",
        f"Eigenvalues counted in {BINS} bins without any smoothing{origin}. The axis is linear within "
        f"±{threshold:.1g}, "
        "logarithmic beyond, which shows bulk and outliers.",
        Axis("eigenvalue λ", ("symlog",), threshold),
        Axis(
            "eigenvalues in a bin",
            ("log",),
            limits=(0.5 if _exact(resolved) else 0.5 * FAINTEST, 3.0 * max(result.dim for result, _ in resolved)),
        ),
        series,
    )


def _stairs(curve: Cumulative) -> tuple[list[float], list[float], list[float]]:
    """Return the corners of the band: between two points the share is at least the lower bound at the left one, and at
    most the upper bound at the right one. Steps too small to be seen are left out."""
    points: list[tuple[float, float, float]] = []
    for i, at in enumerate(curve.grid):
        last = i + 1 == len(curve.grid)
        beyond = curve.upper[i] if last else curve.upper[i + 1]
        before = curve.lower[i - 1] if i else curve.lower[i]
        for low, high in ((before, curve.upper[i]), (curve.lower[i], beyond)):
            if not points or last or abs(low - points[-1][1]) + abs(high - points[-1][2]) > VISIBLE:
                if points and points[-1][0] < at:  # level up to here
                    points.append((at, *points[-1][1:]))
                points.append((at, low, high))
    x, low, high = (list(column) for column in zip(*points, strict=True))
    return x, low, high


def _error(counts: list[float]) -> float:
    """Return the standard error of a bin's mean over the probes, at least its theoretical value.

    The weight of each eigenvalue in a random unit vector is nearly χ²₁/D, of relative variance 2. With few probes the
    empirical error can be smaller by chance.
    """
    mean, number = sum(counts) / len(counts), len(counts)
    theory = math.sqrt(2 * max(mean, 1.0) / number)
    return max(theory, stdev(counts) / math.sqrt(number) if number > 1 else 0.0)


def _cumulative(resolved: list[tuple[SpectrumResult, str]], threshold: float) -> Panel:
    """Return the panel of bounds on the share of eigenvalues up to λ."""
    series = []
    for colour, (result, name) in enumerate(resolved):
        curve = result.cumulative
        x, low, high = _stairs(curve)
        middle = [0.5 * (a + b) for a, b in zip(low, high, strict=True)]
        series.append(Series(name, x, middle, "band", low=low, high=high, colour=colour))
    return Panel(
        "Cumulative density",
        "The share of eigenvalues up to λ lies within the band: "
        + (
            "exact at the points of its grid."
            if _exact(resolved)
            else "bounds by Chebyshev, Markov and Stieltjes, widened for sampling."
        ),
        Axis("eigenvalue λ", ("symlog", "linear"), threshold),
        Axis("share of eigenvalues ≤ λ", limits=(-0.02, 1.02)),
        series,
    )
