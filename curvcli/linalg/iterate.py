"""The one loop: runs any algorithm, reports progress, and stops it early when asked.

An algorithm is three functions over an explicit state: `init`, `step`, `result`. `iterate` alone knows about progress,
deadlines and interrupts, so no algorithm has to.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from jax import Array

from curvcli.linalg.operator import LinearOperator

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
    going = not algorithm.done(state)
    while going:
        state = algorithm.step(operator, state)
        # Asked before progress is told: from then on an interrupt gives what was reached.
        going = not algorithm.done(state) and monitor.stop() is None
        monitor.progress(stage, algorithm.products(state), planned)
        if said is not None:
            monitor.known(said(state))
    return state
