"""Panels of the loss along lines with its quadratic model."""

from __future__ import annotations

from collections.abc import Sequence

from curvcli.figures.naming import labels, number
from curvcli.figures.picture import Axis, Numbers, Panel, Region, Rule, Series
from curvcli.schema.direction import DirectionReport, DirectionResult, Directions
from curvcli.schema.lines import BATCH_STATS


def about_statistics(kind: str | None) -> str:
    """Return a sentence on the batch statistics; empty where the network has none."""
    if kind is None:
        return ""
    model = "" if kind == "fixed" else "; the quadratic model has them held fixed"
    return f" Batch statistics are {BATCH_STATS[kind]}{model}."


def directions(reports: Sequence[DirectionReport]) -> list[Panel]:
    """Return a panel for each direction."""
    panels = []
    for report, name in zip(reports, labels(reports), strict=True):
        result = report.result
        for one in result.directions if isinstance(result, Directions) else [result]:
            panels.append(_direction(one, name))
    return panels


def _direction(result: DirectionResult, name: str) -> Panel:
    regions = []
    if result.model_radius:
        edge = " (the range ends there)" if result.model_radius_censored else ""
        regions = [Region(-result.model_radius, result.model_radius, f"the model is within 10 %{edge}")]
    radius = "" if result.batch_stats in ("interpolate", "recompute") else (
        "It fails before the first point." if result.model_radius is None else
        f"Up to |s| = {number(result.model_radius)} the model is within 10 % of what it predicts."
    )  # fmt: skip
    rules = [] if result.quadratic_minimum is None else [Rule(result.quadratic_minimum, "least of the model")]
    low, high = result.profile.s[0], result.profile.s[-1]
    return profile(
        f"Along {result.direction}" + (f" ({name})" if name else ""),
        f"The unit vector's slope is {number(result.slope)}, its curvature vᵀAv "
        f"{number(result.rayleigh_quotient)}. {radius}" + about_statistics(result.batch_stats),
        result.profile.s,
        result.profile.loss,
        result.profile.quadratic,
        result.noise,
        "s, in multiples of the vector",
        [rule for rule in rules if low <= rule.value <= high],
        regions,
    )


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
    """Return the panel of a loss and its quadratic model; the range of the axis is that of the loss."""
    finite = [value for value in loss if value is not None] or list(model)
    margin = 0.15 * (max(finite) - min(finite)) or 0.1 * abs(finite[0]) or 1.0
    inside = [value for value in model if min(finite) - 2 * margin <= value <= max(finite) + 2 * margin]
    limits = min([*finite, *inside]) - 0.3 * margin, max([*finite, *inside]) + 0.3 * margin
    low, high = ([None if value is None else value + sign * (noise or 0.0) for value in loss] for sign in (-1, 1))
    scales = ("linear", "log") if min(finite) > 0 else ("linear",)
    limits = (max(limits[0], 0.5 * min(finite)), limits[1]) if min(finite) > 0 else limits
    return Panel(
        title, words, Axis(label), Axis("loss J", scales, limits=limits),
        [Series("loss", s, loss, colour=0, low=low if noise else None, high=high if noise else None),
         Series("quadratic model", s, model, "dashed", colour=1)],
        rules, regions,
    )  # fmt: skip
