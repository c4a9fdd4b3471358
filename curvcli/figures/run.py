"""A training run: reports of several steps as curves over them, and spectra as a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from curvcli.figures import bins
from curvcli.figures.naming import AnyReport, matrix, number
from curvcli.figures.picture import Axis, Mesh, Panel, Series, Table, linear_within
from curvcli.schema.estimate import Eigenvalue, Estimate, Interval
from curvcli.schema.spectrum import SpectrumReport

FEWEST = 3
"""Steps that make a run; fewer are laid over each other."""

ROWS = 90
"""Bins of the map of densities."""

FAINTEST = 0.02
"""Eigenvalues in a bin that are still drawn."""


def is_run(reports: Sequence[AnyReport]) -> bool:
    """Whether these are reports of one matrix at different steps of one model."""
    steps = [one.problem.checkpoint.step for one in reports]
    kinds = {(one.matrix, one.problem.model, one.problem.loss, one.environment.dtype) for one in reports}
    return len(reports) >= FEWEST and None not in steps and len(set(steps)) == len(steps) and len(kinds) == 1


def parts(reports: Sequence[AnyReport], learning_rate: float | None) -> list[Panel | Table]:
    """The map of densities where the reports have any; every number of the results that changes, over the steps."""
    steps = [float(one.problem.checkpoint.step or 0) for one in reports]
    panels: list[Panel | Table] = []
    if all(isinstance(one, SpectrumReport) for one in reports):
        panels.append(_map(steps, reports, learning_rate))
    loss = [one.problem.loss_value for one in reports]
    panels.append(
        Panel("Loss", "J at each step.", _steps(), Axis("loss J", _scales(loss)), [Series("loss", steps, loss)])
    )
    found: dict[str, list[Interval | None]] = {}
    for index, report in enumerate(reports):
        for name, value in _numbers(report.result):
            found.setdefault(name, [None] * len(reports))[index] = value
    if "lambda_max" in found:
        panels.append(_sharpness(steps, found, _rates(reports, learning_rate)))
    panels += [_over(steps, name, values) for name, values in found.items() if not name.startswith("lambda_")]
    layers = [getattr(one.result, "layers", None) for one in reports]
    if all(isinstance(one, list) and one and hasattr(one[0], "trace") for one in layers):
        panels.append(_layers(steps, layers))
    return panels


def _steps() -> Axis:
    return Axis("training step", ("linear", "symlog"), threshold=1.0)


def _scales(values: Sequence[float | None]) -> Any:
    return ("log", "linear") if all(one is None or one > 0 for one in values) else ("linear",)


def _numbers(result: Any) -> list[tuple[str, Interval]]:
    """The uncertain numbers that a result has one of."""
    fields = type(result).model_fields
    return [(name, value) for name in fields if isinstance(value := getattr(result, name), Estimate | Eigenvalue)]


def _rates(reports: Sequence[AnyReport], given: float | None) -> list[float | None]:
    """Of each step: what was given, else what the analysis was told."""
    return [given or getattr(one.settings, "learning_rate", None) for one in reports]


def _sharpness(steps: list[float], found: dict[str, list[Interval | None]], rates: list[float | None]) -> Panel:
    series = []
    for colour, name in enumerate(one for one in ("lambda_max", "lambda_min") if one in found):
        series.append(_series(_written(name), steps, found[name], colour))
    part = any(one is not None and one.data_stderr is not None for one in found["lambda_max"])
    words = "λ_max and λ_min at each step, with their " + ("intervals for all examples." if part else "residuals.")
    if any(rates):
        series.append(Series("2/lr", steps, [2 / one if one else None for one in rates], "dashed", colour=2))
        words += " Gradient descent is unstable where λ_max is above 2/lr."
    values = [value for one in series for value in [*one.y, *(one.low or [])] if value is not None]
    threshold = linear_within(1e-4 * max(map(abs, values)))
    return Panel(
        "Sharpness", words, _steps(), Axis("eigenvalue λ", ("symlog", "linear"), threshold), series
    )  # fmt: skip


def _over(steps: list[float], name: str, values: list[Interval | None]) -> Panel:
    series = _series(_written(name), steps, values, 0)
    ends = [value for one in (series.y, series.low or []) for value in one]
    title = _written(name)[0].upper() + _written(name)[1:]
    left = sum(one is not None and one.value is None for one in values)
    said = f" At {left} of {len(values)} steps it is not resolved: the interval alone is drawn." if left else ""
    return Panel(
        title, f"{title} at each step with its interval.{said}", _steps(), Axis(_written(name), _scales(ends)), [series]
    )


def _series(label: str, steps: list[float], values: list[Interval | None], colour: int) -> Series:
    return Series(
        label, steps, [one and one.value for one in values], colour=colour,
        low=[one and one.interval[0] for one in values], high=[one and one.interval[1] for one in values],
    )  # fmt: skip


def _written(name: str) -> str:
    return {"lambda_max": "λ_max", "lambda_min": "λ_min", "frobenius_norm": "Frobenius norm"}.get(
        name, name.replace("_", " ")
    )


def _layers(steps: list[float], layers: list[Any]) -> Panel:
    names = list(dict.fromkeys(one.name for found in layers for one in found))
    by_name = [{one.name: one.trace for one in found} for found in layers]
    series = [_series(name, steps, [found.get(name) for found in by_name], colour) for colour, name in enumerate(names)]
    ends = [value for one in series for value in [*one.y, *(one.low or [])]]
    return Panel(
        "Trace of each layer", "Each layer's part of the trace at each step.", _steps(), Axis("trace", _scales(ends)),
        series,
    )  # fmt: skip


def _map(steps: list[float], reports: Sequence[Any], learning_rate: float | None) -> Panel:
    """Eigenvalues of each step, counted between the lines of a symlog axis, which all steps share."""
    results = [one.result for one in reports]
    top = max(one.lambda_max.value for one in results)
    bottom = min(one.lambda_min.value for one in results)
    size = max(abs(top), abs(bottom))
    threshold = linear_within(*(one.near_zero_tolerance for one in results), 1e-4 * size)
    rates = _rates(reports, learning_rate)
    # 2/lr is shown where it is near enough to say something.
    highest = max([1.3 * size, *(2.4 / one for one in rates if one and 2 / one < 100 * size)])
    edges = bins.edges(min(1.3 * bottom, -threshold), highest, threshold, ROWS)
    columns = [_mean(bins.counted(one, edges)) for one in results]
    at = list(range(len(steps)))
    series = [Series("λ_max", at, [one.lambda_max.value for one in results], colour=1)]
    if any(rates):
        series.append(Series("2/lr", at, [2 / one if one else None for one in rates], "dashed", colour=3))
    return Panel(
        f"Spectra of the {matrix(reports[0].matrix)} over the run",
        f"Colours say how many eigenvalues lie in each of {ROWS} bins at each step, smoothed over three; within "
        f"±{number(threshold)} the axis is linear. λ_max goes from {number(results[0].lambda_max.value)} to "
        f"{number(results[-1].lambda_max.value)}.",
        Axis("training step", names=[f"{step:g}" for step in steps]),
        Axis("eigenvalue λ", ("symlog",), threshold, limits=(edges[0], edges[-1])),
        series,
        mesh=Mesh(at, edges, [[one[row] for one in columns] for row in range(ROWS)], "eigenvalues", "log"),
    )


def _mean(rows: list[list[float]]) -> list[float | None]:
    """Over the probes, and over neighbouring bins, so that single nodes are no stripes; None where nothing is."""
    means = [0.0, *(sum(column) / len(rows) for column in zip(*rows, strict=True)), 0.0]
    smooth = [0.25 * a + 0.5 * b + 0.25 * c for a, b, c in zip(means, means[1:], means[2:], strict=False)]
    return [one if one > FAINTEST else None for one in smooth]
