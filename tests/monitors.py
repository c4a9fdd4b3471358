"""Who watches a run in a test."""

from __future__ import annotations

from curvcli.linalg.iterate import Silent


class StopAfter(Silent):
    """A deadline that passes after some questions."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def stop(self) -> str | None:
        self.left -= 1
        return "time limit" if self.left < 0 else None
