"""The view of `curv saddle`."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from curvcli.cli.format import Part, count, eigenvalue, failed, header, number, spent, stable_rate, table
from curvcli.schema.saddle import Adam, GradientDescent, SaddleReport, SaddleResult

COVERS_ALL_EXAMPLES = False
"""Whether every number of the headline says whether it is of all examples."""


def view(report: SaddleReport, width: int, unicode: bool) -> list[Part]:
    """Return the verdict in a sentence, its evidence, and the rates of gradient descent."""
    result, cost = report.result, report.cost
    parts: list[Part] = [Text(_headline(result), style="bold"), header(report), *failed(report), Text("")]
    parts += [table(_evidence(result)), Text(""), _rates(result.gradient_descent)]
    if result.adam is not None:
        parts += [Text(""), Text(_adam(result.adam))]
    if result.escape is not None:
        parts += [Text(""), Text(f"moved checkpoint in {result.escape}")]
    how = "all eigenvalues, exact" if result.method == "dense" else "random-start Lanczos"
    foot = f"{how} · {spent(cost)}"
    return [*parts, Text(""), Text(foot, style="dim")]


def _headline(result: SaddleResult) -> str:
    low, high = number(result.lambda_min.value), number(result.lambda_max.value)
    return {
        "not-stationary": f"Not stationary: the gradient is {number(result.gradient_norm)}; λ in [{low}, {high}]",
        "saddle": f"Saddle: curvature {low} is certified, λ_max {high}",
        "local-maximum": f"Local maximum: no curvature above {high}",
        "minimum-within-tolerance": f"Minimum within tolerance: no curvature below {_bound(result)}",
        "degenerate": f"Degenerate: no curvature below {_bound(result)}, and some that is zero",
        "undecided": f"Undecided: λ_min {low}, λ_max {high}",
    }[result.classification]


def _bound(result: SaddleResult) -> str:
    if result.bound is None:
        return "0"
    sure = "" if result.bound.probability == 1 else f" (with probability {result.bound.probability:g})"
    return f"{number(-result.bound.epsilon * result.bound.norm)}{sure}"


def _evidence(result: SaddleResult) -> list[tuple[str, str]]:
    test = result.stationarity
    verdict = {True: "stationary", False: "not stationary", None: "not known"}[result.stationary]
    beyond = ", more than the loss can fall: the quadratic model does not hold" if test.model_holds is False else ""
    rows = [
        (
            "gradient",
            f"{number(result.gradient_norm)}, {test.gradient:.1e} of ‖H‖·‖w‖ (allowed {test.gradient_tolerance:.0e}); "
            f"decrement {test.decrement:.1e} (allowed {test.decrement_tolerance:.1e}){beyond}: {verdict}",
        ),
        ("λ_max", eigenvalue(result.lambda_max)),
        ("λ_min", eigenvalue(result.lambda_min)),
    ]
    if result.certificate is not None:
        sure = "certified" if result.negative_curvature_certified else "not certified"
        second = result.certificate.second_difference
        differences = "the loss does not resolve it" if second is None else f"by the loss {number(second)}"
        rows.append(("along its vector", f"{number(result.certificate.curvature)} in float64, {differences}: {sure}"))
    if result.witness is not None:
        rows.append(("witness", f"a step of {number(result.witness.step)} changes the loss by "
                     f"{number(result.witness.loss_change)}"))  # fmt: skip
    if result.probes is not None and (fall := result.probes.steepest) is not None:
        where = f"along {'-' if fall.sense < 0 else ''}{fall.direction}"
        rows.append(("the loss falls", f"slope {number(fall.slope)} {where}, a step of"
                     f" {number(fall.step)} changes it by {number(fall.loss_change)}"))  # fmt: skip
    rows += [
        ("negative", count(result.index)),
        ("near zero", f"{count(result.null_space)} (within ±{number(result.tolerance)})"),
    ]
    if result.bound is not None:
        rows.append(("bound", f"no curvature below {_bound(result)}"))
    if (rate := stable_rate(result, result.lambda_max)) is not None:
        rows.append(("gradient descent", f"stable below lr {rate}"))
    if result.condition_number is not None:
        sign = "" if result.condition_number_exact else "at least "
        rows.append(("condition", f"{sign}{number(result.condition_number)}"))
    return rows


def _rates(descent: GradientDescent) -> Part:
    """Return a table of eigenvalues at both ends with their rates."""
    grid = Table.grid(padding=(0, 2))
    rates = descent.learning_rate is not None
    heads = ["eigenvalue", "±", *([f"factor at lr {descent.learning_rate:g}", "steps to halve"] if rates else [])]
    grid.add_row(*(Text(head, style="dim", justify="right") for head in heads))
    for mode in descent.modes:
        cells = [f"{mode.eigenvalue:.5g}", f"{mode.residual:.1e}"]
        if mode.rate is not None:
            halved = "grows" if mode.rate > 1 else "–" if mode.steps_to_halve is None else f"{mode.steps_to_halve:.3g}"
            cells += [_factor(mode.rate), halved]
        grid.add_row(*(Text(cell, justify="right") for cell in cells))
    return grid


def _factor(rate: float) -> str:
    """Format a factor; one close to 1 by its difference from 1.

    >>> _factor(0.953663), _factor(1 - 1.2e-7)
    ('0.953663', '1 - 1.2e-07')
    """
    off = rate - 1
    return f"1 {'+' if off > 0 else '-'} {abs(off):.1e}" if 0 < abs(off) < 1e-4 else f"{rate:.6g}"


def _adam(adam: Adam) -> str:
    text = f"Adam after {adam.count} steps: preconditioned λ_max {eigenvalue(adam.lambda_max)}"
    if adam.threshold is not None:
        where = {True: "below", False: "above", None: "perhaps below"}[adam.stable]
        text += f", {where} its threshold {number(adam.threshold)}"
    if adam.lambda_max_of_all is not None:
        arrays = ", ".join(f"{array.name} ({array.count} of {array.size})" for array in adam.left_out)
        text += (
            f"\nwithout parameters that had no gradient in training: {arrays}; with them "
            f"{eigenvalue(adam.lambda_max_of_all)}"
        )
    return text
