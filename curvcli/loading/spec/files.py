"""Search and reading of `curv.toml`, and overrides of the command line."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from curvcli.errors import NotFoundError, PermissionDeniedError, SpecError
from curvcli.loading.access import is_there
from curvcli.loading.checkpoints.orbax import step_number
from curvcli.schema.spec import DataSpec, ProblemSpec
from curvcli.sources import register

NAME = "curv.toml"
PROJECT_MARKERS = (".git", "pyproject.toml")
"""Files that mark the root folder of a project, above which curv.toml is not searched."""


@dataclass(frozen=True)
class FoundSpec:
    """A specification and its origin.

    Parameters
    ----------
    values
        The tables as read; `{}` without a file.
    base
        The folder to which its paths and files are relative.
    origin
        The name of its file, for messages.
    trusted
        Whether the user named it (`--spec`), so that the code that it names may run.
    carried
        Whether it belongs to a checkpoint. Its data must then lie near it.
    passed_over
        A message about the nearest curv.toml of a parent folder that was not read; empty where there is none.
    """

    values: dict[str, Any]
    base: Path
    origin: str
    trusted: bool
    carried: bool = False
    passed_over: str = ""


def find_spec(
    checkpoint: Path | None,
    explicit: Path | None,
    metadata: Callable[[Path], Mapping[str, Any]] = lambda path: {},
) -> FoundSpec:
    """Find the specification for a checkpoint; `metadata` reads the user's metadata of Orbax.

    Order of the search: `--spec`; in the checkpoint; in its manager root; beside it as `CKPT.curv.toml`; the Orbax
    metadata key `curv`; the current folder; its parents up to the first one that holds `.git` or `pyproject.toml`. The
    search ends before a parent that has another owner, is on another file system or is writable by all.
    """
    if explicit is not None:
        if not is_there(explicit, file=True):
            raise NotFoundError(f"no specification {explicit}", "check the path given to --spec")
        return _read(explicit, trusted=True)
    carried = carried_spec(checkpoint, metadata) if checkpoint is not None else None
    if carried is not None:
        return carried
    current, barrier, passed_over = Path.cwd(), "", ""
    for child, folder in pairwise((current, current, *current.parents)):
        barrier = barrier or ("" if folder == current else _barrier(child, folder))
        path = folder / NAME
        if not _is_file(path):
            continue
        if not barrier:
            return _read(path, trusted=False)
        passed_over = f"{path} is not read: {barrier}"
        break
    return FoundSpec({}, current, "the command line", trusted=True, passed_over=passed_over)


def carried_spec(checkpoint: Path, metadata: Callable[[Path], Mapping[str, Any]]) -> FoundSpec | None:
    """Return the specification of a checkpoint: in it, in its manager root, beside it or in its metadata; or None."""
    place = Path(os.path.abspath(checkpoint))  # noqa: PTH100 - absolute() keeps "..", resolve() follows links
    # A step folder lies in its manager root, and an item folder in its step.
    step = next((folder for folder in (place, place.parent) if step_number(folder.name)), None)
    folders = [checkpoint, *(place.parents[: 1 + (step != place)] if step else [])]
    for path in (*(folder / NAME for folder in folders), place.with_name(place.name + f".{NAME}")):
        if _is_file(path):
            current = path.name == NAME and path.parent.resolve() == Path.cwd().resolve()
            return _read(path, trusted=False, carried=not current)
    embedded = metadata(checkpoint).get("curv") if checkpoint.is_dir() else None
    if isinstance(embedded, dict):
        return FoundSpec(embedded, checkpoint, f"the metadata of {checkpoint}", trusted=False, carried=True)
    return None


def _barrier(child: Path, folder: Path) -> str:
    """Return the reason why a curv.toml of a folder does not apply to its child folder; empty where it does."""
    if any(is_there(child / marker) for marker in PROJECT_MARKERS):
        return f"{child} is the root of a project"
    try:
        below, above = child.stat(), folder.stat()
        owners = {os.lstat(path).st_uid for path in (folder, folder / NAME) if os.path.lexists(path)}
    except OSError:
        return f"{folder} may not be read"
    if (below.st_mode | above.st_mode) & stat.S_IWOTH:
        return f"all users may write to {folder if above.st_mode & stat.S_IWOTH else child}"
    if below.st_dev != above.st_dev:
        return f"{folder} is on another file system"
    return "" if owners == {below.st_uid} else f"it or its folder belongs to another user than {child}"


def _is_file(path: Path) -> bool:
    """Whether a file exists; False where that cannot be known, as reading the checkpoint raises the error."""
    try:
        return path.is_file()
    except OSError:
        return False


def _read(path: Path, *, trusted: bool, carried: bool = False) -> FoundSpec:
    register(path, "the specification")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise PermissionDeniedError(f"{path} may not be read", "check its permissions") from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # an integer of 5000 digits, 1000 brackets
        raise SpecError(
            f"{path} is not valid TOML: {error}", "correct the line named, or write a new file: curv init"
        ) from error
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}", "give a regular file") from error
    return FoundSpec(values, path.parent, str(path), trusted, carried)


def merge(source: FoundSpec, overrides: Mapping[str, Mapping[str, Any]]) -> ProblemSpec:
    """Return the specification with the overrides of the command line or environment; None there means not given.

    Raises
    ------
    SpecError
        A key is unknown or has a value of the wrong type; the message names it.
    """
    values = {
        table: dict(entries) if isinstance(entries, dict) else entries for table, entries in source.values.items()
    }
    for table, entries in overrides.items():
        for key, value in entries.items():
            if value is None:
                continue
            entry = values.setdefault(table, {})
            if not isinstance(entry, dict):
                continue  # validation names it
            if key == "kwargs" and isinstance(entry.get("kwargs", {}), dict):
                entry["kwargs"] = {**entry.get("kwargs", {}), **value}
            elif key != "kwargs":
                if table == "data" and "sha256" in entry and not _is_stored(source, key, value):
                    del entry["sha256"]  # of other arrays than those asked for now
                entry[key] = value
    try:
        return ProblemSpec.model_validate(values, strict=True)  # a number in quotes is no number
    except ValidationError as error:
        raise SpecError(*_first_problem(error, source.origin)) from error


def settings_from(spec: ProblemSpec, source: FoundSpec, overridden: Mapping[str, str]) -> dict[str, str]:
    """Return the origin of each setting of a specification: `source.origin`, that of its override, or `default`.

    Parameters
    ----------
    spec
        The merged specification.
    source
        The file that it was merged from.
    overridden
        The origin of each override by setting (`loss.l2`).
    """
    origins: dict[str, str] = {}
    for table, field in ProblemSpec.model_fields.items():
        stored, values = source.values.get(table, {}), getattr(spec, table)
        for key in type(field.default).model_fields:
            if key != "kwargs":
                is_set = key in stored and getattr(values, key) is not None
                origins[f"{table}.{key}"] = source.origin if is_set else "default"
                continue
            origins |= {f"{table}.{key}.{name}": source.origin for name in stored.get(key, {})}
    return {**origins, **overridden}


def _is_stored(source: FoundSpec, key: str, value: Any) -> bool:
    """Whether `[data]` of the file has the same value."""
    stored = source.values["data"].get(key, DataSpec.model_fields[key].default)
    if key == "path" and isinstance(stored, str):
        return value == stored or os.path.realpath(source.base / stored) == os.path.realpath(value)
    return value == stored


def pinned(spec: ProblemSpec, source: FoundSpec, checkpoint: Path) -> ProblemSpec:
    """Remove the digest of the checkpoint from a specification if another checkpoint is read."""
    named = source.base / (spec.checkpoint.path or "")
    if spec.checkpoint.path is None or os.path.realpath(named) == os.path.realpath(checkpoint):
        return spec
    return spec.model_copy(update={"checkpoint": spec.checkpoint.model_copy(update={"sha256": None})})


def _first_problem(error: ValidationError, origin: str) -> tuple[str, str]:
    """Return message and hint for the first problem of a validation error."""
    first = error.errors()[0]
    *tables, key = [str(part) for part in first["loc"]]
    where = f"[{'.'.join(tables)}] {key}" if tables else f"[{key}]"
    if first["type"] == "extra_forbidden":
        allowed = ProblemSpec.model_fields
        if tables:
            model = allowed[tables[0]].default.__class__ if tables[0] in allowed else ProblemSpec
            allowed = model.model_fields
        return f"unknown key {where} in {origin}", f"known here: {', '.join(allowed)}"
    return f"{where} in {origin}: {first['msg']}", "see: curv schema curv.toml"


def relative_to(
    spec: ProblemSpec, *, checkpoint: Path, base: Path, folder: Path, copied: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Return a specification as tables of a curv.toml in another folder, with relative paths and without defaults.

    Parameters
    ----------
    spec
        The merged specification.
    checkpoint
        The path of the weights.
    base
        The folder to which the paths of `spec` are relative.
    folder
        The folder of the new curv.toml.
    copied
        The folder of which `folder` is a copy. Paths inside it are replaced by those in the copy.
    """

    folder = folder.resolve()

    def moved(text: str, key: str) -> str:
        head, separator, attribute = text.rpartition(":")
        file, suffix = (head, separator + attribute) if head.endswith(".py") else (text, "")
        if not (suffix or key == "path") or not (base / file).exists():
            return text  # a module, or the name of a loss
        place = (base / file).resolve()
        if copied is not None and place.is_relative_to(copied.resolve()):
            place = folder / place.relative_to(copied.resolve())
        return os.path.relpath(place, folder) + suffix

    document = spec.model_dump(exclude_defaults=True, exclude_none=True)
    document.setdefault("checkpoint", {})["path"] = os.path.relpath(checkpoint.resolve(), folder)
    targets = {"model": ("target",), "data": ("path",), "loss": ("name", "likelihood", "regulariser")}
    for table, key in ((table, key) for table, keys in targets.items() for key in keys):
        if key in document.get(table, {}):
            document[table][key] = moved(document[table][key], key)
    return document
