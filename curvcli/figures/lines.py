"""The loss along lines, beside its quadratic model."""

from __future__ import annotations

from collections.abc import Sequence

from curvcli.figures.naming import labels, number
from curvcli.figures.picture import Axis, Numbers, Panel, Region, Rule, Series
from curvcli.schema.direction import DirectionReport, DirectionResult, Directions
from curvcli.schema.lines import BATCH_STATS


def about_statistics(kind: str | None) -> str:
    """A sentence on the batch statistics of a picture, empty where the network has none."""
    if kind is None:
        return ""
    model = "" if kind == "fixed" else "; the quadratic model has them held fixed"
    return f" Batch statistics are {BATCH_STATS[kind]}{model}."


def directions(reports: Sequence[DirectionReport]) -> list[Panel]:
    """A panel for each direction."""
    panels = []
    for report, name in zip(reports, labels(reports), strict=True):
        result = report.result
        for one in result.directions if isinstance(result, Directions) else [result]:
            panels.append(_direction(one, name))
    return panels


def _direction(one: DirectionResult, name: str) -> Panel:
    regions = []
    if one.model_radius:
        edge = " (the range ends there)" if one.model_radius_censored else ""
        regions = [Region(-one.model_radius, one.model_radius, f"the model is within 10 %{edge}")]
    radius = "" if one.batch_stats in ("interpolate", "recompute") else (
        "It fails before the first point." if one.model_radius is None else
        f"Up to |s| = {number(one.model_radius)} the model is within 10 % of what it predicts."
    )  # fmt: skip
    rules = [] if one.quadratic_minimum is None else [Rule(one.quadratic_minimum, "least of the model")]
    low, high = one.profile.s[0], one.profile.s[-1]
    return profile(
        f"Along {one.direction}" + (f" ({name})" if name else ""),
        f"The unit vector's slope is {number(one.slope)}, its curvature vᵀAv {number(one.rayleigh_quotient)}. {radius}"
        + about_statistics(one.batch_stats),
        one.profile.s, one.profile.loss, one.profile.quadratic, one.noise, "s, in multiples of the vector",
        [rule for rule in rules if low <= rule.value <= high], regions,
    )  # fmt: skip


def profile(
    title: str,
    words: str,
    s: Sequence[float],
    loss: Numbers,
    model: Sequence[float],
    noise: float | None,
    label: str,
    rules: Sequence[Rule] = (),
    regions: Sequence[Region] = (),
) -> Panel:
    """A loss and its model; the picture is as high as the loss needs, however far the model goes."""
    known = [value for value in loss if value is not None] or list(model)
    margin = 0.15 * (max(known) - min(known)) or 0.1 * abs(known[0]) or 1.0
    inside = [one for one in model if min(known) - 2 * margin <= one <= max(known) + 2 * margin]
    limits = min([*known, *inside]) - 0.3 * margin, max([*known, *inside]) + 0.3 * margin
    low, high = ([None if one is None else one + sign * (noise or 0.0) for one in loss] for sign in (-1, 1))
    scales = ("linear", "log") if min(known) > 0 else ("linear",)
    limits = (max(limits[0], 0.5 * min(known)), limits[1]) if min(known) > 0 else limits
    return Panel(
        title, words, Axis(label), Axis("loss J", scales, limits=limits),
        [Series("loss", s, loss, colour=0, low=low if noise else None, high=high if noise else None),
         Series("quadratic model", s, model, "dashed", colour=1)],
        rules, regions,
    )  # fmt: skip
