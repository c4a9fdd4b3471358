"""The picture of `curv inspect`: parameters, classes and arrays."""

from __future__ import annotations

from collections.abc import Sequence

from curvcli.figures.naming import labels, number
from curvcli.figures.picture import Axis, Panel, Series, Table
from curvcli.schema.inspect import InspectReport

TITLE = "What is analysed"
COVERS_ALL_EXAMPLES = False
"""Whether all that is drawn has its interval for all examples, where a part was used."""

NAMES_MATRIX = False
"""Whether the title names the matrix of the reports."""

SHOWS_IMAGES = False
"""Whether inputs that are images are shown: those that `wanted_images(report)` names."""


def parts(reports: Sequence[InspectReport]) -> list[Panel | Table]:
    """Return the panels: parameters of each layer, examples of each class, arrays."""
    panels: list[Panel | Table] = []
    for report, name in zip(reports, labels(reports), strict=True):
        result, of = report.result, f" ({name})" if name else ""
        layers, sizes = list(result.layers), [float(size) for size in result.layers.values()]
        panels.append(
            Panel(f"Parameters of each layer{of}", f"{report.problem.num_params:,} parameters are differentiated.",
                  Axis("", names=layers), Axis("parameters", ("linear", "log")),
                  [Series("parameters", list(range(len(layers))), sizes, "bars")],
                  sideways=True)
        )  # fmt: skip
        if result.data.classes:
            classes = result.data.classes
            panels.append(
                Panel(f"Examples of each class{of}", "Labels in the data.", Axis("class", whole=True),
                      Axis("examples"), [Series("examples", list(range(len(classes))), classes, "stems")])
            )  # fmt: skip
        rows = [[array.name, " × ".join(map(str, array.shape)), array.stored_dtype, number(array.norm),
                 "yes" if array.differentiated else "held fixed"] for array in result.parameters]  # fmt: skip
        panels.append(Table(f"Arrays{of}", "The arrays of the checkpoint.",
                          ["array", "shape", "dtype", "norm", "differentiated"], rows))  # fmt: skip
    return panels
