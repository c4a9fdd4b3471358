"""The view of `curv diag`."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from curvcli.cli.format import Part, failed, header, margin, number, spent, table
from curvcli.schema.diag import DiagReport, DiagResult, Pruning
from curvcli.schema.matrices import refusal

MOST_LAYERS = 12


COVERS_ALL_EXAMPLES = False
"""Whether every number of the headline says whether it is of all examples."""


def view(report: DiagReport, width: int, unicode: bool) -> list[Part]:
    """Return the range of the entries, the layers by saliency (by mean where there is none), and the pruning."""
    result, cost = report.result, report.cost
    parts = [Text(_headline(report), style="bold"), header(report), *failed(report), Text(""), _layers(result)]
    if result.prune is not None:
        parts += [Text(""), Text(_verdict(result.prune)), table(_changes(result.prune))]
    if result.path is not None:
        parts += [Text(""), Text(f"entries and standard errors in {result.path}")]
    if (why := refusal(report.matrix or "hessian", "saliencies")) is not None:
        parts += [Text(""), Text(f"no saliencies from the {report.matrix}: {why}")]
    foot = f"{result.method} ({result.reason}) · {spent(cost)}"
    return [*parts, Text(""), Text(foot, style="dim")]


def _headline(report: DiagReport) -> str:
    """Return a line like `Diagonal of the hessian: 26,122 entries from … to …, standard error … (rms)`."""
    result = report.result
    low, high = (pick(layer) for pick, layer in (
        (lambda layer: layer.min, min(result.layers, key=lambda layer: layer.min)),
        (lambda layer: layer.max, max(result.layers, key=lambda layer: layer.max)),
    ))  # fmt: skip
    squares = sum(layer.dim * layer.stderr**2 for layer in result.layers)
    error = ", exact" if result.method == "dense" else f", each ± {(squares / result.dim) ** 0.5:.2g} (rms stderr)"
    return f"Diagonal of the {report.matrix}: {result.dim:,} entries from {number(low)} to {number(high)}{error}"


def _layers(result: DiagResult) -> Table:
    """Return a table with a row for each layer."""
    saliency = {layer.name: layer for layer in result.saliency or []}
    pruned = {layer.name: layer.weights for layer in result.prune.layers} if result.prune else {}
    ordered = sorted(
        result.layers, key=lambda layer: -(saliency[layer.name].mean if saliency else abs(layer.mean.value))
    )
    grid = Table.grid(padding=(0, 2))
    titles = [
        "layer",
        "parameters",
        "mean entry" if ordered[0].mean.data_stderr is None else "mean entry, all examples",
        "entry ±",
        *["saliency"] * bool(saliency),
        *["pruned"] * bool(pruned),
    ]
    grid.add_row(*(Text(title, justify="left" if title == "layer" else "right") for title in titles), style="dim")
    for layer in ordered[:MOST_LAYERS]:
        cells = [f"{layer.dim:,}", margin(layer.mean), f"{layer.stderr:.2g}"]
        if saliency:
            cells.append(f"{saliency[layer.name].mean:.3g}")
        if pruned:
            cells.append(f"{pruned[layer.name] / layer.dim:.0%}")
        grid.add_row(Text(layer.name), *(Text(cell, justify="right") for cell in cells))
    if len(ordered) > MOST_LAYERS:
        grid.add_row(f"… {len(ordered) - MOST_LAYERS} more layers")
    return grid


def _verdict(prune: Pruning) -> str:
    return f"zeroing the {prune.weights:,} weights ({prune.fraction:.3g}) of least saliency changes the loss by"


def _changes(prune: Pruning) -> list[tuple[str, str]]:
    return [
        ("  predicted by the diagonal", margin(prune.predicted_by_diagonal)),
        ("  predicted by the whole Hessian and gradient", number(prune.predicted_by_quadratic)),
        ("  in truth", number(prune.actual)),
        ("as many weights of least magnitude", number(prune.magnitude_actual)),
    ]
