"""Handling of signals: Ctrl-C and SIGTERM end the process at once, with 128 + the signal's number as its exit code.

Python runs signal handlers between two of its own instructions, so a compilation or a long product would delay them by
minutes. Therefore C code in the interpreter writes each signal's number into a pipe, which a dedicated thread reads.
Incomplete files are removed; complete reports and records of `--state` stay.

The exception is the first Ctrl-C of a run that can give an intermediate result. The run stops after its current step
and reports that result; the next signal ends the process at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from curvcli import atomic

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_CLEAR_LINE, _SHOW_CURSOR = "\r\x1b[2K", "\x1b[?25h"


class Interrupts:
    """The signals received, and their current meaning."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that asked for the intermediate result."""
        self.answerable = False
        """Whether the run can give an intermediate result."""
        self.hand_on: Callable[[int], None] | None = None
        """Forwards signals to the child process that computes."""
        self._guarded = False

    def guard(self) -> None:
        """Install the handling of signals; ignored signals stay ignored."""
        caught = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        if self._guarded or not caught:
            return
        self._guarded = True
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

        def handle(number: int, _: object) -> None:
            """Handle a signal whose pipe the user's code has replaced; else the thread has handled it."""
            if signal.set_wakeup_fd(writer, warn_on_full_buffer=False) != writer:
                self.receive(number)

        before = {number: signal.signal(number, handle) for number in caught}
        os.register_at_fork(after_in_child=lambda: _restore(before))
        threading.Thread(target=self._listen, args=(reader,), daemon=True, name="signals").start()

    def _listen(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 64):
                if number in SIGNALS:
                    self.receive(number)

    def receive(self, number: int) -> None:
        """Record the signal, or end the process."""
        if self.hand_on is not None:
            self.hand_on(number)
            return
        if number == signal.SIGINT and self.answerable and self.number is None:
            self.number = number
            _say("interrupted: what was reached is told when this step ends; Ctrl-C again ends at once", _CLEAR_LINE)
        else:
            end(number, answerable=self.answerable)


def end(number: int, *, answerable: bool) -> None:
    """End the process now, and remove incomplete files."""
    _say(f"ended before {'the report' if answerable else 'there was anything to report'}", _CLEAR_LINE + _SHOW_CURSOR)
    atomic.discard_unfinished()
    os._exit(128 + number)


def _say(text: str, over_progress: str) -> None:
    """Write a line on stderr, after these control codes where progress may be drawn."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr may be closed
        stderr = sys.stderr.fileno()
        before = over_progress if os.isatty(stderr) and os.environ.get("TERM") not in ("dumb", "unknown") else ""
        os.write(stderr, f"{before}{text}\n".encode())


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    """Restore the earlier signal handlers in a child process of the user's code, which has no such thread."""
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        signal.signal(number, handler)


current = Interrupts()
"""The signals of this process."""
