"""The diagonal and pruning saliencies by layer."""

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
    """Means with intervals, the range of the entries, saliencies, and what pruning did."""
    found = list(dict.fromkeys(layer.name for report in reports for layer in report.result.layers))
    means, salient = [], []
    for colour, (report, label) in enumerate(zip(reports, labels(reports), strict=True)):
        name = label or matrix(report.matrix)
        rows = [(found.index(one.name), one) for one in report.result.layers]
        at = [index + beside(colour, len(reports)) for index, _ in rows]
        means.append(
            Series(
                name, at, [one.mean.value for _, one in rows], "bars", colour=colour,
                low=[one.mean.interval[0] for _, one in rows], high=[one.mean.interval[1] for _, one in rows],
                notes=[f"{one.dim:,} entries from {number(one.min)} to {number(one.max)}, standard error of one "
                       f"{number(one.stderr)}" for _, one in rows],
            )
        )  # fmt: skip
        if report.result.saliency:
            tops = [(found.index(one.name), one) for one in report.result.saliency if one.name in found]
            salient.append(
                Series(
                    name, [index + beside(colour, len(reports)) for index, _ in tops],
                    [one.mean for _, one in tops], "bars", colour=colour,
                    low=[one.mean - one.stderr / one.dim for _, one in tops],
                    high=[one.mean + one.stderr / one.dim for _, one in tops],
                    notes=[f"{one.dim:,} weights, together {number(one.total)}" for _, one in tops],
                )
            )  # fmt: skip
    names = Axis("", names=found)
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
    panels += [_pruned(one.result.prune) for one in reports if one.result.prune is not None]
    return panels


def _pruned(prune: Pruning) -> Panel:
    """What zeroing weights was to do to J, and did."""
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
