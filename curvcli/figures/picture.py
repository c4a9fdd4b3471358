"""The content of a picture as values: panels of series, and tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

Scale = Literal["linear", "log", "symlog"]
Style = Literal["line", "dashed", "band", "points", "stems", "bars"]
Numbers = Sequence[float | None]

UNPRINTABLE = re.compile(r"[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Series:
    """A series of a panel: a curve, band, bars, stems or points.

    Parameters
    ----------
    x, y
        [n]; None where there is no value.
    low, high
        [n], the interval of each y: a band under lines, else bars.
    style
        With `band` the interval alone is drawn.
    colour
        Index of the colour; series that belong together share one. None: the index of the series.
    notes
        [n], a remark on each point.
    """

    name: str
    x: Numbers
    y: Numbers
    style: Style = "line"
    low: Numbers | None = None
    high: Numbers | None = None
    colour: int | None = None
    notes: Sequence[str] | None = None


@dataclass(frozen=True)
class Rule:
    """A straight line across a panel, at a value of x or of y."""

    value: float
    label: str
    of: Literal["x", "y"] = "x"


@dataclass(frozen=True)
class Region:
    """A shaded interval of the x axis."""

    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Mesh:
    """A mesh: values over a rectangle as colours, z[j][i] at (x[i], y[j]).

    Parameters
    ----------
    scale
        Scale of the colours; `diverging` is white at zero.
    contours
        Levels of z with contour lines.
    model
        [j][i], drawn as dashed contours at the same levels.
    written
        [j][i], texts in the cells.
    """

    x: Sequence[float]
    y: Sequence[float]
    z: Sequence[Numbers]
    label: str
    scale: Literal["linear", "log", "diverging"] = "linear"
    contours: Sequence[float] = ()
    model: Sequence[Numbers] | None = None
    written: Sequence[Sequence[str]] | None = None


@dataclass(frozen=True)
class Axis:
    """An axis; the first scale is shown, and a page can switch to the others.

    Parameters
    ----------
    threshold
        A symlog scale is linear within ± this.
    names
        Labels of the places 0, 1, … on a categorical axis.
    whole
        Whether ticks are at integers only.
    """

    label: str
    scales: tuple[Scale, ...] = ("linear",)
    threshold: float = 1.0
    names: Sequence[str] = ()
    limits: tuple[float, float] | None = None
    whole: bool = False


@dataclass(frozen=True)
class Panel:
    """A panel: one pair of axes.

    Parameters
    ----------
    words
        Description in sentences, for screen readers too.
    sideways
        Whether x runs downwards and y to the right, as in bar charts with names.
    """

    title: str
    words: str
    x: Axis
    y: Axis
    series: Sequence[Series] = ()
    rules: Sequence[Rule] = ()
    regions: Sequence[Region] = ()
    mesh: Mesh | None = None
    sideways: bool = False


@dataclass(frozen=True)
class Image:
    """An input that is an image: [height][width] grey, or [height][width][3], between 0 and 1."""

    pixels: Sequence[Sequence[float | Sequence[float]]]
    name: str


@dataclass(frozen=True)
class Table:
    """A table: rows of texts, each with an optional image."""

    title: str
    words: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    images: Sequence[Image | None] = ()


@dataclass(frozen=True)
class Picture:
    """The picture of one report or several.

    Parameters
    ----------
    about
        Lines under the title that describe the problem.
    alarm
        The reason why the numbers are unreliable; empty where there is none.
    """

    title: str
    about: Sequence[str]
    parts: Sequence[Panel | Table]
    alarm: str = ""
    warnings: Sequence[str] = field(default_factory=tuple)


def linear_within(*sizes: float) -> float:
    """Return a threshold for symlog: the largest argument, or 1 where all are zero or too small to be divided by.

    >>> linear_within(1e-6, 1e-3), linear_within(0.0, 1e-310)
    (0.001, 1.0)
    """
    size = max(sizes)
    return size if size > 1e-200 else 1.0


def log_where_positive(values: Iterable[float | None], first: Scale = "log") -> tuple[Scale, ...]:
    """Return both scales, `first` first, where any value is positive; else the linear one alone.

    >>> log_where_positive([0.0, 2.0]), log_where_positive([0.0, None])
    (('log', 'linear'), ('linear',))
    """
    if not any(value is not None and value > 0 for value in values):
        return ("linear",)
    return ("log", "linear") if first == "log" else ("linear", "log")


def printable(part: Any) -> Any:
    """Replace characters in all texts that XML cannot hold: control characters and undecodable bytes become �.

    >>> printable(Rule(1.0, "a\\x1b\\udcffb")).label
    'a��b'
    """
    if isinstance(part, str):
        return UNPRINTABLE.sub("�", part)
    if isinstance(part, list | tuple):
        return type(part)(map(printable, part))
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{entry.name: printable(getattr(part, entry.name)) for entry in fields(part)})
    return part


def beside(index: int, count: int) -> float:
    """Return the offset of the bars of series `index` of `count` from their common place.

    >>> beside(0, 1), beside(0, 2), beside(1, 2)
    (0.0, -0.2, 0.2)
    """
    return 0.8 * ((index + 0.5) / count - 0.5)
