"""The view of `curv diff`."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from curvcli.cli.format import Part, number
from curvcli.schema.diff import Difference, DiffRecord, Side

MOST = 24
"""Maximum number of rows of the table, and of settings."""


def view(record: DiffRecord, width: int, unicode: bool) -> list[Part]:
    """Return the significant changes first, then the rest."""
    uncertain = [row for row in record.differences if row.significant is not None]
    chance = f" ({record.by_chance:.1f} expected by chance alone)" if record.by_chance else ""
    headline = f"{record.significant} of {len(uncertain)} numbers changed by more than their intervals allow{chance}"
    parts: list[Part] = [Text(headline, style="bold"), Text(f"A  {_side(record.a)}\nB  {_side(record.b)}", style="dim")]
    if record.untrusted:
        parts.append(Text("UNTRUSTED: a self-check failed in one of the runs", style="bold red"))
    rows = sorted(record.differences, key=lambda row: (row.significant is not True, row.significant is None))
    parts += [Text(""), _table(rows[:MOST])]
    if len(rows) > MOST:
        parts.append(Text(f"… {len(rows) - MOST} more", style="dim"))
    if record.settings:
        parts += [Text(""), Text("not the same in both runs:", style="dim")]
        parts += [Text(f"{setting.name}: {setting.a} → {setting.b}") for setting in record.settings[:MOST]]
    return parts


def _side(side: Side) -> str:
    step = "" if side.step is None else f" step {side.step}"
    matrix = "" if side.matrix is None else f" · {side.matrix}"
    return f"{side.path}: {side.checkpoint}{step}{matrix}"


def _table(rows: list[Difference]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for title, justify in (("", "left"), ("A", "right"), ("B", "right"), ("change", "right"), ("between", "left")):
        grid.add_column(title, justify=justify, no_wrap=not title)  # type: ignore[arg-type]
    grid.add_row("", "A", "B", "change", "between", style="dim")
    for row in rows:
        name = Text(("* " if row.significant else "  ") + row.name)
        between = "" if row.interval is None else f"{number(row.interval[0])} and {number(row.interval[1])}"
        grid.add_row(name, _formatted(row.a), _formatted(row.b), _change(row), between)
    return grid


def _formatted(value: float | str | bool | None) -> str:
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _change(row: Difference) -> str:
    if row.change is None:
        return ""
    share = "" if row.relative is None else f" ({row.relative:+.1%})"
    return f"{row.change:+.4g}{share}"
