"""The view of `curv inspect`."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from curvcli.cli.format import Part, failed, header, number, table
from curvcli.schema.inspect import InspectReport

WAYS = {"vmap": "all vectors at once", "map": "one vector after the other"}


COVERS_ALL_EXAMPLES = False
"""Whether every number of the headline says whether it is of all examples."""


def view(report: InspectReport, width: int, unicode: bool) -> list[Part]:
    """Return loss, layers, data and the forecast of a spectrum."""
    result = report.result
    headline = f"Loss {number(result.loss_value)}, gradient norm {number(result.gradient_norm)}"
    layers = Table.grid(padding=(0, 2))
    largest = sorted(result.layers.items(), key=lambda item: -item[1])[:12]
    for name, size in largest:
        layers.add_row(Text(name), Text(f"{size:,}", justify="right"))
    if len(result.layers) > len(largest):
        layers.add_row(Text(f"… {len(result.layers) - len(largest)} more layers"), Text(""))
    data = result.data
    fixed = ", ".join(f"{name} ({size:,})" for name, size in result.collections.items())
    arrays = ", ".join(f"{a.name} {a.shape} {a.dtype}" for a in [*data.arrays, data.outputs])
    rows = [
        ("data", arrays),
        *([("masked", f"{data.masked_fraction:.1%}")] if data.masked_fraction else []),
        *([("classes", " ".join(map(str, data.classes[:20])))] if data.classes else []),
        *([("held fixed", fixed)] if fixed else []),
        ("batches", f"{result.plan.batches} of {result.plan.batch_size} examples, {result.plan.padded} padded"),
        ("products", f"{WAYS[result.plan.application]}, passes {result.plan.residuals} ({result.plan.chosen})"),
        ("self-checks", "passed" if all(c.passed for c in report.checks.values()) else "FAILED"),
        ("curv spectrum", f"{result.forecast.products} products in {result.forecast.data_passes} passes, "
                          f"{result.forecast.bytes / 1e6:.0f} MB, about {result.forecast.seconds or 0:.1f} s"),
    ]  # fmt: skip
    if (moved := result.collectives) is not None:
        kinds = ", ".join(f"{kind} {size / 1e6:.3g} MB" for kind, size in moved.bytes.items())
        rows.append(("collectives", f"{kinds or 'none'} on each device for {moved.vectors} products of a vector"))
    return [
        Text(headline, style="bold"),
        header(report),
        *failed(report),
        Text(""),
        layers,
        Text(""),
        table(rows),
    ]
