"""Output on stderr: progress, warnings and errors."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from curvcli.cli import interrupts
from curvcli.errors import CurvError, InternalError, SpecError
from curvcli.printable import printable
from curvcli.run.monitor import Monitor


def report_error(error: CurvError, *, debug: bool) -> int:
    """Write two lines on stderr, and a traceback with --debug; return the exit code."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    _say(f"error: {error.message}\nhint: {error.hint}")
    return error.exit_code


def as_curv_error(error: Exception | SystemExit) -> CurvError:
    """Return a CurvError as it is, and any other exception as an internal error."""
    if isinstance(error, CurvError):
        return error
    if isinstance(error, SystemExit):
        return SpecError("the model's code tried to exit the process", "remove sys.exit from it; --debug shows where")
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    bug = InternalError(text, "this is a bug of curv's; please report it with the command and what --debug prints")
    bug.__cause__ = error
    return bug


def warn(message: str) -> None:
    """Write a `warning:` line."""
    _say(f"warning: {printable(message)}")


def note(message: str) -> None:
    """Write a line of information."""
    _say(printable(message))


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # stderr may be closed; then there is nobody to tell
        print(text, file=sys.stderr, flush=True)


def can_redraw() -> bool:
    """Whether stderr is a terminal on which a line can be redrawn."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def silence_stdout() -> None:
    """Redirect stdout to the null device after a closed pipe, so that the interpreter's last flush succeeds."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def fill_closed_streams() -> None:
    """Occupy closed standard descriptors, so that no file opened later takes the place of stdout or stderr.

    `sys.stdout` stays None where it was closed; `sys.stderr` writes to the null device.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def finish(code: int) -> None:
    """End the process with this exit code, without waiting for JAX's threads."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # None where it was closed
            stream.flush()
    os._exit(code)


class Watch(Monitor):
    """The monitor of a run at a terminal: progress on stderr, Ctrl-C (see `interrupts`), and the deadline.

    Parameters
    ----------
    time_limit, agreed
        See `Monitor`.
    show
        Whether progress is drawn.
    """

    def __init__(
        self, time_limit: float | None, show: bool, agreed: Callable[[float], float] = lambda value: value
    ) -> None:
        super().__init__(time_limit, agreed)
        self._show, self._bar, self._task, self._stage, self._known = show, None, None, "", ""

    def interrupted(self) -> bool:
        """Whether Ctrl-C asked for the intermediate result; a run that calls this can give one."""
        interrupts.current.answerable = True
        return interrupts.current.number is not None

    def progress(self, stage: str, done: int, planned: int | None, unit: str = "products") -> None:
        """Redraw the progress line: stage, units done and planned, time left."""
        if not self._show:
            return
        bar: Any = self._started()
        if stage != self._stage:
            if self._task is not None:
                bar.remove_task(self._task)
            self._task, self._stage = bar.add_task(stage, total=planned, unit=unit, known=self._known), stage
        bar.update(self._task, completed=done, total=planned)

    def known(self, text: str) -> None:
        """Show the intermediate result at the end of the progress line."""
        self._known = text
        if self._show and self._task is not None:
            self._started().update(self._task, known=text)

    def _started(self) -> Any:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.table import Column
            from rich.text import Text

            def column(text: str) -> TextColumn:
                return TextColumn(text, table_column=Column(no_wrap=True, overflow="ellipsis"))

            class Rate(TextColumn):
                """The rate of progress per second, once it can be estimated."""

                def render(self, task: Any) -> Any:
                    speed = task.finished_speed or task.speed
                    return Text("" if not speed else f"{speed:.3g}/s", style="dim")

            self._bar = Progress(
                column("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(),
                column("{task.fields[unit]}"), Rate(""), TimeRemainingColumn(compact=True),
                column("{task.fields[known]}"), console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._bar.start()
        return self._bar

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Clear the progress line at the end."""
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.stop()
