"""The picture of `curv saddle`: both ends of the spectrum and the stability of gradient descent."""

from __future__ import annotations

from collections.abc import Sequence

from curvcli.figures.naming import count, eigenvalue, labels, number
from curvcli.figures.picture import Axis, Panel, Rule, Series, Table, linear_within
from curvcli.schema.saddle import SaddleReport, SaddleResult

TITLE = "Minimum or saddle"
COVERS_ALL_EXAMPLES = False
"""Whether all that is drawn has its interval for all examples, where a part was used."""

NAMES_MATRIX = False
"""Whether the title names the matrix of the reports."""

SHOWS_IMAGES = False
"""Whether inputs that are images are shown: those that `wanted_images(report)` names."""


def parts(reports: Sequence[SaddleReport]) -> list[Panel | Table]:
    """Return the panels: eigenvalues at both ends, 2/lr, the tolerance; factors of gradient descent; counts."""
    names = [name or "eigenvalues" for name in labels(reports)]
    panels: list[Panel | Table] = [_ends(reports, names)]
    if any(mode.rate is not None for one in reports for mode in one.result.gradient_descent.modes):
        panels.append(_factors(reports, names))
    return [*panels, _verdicts(reports, names)]


def _ends(reports: Sequence[SaddleReport], names: list[str]) -> Panel:
    series, rules = [], []
    for colour, (report, name) in enumerate(zip(reports, names, strict=True)):
        modes = report.result.gradient_descent.modes
        series.append(
            Series(
                name, list(range(1, len(modes) + 1)), [mode.eigenvalue for mode in modes], "stems", colour=colour,
                low=[mode.eigenvalue - mode.residual for mode in modes],
                high=[mode.eigenvalue + mode.residual for mode in modes],
            )
        )  # fmt: skip
    rates = {rate for report in reports if (rate := report.result.gradient_descent.learning_rate)}
    rules += [Rule(2 / rate, f"2/lr at lr {rate:g}", "y") for rate in sorted(rates)]
    result = reports[0].result
    tolerance = max(report.result.tolerance for report in reports)
    words = [f"{name}: {_verdict(report.result)}" for name, report in zip(names, reports, strict=True)]
    return Panel(
        "Both ends of the Hessian's spectrum",
        (_verdict(result) if len(reports) == 1 else " ".join(words))
        + f" Within ±{number(tolerance)} an eigenvalue counts as zero; the axis is linear there."
        + (" Gradient descent is unstable along what lies above 2/lr." if rules else ""),
        Axis("rank, from the largest of those found", whole=True),
        Axis("eigenvalue λ", ("symlog", "linear"), linear_within(tolerance)),
        series,
        rules,
    )


def _verdict(result: SaddleResult) -> str:
    said = result.classification.replace("-", " ")
    return f"Classified as {said}, gradient norm {number(result.gradient_norm)}."


def _factors(reports: Sequence[SaddleReport], names: list[str]) -> Panel:
    series = []
    for colour, (report, name) in enumerate(zip(reports, names, strict=True)):
        modes = [mode for mode in report.result.gradient_descent.modes if mode.rate is not None]
        series.append(
            Series(
                name, [mode.eigenvalue for mode in modes], [mode.rate for mode in modes], "points", colour=colour,
                notes=["grows" if mode.rate and mode.rate > 1 else "" if mode.steps_to_halve is None
                       else f"halves in {mode.steps_to_halve:.3g} steps" for mode in modes],
            )
        )  # fmt: skip
    threshold = linear_within(*(report.result.tolerance for report in reports))
    return Panel(
        "What a step of gradient descent does to each",
        "The factor |1 − lr·λ| of a step along each eigenvector: above 1 it grows.",
        Axis("eigenvalue λ", ("symlog", "linear"), threshold),
        Axis("factor of a step"),
        series,
        [Rule(1.0, "neither grows nor shrinks", "y")],
    )


def _verdicts(reports: Sequence[SaddleReport], names: list[str]) -> Table:
    rows = []
    for name, report in zip(names, reports, strict=True):
        result = report.result
        rows.append(
            [
                name if len(reports) > 1 else "this point",
                result.classification.replace("-", " "),
                number(result.gradient_norm),
                eigenvalue(result.lambda_min),
                eigenvalue(result.lambda_max),
                count(result.index),
                count(result.null_space),
                number(result.max_stable_learning_rate),
            ]
        )
    return Table(
        "Evidence", "The class, the extremes with residuals, how many eigenvalues are negative and zero, 2/λ_max.",
        ["point", "class", "‖∇J‖", "λ_min", "λ_max", "negative", "zero", "2/λ_max"], rows,
    )  # fmt: skip
