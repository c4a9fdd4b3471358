"""Ctrl-C and SIGTERM end the process within a moment, with 128 + the signal's number as its exit code.

Python runs handlers of signals between two of its own instructions, so a compilation or a long product would keep them
waiting for minutes. Therefore C code in the interpreter writes each signal's number into a pipe, and a thread that does
nothing else reads it. Nothing half-written is left behind; reports and parts of `--state` that were finished stay.

One signal is different: the first Ctrl-C when an answer could be given. The run is asked to stop at its next step and
to answer with what it has; that may take as long as the step, and the next signal ends it at once.
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
    """What was received, and what it means now."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that asked for the answer."""
        self.answerable = False
        """Whether there is an answer that stopping early would give."""
        self.hand_on: Callable[[int], None] | None = None
        """Where signals go instead: to the process that computes for this one."""
        self._guarded = False

    def guard(self) -> None:
        """From now on signals have this meaning; those that are ignored stay ignored."""
        caught = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        if self._guarded or not caught:
            return
        self._guarded = True
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

        def handle(number: int, _: object) -> None:
            """The thread has seen to it, unless the user's code has put a pipe of its own there."""
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
        """Note the signal, or end."""
        if self.hand_on is not None:
            self.hand_on(number)
            return
        if number == signal.SIGINT and self.answerable and self.number is None:
            self.number = number
            _say("interrupted: what was reached is told when this step ends; Ctrl-C again ends at once", _CLEAR_LINE)
        else:
            end(number, answerable=self.answerable)


def end(number: int, *, answerable: bool) -> None:
    """End the process now; nothing half-written stays."""
    _say(f"ended before {'the report' if answerable else 'there was anything to report'}", _CLEAR_LINE + _SHOW_CURSOR)
    atomic.discard_unfinished()
    os._exit(128 + number)


def _say(text: str, over_progress: str) -> None:
    """A line on stderr; where progress may be drawn, after these codes."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr may be closed
        stderr = sys.stderr.fileno()
        before = over_progress if os.isatty(stderr) and os.environ.get("TERM") not in ("dumb", "unknown") else ""
        os.write(stderr, f"{before}{text}\n".encode())


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    """In a child of the user's code, which has no such thread, signals mean what they meant before."""
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        signal.signal(number, handler)


current = Interrupts()
"""Of this process."""
