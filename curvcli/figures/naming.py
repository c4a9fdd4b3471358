"""What reports are called, and what is said of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from curvcli.schema.estimate import Bounded, Eigenvalue
from curvcli.schema.matrices import MATRICES
from curvcli.schema.report import Report

AnyReport = Report[Any, Any]


def matrix(name: str | None) -> str:
    """As it is written in a sentence.

    >>> matrix("hessian"), matrix("ggn")
    ('Hessian', 'GGN')
    """
    return MATRICES[name].label if name in MATRICES else name or ""


def number(value: float | None) -> str:
    """Four significant digits, as short as they can be.

    >>> number(0.463365), number(-1.3869e-06), number(None)
    ('0.4634', '-1.387e-06', '–')
    """
    return "–" if value is None else f"{value:.4g}"


def eigenvalue(found: Eigenvalue) -> str:
    """With its residual, or with the interval for all examples."""
    if found.data_stderr is None:
        return f"{number(found.value)} ± {found.residual:.1g}"
    low, high = found.interval
    return f"{found.value:.3g}, in [{low:.3g}, {high:.3g}] for all examples"


def count(found: Bounded) -> str:
    """Of eigenvalues, with its interval."""
    low, high = found.interval
    if found.value is None:
        return f"not resolved, in [{low:.0f}, {high:.0f}]"
    return f"{found.value:.0f}" if low == high else f"{found.value:.0f} in [{low:.0f}, {high:.0f}]"


def labels(reports: Sequence[AnyReport]) -> list[str]:
    """What tells reports apart, as short as it can be: step, matrix, checkpoint, data, dtype; else a number."""
    aspects = [[_aspects(report)[key] for report in reports] for key in _aspects(reports[0])]
    differing = [values for values in aspects if len(set(values)) > 1]
    names = [" · ".join(part for part in parts if part) for parts in zip(*differing, strict=True)]
    if not names:
        names = [""] * len(reports)
    if len(set(names)) < len(names):
        names = [f"{name} · {index}" if name else str(index) for index, name in enumerate(names, 1)]
    return names


def _aspects(report: AnyReport) -> dict[str, str]:
    problem, settings = report.problem, report.settings
    return {
        "checkpoint": PurePath(problem.checkpoint.path).name,
        "step": "" if problem.checkpoint.step is None else f"step {problem.checkpoint.step}",
        "matrix": matrix(report.matrix),
        "block": settings.block,
        "data": f"{PurePath(problem.data.path).name} ({problem.data.counted})",
        "loss": problem.loss + (f" + l2 {problem.l2:g}" if problem.l2 else ""),
        "dtype": report.environment.dtype,
    }


def about(reports: Sequence[AnyReport]) -> list[str]:
    """What was analysed: what all reports share, in two lines."""
    first = reports[0]
    shared = {
        name: value for name, value in _aspects(first).items() if all(_aspects(one)[name] == value for one in reports)
    }
    problem = first.problem
    line = [shared.get("checkpoint"), shared.get("step"), problem.model.rpartition(":")[2] or problem.model]
    line += [f"{problem.num_params:,} parameters", shared.get("block")]
    second = [shared.get("loss"), f"on {shared['data']}" if "data" in shared else None, shared.get("dtype")]
    return [" · ".join(part for part in parts if part) for parts in (line, second)]


def scope(reports: Sequence[AnyReport]) -> str:
    """`of these 100 examples`, where reports are of part of the examples."""
    return " and ".join(dict.fromkeys(one.problem.data.scope for one in reports if one.problem.data.scope))


def alarm(reports: Sequence[AnyReport]) -> str:
    """The self-checks that failed."""
    failed = dict.fromkeys(name for one in reports for name, check in one.checks.items() if not check.passed)
    return f"UNTRUSTED: self-check failed: {', '.join(failed)}" if failed else ""
