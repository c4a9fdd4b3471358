"""Reports of one analysis become a picture."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from curvcli.errors import UsageError
from curvcli.figures import run
from curvcli.figures.fitting import cut, fitted
from curvcli.figures.naming import AnyReport, about, alarm, matrix, scope
from curvcli.figures.picture import Image, Picture, printable
from curvcli.schema.report import analysis_of

COVERED = ("trace", "eigs")
"""Pictures in which everything that is drawn has its interval for all examples, where a part was used."""


def analysis(report: AnyReport) -> str:
    """The command that wrote a report."""
    return analysis_of(report.schema_name)  # pyright: ignore[reportAttributeAccessIssue]


def wanted_images(reports: Sequence[AnyReport]) -> list[tuple[str, int]]:
    """Inputs that a picture of influence would show: (`data` or `test`, row); none of reports that differ in data."""
    if len({one.problem.data.sha256 for one in reports}) > 1:
        return []
    return list(dict.fromkeys(place for one in reports for place in _figure("influence").wanted(one)))


def picture(
    reports: Sequence[AnyReport],
    images: Mapping[tuple[str, int], Image] | None = None,
    learning_rate: float | None = None,
) -> Picture:
    """All that is to be seen of reports of one analysis: laid over each other, or, of a run, over its steps.

    Parameters
    ----------
    images
        Inputs that are images, by where they stand in the data.
    learning_rate
        Of the run, for 2/lr; where None, what each analysis was told.

    Raises
    ------
    UsageError
        They are of several analyses.
    """
    kinds = list(dict.fromkeys(map(analysis, reports)))
    if len(kinds) > 1:
        raise UsageError(
            f"these are reports of {' and '.join(kinds)}", "plot the reports of one analysis at a time"
        )  # fmt: skip
    figure = _figure(kinds[0])
    if run.is_run(reports):
        ordered = sorted(reports, key=lambda one: one.problem.checkpoint.step or 0)
        parts, title = run.parts(ordered, learning_rate), f"{figure.TITLE} over a training run"
    else:
        parts = figure.parts(reports, images) if images else figure.parts(reports)
        title = figure.TITLE
    matrices = {one.matrix for one in reports}
    if len(matrices) == 1 and reports[0].matrix and kinds[0] not in ("compare", "inspect", "saddle"):
        title = f"{title}: {matrix(reports[0].matrix)}"
    if part := scope(reports):
        title = f"{title}, {'with intervals for all examples' if kinds[0] in COVERED else part}"
    warnings = list(dict.fromkeys(warning for one in reports for warning in one.warnings))
    parts, left_out = fitted(parts)
    about_all = [cut(line, 200) for line in [*about(reports), left_out] if line]
    return printable(Picture(cut(title), about_all, parts, alarm(reports), warnings))


def _figure(name: str) -> Any:
    return importlib.import_module(f"curvcli.figures.{name}")
