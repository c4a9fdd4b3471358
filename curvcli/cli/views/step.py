"""The view of `curv step`."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from curvcli.cli.format import Part, failed, header, number, table
from curvcli.cli.plot_text import line_plot
from curvcli.schema.step import CgStep, StepReport, StepResult

MOST = 12
"""Maximum number of rows of a table of trials or steps, half of them from either end."""

FEWEST = 8
"""Least number of iterations of conjugate gradients that are plotted."""


COVERS_ALL_EXAMPLES = False
"""Whether every number of the headline says whether it is of all examples."""


def view(report: StepReport, width: int, unicode: bool) -> list[Part]:
    """Return the step in a sentence, its effects, the λ that were tried, and the steps that were made."""
    result, cost = report.result, report.cost
    parts: list[Part] = [Text(_headline(report), style="bold"), header(report), *failed(report), Text("")]
    parts.append(table(_facts(report)))
    if len(result.trials) > 1:
        rows = [
            [
                number(trial.damping),
                _number(trial.reduction_ratio),
                _number(trial.actual_decrease),
                number(trial.step_norm),
            ]
            for trial in result.trials
        ]
        parts += [Text(""), _grid(["λ tried", "ρ", "J falls by", "‖δ‖"], rows)]
    if len(result.cg) > FEWEST:
        parts += [Text(""), *_trace(result.cg, width, unicode)]
    if result.steps:
        rows = [
            [
                str(step.step),
                number(step.loss),
                number(step.damping),
                _number(step.reduction_ratio),
                number(step.step_norm),
                f"{step.passes:.1f}" + ("" if step.accepted else "  not made"),
            ]
            for step in result.steps
        ]
        parts += [Text(""), _grid(["step", "J before", "λ", "ρ", "‖δ‖", "gradients"], rows)]
        parts.append(Text(f"J after: {_number(result.final_loss)}"))
    if result.saved is not None:
        parts += [Text(""), Text(f"moved checkpoint in {result.saved}")]
    passes = result.passes
    foot = (
        f"as much as {passes.in_gradients:.0f} gradients ({passes.products} products, {passes.forward} forward passes, "
        f"{passes.gradient} gradient{'s' * (passes.gradient != 1)}) · {cost.seconds:.1f} s"
    )
    return [*parts, Text(""), Text(foot, style="dim")]


def _headline(report: StepReport) -> str:
    """Return a line like `gauss-newton step, λ = 0.01: J falls by 0.0123, 97 % of what was predicted`."""
    result = report.result
    start = f"{result.method} step, λ = {number(result.damping)}: "
    if result.actual_decrease is None:
        return start + "J is not finite there"
    if result.reduction_ratio is None and abs(result.actual_decrease) <= result.noise:
        return f"{start}no change of J beyond rounding, {number(result.noise)}"
    change = f"J {'falls' if result.actual_decrease >= 0 else 'rises'} by {number(abs(result.actual_decrease))}"
    if result.reduction_ratio is None:
        return f"{start}{change}; {result.ratio_reason}"
    return f"{start}{change}, {result.reduction_ratio:.3g} of what was predicted"


def _facts(report: StepReport) -> list[tuple[str, str]]:
    result = report.result
    weights, change = result.weight_change, result.function_change
    share = "" if weights.relative is None else f", {100 * weights.relative:.2g} % of ‖w‖"
    angle = "" if result.gradient_cosine is None else f"; cosine to -∇J {result.gradient_cosine:.3g}"
    rows = [("‖δ‖", f"{number(weights.norm)}{share}{angle}")]
    if change is not None:
        divergence = "" if change.kl is None else f"; KL {number(change.kl)}"
        rows.append(("outputs move by", f"{number(change.rms)} (rms){divergence}"))
    damped = "" if result.reduction_ratio_damped is None else f"; {result.reduction_ratio_damped:.4g} with λ in Q"
    rows += [
        ("Q falls by", f"{number(result.predicted_decrease)} ({result.model}), "
         f"{number(result.predicted_decrease_damped)} with λ"),
        ("ρ", f"{_number(result.reduction_ratio)}{damped}"),
        ("next λ", number(result.next_damping)),
        ("solve", _solve(result)),
    ]  # fmt: skip
    looked = {iteration.loss: iteration.iteration for iteration in result.cg if iteration.loss is not None}
    if looked:
        rows.append(("backtracking", f"J at {len(looked)} iterates, lowest after iteration {looked[min(looked)]}"))
    if result.step_size is not None:
        use = "multiplied by it" if result.rescaled else "not used"
        unchanged = abs(result.step_size - 1) < 1e-3
        rows.append(("exact step size", f"{number(result.step_size)}" + ("" if unchanged else f" ({use})")))
    if result.momentum is not None:
        rows.append(("momentum", f"{number(result.momentum.step)} r + {number(result.momentum.previous)} δ_prev"))
    if result.negative_curvature is not None:
        escape = result.negative_curvature
        outcome = f"followed for {number(escape.length)}" if escape.used else "not followed: J does not fall along it"
        rows.append(("negative curvature", f"{number(escape.curvature)}, {outcome}"))
    return rows


def _solve(result: StepResult) -> str:
    solve = result.solve
    names = {"dense": "exact", "cg": "conjugate gradients", "factors": "in closed form", "bfgs": "two loops"}
    counted = {"cg": f", {solve.iterations} iterations", "bfgs": f", {solve.iterations} pairs"}.get(solve.solver, "")
    left = "" if solve.residual is None else f", relative residual {solve.residual:.1e}"
    return f"{names[solve.solver]}{counted}: {solve.status}{left}"


def _grid(heads: list[str], rows: list[list[str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_row(*(Text(head, style="dim", justify="right") for head in heads))
    shown = rows if len(rows) <= MOST else [*rows[: MOST // 2], ["…"] * len(heads), *rows[-MOST // 2 :]]
    for row in shown:
        grid.add_row(*(Text(cell, justify="right") for cell in row))
    return grid


def _trace(steps: list[CgStep], width: int, unicode: bool) -> list[Part]:
    """Return a plot of Q over the iterations, and of J where it was evaluated."""
    marks = ("●", "·") if unicode else ("o", ".")
    at = [float(iteration.iteration) for iteration in steps]
    quadratic = [iteration.quadratic for iteration in steps]
    plot = line_plot(at, [None] * len(at), quadratic, width=min(width, 80), height=8, marks=marks)
    return [Text(f"Q {marks[1]} over the iterations of conjugate gradients"), Text(plot)]


def _number(value: float | None) -> str:
    return "–" if value is None else number(value)
