"""`curv watch`: the steps of a training run as they are written, for whichever analysis is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from curvcli.errors import CurvError, NotFoundError


@dataclass(frozen=True)
class Following:
    """How long to wait for what.

    Parameters
    ----------
    every
        Seconds between two looks.
    idle
        Seconds without a new step after which the run counts as ended; None waits for ever.
    until
        The last step to be analysed; None: there is always another.
    new
        Whether steps that are there at the start are left out.
    """

    every: float
    idle: float | None
    until: int | None
    new: bool

    def steps(self, listed: Callable[[], list[int]]) -> Iterator[int]:
        """Each step once, in ascending order, when it is whole.

        Parameters
        ----------
        there
            The steps now; a folder that does not exist yet has none.

        Raises
        ------
        NotFoundError
            There was none in the time.
        """
        handled: set[int] = set(_now(listed)) if self.new else set()
        any_seen, since = False, time.monotonic()
        while True:
            for step in [step for step in _now(listed) if step not in handled]:
                handled.add(step)
                if self.until is not None and step > self.until:
                    return
                yield step
                any_seen, since = True, time.monotonic()
                if step == self.until:
                    return
            if self.idle is not None and time.monotonic() - since >= self.idle:
                if not any_seen:
                    raise NotFoundError(
                        f"no step was written within {self.idle:g} s", "check the folder, or wait longer: --idle"
                    )
                return
            time.sleep(self.every)


def _now(listed: Callable[[], list[int]]) -> list[int]:
    """The steps, none where the folder is not there yet or is being changed."""
    try:
        return listed()
    except (CurvError, OSError):
        return []
