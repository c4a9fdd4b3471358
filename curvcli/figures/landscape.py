"""The picture of `curv landscape`: the loss on a line or a plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from curvcli.figures.lines import about_statistics, profile
from curvcli.figures.naming import labels, number
from curvcli.figures.picture import Axis, Mesh, Panel, Rule, Table
from curvcli.schema.landscape import LandscapeReport, LandscapeResult

TITLE = "Landscape"
COVERS_ALL_EXAMPLES = False
"""Whether all that is drawn has its interval for all examples, where a part was used."""

NAMES_MATRIX = True
"""Whether the title names the matrix of the reports."""

SHOWS_IMAGES = False
"""Whether inputs that are images are shown: those that `wanted_images(report)` names."""
LEVELS = 10


def parts(reports: Sequence[LandscapeReport]) -> list[Panel | Table]:
    """Return the panels: a profile with its barrier, or contours of the loss and of its quadratic model."""
    return [
        _line(one.result, name) if one.result.b is None else _plane(one.result, name)
        for one, name in zip(reports, labels(reports), strict=True)
    ]


def _line(result: LandscapeResult, name: str) -> Panel:
    loss: Any = result.loss
    quadratic: Any = result.quadratic
    words = "There is no barrier in the range."
    rules = [Rule(0.0, "these weights")] if result.a[0] < 0 < result.a[-1] else []
    if result.barrier is not None:
        words = (
            f"The barrier is {number(result.barrier)} above the straight line between the losses of both ends, "
            f"{number(result.barrier_above_higher_end)} above the higher of them."
        )
        rules.append(Rule(1.0, "the other end"))
        if result.barrier and result.barrier_at is not None:
            rules.append(Rule(result.barrier_at, f"barrier {number(result.barrier)}"))
    words += about_statistics(result.batch_stats)
    return profile(
        f"Along {result.directions[0].direction}" + (f" ({name})" if name else ""), words, result.a, loss, quadratic,
        result.noise, "a, in multiples of the vector", rules,
    )  # fmt: skip


def _plane(result: LandscapeResult, name: str) -> Panel:
    loss: Any = result.loss
    model: Any = result.quadratic
    assert result.b is not None
    values = [value for row in loss for value in row if value is not None]
    positive = bool(values) and min(values) > 0
    # Equal ratios where the loss is positive: both the valley and its walls have lines.
    levels: list[float] = []
    if values and max(values) > min(values):
        low, high = min(values), max(values)
        for index in range(1, LEVELS):
            share = index / LEVELS
            levels.append(low * (high / low) ** share if positive else low + (high - low) * share)
    first, second = (line.direction for line in result.directions)
    cosine = "" if result.cosine is None else f" The directions' cosine is {result.cosine:.2g}."
    return Panel(
        "Loss and quadratic model" + (f" ({name})" if name else ""),
        f"Colours and solid lines are the true loss, dashed lines the quadratic model at the same levels. At these "
        f"weights, in the middle, J is {number(result.loss_at_weights)}.{cosine}"
        + about_statistics(result.batch_stats),
        Axis(f"a: {first}"),
        Axis(f"b: {second}"),
        rules=[Rule(0.0, "", "x"), Rule(0.0, "", "y")],
        mesh=Mesh(result.a, result.b, _turned(loss), "loss J", "log" if positive else "linear", levels, _turned(model)),
    )


def _turned(rows: list[list[Any]]) -> list[list[Any]]:
    """Transpose [a][b] to [b][a]."""
    return [list(column) for column in zip(*rows, strict=True)]
