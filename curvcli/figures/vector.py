"""A panel as SVG for a page: without metadata or external references, in the colours of the page."""

from __future__ import annotations

import io
import itertools
import json
import re
import xml.etree.ElementTree as ET
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from curvcli.figures import paint
from curvcli.figures.picture import Axis, Panel, Scale

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"

MARKED = paint.Theme(
    ink="#010101", faint="#020202", grid="#030303", paper="#040404",
    series=tuple(f"#0501{index:02x}" for index in range(len(paint.LIGHT.series))),
)  # fmt: skip
"""Placeholder colours, which are replaced by variables of the page."""

VARIABLES = {
    MARKED.ink: "var(--ink)", MARKED.faint: "var(--faint)", MARKED.grid: "var(--grid)", MARKED.paper: "var(--paper)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(MARKED.series)},
}  # fmt: skip


def variants(panel: Panel, prefix: str) -> list[str]:
    """Return the panel for each pair of its scales; all but the first are hidden."""
    pairs = list(itertools.product(panel.x.scales, panel.y.scales))
    return [_svg(panel, f"{prefix}-{index}", *pair, hidden=index > 0) for index, pair in enumerate(pairs)]


def _svg(panel: Panel, name: str, x: Scale, y: Scale, *, hidden: bool) -> str:
    """Return the panel for one pair of scales; `data-geometry` maps values to its coordinates."""
    with rc_context(paint.SETTINGS | {"svg.hashsalt": name}), paint.quiet_about_glyphs():
        # Titles and words are the page's; the height is that of a picture without them.
        figure = Figure(figsize=(paint.WIDTH, paint.panel_height(panel)), layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        paint.panel(axes, panel, MARKED, legend=False, x=x, y=y)
        for artist in axes.collections:
            artist.set_rasterized(False)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", facecolor="none",
                       metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))  # fmt: skip
        # The sizes of svg are points, 72 to the inch, with y from the top.
        scale, (_, height) = 72 / figure.dpi, 72 * figure.get_size_inches()
        box = axes.get_window_extent()
        across, up = (panel.y, panel.x) if panel.sideways else (panel.x, panel.y)
        scales = (y, "linear") if panel.sideways else (x, y)
        geometry = {
            "x": _side(box.x0 * scale, box.x1 * scale, axes.get_xlim(), scales[0], across),
            "y": _side(height - box.y0 * scale, height - box.y1 * scale, axes.get_ylim(), scales[1], up),
        }
    root = ET.fromstring(stream.getvalue())
    _clean(root)
    root.attrib.update({"data-x": x, "data-y": y, "data-geometry": json.dumps(geometry), "aria-hidden": "true"})
    for size in ("width", "height"):
        del root.attrib[size]
    if hidden:
        root.set("class", "hidden")
    return _serialised(root)


def _side(start: float, end: float, limits: tuple[float, float], scale: Scale, axis: Axis) -> dict[str, Any]:
    return {"at": [round(start, 2), round(end, 2)], "limits": list(limits), "scale": scale,
            "threshold": axis.threshold}  # fmt: skip


def _clean(root: ET.Element) -> None:
    """Draw markers in place, and remove metadata and all names but those of series and clips."""
    shapes = {f"#{element.get('id')}": element for element in root.iter(f"{SVG}path") if element.get("id")}
    for parent in list(root.iter()):
        for index, child in enumerate(list(parent)):
            if child.tag == f"{SVG}use":
                shape = shapes[child.get(f"{XLINK}href", "")]
                parent[index] = _marker(shape, child)
    for parent in list(root.iter()):
        for child in list(parent):
            tag = child.tag.removeprefix(SVG)
            empty = tag == "g" and not len(child) and not (child.text or "").strip()
            superfluous = tag in ("metadata", "title", "style") or (
                tag == "defs" and child.find(f"{SVG}clipPath") is None
            )
            if superfluous or empty:
                parent.remove(child)
    for element in root.iter():
        name = element.get("id", "")
        if element.tag != f"{SVG}clipPath":
            element.attrib.pop("id", None)
        if name.startswith("series-"):
            element.set("class", name)
        if "style" in element.attrib:
            element.set("style", _styled(element.attrib["style"]))
        for attribute in ("d", "x", "y", "width", "height", "transform"):
            if attribute in element.attrib:
                element.set(attribute, _shortened(element.attrib[attribute]))
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
    _flatten(root)
    _join(root)


def _marker(shape: ET.Element, use: ET.Element) -> ET.Element:
    """Return a marker as a shape at the place of its use."""
    path, x, y = shape.get("d", ""), float(use.get("x", 0)), float(use.get("y", 0))
    style = ";".join(part for part in (shape.get("style"), use.get("style")) if part)
    if "C" in path:  # all that are round are circles, and begin at their lowest point
        radius = abs(float(path.split()[2]))
        return ET.Element(f"{SVG}circle", {"cx": f"{x:.2f}", "cy": f"{y:.2f}", "r": f"{radius:.2f}", "style": style})
    moved = re.sub(
        r"(-?[\d.]+) (-?[\d.]+)", lambda pair: f"{float(pair[1]) + x:.2f} {float(pair[2]) + y:.2f}", path
    )  # fmt: skip
    return ET.Element(f"{SVG}path", {"d": moved, "style": style})


def _join(root: ET.Element) -> None:
    """Join neighbouring paths of one style, and move a style that a group shares to the group."""
    for parent in [root, *root.iter(f"{SVG}g")]:
        joined: ET.Element | None = None
        for child in list(parent):
            looks = {name: value for name, value in child.attrib.items() if name != "d"}
            if child.tag == f"{SVG}path" and "transform" not in looks:
                if joined is not None and looks == {
                    name: value for name, value in joined.attrib.items() if name != "d"
                }:
                    joined.set("d", f"{joined.get('d', '').strip()} {child.get('d', '').strip()}")
                    parent.remove(child)
                    continue
                joined = child
            else:
                joined = None
        styles = {child.get("style") for child in parent}
        if parent.tag == f"{SVG}g" and len(parent) > 1 and len(styles) == 1 and "style" not in parent.attrib:
            parent.set("style", styles.pop() or "")
            for child in parent:
                child.attrib.pop("style", None)


def _flatten(parent: ET.Element) -> None:
    """Replace groups without attributes by their children, and remove invisible paths."""
    children: list[ET.Element] = []
    for child in list(parent):
        _flatten(child)
        invisible = child.tag == f"{SVG}path" and child.get("style") == "fill:none"
        if child.tag == f"{SVG}g" and not child.attrib:
            children += list(child)
        elif not invisible and not (child.tag == f"{SVG}g" and not len(child)):
            children.append(child)
    parent[:] = children


def _shortened(text: str) -> str:
    """Round numbers to a tenth of a point, and drop spaces that do not separate numbers."""
    text = re.sub(r"(\.\d)\d+", r"\1", text)
    text = re.sub(r"\.0\b", "", text)
    return re.sub(r"\s*([MLCQzZ])\s*", r"\1", re.sub(r"\s+", " ", text)).strip()


def _styled(style: str) -> str:
    style = re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", style)
    style = re.sub(r"stroke-(linejoin|linecap|miterlimit): ?[\w.]+;? ?", "", style)
    style = re.sub(r"font-family: [^;]*;? ?", "", style)
    said = dict(part.split(":", 1) for part in re.sub(r"\s*([;:])\s*", r"\1", style).split(";") if part)
    return ";".join(f"{name}:{value}" for name, value in said.items())


def _serialised(root: ET.Element) -> str:
    """Serialise without namespaces, as in HTML; texts stay as they are."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: _coloured(value) for name, value in element.attrib.items()}
        for place in ("text", "tail"):
            if not (getattr(element, place) or "").strip():
                setattr(element, place, None)
    return ET.tostring(root, encoding="unicode").replace(" />", "/>")


def _coloured(value: str) -> str:
    """Replace colours in an attribute by the page's variables."""
    for colour, variable in VARIABLES.items():
        value = value.replace(colour, variable)
    return value
