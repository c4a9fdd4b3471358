"""The picture of `curv trace`: the trace by layer."""

from __future__ import annotations

from collections.abc import Sequence

from curvcli.figures.naming import labels, matrix, number
from curvcli.figures.picture import Axis, Panel, Series, Table, beside
from curvcli.schema.trace import TraceReport

TITLE = "Trace"
COVERS_ALL_EXAMPLES = True
"""Whether all that is drawn has its interval for all examples, where a part was used."""

NAMES_MATRIX = True
"""Whether the title names the matrix of the reports."""

SHOWS_IMAGES = False
"""Whether inputs that are images are shown: those that `wanted_images(report)` names."""


def parts(reports: Sequence[TraceReport]) -> list[Panel | Table]:
    """Return the panels: every layer's trace with its interval, and its mean eigenvalue."""
    names = list(dict.fromkeys(layer.name for report in reports for layer in report.result.layers))
    panels: list[Panel | Table] = []
    if not names:
        return [_whole_matrix(reports)]
    for title, words, label, per_weight in (
        ("Trace of each layer", "The part of the trace that belongs to each layer.", "trace", False),
        ("Mean curvature of each layer", "Each layer's trace divided by how many weights it has.",
         "trace / weights", True),
    ):  # fmt: skip
        series = []
        for colour, (report, name) in enumerate(zip(reports, labels(reports), strict=True)):
            by_name = {layer.name: layer for layer in report.result.layers}
            layers = [by_name.get(name) for name in names]
            sizes = [layer.dim if layer and per_weight else 1 for layer in layers]
            at = [index + beside(colour, len(reports)) for index in range(len(names))]

            def scaled(values: list[float | None], sizes: list[int] = sizes) -> list[float | None]:
                return [None if value is None else value / size for value, size in zip(values, sizes, strict=True)]

            series.append(
                Series(
                    name or matrix(report.matrix),
                    at,
                    scaled([layer and layer.trace.value for layer in layers]),
                    "bars",
                    low=scaled([layer and layer.trace.interval[0] for layer in layers]),
                    high=scaled([layer and layer.trace.interval[1] for layer in layers]),
                    colour=colour,
                    notes=[f"{layer.dim:,} weights" if layer else "" for layer in layers],
                )
            )
        panels.append(
            Panel(title, f"{words} {_sum(reports)}", Axis("", names=names), _axis(label, series), series, sideways=True)
        )
    return panels


def _axis(label: str, series: list[Series]) -> Axis:
    positive = all(value is None or value > 0 for one in series for value in [*one.y, *(one.low or [])])
    return Axis(label, ("linear", "log") if positive else ("linear",))


def _sum(reports: Sequence[TraceReport]) -> str:
    if len(reports) > 1:
        return ""
    trace = reports[0].result.trace
    low, high = trace.interval
    if trace.method == "exact":
        return f"The whole trace is {number(trace.value)}, exact."
    return f"The whole trace is {number(trace.value)}, in [{number(low)}, {number(high)}] ({trace.confidence:.0%})."


def _whole_matrix(reports: Sequence[TraceReport]) -> Panel:
    """Return the panel of the whole matrix, for reports without layers."""
    names = [name or matrix(report.matrix) for report, name in zip(reports, labels(reports), strict=True)]
    traces = [report.result.trace for report in reports]
    series = Series(
        "trace", list(range(len(traces))), [one.value for one in traces], "bars",
        low=[one.interval[0] for one in traces], high=[one.interval[1] for one in traces],
    )  # fmt: skip
    return Panel("Trace", f"The trace. {_sum(reports)}", Axis("", names=names), Axis("trace"), [series], sideways=True)
