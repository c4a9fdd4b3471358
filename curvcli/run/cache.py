"""The cache folder, which belongs to the user and is kept between runs.

An entry is a file that is written atomically. Whatever is wrong with it, or with the folder (read-only, full, something
else in its place), the entry is computed anew: nothing is reported, and nothing waits.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import warnings
from pathlib import Path
from typing import Any

LARGEST = 1 << 30
"""Maximum number of bytes of compiled programs; the least recently used are removed."""

_DIGEST = hashlib.sha256().digest_size


def folder(name: str) -> Path | None:
    """Return a folder of the cache, accessible to its user alone; None if it cannot be made."""
    base = os.environ.get("CURV_CACHE_DIR")
    with contextlib.suppress(OSError, RuntimeError):  # the latter: there is no home folder
        root = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "curv"
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = root / name
        path.mkdir(mode=0o700, exist_ok=True)
        if path.stat().st_uid == os.getuid():  # a compiled program is code: never take another user's
            return path
    return None


def read_entry(path: Path) -> bytes | None:
    """The content of a regular file; None for anything else, without waiting."""
    with contextlib.suppress(OSError, ValueError):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as stream:
            state = os.fstat(handle)
            if stat.S_ISREG(state.st_mode) and state.st_size <= LARGEST:
                return stream.read()
    return None


def write_entry(path: Path, content: bytes) -> None:
    """Put a file, whole, in the place of whatever is there; not at all if it cannot be written."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    with contextlib.suppress(OSError, ValueError):
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


class Programs:
    """Compiled programs, each a file that begins with the digest of what follows.

    `get` and `put` are what JAX asks of a compilation cache. Processes need no lock: a file appears whole, a later one
    of the same name has the same program, and what another process removes is compiled anew.

    Parameters
    ----------
    path
        The folder.
    largest
        Bytes of all files together.
    """

    def __init__(self, path: Path, largest: int = LARGEST) -> None:
        self.path = self._path = path  # the latter is the name that JAX's own caches have
        self.largest = largest
        self._bytes: int | None = None

    def get(self, key: str) -> bytes | None:
        """The program of this name; None, and the file removed, if it is damaged."""
        path = self._file(key)
        content = None if path is None else read_entry(path)
        if path is None or content is None:
            return None
        digest, program = content[:_DIGEST], content[_DIGEST:]
        whole = digest == hashlib.sha256(program).digest()
        with contextlib.suppress(OSError):
            os.utime(path) if whole else path.unlink()  # the time says when it was used last
        return program if whole else None

    def put(self, key: str, value: bytes) -> None:
        """Keep a program, in the place of what has its name: that could not be read."""
        path = self._file(key)
        if path is not None and len(value) <= self.largest // 8:
            self._make_room(len(value))
            write_entry(path, hashlib.sha256(value).digest() + value)

    def _file(self, key: str) -> Path | None:
        """JAX makes keys of the names of functions, which may have any character."""
        return None if os.sep in key or not key.isprintable() else self.path / f"{key}-cache"

    def _make_room(self, size: int) -> None:
        """Remove what was used least recently; the folder is listed once, and again where it may be too large."""
        if self._bytes is not None and self._bytes + size <= self.largest:
            self._bytes += size
            return
        files = sorted(self._files())
        total = sum(bytes_of for _, bytes_of, _ in files) + size
        allowed = self.largest if total <= self.largest else self.largest - self.largest // 8
        for _, bytes_of, file in files:
            if total <= allowed:
                break
            with contextlib.suppress(OSError):
                Path(file).unlink()
            total -= bytes_of
        self._bytes = total

    def _files(self) -> list[tuple[int, int, str]]:
        """When each regular file of the folder was used last, its bytes, its path."""
        files = []
        with contextlib.suppress(OSError), os.scandir(self.path) as listed:
            for file in listed:
                with contextlib.suppress(OSError):  # another process removes files too
                    if file.is_file(follow_symlinks=False):
                        state = file.stat(follow_symlinks=False)
                        files.append((state.st_mtime_ns, state.st_size, file.path))
        return files


def enable_compilation_cache(jax: Any) -> None:
    """Keep compiled programs between runs, where the cache folder can be made."""
    from curvcli.jax_internals import keep_programs

    path = folder(f"jax-{jax.__version__}")
    if path is not None:
        # A program that this machine cannot load, or that cannot be stored, is compiled anew, and replaced.
        warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
        keep_programs(Programs(path))
        jax.config.update("jax_compilation_cache_dir", str(path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_compilation_cache_max_size", LARGEST)
