"""What an analysis hands back beside its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from curvcli.linalg.meter import Meter
from curvcli.schema.base import Strict
from curvcli.schema.report import Check

Result = TypeVar("Result", bound=Strict)


@dataclass
class Answer(Generic[Result]):
    """A result with the account of how it was reached.

    Parameters
    ----------
    arrays
        What goes into the array file that the settings name (`--vectors`, `--arrays`, `--scores`): by name.
    axes
        What the axes of an array count, for those that can be a table.
    params
        Weights by path for the checkpoint that the settings name (`--escape`, `--save`).
    factors
        What goes into the file of `--save-factors`.
    """

    result: Result
    meter: Meter
    loss_value: float
    checks: dict[str, Check] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    axes: dict[str, list[str]] = field(default_factory=dict)
    params: dict[str, np.ndarray] = field(default_factory=dict)
    factors: dict[str, np.ndarray] = field(default_factory=dict)
