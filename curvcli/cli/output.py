"""Where a report goes: stdout, kept for us alone, or a file, written whole or not at all."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from curvcli.errors import OutputError, SpecError, UsageError

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
    """Write a file whole or not at all: to a temporary file beside it, then renamed.

    A link's target is replaced and the link kept; a device or FIFO is written to, never renamed over.

    Raises
    ------
    OutputError
        The folder is missing or not writable, or the disk is full.
    """
    target = path.resolve()
    data = content if isinstance(content, bytes) else content.encode("utf-8", errors=SURROGATES)
    try:
        if _is_special(path):
            with path.open("wb") as stream:
                stream.write(data)
            return
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            mode = target.stat().st_mode if target.exists() else 0o666 & ~_umask()
            os.chmod(name, stat.S_IMODE(mode))  # noqa: PTH101
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"{path} could not be written: {error.strerror}",
            "check the folder, its permissions and the free space",
        ) from error


def check_writable(path: Path) -> None:
    """Say before the work, not after it, that a report cannot be written there.

    Raises
    ------
    OutputError
        The folder is missing or not writable, or the path is a folder.
    """
    folder = path.resolve().parent
    if path.is_dir():
        raise OutputError(f"{path} could not be written: it is a folder", "give the name of a file")
    if _is_special(path):
        return
    if not folder.is_dir():
        raise OutputError(f"{path} could not be written: its folder does not exist", f"mkdir -p {path.parent}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path} could not be written: its folder is not writable", "write it elsewhere: -o FILE")


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

    if path.suffix == TABLE_FORMAT:
        data = _long_table(arrays, axes)
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save

        data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    else:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        data = buffer.getvalue()
    write_file(path, data)


def _long_table(arrays: dict[str, Any], axes: dict[str, list[str]]) -> bytes:
    """An array in long form: a row for each entry, its indices beside it; arrays of the same axes share the rows."""
    import numpy as np
    import pyarrow
    from pyarrow import parquet

    first = next(iter(axes))
    shape = arrays[first].shape
    index = np.indices(shape, dtype=np.int32).reshape(len(shape), -1)
    columns = dict(zip(axes[first], index, strict=True))
    columns |= {name: arrays[name].reshape(-1) for name in axes if axes[name] == axes[first]}
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()


def _is_special(path: Path) -> bool:
    """Whether it is a device or a pipe (which `/dev/fd/63` can be without resolving to a path)."""
    return path.exists() and not stat.S_ISREG(path.stat().st_mode)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
