"""A picture as a self-contained page: it loads nothing from the network and is readable by screen readers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from curvcli.figures import facts, vector
from curvcli.figures.naming import AnyReport
from curvcli.figures.paint import LIGHT
from curvcli.figures.picture import Image, Panel, Picture, Table, printable

DARK = ("#5ab4f0", "#ff9a4d", "#3ad6a4", "#f0a3d0", "#e6c34a", "#9fd8ff", "#b892e0", "#b8b8b8")
"""Colours of series on a dark page."""

MOST_POINTS = 260
"""Maximum number of points of a series with values; more would be closer than about a pixel."""

SCALE_NAMES = {"linear": "linear", "log": "logarithmic", "symlog": "logarithmic beyond the middle"}


def write(picture: Picture, reports: Sequence[AnyReport]) -> bytes:
    """Write the page: panels with their switches, tables, every number with its interval, and the reports."""
    resources = files("curvcli.figures")
    style = resources.joinpath("page.css").read_text(encoding="utf-8")
    lines = [line.strip() for line in resources.joinpath("page.js").read_text(encoding="utf-8").splitlines()]
    script = "\n".join(line for line in lines if line and not line.startswith("//"))
    parts = "\n".join(
        _table(part) if isinstance(part, Table) else _panel(part, index) for index, part in enumerate(picture.parts)
    )
    about = "".join(f"<p class=about>{escape(line)}</p>" for line in picture.about if line)
    alarm = f"<p class=alarm role=alert>{escape(picture.alarm)}</p>" if picture.alarm else ""
    warnings = "".join(f"<li>{escape(warning)}</li>" for warning in picture.warnings)
    noted = f"<section><h2>Warnings</h2><ul>{warnings}</ul></section>" if warnings else ""
    embedded = "".join(
        f'<script type="application/json" class="report">{_json(json.loads(report.to_json()))}</script>\n'
        for report in reports
    )
    data = _json([_point_values(part) for part in picture.parts])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(picture.title)}</title>
<style>{_colours()}{style}</style>
</head>
<body>
<header>
<h1>{escape(picture.title)}</h1>
{about}{alarm}
<button type="button" id="theme">Dark or light</button>
</header>
<main>
{parts}
{_table(printable(facts.table(reports)), folded=True)}
{noted}
</main>
<footer><p>Point at a picture, or move to it with Tab and along it with the arrow keys, for its values. The whole
report is part of this page. <button type="button" id="save">Save the report</button></p></footer>
{embedded}<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
""".encode("utf-8", "backslashreplace")  # paths of no encoding, which JSON reads back as they were


def _json(value: Any) -> str:
    """Encode JSON such that it cannot end its script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _colours() -> str:
    """Return the CSS variables of colours that pictures and page share, for the light and the dark theme."""
    light = {"ink": LIGHT.ink, "faint": "#6b6b6b", "grid": LIGHT.grid, "paper": LIGHT.paper, "alarm": "#b00000"}
    dark = {"ink": "#ececec", "faint": "#a8a8a8", "grid": "#3a3a3a", "paper": "#161616", "alarm": "#ff8080"}
    light |= {f"series-{index}": colour for index, colour in enumerate(LIGHT.series)}
    dark |= {f"series-{index}": colour for index, colour in enumerate(DARK)}

    def rules(colours: dict[str, str]) -> str:
        return "".join(f"--{name}:{colour};" for name, colour in colours.items())

    return (
        f":root{{color-scheme:light;{rules(light)}}}"
        f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{rules(dark)}}}}}"
        f":root[data-theme=dark]{{color-scheme:dark;{rules(dark)}}}\n"
    )


def _panel(panel: Panel, index: int) -> str:
    """Return a panel with its title, description, switches, and its values as a table."""
    name = f"panel-{index}"
    buttons = "".join(
        f'<button type="button" class="scale" data-axis="{axis}" aria-pressed="false">{axis}: '
        f"{SCALE_NAMES[scales[0]]}</button>"
        for axis, scales in (("x", panel.x.scales), ("y", panel.y.scales))
        if len(scales) > 1
    )
    if len(panel.series) > 1:
        buttons += "".join(
            f'<button type="button" class="series" data-series="{k}" aria-pressed="true">'
            f'<span class="swatch" style="background:var(--series-{_colour(panel, k) % len(DARK)})"></span>'
            f"{escape(series.name)}</button>"
            for k, series in enumerate(panel.series)
        )
    pictures = "".join(vector.variants(panel, name))
    return f"""<section class="panel" id="{name}">
<h2>{escape(panel.title)}</h2>
<p id="{name}-words">{escape(panel.words)}</p>
<div class="switches">{buttons}</div>
<div class="picture" tabindex="0" role="img" aria-label="{escape(panel.title)}" aria-describedby="{name}-words">
{pictures}<div class="tip" hidden></div></div>
<p class="said" aria-live="polite"></p>
<details><summary>Values of “{escape(panel.title)}”</summary><div class="values"></div></details>
</section>"""


def _colour(panel: Panel, index: int) -> int:
    own = panel.series[index].colour
    return index if own is None else own


def _table(table: Table, *, folded: bool = False) -> str:
    """Return a table; inputs that are images are drawn."""
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in table.heads)
    pictured = any(table.images)
    rows = []
    for index, row in enumerate(table.rows):
        image = table.images[index] if pictured else None
        cells = f"<td>{_image(image) if image is not None else ''}</td>" if pictured else ""
        rows.append("<tr>" + cells + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    first = '<th scope="col">input</th>' if pictured else ""
    body = f"<table><thead><tr>{first}{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    words = f"<p>{escape(table.words)}</p>"
    if folded:
        inner = f"<details><summary>{escape(table.title)}</summary>{words}<div class=wide>{body}</div></details>"
        return f"<section>{inner}</section>"
    return f"<section><h2>{escape(table.title)}</h2>{words}<div class=wide tabindex=0 role=region "\
        f'aria-label="{escape(table.title)}">{body}</div></section>'  # fmt: skip


def _image(image: Image) -> str:
    """Return a canvas with its pixels as hexadecimal bytes, which the page's script draws."""
    flat: list[float] = []
    colours = isinstance(image.pixels[0][0], Sequence)
    for row in image.pixels:
        for pixel in row:
            flat += pixel if isinstance(pixel, Sequence) else [pixel]
    values = "".join(f"{round(255 * min(max(value, 0.0), 1.0)):02x}" for value in flat)
    return (
        f'<canvas width="{len(image.pixels[0])}" height="{len(image.pixels)}" data-channels="{3 if colours else 1}" '
        f'data-pixels="{values}" role="img" aria-label="{escape(image.name)}"></canvas>'
    )


def _point_values(part: Panel | Table) -> Any:
    """Return the values of a panel's points."""
    if isinstance(part, Table):
        return None
    mesh = part.mesh
    every = slice(None, None, max(1, -(-max((len(series.x) for series in part.series), default=0) // MOST_POINTS)))
    return {
        "x": part.x.label,
        "y": part.y.label,
        "sideways": part.sideways,
        "names": list(part.x.names),
        "series": [
            {
                "name": series.name,
                "x": _round(series.x, every),
                "y": _round(series.y, every),
                "low": _round(series.low, every),
                "high": _round(series.high, every),
                "notes": list(series.notes[every]) if series.notes else None,
            }
            for series in part.series
        ],
        "mesh": None
        if mesh is None
        else {
            "label": mesh.label,
            "x": _round(mesh.x),
            "y": _round(mesh.y),
            "z": [_round(row) for row in mesh.z],
            "xNames": list(part.x.names),
            "yNames": list(part.y.names),
        },
    }


def _round(values: Sequence[float | None] | None, every: slice = slice(None)) -> list[float | None] | None:
    """Round to four digits; the report has all of them."""
    if values is None:
        return None
    return [None if one is None or not math.isfinite(one) else float(f"{one:.4g}") for one in values[every]]
