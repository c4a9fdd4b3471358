"""Access to files of other programs, which may be missing, unreadable or of another format."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from curvcli.errors import CurvError, DataError, MemoryLimitError, NotFoundError, PermissionDeniedError


def is_there(path: Path, *, file: bool = False) -> bool:
    """Whether a path, or a file, exists; True as well where that cannot be known, so that reading raises the error."""
    try:
        mode = path.stat().st_mode
    except PermissionError:
        return True
    except (OSError, ValueError):  # a name too long; a null byte
        return False
    return not (file and stat.S_ISDIR(mode))


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Translate any exception of a decoder into an error that names the file.

    Raises
    ------
    PermissionDeniedError, NotFoundError, MemoryLimitError, DataError
        In place of the exception raised inside.
    """
    try:
        yield
    except CurvError:
        raise
    except PermissionError as error:
        raise PermissionDeniedError(
            f"{path}: permission denied", "make it readable for this user (chmod u+r), or run as its owner"
        ) from error
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: is not there", "check that the data was copied completely") from error
    except MemoryError as error:
        raise MemoryLimitError(
            f"{path}: does not fit into memory",
            "store the arrays as a folder of .npy files, which is read piece by piece",
        ) from error
    # Decoders raise anything at all on bytes that they do not expect: TypeError, struct.error, zlib.error.
    except Exception as error:
        raise DataError(
            f"{path}: cannot be read: {type(error).__name__}: {error}",
            "the file is truncated, damaged or of another format: write or copy it again",
        ) from error
