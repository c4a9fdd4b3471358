"""Plots of densities, lines and planes as text."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence

from curvcli.schema.spectrum import Density

BLOCKS = " ▁▂▃▄▅▆▇█"
PLAIN = " .:-=+*#@"


def bar(value: float, largest: float, *, width: int, unicode: bool) -> str:
    """Return a bar whose length is a value relative to the largest of its column.

    >>> bar(-0.5, 1.0, width=8, unicode=False), bar(0.3, 1.0, width=8, unicode=True)
    ('####', '██▍')
    """
    eighths = round(8 * width * min(abs(value) / largest, 1.0)) if largest else 0
    if not unicode:
        return "#" * round(eighths / 8)
    return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]


def density_plot(density: Density, dim: int, *, width: int, height: int, unicode: bool) -> str:
    """Plot eigenvalues per unit of λ on a logarithmic scale, from a tenth of a single eigenvalue's peak upwards.

    Parameters
    ----------
    density
        The density, with unit mass.
    dim
        D; one eigenvalue weighs 1/D.
    width, height
        Size in characters.
    unicode
        Whether block characters can be shown.
    """
    label = 9
    columns = max(width - label, 20)
    heights = [math.log10(max(value * dim, 1e-300)) for value in _resampled(density.value, columns)]
    # One eigenvalue alone makes a bump of height 1/(σ√2π): a tenth of it is the bottom of the picture.
    bottom = math.log10(0.1 / (density.sigma * math.sqrt(2 * math.pi)))
    top = max(*heights, bottom + 1)
    levels = [max(0.0, (value - bottom) / (top - bottom)) * height for value in heights]
    marks = BLOCKS if unicode else PLAIN
    lines = []
    for row in reversed(range(height)):
        cells = "".join(marks[round(8 * min(max(level - row, 0.0), 1.0))] for level in levels)
        edge = 10 ** (bottom + (top - bottom) * (row + 1) / height)
        lines.append(f"{edge:>{label - 2}.1e} " + ("│" if unicode else "|") + cells.rstrip())
    lines.append(" " * (label - 1) + ("└" if unicode else "+") + ("─" if unicode else "-") * columns)
    lines.append(" " * label + _axis(density.grid[0], density.grid[-1], columns))
    return "\n".join(lines)


def line_plot(
    s: Sequence[float],
    loss: Sequence[float | None],
    model: Sequence[float],
    *,
    width: int,
    height: int,
    marks: tuple[str, str],
) -> str:
    """Plot a loss along a line, and its quadratic model where that lies within the range.

    Parameters
    ----------
    s, loss, model
        Points of the line, losses (None where there is none) and values of the model.
    width, height
        Size in characters.
    marks
        The characters of the loss and of the model.
    """
    finite = [value for value in loss if value is not None] or model
    low, high = min(finite), max(finite)
    margin = 0.15 * (high - low) or 0.1 * abs(high) or 1.0
    inside = [value for value in model if low - margin <= value <= high + margin]
    low, high = min([low, *inside]), max([high, *inside])
    high = high if high > low else low + margin
    label = 12
    columns = max(width - label, 20)
    cells = [[" "] * columns for _ in range(height)]
    for values, mark in ((model, marks[1]), (loss, marks[0])):
        for column in range(columns):
            value = _interpolated(s, values, s[0] + (s[-1] - s[0]) * column / (columns - 1))
            if value is not None and low <= value <= high:
                cells[height - 1 - round((value - low) / (high - low) * (height - 1))][column] = mark
    lines = []
    for row, cell in enumerate(cells):
        edge = high - (high - low) * row / (height - 1)
        name = f"{edge:>{label - 2}.4g}" if row % 3 == 0 or row == height - 1 else " " * (label - 2)
        lines.append(f"{name} |" + "".join(cell).rstrip())
    return "\n".join([*lines, " " * label + _axis(s[0], s[-1], columns)])


def _interpolated(s: Sequence[float], values: Sequence[float | None], at: float) -> float | None:
    """Interpolate linearly between points; None where a neighbour is missing."""
    index = min(max(bisect.bisect_right(s, at) - 1, 0), len(s) - 2)
    left, right = values[index], values[index + 1]
    share = (at - s[index]) / (s[index + 1] - s[index])
    if left is None or right is None:
        return None
    return left + share * (right - left)


def shade_map(
    a: list[float],
    b: list[float],
    loss: list[list[float | None]],
    *,
    width: int,
    height: int,
    unicode: bool,
) -> str:
    """Plot a loss over a plane, darker where its logarithm is larger: a to the right, b upwards.

    Parameters
    ----------
    loss
        [a][b]; None is left blank.
    """
    finite = [value for row in loss for value in row if value is not None]
    if not finite:
        return ""
    least = min(finite)
    # Three decades below the largest excess are told apart.
    largest = max(finite) - least or 1.0
    shades = "·░▒▓█" if unicode else ".-=*#"
    columns = max(min(width - 12, 2 * len(a)), 2)
    rows = min(height, len(b))
    lines = []
    for row in reversed(range(rows)):
        j = round(row * (len(b) - 1) / max(rows - 1, 1))
        cells = ""
        for column in range(columns):
            value = loss[round(column * (len(a) - 1) / (columns - 1))][j]
            if value is None:
                cells += " "
                continue
            decades = math.log10(max((value - least) / largest, 1e-3)) / 3 + 1
            cells += shades[min(int(decades * len(shades)), len(shades) - 1)]
        lines.append(f"{b[j]:>10.3g} |{cells}")
    return "\n".join([*lines, " " * 12 + _axis(a[0], a[-1], columns)])


def _resampled(values: list[float], columns: int) -> list[float]:
    """Return the maximum in each of `columns` equal parts, which keeps narrow peaks."""
    edges = [round(i * len(values) / columns) for i in range(columns + 1)]
    return [max(values[low : max(high, low + 1)] or [values[-1]]) for low, high in itertools.pairwise(edges)]


def _axis(low: float, high: float, columns: int) -> str:
    """Return an axis labelled at both ends and the middle."""
    left, middle, right = f"{low:.3g}", f"{0.5 * (low + high):.3g}", f"{high:.3g}"
    gap = columns - len(left) - len(middle) - len(right)
    return left + " " * (gap // 2) + middle + " " * (gap - gap // 2) + right
