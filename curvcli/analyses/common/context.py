"""What an analysis receives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from curvcli.linalg.iterate import Monitor, Silent
from curvcli.problem import Problem

Inputs = TypeVar("Inputs")


@dataclass(frozen=True)
class Context(Generic[Inputs]):
    """The problem and its surroundings, the same for every analysis.

    Parameters
    ----------
    problem
        The loss, the weights and the data.
    monitor
        Where progress is shown, and who may end the run early.
    inputs
        What the analysis takes beside the problem, of the type that it names; None where it takes nothing.
    """

    problem: Problem
    monitor: Monitor = field(default_factory=Silent)
    inputs: Inputs = None  # type: ignore[assignment]
