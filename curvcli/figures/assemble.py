"""Assembly of a picture from reports of one analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from curvcli.errors import UsageError
from curvcli.figures import run
from curvcli.figures.fitting import cut, fitted
from curvcli.figures.naming import AnyReport, about, alarm, matrix, scope
from curvcli.figures.picture import Image, Picture, printable
from curvcli.registry import ANALYSES
from curvcli.schema.report import analysis_of


def analysis(report: AnyReport) -> str:
    """Return the command that wrote a report."""
    return analysis_of(report.schema_name)  # pyright: ignore[reportAttributeAccessIssue]


def wanted_images(reports: Sequence[AnyReport]) -> list[tuple[str, int]]:
    """Return the inputs that a picture shows, as (`data` or `test`, row); none where the reports differ in data."""
    if len({one.problem.data.sha256 for one in reports}) > 1:
        return []
    figures = [(report, _figure(analysis(report))) for report in reports]
    places = (place for report, figure in figures if figure.SHOWS_IMAGES for place in figure.wanted_images(report))
    return list(dict.fromkeys(places))


def picture(
    reports: Sequence[AnyReport],
    images: Mapping[tuple[str, int], Image] | None = None,
    learning_rate: float | None = None,
) -> Picture:
    """Assemble the picture of reports of one analysis: overlaid, or over the steps of a run.

    Parameters
    ----------
    images
        Inputs that are images, by source and row.
    learning_rate
        Learning rate of the run, for 2/lr; None: that of each report's settings.

    Raises
    ------
    UsageError
        The reports belong to several analyses.
    """
    kinds = list(dict.fromkeys(map(analysis, reports)))
    if len(kinds) > 1:
        raise UsageError(
            f"these are reports of {' and '.join(kinds)}", "plot the reports of one analysis at a time"
        )  # fmt: skip
    figure = _figure(kinds[0])
    if run.is_run(reports):
        ordered = sorted(reports, key=lambda report: report.problem.checkpoint.step or 0)
        parts, title = run.parts(ordered, learning_rate), f"{figure.TITLE} over a training run"
    else:
        parts = figure.parts(reports, images) if images else figure.parts(reports)
        title = figure.TITLE
    matrices = {report.matrix for report in reports}
    if len(matrices) == 1 and reports[0].matrix and figure.NAMES_MATRIX:
        title = f"{title}: {matrix(reports[0].matrix)}"
    if part := scope(reports):
        title = f"{title}, {'with intervals for all examples' if figure.COVERS_ALL_EXAMPLES else part}"
    warnings = list(dict.fromkeys(warning for report in reports for warning in report.warnings))
    parts, left_out = fitted(parts)
    about_all = [cut(line, 200) for line in [*about(reports), left_out] if line]
    return printable(Picture(cut(title), about_all, parts, alarm(reports), warnings))


def _figure(name: str) -> Any:
    return ANALYSES[name].figure
