"""Loops that a monitor watches: what it is told, and when it is asked."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import curvcli
from curvcli.linalg.iterate import Silent, finished, watched

PACKAGE = Path(curvcli.__file__).parent

LOOPS = {"linalg/iterate.py", "linalg/sampling.py"}
SAMPLERS = {
    "analyses/compare/analysis.py", "analyses/diag.py", "analyses/spectrum.py", "analyses/trace.py",
    "linalg/trace/quadratic.py", "linalg/trace/stock.py",
}  # fmt: skip
"""Samplers of test vectors, which report what they have drawn."""


class Diary(Silent):
    """Writes down what happens; stops at a question (numbered from 1)."""

    def __init__(self, stops_at: int | None = None) -> None:
        self.entries: list[object] = []
        self.stops_at = stops_at

    def stop(self) -> str | None:
        self.entries.append("asked")
        return "interrupted" if self.entries.count("asked") == self.stops_at else None

    def progress(self, stage: str, done: int, planned: int | None, unit: str = "products") -> None:
        self.entries.append((stage, done, planned, unit))


def test_items_are_counted_and_the_monitor_is_asked_between_them() -> None:
    diary = Diary()
    for item in watched("ab", diary, "letters", unit="letters"):
        diary.entries.append(item)
    assert diary.entries == ["a", "asked", ("letters", 1, 2, "letters"), "b", ("letters", 2, 2, "letters")]


@pytest.mark.parametrize(("least", "items"), [(1, [3]), (4, [3, 2]), (6, [3, 2, 4]), (None, [3, 2, 4])])
def test_a_stop_ends_the_items_where_there_is_enough(least: int | None, items: list[int]) -> None:
    diary = Diary(stops_at=1)
    blocks = watched(iter([3, 2, 4]), diary, "rows", 9, size=lambda item: item, least=least)
    assert list(blocks) == items
    assert [entry for entry in diary.entries if entry != "asked"] == [
        ("rows", sum(items[: i + 1]), 9, "products") for i in range(len(items))
    ]


def test_items_that_tell_of_their_own_progress() -> None:
    diary = Diary()
    assert list(watched([1, 2], diary)) == [1, 2]
    assert diary.entries == ["asked"]


def test_a_loop_that_is_over_asks_nothing() -> None:
    diary = Diary(stops_at=2)
    assert not finished(diary, "trials", 1, 3)
    assert finished(diary, "trials", 2, 3)
    assert finished(diary, "trials", 3, 3, over=True)
    assert [entry for entry in diary.entries if entry == "asked"] == ["asked"] * 2
    assert len(diary.entries) == 5


@pytest.mark.parametrize("room", ["analyses", "curvature", "linalg"])
def test_no_other_loop_speaks_to_a_monitor(room: str) -> None:
    speaking = set()
    for file in (PACKAGE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                speaker = getattr(node.func.value, "attr", getattr(node.func.value, "id", None))
                if speaker == "monitor" and node.func.attr in ("stop", "progress", "known"):
                    speaking.add(file.relative_to(PACKAGE).as_posix())
    assert speaking <= LOOPS | SAMPLERS
