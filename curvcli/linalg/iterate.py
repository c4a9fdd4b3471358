"""Loops that a monitor watches: they report progress, and stop early when asked.

An algorithm is three functions over an explicit state: `init`, `step`, `result`. `iterate` runs it; `watched` is for
loops over items that are known beforehand, `finished` for all others. Nothing else asks a monitor whether to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Protocol, TypeVar, cast

from jax import Array

from curvcli.linalg.operator import LinearOperator

Item = TypeVar("Item")
State = TypeVar("State")
Result_co = TypeVar("Result_co", covariant=True)


class Algorithm(Protocol[State, Result_co]):
    """What can be iterated. `step` is a host function of jitted pieces; the state holds everything that changes.

    `said(state) -> str` is optional: what is known so far, for those who watch.
    """

    def init(self, operator: LinearOperator, key: Array | None) -> State:
        """The state before the first step."""
        ...

    def step(self, operator: LinearOperator, state: State) -> State:
        """One step further."""
        ...

    def done(self, state: State) -> bool:
        """Whether another step would add nothing."""
        ...

    def products(self, state: State) -> int:
        """Matrix-vector products spent so far."""
        ...

    def result(self, state: State) -> Result_co:
        """What the state says; valid after any number of steps (at least one)."""
        ...


class Monitor(Protocol):
    """Who watches a run: the terminal's progress, a deadline, an interrupt, a test's counter."""

    def stop(self) -> str | None:
        """Why to stop now (`time limit`, `interrupted`), or None to go on.

        Asked only where there is something to answer with: a run that has not asked yet is ended, not stopped.
        """
        ...

    def progress(self, stage: str, done: int, planned: int | None, unit: str = "products") -> None:
        """What is done so far of this stage, of what is planned (None: open)."""
        ...

    def known(self, text: str) -> None:
        """What is known so far: `trace 5.02 in [4.9, 5.1]`. It holds until more is known."""
        ...


class Silent:
    """A monitor that neither stops nor tells."""

    def stop(self) -> str | None:
        """Never."""
        return None

    def progress(self, stage: str, done: int, planned: int | None, unit: str = "products") -> None:
        """Nothing."""

    def known(self, text: str) -> None:
        """Nothing."""


class Offset:
    """A monitor for one round of several: adds the products of the rounds before."""

    def __init__(self, monitor: Monitor, before: int) -> None:
        self.monitor, self.before = monitor, before

    def stop(self) -> str | None:
        """As the monitor of all rounds says."""
        return self.monitor.stop()

    def progress(self, stage: str, done: int, planned: int | None, unit: str = "products") -> None:
        """Products of all rounds so far."""
        self.monitor.progress(stage, self.before + done, planned, unit)

    def known(self, text: str) -> None:
        """As it is."""
        self.monitor.known(text)


def iterate(
    algorithm: Algorithm[State, Result_co],
    operator: LinearOperator,
    key: Array | None,
    *,
    monitor: Monitor,
    stage: str,
    planned: int | None = None,
    state: State | None = None,
) -> State:
    """Run an algorithm until it is done or the monitor stops it; at least one step is made.

    Parameters
    ----------
    algorithm, operator, key
        What to run, on which matrix, from which randomness.
    monitor
        Asked after every step whether to make another; then told of it.
    stage, planned
        For the monitor: the name of this part of the run, and the products it may take.
    state
        Where to go on from; None starts anew.

    Returns
    -------
    State
        The last state; `algorithm.result(state)` reads it.
    """
    state = algorithm.init(operator, key) if state is None else state
    said = getattr(algorithm, "said", None)
    over = algorithm.done(state)
    while not over:
        state = algorithm.step(operator, state)
        over = finished(monitor, stage, algorithm.products(state), planned, over=algorithm.done(state))
        if said is not None:
            monitor.known(said(state))
    return state


def finished(
    monitor: Monitor, stage: str, done: int, planned: int | None = None, unit: str = "products", *, over: bool = False
) -> bool:
    """Whether a loop ends: it is over, or else the monitor stops it. The monitor is told what is done of the stage."""
    # Asked before progress is told: from then on an interrupt gives what was reached.
    ends = over or monitor.stop() is not None
    monitor.progress(stage, done, planned, unit)
    return ends


def watched(
    items: Iterable[Item],
    monitor: Monitor,
    stage: str | None = None,
    planned: int | None = None,
    unit: str = "products",
    *,
    size: Callable[[Item], int] = lambda item: 1,
    least: int | None = 1,
) -> Iterator[Item]:
    """Items, until the monitor stops the loop over them.

    Parameters
    ----------
    items, planned
        What is looped over, and how much it is; by default the number of items.
    stage, unit
        For the monitor, which is told of each item when the next one is asked for. None where what is done with an
        item tells of its own progress.
    size
        How much of what is planned an item is.
    least
        How much is done before the monitor is asked whether to go on; None where a part is no answer.
    """
    total, done = len(cast(Collection, items)) if planned is None else planned, 0
    for item in items:
        yield item
        done += size(item)
        ends = least is not None and least <= done < total and monitor.stop() is not None
        if stage is not None:
            monitor.progress(stage, done, total, unit)
        if ends:
            return
