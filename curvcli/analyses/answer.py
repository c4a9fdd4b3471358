"""What an analysis hands back beside its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from curvcli.linalg.meter import Meter
from curvcli.schema.base import Strict
from curvcli.schema.report import Check

Result = TypeVar("Result", bound=Strict)


@dataclass
class Answer(Generic[Result]):
    """A result with the account of how it was reached."""

    result: Result
    meter: Meter
    loss_value: float
    checks: dict[str, Check] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
