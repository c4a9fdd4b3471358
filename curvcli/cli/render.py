"""Rendering of reports as text: a headline, a table and a small plot, on one screen."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from typing import Any, TextIO

from rich.console import Console, Group
from rich.text import Text

from curvcli.schema.base import printable_values
from curvcli.schema.diff import DiffRecord
from curvcli.schema.doctor import DoctorRecord
from curvcli.schema.report import Report, analysis_of

WIDEST = 110

COVERED = ("spectrum", "trace")
"""Views whose headline states the scope of every number itself."""


def render(report: Report[Any, Any] | DiffRecord | DoctorRecord, stream: TextIO) -> str:
    """Render a report, or another record that has a view, for the stream that it will be written to."""
    dumb = os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown")
    styled = stream.isatty() and not dumb
    width = min(columns(stream), WIDEST)
    console = Console(
        file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False, force_terminal=styled,
        color_system="auto" if styled else None,
    )  # fmt: skip
    with console.capture() as captured:
        clean = printable_values(report)
        headline, *rest = _view(report).view(clean, width, "utf" in stream.encoding.lower())
        console.print(Group(_scoped(headline, clean), *rest))
    return captured.get().rstrip("\n")


def _scoped(headline: Any, report: Any) -> Any:
    """Add `(of these 100 examples)` to a headline whose numbers have no error of the examples left out."""
    scope = report.problem.data.scope if isinstance(report, Report) else ""
    if not scope or _view(report).COVERS_ALL_EXAMPLES:
        return headline
    return Text(f"{headline.plain} ({scope})", style=headline.style)


def columns(stream: TextIO) -> int:
    """Return the width of the stream's terminal, else $COLUMNS, else 80."""
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns or 80
    given = os.environ.get("COLUMNS", "")
    return int(given) if given.isdecimal() and int(given) else 80


def _view(report: Any) -> Any:
    """Return the module `cli/views/NAME.py` for a report or record of the schema `curv.NAME/1`."""
    return importlib.import_module(f"curvcli.cli.views.{analysis_of(report.schema_name)}")
