"""The view of `curv trace`."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from curvcli.cli.format import Part, estimate, failed, header, margin, number, spent, table, with_error, within
from curvcli.cli.plot_text import bar
from curvcli.schema.trace import TraceReport

MOST_LAYERS = 14


COVERS_ALL_EXAMPLES = True
"""Whether every number of the headline says whether it is of all examples."""


def view(report: TraceReport, width: int, unicode: bool) -> list[Part]:
    """Return the trace, the norm, the layers with the largest shares, and the cost of a narrower interval."""
    result = report.result
    scope = report.problem.data.scope
    rows = [("trace", estimate(result.trace, scope)), ("Frobenius norm", estimate(result.frobenius_norm, scope))]
    if result.trace.data_stderr is not None:
        low, high = result.trace.given_data
        rows.append((f"trace {scope}", with_error(result.trace.value, 0.5 * (high - low))))
    rows.append(("mean eigenvalue", margin(result.trace, 1 / result.dim)))
    parts = [Text(f"Trace {_short(report)}", style="bold"), header(report), *failed(report), Text(""), table(rows)]
    if result.layers:
        parts += [Text(""), _layers(report, min(width - 62, 30), unicode)]
    costs = [f"±{100 * more.within:.3g}%: {more.products:,}" for more in result.more if more.products]
    if costs:
        of = f" {scope}" if scope else ""
        parts += [Text(""), Text(f"more products for a trace{of} within {', '.join(costs)}")]
    cost = report.cost
    foot = spent(cost)
    return [*parts, Text(f"{result.method}: {result.reason} · {foot}", style="dim")]


def _short(report: TraceReport) -> str:
    trace, scope = report.result.trace, report.problem.data.scope
    if trace.data_stderr is not None:
        return f"of the {report.matrix}: {within(trace)}"
    said = ", ".join(part for part in ("exact" if trace.method == "exact" else "", scope) if part)
    return f"of the {report.matrix}: {margin(trace)}{f' ({said})' if said else ''}"


def _layers(report: TraceReport, room: int, unicode: bool) -> Table:
    """Return a table of the layers by the size of their traces, with bars where there is room."""
    grid = Table.grid(padding=(0, 2))
    titles = ("layer", "parameters", "trace", "per parameter", "share")
    for title in titles:
        grid.add_column(justify="left" if title in ("layer", "trace") else "right")
    grid.add_row(*titles, style="dim")
    total = report.result.trace.value
    ordered = sorted(report.result.layers, key=lambda layer: -abs(layer.trace.value))
    largest = abs(ordered[0].trace.value)
    for layer in ordered[:MOST_LAYERS]:
        share = f"{layer.trace.value / total:.1%}" if total else ""
        grid.add_row(
            Text(layer.name), f"{layer.dim:,}", margin(layer.trace),
            number(layer.trace.value / layer.dim), share,
            *([bar(layer.trace.value, largest, width=room, unicode=unicode)] if room > 4 else []),
        )  # fmt: skip
    if len(ordered) > MOST_LAYERS:
        grid.add_row(f"… {len(ordered) - MOST_LAYERS} more layers")
    return grid
