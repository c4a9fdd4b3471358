"""Sampling until an interval is narrow: the rule that says when to look, when to stop, and how far each interval goes.

An interval whose width decides whether to go on misses the truth more often than it says. The looks at it therefore
share its error probability (`statistics.spent`): all their intervals hold together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from curvcli.linalg.iterate import Monitor
from curvcli.linalg.statistics import spent

Result = TypeVar("Result")


class Look(NamedTuple):
    """One look at an interval."""

    number: int  # 1, 2, …
    budget: int  # samples, all earlier looks' included
    level: float  # error probability of the interval


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """The result of the last look, and why it was the last.

    Parameters
    ----------
    end
        `narrow`: the interval is narrow enough, or one look was asked for. `exhausted`: all samples are spent, or the
        monitor stopped the run. `exact`: the next look would cost as much as the exact answer.
    """

    result: Result
    look: Look
    end: Literal["narrow", "exhausted", "exact"]


@dataclass(frozen=True)
class Looks:
    """When an interval is looked at.

    Parameters
    ----------
    once
        Whether there is one look only, after `most` samples.
    first, most
        Samples before the first look, and in all.
    alpha
        Error probability of all intervals together.
    exact
        Samples at which the exact answer costs no more; None: never.
    share
        `(alpha, number)` -> error probability of that look.
    """

    once: bool
    first: int
    most: int
    alpha: float
    exact: int | None = None
    share: Callable[[float, int], float] = spent

    def level(self, number: int) -> float:
        """Error probability of the interval of look 1, 2, …."""
        return self.alpha if self.once else self.share(self.alpha, number)

    def until_narrow(
        self,
        sample: Callable[[Look], Result],
        narrow: Callable[[Result], bool],
        further: Callable[[Result, Look], int],
        monitor: Monitor,
    ) -> Outcome[Result]:
        """Sample and look, until the interval is narrow or nothing more may be spent.

        Parameters
        ----------
        sample
            Draws until there are `look.budget` samples, fewer if the monitor stops it, and says what they tell.
        narrow
            Whether the interval of a result is narrow enough.
        further
            Samples in all that the next look should rest on.
        monitor
            Asked after a look that was not the last.
        """
        look = Look(1, self.most if self.once else min(self.first, self.most), self.level(1))
        while True:
            result = sample(look)
            if self.once or narrow(result):
                return Outcome(result, look, "narrow")
            if look.budget >= self.most or monitor.stop() is not None:
                return Outcome(result, look, "exhausted")
            budget = min(further(result, look), self.most)
            if self.exact is not None and budget >= self.exact:
                return Outcome(result, look, "exact")
            look = Look(look.number + 1, budget, self.level(look.number + 1))


def block_sizes(total: int, at_once: int, drawn: Callable[[], int], stopped: Callable[[], bool]) -> Iterator[int]:
    """Sizes of the next blocks, at most `at_once`, until `total` samples are drawn or a stop is asked for."""
    while (missing := total - drawn()) > 0 and not stopped():
        yield min(at_once, missing)
