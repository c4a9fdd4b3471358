"""Drawing with matplotlib: panels on axes, whole pictures as png, svg or pdf."""

from __future__ import annotations

import contextlib
import io
import math
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from curvcli.figures.fitting import cut
from curvcli.figures.picture import Axis, Mesh, Panel, Picture, Rule, Scale, Series, Table
from curvcli.figures.ticks import STEPS, Apart, LogTicks, Ticks

WIDTH, HEIGHT = 7.2, 3.7
"""Width of a panel in inches."""

MOST_NAMES = 24
"""Maximum number of labels along a horizontal axis; of more, every second or third is shown."""


@dataclass(frozen=True)
class Theme:
    """Colours of a theme; those of series can be distinguished by the colour-blind (Wong 2011)."""

    ink: str = "#1c1c1c"
    faint: str = "#8a8a8a"
    grid: str = "#e4e4e4"
    paper: str = "#ffffff"
    series: tuple[str, ...] = (
        "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a4fa0", "#5b5b5b",
    )  # fmt: skip

    def colour(self, index: int) -> str:
        """Return the colour of a series."""
        return self.series[index % len(self.series)]


LIGHT = Theme()

SETTINGS: Any = {
    "svg.fonttype": "none", "path.simplify_threshold": 0.5, "font.size": 9, "axes.titlesize": 10, "pdf.fonttype": 42,
    "font.family": "DejaVu Sans", "axes.unicode_minus": True, "svg.hashsalt": "curv",
    "text.parse_math": False,
}  # fmt: skip


@contextlib.contextmanager
def quiet_about_glyphs() -> Iterator[None]:
    """Suppress warnings of glyphs that the font lacks: png and pdf show boxes, svg and page have the text."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")
        yield


def write(picture: Picture, kind: Literal["png", "svg", "pdf"], dpi: int = 150) -> bytes:
    """Draw the whole picture as one file: panels below each other, from four on in two columns."""
    with rc_context(SETTINGS), quiet_about_glyphs():
        columns = 1 if len(picture.parts) < 4 else 2
        rows = [list(picture.parts[start : start + columns]) for start in range(0, len(picture.parts), columns)]
        heights = [max(part_height(part) for part in row) for row in rows]
        head = 0.42 + 0.2 * len(picture.about) + (0.25 if picture.alarm else 0)
        figure = Figure(figsize=(WIDTH * columns, sum(heights) + head), facecolor=LIGHT.paper, layout="constrained")
        FigureCanvasAgg(figure)
        halves: Any = figure.subfigures(2, 1, height_ratios=[head, sum(heights)])
        upper, lower = halves
        _head(upper, picture, head)
        grid = lower.add_gridspec(len(rows), columns, height_ratios=heights)
        for i, row in enumerate(rows):
            for j, part in enumerate(row):
                alone = len(row) == 1
                axes = lower.add_subplot(grid[i, :] if alone else grid[i, j])
                _words(axes, part, 118 if alone or columns == 1 else 112)
                if isinstance(part, Table):
                    table(axes, part)
                else:
                    panel(axes, part, LIGHT, legend=True)
        stream = io.BytesIO()
        metadata = {"png": {"Software": None}, "svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
                    "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}[kind]  # fmt: skip
        figure.savefig(stream, format=kind, dpi=dpi, metadata=metadata)
        return stream.getvalue()


def _words(axes: Axes, part: Panel | Table, width: int) -> None:
    """Draw the title and the description of a part.

    However long a text is, the axes stay as wide as they are: the layout asks titles for their height alone, and other
    texts for nothing. Two empty lines keep room for the title in bold.
    """
    words = textwrap.wrap(part.words, width)
    axes.set_title("\n".join(["", "", *words]), loc="left", color=LIGHT.faint, fontsize=7.5)
    axes.annotate(
        part.title, (0, 1), xycoords="axes fraction", xytext=(0, 10 + 9.3 * len(words)), textcoords="offset points",
        color=LIGHT.ink, fontweight="bold", fontsize=10, va="bottom",
    ).set_in_layout(False)  # fmt: skip


def part_height(part: Panel | Table) -> float:
    """Return the height of a part in inches, with its title and description."""
    words = 0.13 * (len(part.words) // 110 + 1)
    return words + (0.8 + row_height(part) * (len(part.rows) + 1) if isinstance(part, Table) else panel_height(part))


def panel_height(part: Panel) -> float:
    """Return the height of a panel in inches, without title and description."""
    if part.sideways:
        return max(2.2, 1.3 + 0.24 * len(part.x.names))
    if part.mesh is not None and part.y.names:
        return max(3.0, 1.4 + 0.28 * len(part.y.names))
    return HEIGHT + (0.6 if part.mesh is not None else 0)


def row_height(part: Table) -> float:
    """Return the height of a table's row in inches, larger with images."""
    return 0.5 if any(part.images) else 0.22


def _head(figure: Any, picture: Picture, height: float) -> None:
    """Draw the title, the description of the problem, and the alarm."""
    down = 0.3
    figure.text(0.02, 1 - down / height, picture.title, color=LIGHT.ink, fontsize=13, fontweight="bold")
    for line in picture.about:
        down += 0.2
        figure.text(0.02, 1 - down / height, line, color=LIGHT.faint, fontsize=8.5)
    if picture.alarm:
        figure.text(0.02, 1 - (down + 0.25) / height, picture.alarm, color="#c00000", fontsize=10, fontweight="bold")


def panel(
    axes: Axes, part: Panel, theme: Theme, *, legend: bool, x: Scale | None = None, y: Scale | None = None
) -> None:
    """Draw one panel.

    Parameters
    ----------
    legend
        Whether series are named in the picture; a page names them beside it.
    x, y
        Scales of the axes; default: the first of each.
    """
    across, up = (part.y, part.x) if part.sideways else (part.x, part.y)
    first, second = (
        (y or part.y.scales[0], "linear") if part.sideways else (x or part.x.scales[0], y or part.y.scales[0])
    )
    axes.set_facecolor("none")
    for spine in axes.spines.values():
        spine.set_color(theme.faint)
    axes.tick_params(colors=theme.ink, which="both")
    if part.mesh is None:
        axes.grid(color=theme.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    if part.mesh is not None:
        _mesh(axes, part.mesh, theme)
    _scale(axes, "x", across, first, theme)
    _scale(axes, "y", up, second, theme)
    for region in part.regions:
        axes.axvspan(region.low, region.high, color=theme.colour(2), alpha=0.1, linewidth=0, label=region.label)
    bars = sum(curve.style == "bars" for curve in part.series)
    scale = second if not part.sideways else first
    # What a logarithmic axis shows nothing of comes last: limits are then known.
    for index, series in sorted(enumerate(part.series), key=lambda one: not _is_seen(one[1], first, second, part)):
        artists = _series(axes, series, theme.colour(index if series.colour is None else series.colour), bars,
                          part.sideways, log=scale == "log", floor=part.y.limits)  # fmt: skip
        for artist in artists:
            artist.set_gid(f"series-{index}")
    _limits(axes, part)
    for index, rule in enumerate(part.rules):
        _rule(axes, rule, index, theme)
    if legend and (len(part.series) > 1 or part.regions):
        box = axes.legend(fontsize=7.5, frameon=True, framealpha=0.85, edgecolor=theme.grid, labelcolor=theme.ink)
        box.get_frame().set_facecolor(theme.paper)
        box.set_in_layout(False)


def _is_seen(series: Series, across: Scale, up: Scale, part: Panel) -> bool:
    """Whether logarithmic axes show anything of a series."""
    x, y = (up, across) if part.sideways else (across, up)
    sides = ((x, series.x), (y, series.y))
    return all(scale != "log" or any(value is not None and value > 0 for value in side) for scale, side in sides)


def _rule(axes: Axes, rule: Rule, index: int, theme: Theme) -> None:
    """Draw a line across the panel, labelled on the side of the middle, where there is room."""
    upright = rule.of == "x"
    (axes.axvline if upright else axes.axhline)(rule.value, color=theme.faint, linewidth=0.9, linestyle=(0, (4, 3)))
    if not rule.label:
        return
    at = axes.transAxes.inverted().transform(axes.transData.transform((rule.value, rule.value)))
    right, under = upright and at[0] > 0.6, upright or at[1] > 0.93
    axes.annotate(
        rule.label, (rule.value, 0.98 - 0.07 * (index % 3)) if upright else (0.99, rule.value),
        xycoords=axes.get_xaxis_transform() if upright else axes.get_yaxis_transform(), textcoords="offset points",
        xytext=(-3 if right else 3, 0) if upright else (0, -2 if under else 2), fontsize=7.5, color=theme.ink,
        ha="right" if right or not upright else "left", va="top" if under else "bottom", annotation_clip=True,
    ).set_in_layout(False)  # fmt: skip


def _limits(axes: Axes, part: Panel) -> None:
    if part.x.limits:
        axes.set_xlim(*part.x.limits)
    if part.y.limits:
        (axes.set_xlim if part.sideways else axes.set_ylim)(*part.y.limits)
    if part.sideways:
        axes.set_ylim(len(part.x.names) - 0.4, -0.6)
    elif part.mesh is not None and part.y.names:
        axes.invert_yaxis()


def _scale(axes: Axes, letter: Literal["x", "y"], axis: Axis, scale: Scale, theme: Theme) -> None:
    """Set scale, label and ticks of an axis."""
    (axes.set_xlabel if letter == "x" else axes.set_ylabel)(axis.label, color=theme.ink)
    set_scale = axes.set_xscale if letter == "x" else axes.set_yscale
    target = axes.xaxis if letter == "x" else axes.yaxis
    if scale == "symlog":
        set_scale("symlog", linthresh=axis.threshold)
        target.set_major_locator(Apart(base=10, linthresh=axis.threshold))
        target.set_minor_locator(NullLocator())
    elif scale == "log":
        set_scale("log", nonpositive="clip")
    if axis.names:
        turned = letter == "x" and max(map(len, axis.names)) > 5
        labels = shortened(axis.names)
        every = -(-len(labels) // MOST_NAMES) if letter == "x" else 1
        target.set_ticks(range(0, len(labels), every), labels=labels[::every], rotation=45 if turned else 0,
                         ha="right" if turned or letter == "y" else "center", fontsize=8)  # fmt: skip
        return
    if scale == "log":
        target.set_major_locator(LogTicks())
        target.set_minor_locator(NullLocator())
    elif scale == "linear":
        target.set_major_locator(MaxNLocator("auto", steps=STEPS, integer=axis.whole))
    target.set_major_formatter(Ticks(powers=scale != "linear"))


def shortened(names: Sequence[str]) -> list[str]:
    """Shorten long names in the middle, as far as they stay distinct.

    >>> shortened([f"encoder/blocks_{block}/attention/query/kernel" for block in (1, 12)])
    ['encoder/blocks_1/at…tion/query/kernel', 'encoder/blocks_12/a…tion/query/kernel']
    """
    for head in range(15, 40, 4):
        short = [name if len(name) <= head + 19 else f"{name[:head]}…{name[-17:]}" for name in names]
        if len(set(short)) == len(set(names)):
            return short
    return [name if len(name) <= 40 else f"{name[:15]}…{name[-17:]} ({index})" for index, name in enumerate(names, 1)]


def _series(
    axes: Axes, series: Series, colour: str, bars: int, sideways: bool, *, log: bool, floor: tuple[float, float] | None
) -> list[Any]:
    """Draw a series, and return its artists."""
    x, y = _array(series.x), _array(series.y)
    low, high = (None if side is None else _array(side) for side in (series.low, series.high))
    artists: list[Any] = []
    if series.style == "band" and low is not None and high is not None:
        return [axes.fill_between(x, low, high, color=colour, alpha=0.45, linewidth=0.8, label=series.name)]
    if series.style in ("line", "dashed"):
        if low is not None and high is not None and np.any(high > low):
            under = np.maximum(low, floor[0]) if log and floor else low
            every = slice(None, None, max(len(x) // 200, 1))
            artists.append(
                axes.fill_between(x[every], under[every], np.maximum(high, under)[every], color=colour, alpha=0.22,
                                  linewidth=0)
            )  # fmt: skip
        few = series.style == "line" and len(x) <= 30
        artists += axes.plot(
            x, y, color=colour, linewidth=1.5, linestyle="--" if series.style == "dashed" else "-", label=series.name,
            marker="o" if few else None, markersize=3.5,
        )  # fmt: skip
        return artists
    if low is not None and high is not None and np.any(high > low):
        errors = np.maximum(np.stack([y - low, high - y]), 0)
        marks = axes.errorbar(
            *((y, x) if sideways else (x, y)), xerr=errors if sideways else None, yerr=None if sideways else errors,
            fmt="none", ecolor=colour, elinewidth=1.0, capsize=2 if len(x) <= 40 else 0,
            zorder=3,
        )  # fmt: skip
        artists += [*marks.lines[1], *marks.lines[2]]
        if series.style == "bars":
            for artist in artists:
                artist.set_color("#444444" if colour != "#5b5b5b" else colour)
    if series.style == "bars":
        size = 0.8 / bars * 0.9
        marks = (axes.barh if sideways else axes.bar)(
            x, np.nan_to_num(y), size, color=colour, alpha=0.75, label=series.name
        )
        artists += list(marks)
    elif series.style == "stems":
        bottom = 0.0 if not log else (floor[0] if floor else 0.5 * float(np.min(y[y > 0], initial=np.inf)))
        artists.append(axes.vlines(x, bottom, y, color=colour, linewidth=0.9, alpha=0.7))
        artists += axes.plot(x, y, "o", color=colour, markersize=3.2, label=series.name)
    else:
        artists += axes.plot(x, y, "o", color=colour, markersize=4, label=series.name)
    return artists


def _array(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if one is None else one for one in values], float)


def _mesh(axes: Axes, mesh: Mesh, theme: Theme) -> None:
    """Draw a mesh: colours, contours, numbers in cells, and the colour bar."""
    z = np.ma.masked_invalid(np.array([_array(row) for row in mesh.z]))
    low, high = (float(z.min()), float(z.max())) if z.count() else (0.0, 1.0)
    if mesh.scale == "diverging":
        size = max(abs(low), abs(high)) or 1.0
        norm: Any = TwoSlopeNorm(0.0, -size, size)
    elif mesh.scale == "log" and high > low > 0:
        norm = LogNorm(low, high)
    else:
        norm = Normalize(low, high)
    palette = "RdBu_r" if mesh.scale == "diverging" else "viridis" if mesh.contours or not mesh.written else "Blues"
    edges = [_edges(side, count) for side, count in zip((mesh.x, mesh.y), (z.shape[1], z.shape[0]), strict=True)]
    # With fewer than 50 colours the scale beside it is drawn, not a picture of it.
    colours = colormaps[palette].resampled(48)
    cells = axes.pcolormesh(*edges, z, norm=norm, cmap=colours, rasterized=z.size > 4000)
    if mesh.contours:
        finite = np.ma.filled(z, np.nan)
        levels = sorted({level for level in mesh.contours if low < level < high})
        if levels and min(z.shape) > 1:
            axes.contour(mesh.x, mesh.y, finite, levels, colors="white", linewidths=0.9)
            if mesh.model is not None:
                model = np.array([_array(row) for row in mesh.model])
                inside = [level for level in levels if np.nanmin(model) < level < np.nanmax(model)]
                if inside:
                    axes.contour(mesh.x, mesh.y, model, inside, colors="#ffb000", linewidths=1.0, linestyles="dashed")
    for j, row in enumerate(mesh.written or []):
        for i, text in enumerate(row):
            if text and z[j, i] is not np.ma.masked:
                light = sum(_luminance(cells.to_rgba(z[j, i]))) > 0.55
                axes.text(i, j, text, ha="center", va="center", fontsize=7.5, color="#1b1b1b" if light else "#fafafa")
    bar = axes.figure.colorbar(cells, ax=axes, pad=0.02)
    bar.set_label(mesh.label, color=theme.ink)
    bar.ax.tick_params(colors=theme.ink, which="both")
    if mesh.scale == "log":
        bar.ax.yaxis.set_major_formatter(Ticks(powers=True))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())


def _luminance(colour: Any) -> tuple[float, float, float]:
    return 0.2126 * float(colour[0]), 0.7152 * float(colour[1]), 0.0722 * float(colour[2])


def _edges(places: Sequence[float], count: int) -> list[float]:
    """Return the edges of cells: the places themselves, or halfway between them.

    >>> _edges([0.0, 1.0, 3.0], 3), _edges([0.0, 1.0], 1)
    ([-0.5, 0.5, 2.0, 4.0], [0.0, 1.0])
    """
    if len(places) == count + 1:
        return list(places)
    if count == 1:
        return [places[0] - 0.5, places[0] + 0.5]
    middle = [0.5 * (left + right) for left, right in pairwise(places)]
    return [1.5 * places[0] - 0.5 * places[1], *middle, 1.5 * places[-1] - 0.5 * places[-2]]


def table(axes: Axes, part: Table) -> None:
    """Draw a table: texts in columns, with images before them."""
    axes.set_axis_off()
    longest = [max(map(len, column)) for column in zip(part.heads, *part.rows, strict=True)]
    most = next((size for size in range(max(longest), 8, -1) if sum(min(one, size) for one in longest) <= 150), 8)
    rows = [[cut(text, most) for text in row] for row in (part.heads, *part.rows)]
    longest = [min(one, most) + 2 for one in longest]
    pictured = any(part.images)
    start, total = (0.09 if pictured else 0.0), sum(longest)
    places = [start + (1 - start) * sum(longest[:column]) / total for column in range(len(longest))]
    step, size = 72 * row_height(part), max(5.0, min(8.0, 8 * 100 * (1 - start) / total))
    for index, row in enumerate(rows):
        down = (0, -(index + 0.6) * step)
        for place, text in zip(places, row, strict=True):
            written = axes.annotate(
                text, (place, 1), xycoords="axes fraction", xytext=down, textcoords="offset points", fontsize=size,
                va="center", color=LIGHT.faint if index == 0 else LIGHT.ink,
            )  # fmt: skip
            written.set_in_layout(False)
        image = part.images[index - 1] if pictured and index > 0 else None
        if image is not None:
            pixels = np.array(image.pixels)
            thumbnail = OffsetImage(pixels, zoom=0.92 * step / pixels.shape[0], cmap="gray", norm=Normalize(0, 1),
                                interpolation="nearest", dpi_cor=True)  # fmt: skip
            axes.add_artist(
                AnnotationBbox(thumbnail, (0, 1), xycoords="axes fraction", xybox=(0.5 * step, down[1]),
                               boxcoords="offset points", frameon=False, pad=0)
            )  # fmt: skip
