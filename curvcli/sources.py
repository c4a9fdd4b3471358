"""Everything that a command reads, so that nothing that it writes replaces it.

A file or folder is registered where it is opened for reading; whatever opens a file for writing asks here first. Files
are compared by device and inode, so that links do not hide them; a folder stands for all that it holds.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from curvcli.errors import DataError, UsageError


@dataclass
class _Registry:
    """What a command reads, and where it is going to write, by name."""

    read: dict[Path, str] = field(default_factory=dict)
    written: dict[str, Path] = field(default_factory=dict)


_open: ContextVar[_Registry | None] = ContextVar("registry", default=None)


@contextlib.contextmanager
def registry() -> Iterator[None]:
    """Until the end of the block, what is read is remembered; what was read before it is not."""
    token = _open.set(_Registry())
    try:
        yield
    finally:
        _open.reset(token)


def check_regular(path: Path) -> None:
    """Refuse what is there and is neither a file nor a folder: it could block for ever, or never end.

    Raises
    ------
    DataError
        It is a FIFO, a socket or a device.
    """
    with contextlib.suppress(OSError, ValueError):  # what may not be seen is told where it is opened
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise DataError(f"{path.name} is not a regular file: {_kind(mode)}", "give a file, or a folder of files")


def _check_within(folder: Path) -> None:
    """Refuse a folder that holds what is neither a file nor a folder, wherever in it: a library may open it."""
    waiting, seen = [os.fspath(folder)], set()
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_file():
                    continue
                if not entry.is_dir():
                    check_regular(Path(entry.path))
                elif not entry.is_symlink():
                    waiting.append(entry.path)
                elif (identity := _identity(entry.path)) not in seen:  # links may lead in a circle
                    seen.add(identity)
                    waiting.append(entry.path)


def register(path: Path, what: str) -> Path:
    """Remember that this file or folder is read; the same path.

    Parameters
    ----------
    what
        What it is, for messages: `the data`.

    Raises
    ------
    DataError
        It is a FIFO, a socket or a device, or a folder that holds one.
    UsageError
        It is where this command is going to write.
    """
    check_regular(path)
    if (registry := _open.get()) is not None and "\0" not in str(path):  # which no file's name has
        source = Path(os.path.realpath(path))
        if source in registry.read:  # looked at before; what is in it now may be what this command wrote
            return path
        _check_within(source)
        registry.read[source] = what
        for option, target in registry.written.items():
            _refuse(target, option, _name_in(source, what, target))
    return path


def will_write(path: Path, option: str) -> None:
    """Remember that this command is going to write there; what is read already must not be in that place.

    Raises
    ------
    UsageError
        The path leads to a file that is read, or that is in a folder that is read; to such a folder; or to the source
        of an imported module.
    """
    if (registry := _open.get()) is not None:
        if registry.written.get(option) == path:  # looked at before, and by `register` since
            return
        registry.written[option] = path
    check_not_read(path, option)


def check_not_read(path: Path, option: str = "") -> None:
    """Refuse to write where something is that this command reads; see `will_write`."""
    sources = {} if (registry := _open.get()) is None else registry.read
    for source, what in sources.items():
        _refuse(path, option, _name_in(source, what, path))
    identity = _identity(path)
    if identity is not None and any(identity == _identity(file) for file in _module_files()):
        _refuse(path, option, "the source of an imported module")


def _refuse(path: Path, option: str, name: str | None) -> None:
    if name is not None:
        raise UsageError(f"{option} {path} would replace {name}", "give the name of another file")


def _name_in(source: Path, what: str, path: Path) -> str | None:
    """What writing to a path would replace of a source, by name; None for nothing."""
    identity = _identity(path)
    if identity is None or identity not in _identities(source):
        return None
    return what if identity == _identity(source) else f"a file of {what}"


def _identities(source: Path) -> Iterator[tuple[int, int] | None]:
    """Device and inode of a file, or of a folder and all that it holds; links are followed to what they lead to."""
    yield _identity(source)
    for folder, folders, names in os.walk(source):
        yield from (_identity(Path(folder, name)) for name in folders + names)


def _identity(path: str | Path) -> tuple[int, int] | None:
    """Device and inode of a file or folder; None for anything else, which is written to and not replaced."""
    try:
        state = os.stat(path)  # noqa: PTH116 - thousands of files
    except (OSError, ValueError):
        return None
    regular = stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)
    return (state.st_dev, state.st_ino) if regular else None


def _module_files() -> Iterator[str]:
    """The source files of imported modules."""
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return (file for file in files if isinstance(file, str))


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "it is a FIFO"
    return "it is a socket" if stat.S_ISSOCK(mode) else "it is a device"
