"""The picture of `curv eigs`: extreme eigenvalues with their residuals."""

from __future__ import annotations

from collections.abc import Sequence

from curvcli.figures.naming import labels, matrix, number
from curvcli.figures.picture import Axis, Panel, Series, Table, linear_within, log_where_positive
from curvcli.schema.eigs import EigsReport

TITLE = "Eigenvalues"
COVERS_ALL_EXAMPLES = True
"""Whether all that is drawn has its interval for all examples, where a part was used."""

NAMES_MATRIX = True
"""Whether the title names the matrix of the reports."""

SHOWS_IMAGES = False
"""Whether inputs that are images are shown: those that `wanted_images(report)` names."""


def parts(reports: Sequence[EigsReport]) -> list[Panel | Table]:
    """Return the panels: eigenvalues as stems, and the gradient's share along each eigenvector."""
    series, shares = [], []
    for colour, (report, label) in enumerate(zip(reports, labels(reports), strict=True)):
        name, pairs = label or matrix(report.matrix), report.result.eigenvalues
        at = list(range(1, len(pairs) + 1))
        series.append(
            Series(
                name, at, [pair.value for pair in pairs], "stems", colour=colour,
                low=[pair.interval[0] for pair in pairs], high=[pair.interval[1] for pair in pairs],
                notes=[f"± {pair.residual:.1g}" + ("" if pair.converged else ", not converged") for pair in pairs],
            )
        )  # fmt: skip
        cosines = [pair.gradient_cosine_squared for pair in pairs]
        if any(value is not None for value in cosines):
            shares.append(Series(name, at, cosines, "stems", colour=colour))
    values = [value for curve in series for value in curve.y if value is not None]
    scales = ("linear", "log") if min(values) > 0 else ("linear", "symlog")
    threshold = linear_within(1e-6 * max(map(abs, values)))
    first = reports[0].result
    errors = any(pair.data_stderr is not None for report in reports for pair in report.result.eigenvalues)
    bars = "the intervals for all examples" if errors else "± the residual"
    panels: list[Panel | Table] = [
        Panel(
            "Eigenvalues",
            f"The {len(first.eigenvalues)} eigenvalues asked for ({first.which}), from {number(max(values))} to "
            f"{number(min(values))}; the bars are {bars}.",
            Axis("rank", whole=True),
            Axis("eigenvalue λ", scales, threshold),
            series,
        )
    ]
    if shares:
        overlap = first.gradient_overlap
        heights = [value for curve in shares for value in curve.y]
        panels.append(
            Panel(
                "The gradient along the eigenvectors",
                "The share of ‖∇J‖² along each vector."
                + ("" if overlap is None or len(reports) > 1 else f" Together they hold {overlap:.3g} of it."),
                Axis("rank", whole=True), Axis("share of the squared gradient", log_where_positive(heights, "linear")),
                shares,
            )
        )  # fmt: skip
    return panels
