"""The view of `curv landscape`."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from curvcli.cli.format import Part, failed, header, number, shortened, spent, table
from curvcli.cli.plot_text import line_plot, shade_map
from curvcli.schema.landscape import LandscapeReport, LandscapeResult
from curvcli.schema.lines import BATCH_STATS

COVERS_ALL_EXAMPLES = False
"""Whether every number of the headline says whether it is of all examples."""


def view(report: LandscapeReport, width: int, unicode: bool) -> list[Part]:
    """Return the range of the losses or the barrier, the directions, and a plot."""
    result, cost = report.result, report.cost
    parts = [Text(_headline(result), style="bold"), header(report), *failed(report), Text(""), _directions(result)]
    parts += [table(_facts(result)), Text(""), *_picture(result, width, unicode)]
    foot = spent(cost)
    return [*parts, Text(foot, style="dim")]


def _headline(result: LandscapeResult) -> str:
    names = " × ".join(one.direction for one in result.directions)
    if result.barrier is not None:
        noise = ", no more than rounding" if result.barrier <= (result.noise or 0) else ""
        return f"Barrier along {names}: {number(result.barrier)} at s = {result.barrier_at:.3g}{noise}"
    values = _values(result)
    if not values:
        return f"Loss over {names}: nothing was reached"
    return f"Loss over {names}: {number(min(values))} to {number(max(values))}"


def _values(result: LandscapeResult) -> list[float]:
    rows = [row if isinstance(row, list) else [row] for row in result.loss]
    return [value for row in rows for value in row if value is not None]


def _facts(result: LandscapeResult) -> list[tuple[str, str]]:
    rows = [("loss at the weights", number(result.loss_at_weights))]
    values = _values(result)
    if values:
        rows.append(("least and largest loss", f"{number(min(values))}, {number(max(values))}"))
    if result.end_loss is not None:
        rows.append(("loss at s = 1", number(result.end_loss)))
        rows.append(("above the higher end", number(result.barrier_above_higher_end or 0.0)))
    if result.batch_stats is not None:
        rows.append(("batch statistics", BATCH_STATS[result.batch_stats]))
    if result.cosine is not None:
        rows.append(("cosine of A and B", f"{result.cosine:.3g}"))
    return rows


def _directions(result: LandscapeResult) -> Table:
    grid = Table.grid(padding=(0, 2))
    names = ["", "direction", "range", "‖v‖", "slope", "vᵀAv/vᵀv"]
    grid.add_row(*(Text(name, style="dim") for name in names))
    for letter, line, axis in zip("AB", result.directions, (result.a, result.b or []), strict=False):
        cells = [
            letter,
            shortened(line.direction, 30),
            f"{axis[0]:.3g} … {axis[-1]:.3g}",
            number(line.norm),
            number(line.slope),
        ]
        grid.add_row(*(Text(cell) for cell in [*cells, number(line.rayleigh_quotient)]))
    return grid


def _picture(result: LandscapeResult, width: int, unicode: bool) -> list[Part]:
    width = min(width, 100)
    if result.b is None:
        marks = ("●", "·") if unicode else ("o", ".")
        title = Text(f"loss {marks[0]} and quadratic {marks[1]} along a·A")
        losses = [value for value in result.loss if not isinstance(value, list)]
        model = [value for value in result.quadratic if not isinstance(value, list)]
        return [title, Text(line_plot(result.a, losses, model, width=width, height=12, marks=marks))]
    rows = [row for row in result.loss if isinstance(row, list)]
    plot = shade_map(result.a, result.b, rows, width=width, height=16, unicode=unicode)
    return [Text("log of the loss above the least one; A to the right, B upwards"), Text(plot)]
