"""The picture of `curv diag`: the diagonal and the saliencies by layer."""

from __future__ import annotations

from collections.abc import Sequence

from curvcli.figures.naming import labels, matrix, number
from curvcli.figures.picture import Axis, Panel, Series, Table, beside
from curvcli.schema.diag import DiagReport, Pruning

TITLE = "Diagonal"
COVERS_ALL_EXAMPLES = False
"""Whether all that is drawn has its interval for all examples, where a part was used."""

NAMES_MATRIX = True
"""Whether the title names the matrix of the reports."""

SHOWS_IMAGES = False
"""Whether inputs that are images are shown: those that `wanted_images(report)` names."""


def parts(reports: Sequence[DiagReport]) -> list[Panel | Table]:
    """Return the panels: means with intervals, the range of the entries, saliencies, and the change by pruning."""
    layers = list(dict.fromkeys(layer.name for report in reports for layer in report.result.layers))
    means, salient = [], []
    for colour, (report, label) in enumerate(zip(reports, labels(reports), strict=True)):
        name = label or matrix(report.matrix)
        rows = [(layers.index(layer.name), layer) for layer in report.result.layers]
        at = [index + beside(colour, len(reports)) for index, _ in rows]
        means.append(
            Series(
                name, at, [layer.mean.value for _, layer in rows], "bars", colour=colour,
                low=[layer.mean.interval[0] for _, layer in rows], high=[layer.mean.interval[1] for _, layer in rows],
                notes=[f"{layer.dim:,} entries from {number(layer.min)} to {number(layer.max)}, standard error of one "
                       f"{number(layer.stderr)}" for _, layer in rows],
            )
        )  # fmt: skip
        if report.result.saliency:
            tops = [(layers.index(layer.name), layer) for layer in report.result.saliency if layer.name in layers]
            salient.append(
                Series(
                    name, [index + beside(colour, len(reports)) for index, _ in tops],
                    [layer.mean for _, layer in tops], "bars", colour=colour,
                    low=[layer.mean - layer.stderr / layer.dim for _, layer in tops],
                    high=[layer.mean + layer.stderr / layer.dim for _, layer in tops],
                    notes=[f"{layer.dim:,} weights, together {number(layer.total)}" for _, layer in tops],
                )
            )  # fmt: skip
    names = Axis("", names=layers)
    panels: list[Panel | Table] = [
        Panel("Mean diagonal entry of each layer", "The mean of each layer's diagonal entries with its interval.",
              names, Axis("mean entry"), means, sideways=True)
    ]  # fmt: skip
    if salient:
        panels.append(
            Panel("Mean saliency of each layer", "½ H_ii w_i² by weight (optimal brain damage): "
                  "what J gains, to second order, when a weight is zeroed.", names, Axis("mean saliency"), salient,
                  sideways=True)
        )  # fmt: skip
    panels += [_pruned(report.result.prune) for report in reports if report.result.prune is not None]
    return panels


def _pruned(prune: Pruning) -> Panel:
    """Return the table of predicted and actual changes of J by zeroing weights."""
    names = ["true change of J", "by the quadratic", "by the diagonal", "by magnitude, true"]
    diagonal = prune.predicted_by_diagonal
    values = [prune.actual, prune.predicted_by_quadratic, diagonal.value, prune.magnitude_actual]
    series = Series(
        "change of J", list(range(4)), values, "bars",
        low=[*values[:2], diagonal.interval[0], values[3]], high=[*values[:2], diagonal.interval[1], values[3]],
    )  # fmt: skip
    return Panel(
        f"{prune.fraction:.0%} of the weights zeroed",
        f"J changes by {number(prune.actual)} when {prune.weights:,} weights of least saliency are zeroed, by "
        f"{number(prune.magnitude_actual)} with those of least magnitude.",
        Axis("", names=names), Axis("change of J"), [series], sideways=True,
    )  # fmt: skip
