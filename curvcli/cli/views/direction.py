"""The view of `curv direction`."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from curvcli.cli.format import Part, eigenvalue, failed, header, number, shortened, spent, table
from curvcli.cli.plot_text import line_plot
from curvcli.schema.direction import DirectionReport, DirectionResult
from curvcli.schema.lines import BATCH_STATS

MOST = 12
"""Maximum number of rows of the table of directions."""


COVERS_ALL_EXAMPLES = False
"""Whether every number of the headline says whether it is of all examples."""


def view(report: DirectionReport, width: int, unicode: bool) -> list[Part]:
    """Return the curvature, a table, and the loss with its quadratic model; for several directions a table alone."""
    result, cost = report.result, report.cost
    if isinstance(result, DirectionResult):
        parts = [Text(_headline(report, result), style="bold"), header(report), *failed(report), Text("")]
        parts += [_facts(report, result), Text(""), *_plot(result, width, unicode)]
    else:
        directions = result.directions
        steepest = max(directions, key=lambda line: line.rayleigh_quotient)
        headline = (
            f"Curvature of the {report.matrix} along {len(directions)} directions: most along {steepest.direction}, "
        )
        headline += number(steepest.rayleigh_quotient)
        parts = [Text(headline, style="bold"), header(report), *failed(report), Text(""), _table(directions)]
        parts += [Text(f"undefined: {direction.direction}: {direction.reason}") for direction in result.undefined]
    foot = spent(cost)
    return [*parts, Text(foot, style="dim")]


def _headline(report: DirectionReport, result: DirectionResult) -> str:
    """Return a line like `Curvature along newton: 0.12 (hessian); the quadratic model holds to |s| ≤ 0.4`."""
    text = f"Curvature along {result.direction}: {number(result.rayleigh_quotient)} ({report.matrix})"
    return f"{text}; {_radius(result)}"


def _radius(result: DirectionResult) -> str:
    if result.batch_stats in ("interpolate", "recompute"):
        return f"batch statistics {BATCH_STATS[result.batch_stats]}"
    if result.model_radius is None:
        return "no radius of the quadratic model"
    bound = "at least to" if result.model_radius_censored else "to"
    return f"the quadratic holds {bound} |s| = {result.model_radius:.3g}"


def _facts(report: DirectionReport, result: DirectionResult) -> Table:
    change, quotients = result.output_change, result.rayleigh_quotients
    rows = [
        ("‖v‖", number(result.norm)),
        ("slope", number(result.slope) + ("" if result.gradient_cosine is None else
         f" (cosine to the gradient {result.gradient_cosine:.3g})")),
        ("vᵀHv/vᵀv, vᵀGv/vᵀv", f"{number(quotients.hessian)}, {number(quotients.ggn)}"),
        ("third derivative", number(result.third_derivative)),
        ("outputs move by", f"{number(change.rms)} (rms), at most {number(change.max)} (example {change.example})"),
    ]  # fmt: skip
    if result.batch_stats is not None:
        rows.append(("batch statistics", BATCH_STATS[result.batch_stats]))
    if result.quadratic_minimum is not None:
        rows.append(("quadratic least at", f"s = {number(result.quadratic_minimum)}"))
    if result.eigenvalue is not None:
        rows.append(("eigenvalue", eigenvalue(result.eigenvalue)))
    if result.solve is not None:
        solve = result.solve
        text = f"{solve.status}, relative residual {solve.residual:.2g}, {solve.iterations} products"
        rows.append(("solve", f"{text}, λ_min ≤ {number(solve.lowest_curvature)}"))
    return table(rows)


def _plot(result: DirectionResult, width: int, unicode: bool) -> list[Part]:
    profile = result.profile
    marks = ("●", "·") if unicode else ("o", ".")
    title = Text(f"loss {marks[0]} and quadratic {marks[1]} along s·v")
    plot = line_plot(profile.s, profile.loss, profile.quadratic, width=min(width, 100), height=12, marks=marks)
    return [title, Text(plot)]


def _table(lines: list[DirectionResult]) -> Table:
    """Return a table with a row for each direction."""
    grid = Table.grid(padding=(0, 2))
    names = ["direction", "slope", "vᵀHv", "vᵀGv", "third", "outputs", "radius"]
    grid.add_row(*(Text(name, style="dim", justify="left" if not i else "right") for i, name in enumerate(names)))
    for line in lines[:MOST]:
        radius = "–" if line.model_radius is None else f"{line.model_radius:.3g}"
        cells = [line.slope, line.rayleigh_quotients.hessian, line.rayleigh_quotients.ggn, line.third_derivative]
        texts = [*(f"{value:.3g}" for value in (*cells, line.output_change.rms))]
        radius = f"≥ {radius}" if line.model_radius_censored else radius
        grid.add_row(Text(shortened(line.direction, 22)), *(Text(text, justify="right") for text in [*texts, radius]))
    if len(lines) > MOST:
        grid.add_row(f"… {len(lines) - MOST} more")
    return grid
