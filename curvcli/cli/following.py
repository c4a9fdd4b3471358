"""The steps of a training run as they are written, for `curv watch`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from curvcli.errors import CurvError, NotFoundError


@dataclass(frozen=True)
class Following:
    """The conditions under which `curv watch` waits for steps.

    Parameters
    ----------
    every
        Seconds between two listings of the folder.
    idle
        Seconds without a new step after which the run counts as ended; None: no limit.
    until
        The last step to be analysed; None: no limit.
    new
        Whether steps that exist at the start are left out.
    """

    every: float
    idle: float | None
    until: int | None
    new: bool

    def steps(self, listed: Callable[[], list[int]]) -> Iterator[int]:
        """Iterate over the complete steps, each once, in ascending order.

        Parameters
        ----------
        listed
            Returns the current steps; a folder that does not exist yet has none.

        Raises
        ------
        NotFoundError
            No step was written in time.
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
    """Return the current steps; none where the folder does not exist or is being changed."""
    try:
        return listed()
    except (CurvError, OSError):
        return []
