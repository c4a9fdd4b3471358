"""Files and folders that appear whole or not at all: made under another name beside their place, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from curvcli.sources import check_not_read

_unfinished: set[Path] = set()


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A stream whose content takes the place of a file when the block ends without an error.

    A link's target is replaced and the link kept; what is there keeps its permissions.
    """
    check_not_read(target)
    target = Path(os.path.realpath(target))
    if target.is_symlink():  # only where links lead in a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    with _beside(target) as path:
        with path.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if target.exists():
            path.chmod(stat.S_IMODE(target.stat().st_mode))
        path.replace(target)
        sync(target.parent)


@contextlib.contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """A temporary folder on the target's own file system, for what is to be renamed out of it."""
    with _beside(target.absolute()) as folder:
        folder.mkdir(mode=0o700)
        yield folder


def sync(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk.

    Raises
    ------
    OSError
        What was written to the file earlier could not be kept.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        # File systems that cannot do this for folders keep the names by themselves.
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(handle)
    finally:
        os.close(handle)


def discard_unfinished() -> None:
    """Remove what was not finished: for a process that ends in the middle."""
    for path in tuple(_unfinished):
        for _ in range(10):  # its writer may still be adding files
            if not os.path.lexists(path):
                break
            _remove(path)


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A free name in the target's folder; what is made there is removed at the end, if it is still there."""
    # The target's own name is no part of it: it may be as long as names can be.
    path = target.with_name(f".curv-{secrets.token_hex(6)}.tmp")
    _unfinished.add(path)
    try:
        yield path
    finally:
        _remove(path)
        _unfinished.discard(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
