"""The output files of a run: reports and arrays, written atomically."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from curvcli import atomic
from curvcli.errors import OutputError, SpecError, UsageError
from curvcli.sources import will_write

SURROGATES = "backslashreplace"
"""The handler of undecodable bytes in paths, lone surrogates in Python: it writes JSON's escapes such as `\\udcff`."""


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file atomically; see `opened`.

    Raises
    ------
    OutputError
        The folder is missing or not writable, or the disk is full.
    """
    with opened(path) as stream:
        stream.write(content if isinstance(content, bytes) else _encoded(content))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file that is written atomically: the old content is replaced when the block ends without an error.

    Of a link the target is replaced. A device or FIFO is written to directly.

    Raises
    ------
    OutputError
        The folder is missing or not writable, or the disk is full.
    """
    with _named_errors(path), path.open("wb") if _is_special(path) else atomic.replacing(path) as stream:
        yield stream


class ReportFile:
    """A file of reports, one a line: each is on the disk when `add` returns, and the last line is complete.

    The first line replaces the old content. A device or FIFO stays open until the block ends.
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
        """Append a report.

        Raises
        ------
        OutputError
            It could not be written; the lines before it are still there.
        """
        data = _encoded(line + "\n")
        with _named_errors(self._path):
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
    """Append data to a stream; an incomplete write to a file on a disk is undone."""
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
def _named_errors(path: Path) -> Iterator[None]:
    """Turn errors of the system into an error that names the file; a BrokenPipeError is passed on."""
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
    """Check before the computation that a report can be written to a path.

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


def check_distinct(paths: dict[str, Path]) -> None:
    """Check before the computation that no output file replaces an input or another output file.

    Parameters
    ----------
    paths
        The output files by the options that name them.

    Raises
    ------
    UsageError
        Two options name the same file, or an output is an input.
    """
    for option, path in paths.items():
        will_write(path, option)
    places: dict[str, str] = {}
    for option, path in paths.items():
        earlier = places.setdefault(os.path.realpath(path), option)
        if earlier != option and not _is_special(path):
            raise UsageError(f"{earlier} and {option} name the same file", "give each a file of its own")


ARRAY_FORMATS = (".npz", ".safetensors")
TABLE_FORMAT = ".parquet"


def check_array_format(path: Path, *, tables: bool = False) -> None:
    """Check before the computation that a file of arrays can be written in the format of its name.

    Parameters
    ----------
    tables
        Whether a table may be written, which holds one array in long form.

    Raises
    ------
    UsageError
        The suffix is not that of a format.
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
    """Write arrays by name atomically as .npz or .safetensors; the array with named axes as a .parquet table.

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
    """Write arrays in long form: a row for each entry with its indices; arrays with the same axes share the rows."""
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
    """Whether a path is a device or a pipe (such as `/dev/fd/63`, which need not resolve to a path)."""
    return path.exists() and not stat.S_ISREG(path.stat().st_mode)
