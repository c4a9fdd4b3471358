"""What a picture shows, before anything is drawn: panels of series, and tables."""

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
    """Something that a reader can point at, or hide.

    Parameters
    ----------
    x, y
        [n]; None where there is no value.
    low, high
        [n], the interval of each y: a band under lines, else bars.
    style
        band: the interval alone is drawn.
    colour
        Which of the colours; series that belong together share one. None: one of its own.
    notes
        [n], what else is to be said of each point.
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
    """A part of the x axis, shaded."""

    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Mesh:
    """Values over a rectangle as colours, z[j][i] at (x[i], y[j]).

    Parameters
    ----------
    scale
        Of the colours; diverging: white at zero.
    contours
        Levels of z that are drawn as lines.
    model
        [j][i], drawn as dashed lines at the same levels.
    written
        [j][i], texts for the cells.
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
    """An axis; the first of its scales is the one that is shown, the others a page can switch to.

    Parameters
    ----------
    threshold
        Of symlog: the scale is linear within ± this.
    names
        Of the places 0, 1, …, for axes that count things.
    whole
        Whether only whole numbers are marked.
    """

    label: str
    scales: tuple[Scale, ...] = ("linear",)
    threshold: float = 1.0
    names: Sequence[str] = ()
    limits: tuple[float, float] | None = None
    whole: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Parameters
    ----------
    words
        What it shows, in sentences, for those who cannot see it and those who want to know.
    sideways
        Whether x runs downwards and y to the right, as suits bars with names.
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
    """Rows of texts, and an image before a row where there is one."""

    title: str
    words: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    images: Sequence[Image | None] = ()


@dataclass(frozen=True)
class Picture:
    """All that is shown of a report, or of several.

    Parameters
    ----------
    about
        Lines under the title: what was analysed.
    alarm
        Why the numbers are not to be relied on; empty where nothing is wrong.
    """

    title: str
    about: Sequence[str]
    parts: Sequence[Panel | Table]
    alarm: str = ""
    warnings: Sequence[str] = field(default_factory=tuple)


def linear_within(*sizes: float) -> float:
    """A threshold for symlog: the largest of these, or 1 where all are zero or too small to be divided by.

    >>> linear_within(1e-6, 1e-3), linear_within(0.0, 1e-310)
    (0.001, 1.0)
    """
    size = max(sizes)
    return size if size > 1e-200 else 1.0


def log_where_positive(values: Iterable[float | None], first: Scale = "log") -> tuple[Scale, ...]:
    """Both scales, `first` first, where any value can be seen on a logarithmic one; else the linear one alone.

    >>> log_where_positive([0.0, 2.0]), log_where_positive([0.0, None])
    (('log', 'linear'), ('linear',))
    """
    if not any(value is not None and value > 0 for value in values):
        return ("linear",)
    return ("log", "linear") if first == "log" else ("linear", "log")


def printable(part: Any) -> Any:
    """The same with every text such as XML and fonts can hold: control characters and bytes of no encoding become �.

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
    """Where the bars of one of `count` series stand, from the place that they share.

    >>> beside(0, 1), beside(0, 2), beside(1, 2)
    (0.0, -0.2, 0.2)
    """
    return 0.8 * ((index + 0.5) / count - 0.5)
