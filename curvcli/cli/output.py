"""Output on stdout, which is reserved for reports."""

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
"""The names of stdout as an output file."""


@contextlib.contextmanager
def own_stdout(*, needed: bool = True) -> Iterator[TextIO]:
    """Open the real stdout while file descriptor 1 is redirected to stderr, where the user's code may print.

    Parameters
    ----------
    needed
        Whether anything will be written to stdout.

    Raises
    ------
    OutputError
        The output is needed, and stdout is closed.
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
    """Write a line and flush it.

    Raises
    ------
    OutputError
        The line could not be written. A BrokenPipeError of a closed pipe is passed on.
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
