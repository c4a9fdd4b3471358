"""The table of all uncertain numbers of a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from curvcli.figures.naming import AnyReport, labels, number
from curvcli.figures.picture import Table
from curvcli.schema.base import Strict
from curvcli.schema.estimate import Eigenvalue, Estimate, Interval

MOST = 400
"""Maximum number of rows; the report has all numbers."""


def table(reports: Sequence[AnyReport]) -> Table:
    """Return the table of uncertain numbers with their intervals."""
    rows = []
    for report, name in zip(reports, labels(reports), strict=True):
        for path, estimate in numbers(report.result):
            value = "not resolved" if estimate.value is None else f"{estimate.value:.8g}"
            part = report.problem.data.subsampled
            of = "interval for all examples" if estimate.data_stderr is not None else report.problem.data.scope
            meaning = _uncertainty(estimate) + (f"; {of}" if part else "")
            interval = f"[{estimate.interval[0]:.8g}, {estimate.interval[1]:.8g}]"
            rows.append([*([name] if len(reports) > 1 else []), path, value, interval, meaning])
    heads = [*(["report"] if len(reports) > 1 else []), "number", "value", "interval", "what it says"]
    return Table("Numbers", "Every number of the report with its uncertainty.", heads, rows[:MOST])


def _uncertainty(found: Interval) -> str:
    data = "" if found.data_stderr is None else f", standard error of the examples left out {number(found.data_stderr)}"
    if isinstance(found, Eigenvalue):
        return f"residual {number(found.residual)}" + ("" if found.converged else ", not converged") + data
    if isinstance(found, Estimate) and found.method != "exact":
        return f"{found.confidence:.0%} interval, standard error {number(found.stderr)}, {found.method}{data}"
    return f"exact{data}"


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, Interval]]:
    """Iterate over the uncertain numbers of a result and their paths."""
    if isinstance(value, Interval):
        yield path, value
    elif isinstance(value, Strict):
        for name in type(value).model_fields:
            yield from numbers(getattr(value, name), f"{path}.{name}" if path else name)
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from numbers(entry, f"{path}.{name}")
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            if isinstance(entry, Strict | dict):
                yield from numbers(entry, f"{path}[{getattr(entry, 'name', index)}]")
