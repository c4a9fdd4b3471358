"""Formatting of numbers, headers and tables for the views."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table
from rich.text import Text

from curvcli.figures.naming import alarm
from curvcli.schema.estimate import Bounded, Eigenvalue, Estimate, Interval
from curvcli.schema.report import Cost, Report

Part = Any
"""A part of a view, which rich can print."""


def number(value: float) -> str:
    """Format a number with five significant digits, as briefly as possible.

    >>> number(0.46336), number(-1.3869e-06), number(0.0)
    ('0.46336', '-1.3869e-06', '0')
    """
    return f"{value:.5g}"


def spent(cost: Cost) -> str:
    """Format the cost of an answer, for the last line of a view."""
    forms = f", {cost.forms} forms" if cost.forms else ""
    recalled = f" ({cost.recalled} kept)" if cost.recalled else ""
    return f"{cost.products} products{forms}{recalled}, {cost.data_passes} data passes, {cost.seconds:.1f} s"


def with_error(value: float, margin: float) -> str:
    """Format a value to the precision of its margin; without the margin where that is beyond eight digits.

    >>> with_error(5.09077, 0.0611), with_error(0.46336496, 5.8e-7), with_error(2.0, 1e-12)
    ('5.091 ± 0.061', '0.46336496 ± 5.8e-07', '2')
    """
    if margin <= 1e-8 * abs(value):
        return number(value)
    digits = (
        0 if value == 0 else max(2, min(8, math.floor(math.log10(abs(value))) - math.floor(math.log10(margin)) + 2))
    )
    return f"{value:.{max(digits, 2)}g} ± {margin:.2g}"


def within(number: Interval) -> str:
    """Format a number with an interval for all examples, to three digits.

    >>> within(Interval(value=0.5231, interval=(0.1312, 1.0871), interval_given_data=(0.52, 0.53), data_stderr=0.2))
    '0.523, in [0.131, 1.09] for all examples'
    """
    low, high = number.interval
    return f"{number.value:.3g}, in [{low:.3g}, {high:.3g}] for all examples"


def estimate(estimate: Estimate, scope: str = "") -> str:
    """Format an estimate with the half-width of its interval, and its sample size.

    Parameters
    ----------
    scope
        `of these N examples`, added where the interval has no error of the examples left out.
    """
    low, high = estimate.interval
    if estimate.value is None:  # of a count
        return f"not resolved, in [{number(low)}, {number(high)}]{_of(scope)}"
    probes = f", {estimate.samples} probes" if estimate.samples else ""
    if estimate.data_stderr is not None:
        return f"{within(estimate)} ({estimate.confidence:.0%}{probes})"
    if estimate.method == "exact":
        return f"{number(estimate.value)} (exact{_of(scope)})"
    return f"{with_error(estimate.value, 0.5 * (high - low))} ({estimate.confidence:.0%}{probes}{_of(scope)})"


def margin(estimate: Estimate, scale: float = 1.0) -> str:
    """Format an estimate, times `scale`, with the half-width of its interval, for a cell of a table."""
    low, high = estimate.interval
    return with_error(scale * estimate.value, 0.5 * abs(scale) * (high - low))


def fraction(estimate: Bounded, scope: str = "") -> str:
    """Format a fraction in per cent with its interval."""
    low, high = estimate.interval
    if estimate.value is None:
        return f"not resolved, in [{low:.3%}, {high:.3%}]{_of(scope)}"
    if estimate.method == "exact":
        return f"{estimate.value:.3%} (exact{_of(scope)})"
    return f"{estimate.value:.3%}, in [{low:.3%}, {high:.3%}]{_of(scope)}"


def count(estimate: Bounded) -> str:
    """Format a number of eigenvalues with its interval."""
    low, high = estimate.interval
    if estimate.value is None:
        return f"not resolved, in [{low:.0f}, {high:.0f}] eigenvalues"
    if estimate.method == "exact":
        return f"{estimate.value:.0f} eigenvalues (exact)"
    return f"about {estimate.value:.0f} eigenvalues, in [{low:.0f}, {high:.0f}]"


def eigenvalue(value: Eigenvalue, scope: str = "") -> str:
    """Format an eigenvalue with its residual, or with the interval for all examples."""
    if value.data_stderr is not None:
        text = within(value)
    else:
        text = f"{with_error(value.value, value.residual)}{f' ({scope})' if scope else ''}"
    return text if value.converged else f"{text} (not converged)"


def stable_rate(result: Any, sharpness: Eigenvalue) -> str | None:
    """Format `max_stable_learning_rate` of a result, with its interval where examples were left out."""
    rate, interval = result.max_stable_learning_rate, result.max_stable_learning_rate_interval
    if rate is None or sharpness.data_stderr is None:
        return None if rate is None else f"{rate:.3g}"
    low, high = interval
    ends = f"at least {low:.3g}" if high is None else f"in [{low:.3g}, {high:.3g}]"
    return f"{rate:.3g}, {ends} for all examples"


def _of(scope: str) -> str:
    return f", {scope}" if scope else ""


def header(report: Report[Any, Any]) -> Text:
    """Describe the problem in two lines."""
    problem = report.problem
    step = "" if problem.checkpoint.step is None else f" step {problem.checkpoint.step}"
    block = f" ({report.settings.block})" if report.settings.block else ""
    plain = problem.reduction == "mean" and problem.normaliser == problem.data.num_examples
    examples = f"{problem.data.counted} examples"
    if problem.mode == "batch":
        examples = f"{problem.batches} batches of {problem.batch_size} by their own statistics"
    divisor = "" if plain else f", ÷ {problem.normaliser:g}"
    regulariser = f" + l2 {problem.l2:g}" if problem.l2 else ""
    regulariser += f" + {problem.regulariser}" if problem.regulariser else ""
    return Text(
        f"{problem.checkpoint.path}{step} · {problem.model} · {problem.num_params:,} parameters "
        f"({report.environment.dtype}){block}\n"
        f"{problem.loss} ({problem.reduction}{divisor}){regulariser} on {examples} · loss "
        f"{number(problem.loss_value)}",
        style="dim",
    )


def table(rows: list[tuple[str, str]]) -> Table:
    """Return a table of names and values in two columns."""
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def shortened(text: str, width: int) -> str:
    """Shorten a direction to its kind and the end of its argument, in so many characters.

    >>> shortened("checkpoint:runs/7/checkpoints@12", 24), shortened("newton", 24)
    ('checkpoint:…ckpoints@12', 'newton')
    """
    kind, _, argument = text.partition(":")
    room = width - len(kind) - 2
    return text if len(text) <= width else f"{kind}:…{argument[len(argument) - max(room, 1) + 1 :]}"


def failed(report: Report[Any, Any]) -> list[Part]:
    """Return a line of warning if a self-check failed."""
    said = alarm([report])
    return [Text(said, style="bold red")] if said else []
