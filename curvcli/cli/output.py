"""stdout, kept for the report alone."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from curvcli.errors import OutputError
from curvcli.run.files import SURROGATES

STDOUT = {Path(name) for name in ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")}
"""Names of stdout as a file."""


@contextlib.contextmanager
def own_stdout(*, needed: bool = True) -> Iterator[TextIO]:
    """The real stdout, while file descriptor 1 points at stderr: what the user's model prints must not reach a pipe.

    Parameters
    ----------
    needed
        Whether anything is to be written to it.

    Raises
    ------
    OutputError
        stdout is closed, and needed.
    """
    if sys.stdout is not None:
        sys.stdout.flush()
    elif needed:
        raise OutputError("stdout is closed", "write the report to a file: -o FILE")
    descriptor = os.dup(1)
    os.dup2(2, 1)
    before = sys.stdout
    # Python's own stdout object goes to stderr too: under a test or a notebook it need not be file descriptor 1.
    sys.stdout = sys.stderr
    stream = os.fdopen(descriptor, "w", encoding="utf-8", errors=SURROGATES)
    try:
        yield stream
    finally:
        sys.stdout = before
        os.dup2(descriptor, 1)
        with contextlib.suppress(OSError):  # what cannot be written was told when it was
            stream.close()


def write_line(stream: TextIO, text: str) -> None:
    """One line, flushed at once.

    Raises
    ------
    OutputError
        It could not be written. A closed pipe stays a BrokenPipeError: that is no error of anybody's.
    """
    try:
        stream.write(text + "\n")
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"the report could not be written: {error.strerror}", "write it elsewhere: -o FILE"
        ) from error
