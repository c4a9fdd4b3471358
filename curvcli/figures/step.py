"""The picture of `curv step`: a second-order step and its quadratic model."""

from __future__ import annotations

from collections.abc import Sequence

from curvcli.figures.naming import labels, number
from curvcli.figures.picture import Axis, Panel, Rule, Series, Table, log_where_positive
from curvcli.schema.step import StepReport, StepResult

TITLE = "Step"
COVERS_ALL_EXAMPLES = False
"""Whether all that is drawn has its interval for all examples, where a part was used."""

NAMES_MATRIX = True
"""Whether the title names the matrix of the reports."""

SHOWS_IMAGES = False
"""Whether inputs that are images are shown: those that `wanted_images(report)` names."""


def parts(reports: Sequence[StepReport]) -> list[Panel | Table]:
    """Return the panels: J over the steps, the λ tried, the iterations of the solve, and a table of the step."""
    names = [name or report.result.method for name, report in zip(labels(reports), reports, strict=True)]
    results = [report.result for report in reports]
    panels: list[Panel | Table] = []
    if any(result.steps for result in results):
        panels += _progress(results, names)
    if any(len(result.trials) > 1 for result in results):
        panels.append(_trials(results, names))
    if any(len(result.cg) > 1 for result in results):
        panels += _solves(results, names)
    return [*panels, _facts(results, names)]


def _progress(results: list[StepResult], names: list[str]) -> list[Panel]:
    losses, dampings = [], []
    for colour, (result, name) in enumerate(zip(results, names, strict=True)):
        at = [record.step - 1 for record in result.steps]
        losses.append(
            Series(name, [*at, len(at)], [*(record.loss for record in result.steps), result.final_loss], colour=colour,
                   notes=[*("" if record.accepted else "the next step was not made" for record in result.steps), ""])
        )  # fmt: skip
        dampings.append(
            Series(
                name,
                [record.step for record in result.steps],
                [r.damping for r in result.steps],
                colour=colour,
                notes=[f"ρ {number(r.reduction_ratio)}" for r in result.steps],
            )
        )
    positive = all(value is None or value > 0 for curve in losses for value in curve.y)
    panels = [
        Panel("The loss over the steps", "J before each step, and after the last.", Axis("steps made", whole=True),
              Axis("loss J", ("log", "linear") if positive else ("linear",)), losses)
    ]  # fmt: skip
    if any(len(set(curve.y)) > 1 for curve in dampings):
        values = [value for curve in dampings for value in curve.y]
        panels.append(
            Panel("Damping over the steps", "λ of each step, by the Levenberg–Marquardt rule.",
                  Axis("step", whole=True), Axis("λ", log_where_positive(values)), dampings)
        )  # fmt: skip
    return panels


def _trials(results: list[StepResult], names: list[str]) -> Panel:
    series = []
    for result, name in zip(results, names, strict=True):
        tried = sorted(result.trials, key=lambda trial: trial.damping)
        at = [trial.damping for trial in tried]
        series += [
            Series(f"{name}: J falls by", at, [trial.actual_decrease for trial in tried], "line",
                   notes=[f"ρ {number(trial.reduction_ratio)}" for trial in tried]),
            Series(f"{name}: Q falls by", at, [trial.predicted_decrease for trial in tried], "dashed"),
        ]  # fmt: skip
    values = [value for curve in series for value in curve.x]
    return Panel(
        "What each λ would do", "How far J falls, and how far the quadratic model says it would, for each λ tried.",
        Axis("damping λ", log_where_positive(values)), Axis("decrease", ("linear",)), series,
        [Rule(results[0].damping, "chosen")] if len(results) == 1 and results[0].damping > 0 else [],
    )  # fmt: skip


def _solves(results: list[StepResult], names: list[str]) -> list[Panel]:
    quadratic, residual = [], []
    for colour, (result, name) in enumerate(zip(results, names, strict=True)):
        at = [float(step.iteration) for step in result.cg]
        quadratic.append(Series(f"{name}: Q", at, [step.quadratic for step in result.cg], "line", colour=colour))
        evaluated = [step for step in result.cg if step.loss is not None]
        if evaluated:
            start = result.steps[0].loss if result.steps else None
            if start is not None:
                quadratic.append(
                    Series(f"{name}: J − J(w)", [float(step.iteration) for step in evaluated],
                           [step.loss - start for step in evaluated if step.loss is not None], "points", colour=colour)
                )  # fmt: skip
        residual.append(Series(name, at, [step.residual for step in result.cg], "line", colour=colour))
    residuals = [value for curve in residual for value in curve.y]
    return [
        Panel("The solve", "The quadratic model at each iteration of conjugate gradients.",
              Axis("iteration", whole=True), Axis("Q − Q(0)"), quadratic),
        Panel("Residual of the solve", "‖(C + λI)δ + ∇J‖/‖∇J‖ at each iteration.", Axis("iteration", whole=True),
              Axis("relative residual", log_where_positive(residuals)), residual),
    ]  # fmt: skip


def _facts(results: list[StepResult], names: list[str]) -> Table:
    rows = [
        [name, number(one.damping), number(one.step_norm), number(one.predicted_decrease), number(one.actual_decrease),
         number(one.reduction_ratio), number(one.next_damping), one.solve.status, f"{one.passes.in_gradients:.0f}"]
        for one, name in zip(results, names, strict=True)
    ]  # fmt: skip
    return Table(
        "What it came to", "The step, what Q says and J does; the cost in gradients.",
        ["step", "λ", "‖δ‖", "Q falls by", "J falls by", "ρ", "next λ", "solve", "gradients"], rows,
    )  # fmt: skip
