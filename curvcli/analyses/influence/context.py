"""One run of `curv influence`: what all its parts share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax import Array

from curvcli.analyses.influence.solving import System
from curvcli.curvature.products.ntk import outputs_per_example
from curvcli.linalg.iterate import Monitor
from curvcli.linalg.meter import Meter
from curvcli.problem import Batches, Problem, PyTree
from curvcli.schema.influence import InfluenceSettings

Rows = list[tuple[int | None, int | None]]
"""`(query, output)` of each row of scores: the query's row in its source, and the output asked about."""


INLINE = 10_000
"""Numbers up to this many are in the report itself."""


@dataclass(frozen=True)
class Inputs:
    """What comes from files and the user's code.

    Parameters
    ----------
    queries
        The query examples; None for self-ranking.
    source, first
        What the report calls them, and the row of the first.
    groups
        The group of each example, [N] texts.
    change
        Of `--perturb`, in the form of weights, labels or inputs.
    clean
        Whether each example's label is right, [N].
    functions
        Of `--hyper`, by the text that asks for them.
    factors
        Arrays that `--save-factors` wrote.
    """

    queries: Batches | None = None
    source: str = "data"
    first: int = 0
    groups: np.ndarray | None = None
    change: PyTree | None = None
    clean: np.ndarray | None = None
    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)
    factors: dict[str, np.ndarray] | None = None


@dataclass
class Study:
    """The problem, what was asked, and what a run gathers on its way.

    Parameters
    ----------
    system
        C + λI.
    at_once
        Vectors in a block.
    loss, gradient
        J and ∇J [D].
    arrays, axes
        For the file of `--scores`, and what the axes count of those that can be a table.
    root
        Of (C + λI)⁻¹, once it was asked for: see `own.inverse_root`.
    """

    problem: Problem
    settings: InfluenceSettings
    given: Inputs
    system: System
    meter: Meter
    monitor: Monitor
    at_once: int
    loss: float
    gradient: Array
    warnings: list[str]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    axes: dict[str, list[str]] = field(default_factory=dict)
    root: Any = None

    def rows(self) -> Rows:
        """What each row of scores belongs to; one row for self-ranking."""
        if self.given.queries is None:
            return [(None, None)]
        outputs = outputs_per_example(self.problem)
        numbers = range(self.given.first, self.given.first + self.given.queries.num_examples)
        if self.settings.measure != "output":
            return [(number, None) for number in numbers]
        return [(number, output) for number in numbers for output in range(outputs)]


def spoken(row: tuple[int | None, int | None]) -> str:
    """`query 3 output 1`."""
    query, output = row
    return f"query {query}" + ("" if output is None else f" output {output}")
