"""Curvature and loss along directions."""

from __future__ import annotations

from collections.abc import Sequence

from curvcli.figures.lines import directions
from curvcli.figures.picture import Panel, Table
from curvcli.schema.direction import DirectionReport

TITLE = "Along a direction"


def parts(reports: Sequence[DirectionReport]) -> list[Panel | Table]:
    """The true loss against its quadratic model, a panel for each direction."""
    return [*directions(reports)]
