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

    def steps(self, there: Callable[[], list[int]]) -> Iterator[int]:
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
        seen: set[int] = set(_now(there)) if self.new else set()
        found, since = False, time.monotonic()
        while True:
            for step in [one for one in _now(there) if one not in seen]:
                seen.add(step)
                if self.until is not None and step > self.until:
                    return
                yield step
                found, since = True, time.monotonic()
                if step == self.until:
                    return
            if self.idle is not None and time.monotonic() - since >= self.idle:
                if not found:
                    raise NotFoundError(
                        f"no step was written within {self.idle:g} s", "check the folder, or wait longer: --idle"
                    )
                return
            time.sleep(self.every)


def _now(there: Callable[[], list[int]]) -> list[int]:
    """The steps, none where the folder is not there yet or is being changed."""
    try:
        return there()
    except (CurvError, OSError):
        return []
