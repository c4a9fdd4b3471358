"""The monitor of a run: its deadline, and why it ended early."""

from __future__ import annotations

import time
from collections.abc import Callable

REASONS = (None, "time limit", "interrupted")
"""Reasons why a run stops, in ascending order of precedence."""


class Monitor:
    """A monitor that ends a run at its deadline, and shows nothing.

    Parameters
    ----------
    time_limit
        Seconds until the deadline, or None.
    agreed
        Returns the maximum of a number over processes: if one has to stop, all stop.
    """

    def __init__(self, time_limit: float | None, agreed: Callable[[float], float] = lambda value: value) -> None:
        self._agreed = agreed
        self.deadline = None if time_limit is None else time.monotonic() + time_limit
        self.reason: str | None = None

    def interrupted(self) -> bool:
        """Whether the user asked for the intermediate result."""
        return False

    def stop(self) -> str | None:
        """Return the reason to stop, or None."""
        reason = None
        if self.interrupted():
            reason = "interrupted"
        elif self.deadline is not None and time.monotonic() > self.deadline:
            reason = "time limit"
        self.reason = REASONS[int(self._agreed(REASONS.index(reason)))]
        return self.reason

    def progress(self, stage: str, done: int, planned: int | None, unit: str = "products") -> None:
        """Record the progress of a stage."""

    def known(self, text: str) -> None:
        """Record the intermediate result."""
