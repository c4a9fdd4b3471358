"""When an interval is looked at, and what ends the looks."""

from __future__ import annotations

import pytest

from curvcli.linalg.iterate import Silent
from curvcli.linalg.sampling import Look, Looks, Outcome, block_sizes
from curvcli.linalg.statistics import spent
from tests.monitors import StopAfter

ALPHA = 0.05


def outcome(looks: Looks, wanted: int, stops: int | None = None) -> Outcome[Look]:
    """Looks at samples whose interval is narrow from `wanted` on; each look asks for three times as many."""
    monitor = Silent() if stops is None else StopAfter(stops)
    return looks.until_narrow(
        lambda look: look, lambda look: look.budget >= wanted, lambda _, look: 3 * look.budget, monitor
    )


def test_one_look_has_the_whole_error_probability() -> None:
    found = outcome(Looks(once=True, first=8, most=50, alpha=ALPHA), wanted=1000)
    assert (found.look, found.end) == (Look(1, 50, ALPHA), "narrow")


@pytest.mark.parametrize(("wanted", "number", "budget"), [(1, 1, 8), (20, 2, 24), (60, 3, 72)])
def test_looks_go_on_until_the_interval_is_narrow(wanted: int, number: int, budget: int) -> None:
    found = outcome(Looks(once=False, first=8, most=100, alpha=ALPHA), wanted)
    assert (found.look, found.end) == (Look(number, budget, spent(ALPHA, number)), "narrow")
    assert found.result == found.look


def test_looks_end_where_all_is_spent_or_a_stop_is_asked_for() -> None:
    looks = Looks(once=False, first=8, most=50, alpha=ALPHA)
    assert (outcome(looks, 1000).look.budget, outcome(looks, 1000).end) == (50, "exhausted")
    assert (outcome(looks, 1000, stops=1).look.budget, outcome(looks, 1000, stops=1).end) == (24, "exhausted")


def test_looks_end_before_one_that_costs_as_much_as_the_exact_answer() -> None:
    found = outcome(Looks(once=False, first=8, most=100, alpha=ALPHA, exact=60), wanted=1000)
    assert (found.look.budget, found.end) == (24, "exact")


def test_looks_can_share_the_error_probability_evenly() -> None:
    looks = Looks(once=False, first=8, most=100, alpha=ALPHA, share=lambda alpha, _: alpha / 4)
    assert outcome(looks, 60).look.level == ALPHA / 4


def test_blocks_are_whole_but_for_the_last_and_end_at_a_stop() -> None:
    drawn: list[int] = []
    for count in block_sizes(20, 8, lambda: sum(drawn), lambda: False):
        drawn.append(count)
    assert drawn == [8, 8, 4]
    for count in block_sizes(100, 8, lambda: sum(drawn), lambda: sum(drawn) > 30):
        drawn.append(count)
    assert sum(drawn) == 36
