"""The view of `curv compare`."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from curvcli.cli.format import Part, estimate, failed, header, number, spent, table
from curvcli.schema.compare import CompareReport, CompareResult, Laplace, Step
from curvcli.schema.estimate import Estimate

SHORT = {"empirical-fisher": "emp.fisher", "gradient-covariance": "grad.cov"}


COVERS_ALL_EXAMPLES = False
"""Whether every number of the headline says whether it is of all examples."""


def view(report: CompareReport, width: int, unicode: bool) -> list[Part]:
    """Return a row for each matrix, the matrix of distances, and that of agreement of top spaces and steps."""
    result, cost = report.result, report.cost
    parts: list[Part] = [Text(_headline(result), style="bold"), header(report), *failed(report), Text("")]
    parts += [_matrices(result), Text("")]
    if result.equal:
        remark = "; ".join(f"{pair.name} = {pair.to}: {pair.reason}" for pair in result.equal)
        parts += [Text(remark), Text("")]
    if result.left_out:
        parts += [Text(f"left out: {', '.join(result.left_out)} ({next(iter(result.left_out.values()))})"), Text("")]
    parts += [Text("Relative distance ‖row − column‖ / ‖row‖", style="bold"), _distances(result)]
    if (margin := _widest(result)) > 1e-8:
        confidence = next(iter(result.traces.values())).confidence
        parts.append(Text(f"{confidence:.0%} intervals: up to ± {margin:.1g}", style="dim"))
    parts.append(Text(""))
    k = report.settings.k
    title = f"Above: overlap of the top {k} eigenvectors"
    title += "" if result.step_angles is None else "; below: cosine between damped steps"
    parts += [Text(title, style="bold"), _agreement(result), Text("")]
    if (steps := result.step_angles) is not None:
        parts.append(Text(f"steps −(A + λI)⁻¹∇J with λ = {number(steps.damping)} ({steps.reason})"))
        parts += [Text(f"{step.name}: {remark}") for step in steps.steps if (remark := _remark(step))]
    if result.laplace is not None:
        parts += [Text(""), Text(f"Laplace with {result.laplace.matrix}", style="bold"), _laplace(result.laplace)]
    foot = f"{result.reason} · {spent(cost)}"
    return [*parts, Text(foot, style="dim")]


def _headline(result: CompareResult) -> str:
    """Name the pairs with the least and the largest distance."""
    pairs = [(one.alignment.value, one) for one in result.distances if one.alignment is not None]
    if not pairs:
        return f"{len(result.matrices)} matrices compared"
    (low, far), (high, near) = min(pairs, key=lambda pair: pair[0]), max(pairs, key=lambda pair: pair[0])
    if far is near:
        return f"{near.a} and {near.b}: cosine {high:.3g} as matrices"
    return f"Most alike: {near.a}, {near.b} (cosine {high:.3g}); least: {far.a}, {far.b} ({low:.2g})"


def _matrices(result: CompareResult) -> Table:
    """Return the table of trace, norm, largest eigenvalue and step of each matrix."""
    grid = Table.grid(padding=(0, 2))
    steps = {step.name: step for step in result.step_angles.steps} if result.step_angles else {}
    names = ["", "trace", "‖·‖_F", "λ_1", *(["‖step‖", "cos to −∇J"] if steps else [])]
    grid.add_row(*(Text(name, style="dim", justify="right") for name in names))
    for name in result.matrices:
        cells = [_brief(result.traces[name]), _brief(result.frobenius_norms[name])]
        cells.append(f"{result.top_eigenvalues[name][0].value:.4g}")
        if name in steps:
            cells += [f"{steps[name].norm:.3g}", f"{steps[name].gradient_cosine:.3f}"]
        grid.add_row(Text(SHORT.get(name, name)), *(Text(cell, justify="right") for cell in cells))
    return grid


def _remark(step: Step) -> str:
    """Return a remark on a step that does not lead to a minimum of the quadratic model."""
    solve = step.solve
    if solve.status != "converged":
        return f"step {solve.status}, residual {solve.residual:.1g}"
    low = number(solve.lowest_curvature)
    return f"indefinite, an eigenvalue of A + λI is {low} or less" if solve.lowest_curvature < 0 else ""


def _brief(found: Estimate) -> str:
    """Format a number with four digits and the half-width of its interval, where there is one."""
    low, high = found.interval
    return (
        f"{found.value:.4g}" if high - low <= 1e-8 * abs(found.value) else f"{found.value:.4g}±{0.5 * (high - low):.1g}"
    )


def _distances(result: CompareResult) -> Table:
    cells: dict[tuple[str, str], str] = {}
    for one in result.distances:
        cells[one.a, one.b] = "–" if one.relative_to_a is None else _share(one.relative_to_a.value)
        cells[one.b, one.a] = "–" if one.relative_to_b is None else _share(one.relative_to_b.value)
    return _square(result, cells)


def _agreement(result: CompareResult) -> Table:
    cells: dict[tuple[str, str], str] = {}
    for one in result.overlaps:
        last = one.subspaces[-1] if one.subspaces else None
        cells[one.a, one.b] = "–" if last is None else f"{last:.3f}"
    for pair in result.step_angles.pairs if result.step_angles else []:
        cells[pair.b, pair.a] = f"{pair.cosine:.3f}"
    return _square(result, cells)


def _square(result: CompareResult, cells: dict[tuple[str, str], str]) -> Table:
    grid = Table.grid(padding=(0, 2))
    names = [SHORT.get(name, name) for name in result.matrices]
    grid.add_row("", *(Text(name, style="dim", justify="right") for name in names))
    for row, name in zip(result.matrices, names, strict=True):
        found = (cells.get((row, column), "" if row == column else "–") for column in result.matrices)
        grid.add_row(Text(name), *(Text(cell, justify="right") for cell in found))
    return grid


def _share(value: float) -> str:
    """Format a ratio with three digits, as briefly as possible."""
    return f"{value:.3f}" if 1e-3 <= value < 10 else f"{value:.2g}"


def _widest(result: CompareResult) -> float:
    found = [one for pair in result.distances for one in (pair.relative_to_a, pair.relative_to_b) if one is not None]
    return max((0.5 * (one.interval[1] - one.interval[0]) for one in found), default=0.0)


def _laplace(laplace: Laplace) -> Table:
    predictive = laplace.predictive
    rows = [
        ("log evidence", f"{estimate(laplace.log_evidence)} nats"),
        ("below the model's peak", f"{number(laplace.decrement)} nats (½ gᵀP⁻¹g; 0 at a MAP estimate)"),
        ("log likelihood", number(laplace.log_likelihood)),
        ("prior precision", f"{number(laplace.prior_precision)} ({laplace.prior})"),
        ("effective parameters", estimate(laplace.effective_parameters)),
        ("variance of an output", f"mean {_brief(predictive.mean)}, median {number(predictive.median)}, "
         f"largest {number(predictive.largest)}"),
    ]  # fmt: skip
    if predictive.confidence is not None:
        before, after = predictive.confidence
        rows.append(("mean confidence", f"{before:.4f} at the weights, {after:.4f} with the variance"))
    return table(rows)
