"""The curv.toml files that the user trusts, by a digest of their values and the code that they name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curvcli import atomic
from curvcli.errors import OutputError
from curvcli.run import cache

ZOO = "curvcli.zoo"
"""The module whose functions any file may name."""

CODE = {"model": ("target",), "data": ("path",), "loss": ("name", "likelihood", "regulariser")}
"""Settings of curv.toml that can name code."""


@dataclass(frozen=True)
class Code:
    """A target in a curv.toml: code that it names.

    Parameters
    ----------
    setting
        The setting that names it: `model.target`.
    target
        `file.py:attr` or `pkg.mod:attr`.
    files
        The files that importing the target runs first; of a module, its packages' too. Empty for a module that is in
        neither the current folder nor that of the curv.toml.
    """

    setting: str
    target: str
    files: tuple[Path, ...]


def code_of(specification: Any) -> list[Code]:
    """Return the targets that a specification names, in the order of curv.toml."""
    codes = []
    for table, keys in CODE.items():
        values = specification.values.get(table, {})
        for key in keys if isinstance(values, dict) else ():
            module, separator, attribute = str(values.get(key, "")).rpartition(":")
            if separator and module and attribute and module != ZOO:
                codes.append(Code(f"{table}.{key}", values[key], _files_of(module, specification.base)))
    return codes


def _files_of(module: str, base: Path) -> tuple[Path, ...]:
    """Return the files of `file.py`, or of `pkg.mod` in the current folder, else in the base."""
    if module.endswith(".py"):
        return tuple(filter(_is_regular, [base / module]))
    parts = module.split(".")
    for folder in (Path.cwd(), base):  # in the order of the import
        place = folder.joinpath(*parts)
        source = next(filter(_is_regular, (place / "__init__.py", place.with_name(f"{place.name}.py"))), None)
        if source is not None:
            packages = (folder.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts)))
            return (*filter(_is_regular, packages), source)
    return ()


def _is_regular(path: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return stat.S_ISREG(path.stat().st_mode)
    return False


def digest(specification: Any) -> str:
    """Return the SHA-256 of the values of a specification and of the files with the code that it names.

    Modules that this code imports are not included.
    """
    hashed = hashlib.sha256(json.dumps(specification.values, sort_keys=True, default=str).encode())
    for code in code_of(specification):
        for path in code.files:
            content = path.read_bytes()
            hashed.update(f"\0{code.setting}\0{len(content)}\0".encode() + content)
    return hashed.hexdigest()


def is_trusted(specification: Any) -> bool:
    """Whether the user named this specification, or trusts it as it is now."""
    record = _record(specification)
    if specification.trusted or record is None:
        return bool(specification.trusted)
    try:
        return record.read_text(encoding="utf-8") == digest(specification)
    except (OSError, ValueError):
        return False


def trust(specification: Any) -> None:
    """Store that the code of a specification may run until the code or the specification changes.

    Raises
    ------
    OutputError
        There is no cache folder.
    """
    record = _record(specification)
    if record is None:
        raise OutputError("trust cannot be stored: there is no cache folder", "set CURV_CACHE_DIR, or give --trust")
    with atomic.replacing(record) as stream:
        stream.write(digest(specification).encode())


def revoke(specification: Any) -> bool:
    """Revoke the trust in a specification, and return whether it was trusted."""
    record = _record(specification)
    if record is None or not record.exists():
        return False
    record.unlink()
    return True


def _record(specification: Any) -> Path | None:
    """Return the file that stores the digest of a specification; None without a cache folder."""
    folder = cache.folder("trusted")
    if folder is None or folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):  # others could trust for the user
        return None
    return folder / hashlib.sha256(os.fsencode(os.path.realpath(specification.origin))).hexdigest()
