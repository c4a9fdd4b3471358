"""A density as characters."""

from __future__ import annotations

import itertools
import math

from curvcli.schema.spectrum import Density

BLOCKS = " ▁▂▃▄▅▆▇█"
PLAIN = " .:-=+*#@"


def density_plot(density: Density, dim: int, *, width: int, height: int, unicode: bool) -> str:
    """Eigenvalues per unit of λ on a logarithmic scale, from a tenth of what one eigenvalue makes to the peak.

    Parameters
    ----------
    density
        Of unit mass.
    dim
        D; one eigenvalue weighs 1/D.
    width, height
        Characters.
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


def _resampled(values: list[float], columns: int) -> list[float]:
    """The largest value in each of `columns` equal parts, so that no narrow peak is lost."""
    edges = [round(i * len(values) / columns) for i in range(columns + 1)]
    return [max(values[low : max(high, low + 1)] or [values[-1]]) for low, high in itertools.pairwise(edges)]


def _axis(low: float, high: float, columns: int) -> str:
    """Both ends and the middle."""
    left, middle, right = f"{low:.3g}", f"{0.5 * (low + high):.3g}", f"{high:.3g}"
    gap = columns - len(left) - len(middle) - len(right)
    return left + " " * (gap // 2) + middle + " " * (gap - gap // 2) + right
