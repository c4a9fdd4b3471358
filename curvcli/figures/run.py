"""The picture of a training run: curves over the steps of several reports, and a map of spectra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from curvcli.figures import bins
from curvcli.figures.naming import AnyReport, matrix, number
from curvcli.figures.picture import Axis, Mesh, Panel, Series, Table, linear_within
from curvcli.schema.estimate import Eigenvalue, Estimate, Interval
from curvcli.schema.spectrum import SpectrumReport

FEWEST = 3
"""Least number of steps of a run; reports of fewer are overlaid."""

ROWS = 90
"""Number of bins of the map of densities."""

FAINTEST = 0.02
"""Least number of eigenvalues in a bin that is drawn."""


def is_run(reports: Sequence[AnyReport]) -> bool:
    """Whether reports are of one matrix at different steps of one model."""
    steps = [report.problem.checkpoint.step for report in reports]
    kinds = {(report.matrix, report.problem.model, report.problem.loss, report.environment.dtype) for report in reports}
    return len(reports) >= FEWEST and None not in steps and len(set(steps)) == len(steps) and len(kinds) == 1


def parts(reports: Sequence[AnyReport], learning_rate: float | None) -> list[Panel | Table]:
    """Return the panels: a map of densities where the reports have any, and every number over the steps."""
    steps = [float(report.problem.checkpoint.step or 0) for report in reports]
    panels: list[Panel | Table] = []
    if all(isinstance(report, SpectrumReport) for report in reports):
        panels.append(_map(steps, reports, learning_rate))
    loss = [report.problem.loss_value for report in reports]
    panels.append(
        Panel("Loss", "J at each step.", _steps(), Axis("loss J", _scales(loss)), [Series("loss", steps, loss)])
    )
    curves: dict[str, list[Interval | None]] = {}
    for index, report in enumerate(reports):
        for name, value in _numbers(report.result):
            curves.setdefault(name, [None] * len(reports))[index] = value
    if "lambda_max" in curves:
        panels.append(_sharpness(steps, curves, _rates(reports, learning_rate)))
    panels += [_over(steps, name, values) for name, values in curves.items() if not name.startswith("lambda_")]
    layers = [getattr(report.result, "layers", None) for report in reports]
    if all(isinstance(entries, list) and entries and hasattr(entries[0], "trace") for entries in layers):
        panels.append(_layers(steps, layers))
    return panels


def _steps() -> Axis:
    return Axis("training step", ("linear", "symlog"), threshold=1.0)


def _scales(values: Sequence[float | None]) -> Any:
    return ("log", "linear") if all(one is None or one > 0 for one in values) else ("linear",)


def _numbers(result: Any) -> list[tuple[str, Interval]]:
    """Return the scalar uncertain numbers of a result by name."""
    fields = type(result).model_fields
    return [(name, value) for name in fields if isinstance(value := getattr(result, name), Estimate | Eigenvalue)]


def _rates(reports: Sequence[AnyReport], learning_rate: float | None) -> list[float | None]:
    """Return the learning rate of each step: the argument, else that of the report's settings."""
    return [learning_rate or getattr(report.settings, "learning_rate", None) for report in reports]


def _sharpness(steps: list[float], curves: dict[str, list[Interval | None]], rates: list[float | None]) -> Panel:
    series = []
    for colour, name in enumerate(name for name in ("lambda_max", "lambda_min") if name in curves):
        series.append(_series(_spelled(name), steps, curves[name], colour))
    part = any(estimate is not None and estimate.data_stderr is not None for estimate in curves["lambda_max"])
    words = "λ_max and λ_min at each step, with their " + ("intervals for all examples." if part else "residuals.")
    if any(rates):
        series.append(Series("2/lr", steps, [2 / rate if rate else None for rate in rates], "dashed", colour=2))
        words += " Gradient descent is unstable where λ_max is above 2/lr."
    values = [value for curve in series for value in [*curve.y, *(curve.low or [])] if value is not None]
    threshold = linear_within(1e-4 * max(map(abs, values)))
    return Panel(
        "Sharpness", words, _steps(), Axis("eigenvalue λ", ("symlog", "linear"), threshold), series
    )  # fmt: skip


def _over(steps: list[float], name: str, values: list[Interval | None]) -> Panel:
    series = _series(_spelled(name), steps, values, 0)
    ends = [value for side in (series.y, series.low or []) for value in side]
    title = _spelled(name)[0].upper() + _spelled(name)[1:]
    unresolved = sum(estimate is not None and estimate.value is None for estimate in values)
    note = (
        f" At {unresolved} of {len(values)} steps it is not resolved: the interval alone is drawn."
        if unresolved
        else ""
    )
    return Panel(
        title, f"{title} at each step with its interval.{note}", _steps(), Axis(_spelled(name), _scales(ends)), [series]
    )


def _series(label: str, steps: list[float], values: list[Interval | None], colour: int) -> Series:
    return Series(
        label, steps, [value and value.value for value in values], colour=colour,
        low=[value and value.interval[0] for value in values], high=[value and value.interval[1] for value in values],
    )  # fmt: skip


def _spelled(name: str) -> str:
    return {"lambda_max": "λ_max", "lambda_min": "λ_min", "frobenius_norm": "Frobenius norm"}.get(
        name, name.replace("_", " ")
    )


def _layers(steps: list[float], layers: list[Any]) -> Panel:
    names = list(dict.fromkeys(entry.name for found in layers for entry in found))
    by_name = [{entry.name: entry.trace for entry in found} for found in layers]
    series = [_series(name, steps, [found.get(name) for found in by_name], colour) for colour, name in enumerate(names)]
    ends = [value for entry in series for value in [*entry.y, *(entry.low or [])]]
    return Panel(
        "Trace of each layer", "Each layer's part of the trace at each step.", _steps(), Axis("trace", _scales(ends)),
        series,
    )  # fmt: skip


def _map(steps: list[float], reports: Sequence[Any], learning_rate: float | None) -> Panel:
    """Return the map of eigenvalues: counts at each step in bins of a common symlog axis."""
    results = [report.result for report in reports]
    top = max(result.lambda_max.value for result in results)
    bottom = min(result.lambda_min.value for result in results)
    size = max(abs(top), abs(bottom))
    threshold = linear_within(*(result.near_zero_tolerance for result in results), 1e-4 * size)
    rates = _rates(reports, learning_rate)
    # 2/lr is shown where it is near enough to say something.
    highest = max([1.3 * size, *(2.4 / rate for rate in rates if rate and 2 / rate < 100 * size)])
    edges = bins.edges(min(1.3 * bottom, -threshold), highest, threshold, ROWS)
    columns = [_mean(bins.counted(result, edges)) for result in results]
    at = list(range(len(steps)))
    series = [Series("λ_max", at, [result.lambda_max.value for result in results], colour=1)]
    if any(rates):
        series.append(Series("2/lr", at, [2 / rate if rate else None for rate in rates], "dashed", colour=3))
    return Panel(
        f"Spectra of the {matrix(reports[0].matrix)} over the run",
        f"Colours say how many eigenvalues lie in each of {ROWS} bins at each step, smoothed over three; within "
        f"±{number(threshold)} the axis is linear. λ_max goes from {number(results[0].lambda_max.value)} to "
        f"{number(results[-1].lambda_max.value)}.",
        Axis("training step", names=[f"{step:g}" for step in steps]),
        Axis("eigenvalue λ", ("symlog",), threshold, limits=(edges[0], edges[-1])),
        series,
        mesh=Mesh(at, edges, [[column[row] for column in columns] for row in range(ROWS)], "eigenvalues", "log"),
    )


def _mean(rows: list[list[float]]) -> list[float | None]:
    """Average over probes and neighbouring bins, which smooths single nodes; None where a bin is empty."""
    means = [0.0, *(sum(column) / len(rows) for column in zip(*rows, strict=True)), 0.0]
    smooth = [0.25 * a + 0.5 * b + 0.25 * c for a, b, c in zip(means, means[1:], means[2:], strict=False)]
    return [mean if mean > FAINTEST else None for mean in smooth]
