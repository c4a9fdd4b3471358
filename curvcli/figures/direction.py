"""The picture of `curv direction`: curvature and loss along directions."""

from __future__ import annotations

from collections.abc import Sequence

from curvcli.figures.lines import directions
from curvcli.figures.picture import Panel, Table
from curvcli.schema.direction import DirectionReport

TITLE = "Along a direction"
COVERS_ALL_EXAMPLES = False
"""Whether all that is drawn has its interval for all examples, where a part was used."""

NAMES_MATRIX = True
"""Whether the title names the matrix of the reports."""

SHOWS_IMAGES = False
"""Whether inputs that are images are shown: those that `wanted_images(report)` names."""


def parts(reports: Sequence[DirectionReport]) -> list[Panel | Table]:
    """Return a panel for each direction with the true loss and its quadratic model."""
    return [*directions(reports)]
