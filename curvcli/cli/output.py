"""Where a report goes: stdout, kept for us alone, or a file, written whole or not at all."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import stat
import sys
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from curvcli import atomic
from curvcli.errors import OutputError, SpecError, UsageError
from curvcli.sources import will_write

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
    kept = os.dup(1)
    os.dup2(2, 1)
    before = sys.stdout
    # Python's own stdout object goes to stderr too: under a test or a notebook it need not be file descriptor 1.
    sys.stdout = sys.stderr
    stream = os.fdopen(kept, "w", encoding="utf-8", errors=SURROGATES)
    try:
        yield stream
    finally:
        sys.stdout = before
        os.dup2(kept, 1)
        with contextlib.suppress(OSError):  # what cannot be written was told when it was
            stream.close()


SURROGATES = "backslashreplace"
"""Bytes of a path that are no UTF-8 are lone surrogates in Python; `\\udcff` is what JSON calls them."""


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


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all; see `opened`.

    Raises
    ------
    OutputError
        The folder is missing or not writable, or the disk is full.
    """
    with opened(path) as stream:
        stream.write(content if isinstance(content, bytes) else _encoded(content))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file to be written whole or not at all: what is there is replaced when the block ends without an error.

    A link's target is replaced and the link kept; a device or FIFO is written to, never renamed over.

    Raises
    ------
    OutputError
        The folder is missing or not writable, or the disk is full.
    """
    with _told(path), path.open("wb") if _is_special(path) else atomic.replacing(path) as stream:
        yield stream


class ReportFile:
    """A file of reports, one a line: each is on the disk when `add` returns, and the file ends with a whole line.

    What the file held before is replaced by the first line. A device or FIFO stays open until the block ends.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: FileIO | None = None

    def __enter__(self) -> ReportFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def add(self, line: str) -> None:
        """One report more.

        Raises
        ------
        OutputError
            It could not be written; the lines before it are still there.
        """
        data = _encoded(line + "\n")
        with _told(self._path):
            if self._stream is None:
                special = _is_special(self._path)
                if not special:
                    with atomic.replacing(self._path) as stream:
                        stream.write(data)
                self._stream = self._path.open("ab", buffering=0)
                if not special:
                    return
            _append(self._stream, data)


def _append(stream: FileIO, data: bytes) -> None:
    """Write all of it; of a file on a disk, all or nothing."""
    state = os.fstat(stream.fileno())
    regular = stat.S_ISREG(state.st_mode)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[stream.write(rest) :]
        if regular:
            os.fsync(stream.fileno())
    except OSError:
        if regular:
            stream.truncate(state.st_size)
        raise


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors=SURROGATES)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the system refuses, as an error that names the file. A closed pipe stays a BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"{path} could not be written: {error.strerror or error}",
            "check the folder, its permissions and the free space",
        ) from error


def check_writable(path: Path) -> None:
    """Say before the work, not after it, that a report cannot be written there.

    Raises
    ------
    OutputError
        The folder is missing or not writable, or the path is a folder.
    """
    target = Path(os.path.realpath(path))
    folder = target.parent
    if path.is_dir():
        raise OutputError(f"{path} could not be written: it is a folder", "give the name of a file")
    if target.is_symlink():
        raise OutputError(f"{path} could not be written: its links lead in a circle", "give the name of a file")
    if _is_special(path):
        return
    if not folder.is_dir():
        raise OutputError(f"{path} could not be written: its folder does not exist", f"mkdir -p {path.parent}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path} could not be written: its folder is not writable", "write it elsewhere: -o FILE")


def check_distinct(written: dict[str, Path]) -> None:
    """Say before the work that a file would replace what is read, now or later, or another file that is written.

    Parameters
    ----------
    written
        By the option that names it.

    Raises
    ------
    UsageError
        It would.
    """
    for option, path in written.items():
        will_write(path, option)
    places: dict[str, str] = {}
    for option, path in written.items():
        other = places.setdefault(os.path.realpath(path), option)
        if other != option and not _is_special(path):
            raise UsageError(f"{other} and {option} name the same file", "give each a file of its own")


ARRAY_FORMATS = (".npz", ".safetensors")
TABLE_FORMAT = ".parquet"


def check_array_format(path: Path, *, tables: bool = False) -> None:
    """Say before the work that a file of arrays cannot be written in this format.

    Parameters
    ----------
    tables
        Whether a table will do: one of the arrays in long form.

    Raises
    ------
    UsageError
        The name ends in none of the formats.
    SpecError
        The package for the format is missing.
    """
    formats = (*ARRAY_FORMATS, *((TABLE_FORMAT,) if tables else ()))
    if path.suffix not in formats:
        raise UsageError(f"{path}: not a format for arrays", f"the name must end in {' or '.join(formats)}")
    if path.suffix == TABLE_FORMAT and importlib.util.find_spec("pyarrow") is None:
        raise SpecError(f"{path}: writing .parquet needs a package", "pip install 'curvcli[tables]'")
    if path.suffix == ".safetensors" and importlib.util.find_spec("safetensors") is None:
        raise SpecError(f"{path}: writing .safetensors needs a package", "pip install 'curvcli[safetensors]'")


def write_arrays(path: Path, arrays: dict[str, Any], axes: dict[str, list[str]]) -> None:
    """Write arrays by name as .npz or .safetensors, whole or not at all; the one with named axes as a .parquet table.

    Raises
    ------
    OutputError
        The file could not be written.
    """
    import numpy as np

    with opened(path) as stream:
        if path.suffix == TABLE_FORMAT:
            _write_table(stream, arrays, axes)
        elif path.suffix == ".safetensors":
            from safetensors.numpy import save

            stream.write(save({name: np.asarray(array, order="C") for name, array in arrays.items()}))
        else:
            np.savez(stream, **arrays)


def _write_table(stream: BinaryIO, arrays: dict[str, Any], axes: dict[str, list[str]]) -> None:
    """An array in long form: a row for each entry, its indices beside it; arrays of the same axes share the rows."""
    import numpy as np
    import pyarrow
    from pyarrow import parquet

    first = next(iter(axes))
    shape = arrays[first].shape
    index = np.indices(shape, dtype=np.int32).reshape(len(shape), -1)
    columns = dict(zip(axes[first], index, strict=True))
    columns |= {name: arrays[name].reshape(-1) for name in axes if axes[name] == axes[first]}
    parquet.write_table(pyarrow.table(columns), stream)


def _is_special(path: Path) -> bool:
    """Whether it is a device or a pipe (which `/dev/fd/63` can be without resolving to a path)."""
    return path.exists() and not stat.S_ISREG(path.stat().st_mode)
