"""Reports as text for people: a headline, a table, a small picture; one screen."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Callable
from typing import Any, TextIO

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from curvcli.cli.plot_text import density_plot
from curvcli.schema.estimate import Eigenvalue, Estimate
from curvcli.schema.inspect import InspectReport
from curvcli.schema.report import Report
from curvcli.schema.spectrum import SpectrumReport

Part = Any
WIDEST = 110


def render(report: Report[Any, Any], stream: TextIO) -> str:
    """The summary of a report, for the width and the abilities of the stream that it will be written to."""
    dumb = os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown")
    styled = stream.isatty() and not dumb
    width = min(columns(stream), WIDEST)
    console = Console(
        file=io.StringIO(), width=width, highlight=False, force_terminal=styled,
        color_system="auto" if styled else None,
    )  # fmt: skip
    with console.capture() as captured:
        console.print(Group(*VIEWS[type(report)](report, width, "utf" in stream.encoding.lower())))
    return captured.get().rstrip("\n")


def columns(stream: TextIO) -> int:
    """Of the stream's terminal, which need not be that of stdin or stderr; else of $COLUMNS, else 80."""
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns or 80
    given = os.environ.get("COLUMNS", "")
    return int(given) if given.isdecimal() and int(given) else 80


def number(value: float) -> str:
    """Five significant digits, as short as they can be.

    >>> number(0.46336), number(-1.3869e-06), number(0.0)
    ('0.46336', '-1.3869e-06', '0')
    """
    return f"{value:.5g}"


def with_error(value: float, margin: float) -> str:
    """A value to the digit that its margin reaches.

    >>> with_error(5.09077, 0.0611), with_error(0.46336496, 5.8e-7), with_error(2.0, 0.0)
    ('5.091 ± 0.061', '0.46336496 ± 5.8e-07', '2')
    """
    if margin <= 0:
        return number(value)
    digits = (
        0 if value == 0 else max(2, min(8, math.floor(math.log10(abs(value))) - math.floor(math.log10(margin)) + 2))
    )
    return f"{value:.{max(digits, 2)}g} ± {margin:.2g}"


def _estimate(estimate: Estimate) -> str:
    low, high = estimate.interval
    if estimate.method == "exact":
        return f"{number(estimate.value)} (exact)"
    return f"{with_error(estimate.value, 0.5 * (high - low))} ({estimate.confidence:.0%}, {estimate.samples} probes)"


def _fraction(estimate: Estimate) -> str:
    low, high = estimate.interval
    if estimate.method == "exact":
        return f"{estimate.value:.3%} (exact)"
    return f"{estimate.value:.3%}, in [{low:.3%}, {high:.3%}]"


def _eigenvalue(found: Eigenvalue) -> str:
    text = with_error(found.value, found.residual)
    return text if found.converged else f"{text} (not converged)"


def _header(report: Report[Any, Any]) -> Text:
    """What was analysed, in two lines."""
    problem = report.problem
    step = "" if problem.checkpoint.step is None else f" step {problem.checkpoint.step}"
    chosen = [*report.settings.params, *(f"not {glob}" for glob in report.settings.exclude)]
    block = f" ({', '.join(chosen)})" if chosen else ""
    regulariser = f" + l2 {problem.l2:g}" if problem.l2 else ""
    regulariser += f" + {problem.regulariser}" if problem.regulariser else ""
    return Text(
        f"{problem.checkpoint.path}{step} · {problem.model} · {problem.num_params:,} parameters{block}\n"
        f"{problem.loss} ({problem.reduction}, ÷ {problem.normaliser:g}){regulariser} on "
        f"{problem.data.num_examples:,} examples · loss {number(problem.loss_value)} · {report.environment.dtype}",
        style="dim",
    )


def _table(rows: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def _failed(report: Report[Any, Any]) -> list[Part]:
    names = ", ".join(name for name, check in report.checks.items() if not check.passed)
    return [Text(f"UNTRUSTED: self-check failed: {names}", style="bold red")] if names else []


def _spectrum(report: SpectrumReport, width: int, unicode: bool) -> list[Part]:
    result = report.result
    high, low = result.lambda_max, result.lambda_min
    headline = (
        f"Sharpness: λ_max {number(high.value)}"
        if high.value > 0
        else f"λ_max {number(high.value)}: no positive curvature"
    )
    whole = not (report.settings.params or report.settings.exclude)
    if result.max_stable_learning_rate is not None and report.matrix == "hessian" and whole:
        headline += f"; gradient descent is unstable above lr {result.max_stable_learning_rate:.3g}"
    rows = [
        ("λ_max", _eigenvalue(high)),
        ("λ_min", _eigenvalue(low)),
        ("trace", _estimate(result.trace)),
        ("Frobenius norm", _estimate(result.frobenius_norm)),
        (
            "2/λ_max",
            "none" if result.max_stable_learning_rate is None else number(result.max_stable_learning_rate),
        ),
        (f"eigenvalues < −{result.near_zero_tolerance:.1g}", _fraction(result.negative_mass)),
        (f"within ±{result.near_zero_tolerance:.1g}", _fraction(result.near_zero_mass)),
    ]
    cost = report.cost
    method = {
        "dense": "all eigenvalues, exact",
        "hutchinson": "Lanczos quadrature",
        "xtrace": "deflated Lanczos quadrature",
    }
    foot = f"{method[result.method]} · {cost.products} products, {cost.data_passes} data passes, {cost.seconds:.1f} s"
    plot = density_plot(result.density, result.dim, width=min(width, 100), height=9, unicode=unicode)
    title = f"{report.matrix}: eigenvalues per unit, logarithmic"
    return [
        Text(headline, style="bold"), _header(report), *_failed(report), Text(""), _table(rows), Text(""),
        Text(title), Text(plot), Text(foot, style="dim"),
    ]  # fmt: skip


def _inspect(report: InspectReport, width: int, unicode: bool) -> list[Part]:
    result = report.result
    headline = f"Loss {number(result.loss_value)}, gradient norm {number(result.gradient_norm)}"
    layers = Table.grid(padding=(0, 2))
    shown = sorted(result.layers.items(), key=lambda item: -item[1])[:12]
    for name, size in shown:
        layers.add_row(Text(name), Text(f"{size:,}", justify="right"))
    if len(result.layers) > len(shown):
        layers.add_row(Text(f"… {len(result.layers) - len(shown)} more layers"), Text(""))
    data = result.data
    arrays = ", ".join(f"{a.name} {a.shape} {a.dtype}" for a in [*data.arrays, data.outputs])
    rows = [
        ("data", arrays),
        ("masked", f"{data.masked_fraction:.1%}"),
        ("classes", "–" if data.classes is None else " ".join(map(str, data.classes[:20]))),
        ("held fixed", ", ".join(f"{name} ({size:,})" for name, size in result.collections.items()) or "–"),
        ("batches", f"{result.plan.batches} of {result.plan.batch_size} examples, {result.plan.padded} padded"),
        ("self-checks", "passed" if all(c.passed for c in report.checks.values()) else "FAILED"),
        ("curv spectrum", f"{result.forecast.products} products in {result.forecast.data_passes} passes, "
                          f"{result.forecast.bytes / 1e6:.0f} MB, about {result.forecast.seconds or 0:.1f} s"),
    ]  # fmt: skip
    return [
        Text(headline, style="bold"),
        _header(report),
        *_failed(report),
        Text(""),
        layers,
        Text(""),
        _table(rows),
    ]


VIEWS: dict[type, Callable[[Any, int, bool], list[Part]]] = {
    SpectrumReport: _spectrum,
    InspectReport: _inspect,
}
"""The view of each kind of report."""
