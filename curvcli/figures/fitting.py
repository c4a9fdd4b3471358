"""Panels and tables cut to what a picture has room for, with a sentence on what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from curvcli.figures.picture import Axis, Numbers, Panel, Series, Table

MOST_PARTS = 30
"""Panels and tables of a picture."""

MOST_SERIES = 24
"""Of a panel: beyond that colours repeat, and the legend covers the panel."""

MOST_BARS = 60
"""Names along the side of a panel."""

MOST_ROWS = 60
"""Of a table."""

LONGEST = 120
"""Characters of a title, a label and a cell."""


def fitted(parts: Sequence[Panel | Table]) -> tuple[list[Panel | Table], str]:
    """The parts that there is room for, each with as much as it has room for; and what is to be said of the others."""
    said = f"Of {len(parts):,} panels and tables the first {MOST_PARTS} are shown." if len(parts) > MOST_PARTS else ""
    return [_table(one) if isinstance(one, Table) else _panel(one) for one in parts[:MOST_PARTS]], said


def _table(table: Table) -> Table:
    words = table.words
    if len(table.rows) > MOST_ROWS:
        words += f" Of {len(table.rows):,} rows the first {MOST_ROWS} are shown."
    rows = [[cut(cell) for cell in row] for row in table.rows[:MOST_ROWS]]
    return replace(table, title=cut(table.title), words=words, rows=rows, images=table.images[:MOST_ROWS])


def _panel(panel: Panel) -> Panel:
    words, series = panel.words, [replace(one, name=cut(one.name)) for one in panel.series[:MOST_SERIES]]
    if len(panel.series) > MOST_SERIES:
        words += f" Of {len(panel.series):,} series the first {MOST_SERIES} are drawn."
    names = panel.x.names
    if panel.sideways and len(names) > MOST_BARS:
        words += f" Of {len(names):,} the {MOST_BARS} largest are drawn."
        kept = _largest(series, len(names))
        series, names = [_chosen(one, kept) for one in series], [names[index] for index in kept]
    x = _axis(replace(panel.x, names=names), [one.x for one in series])
    y = _axis(panel.y, [side for one in series for side in (one.y, one.low, one.high) if side is not None])
    rules = [replace(rule, label=cut(rule.label)) for rule in panel.rules]
    return replace(panel, title=cut(panel.title), words=words, x=x, y=y, series=series, rules=rules)


def _axis(axis: Axis, values: Sequence[Numbers]) -> Axis:
    """Without the logarithmic scale where nothing is positive."""
    seen = any(value is not None and value > 0 for one in values for value in one)
    scales = tuple(scale for scale in axis.scales if scale != "log" or seen) or ("linear",)
    return replace(axis, label=cut(axis.label), scales=scales)


def cut(text: str, longest: int = LONGEST) -> str:
    """A text without its middle, where it is long.

    >>> cut("abcdefgh", 5), cut("abc", 5)
    ('ab…gh', 'abc')
    """
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def _largest(series: Sequence[Series], count: int) -> list[int]:
    """The places with the largest bars of any series, in their order."""
    sizes = [0.0] * count
    for one in series:
        for x, y in zip(one.x, one.y, strict=True):
            if x is not None and y is not None:
                sizes[round(x)] = max(sizes[round(x)], abs(y))
    return sorted(sorted(range(count), key=lambda place: -sizes[place])[:MOST_BARS])


def _chosen(series: Series, kept: Sequence[int]) -> Series:
    """The bars at these places, moved together."""
    places = {place: index for index, place in enumerate(kept)}
    chosen = [i for i, x in enumerate(series.x) if x is not None and round(x) in places]

    def of(values: Numbers | None) -> list[float | None] | None:
        return None if values is None else [values[i] for i in chosen]

    x = [places[round(at)] + at - round(at) for at in of(series.x) or [] if at is not None]
    notes = None if series.notes is None else [series.notes[i] for i in chosen]
    return replace(series, x=x, y=of(series.y) or [], low=of(series.low), high=of(series.high), notes=notes)
