"""Finding and reading `curv.toml`, and laying the command line over it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from curvcli.errors import NotFoundError, PermissionDeniedError, SpecError
from curvcli.loading.access import is_there
from curvcli.loading.orbax import step_number
from curvcli.schema.spec import DataSpec, ProblemSpec
from curvcli.sources import register

NAME = "curv.toml"


@dataclass(frozen=True)
class FoundSpec:
    """A specification and where it came from.

    Parameters
    ----------
    values
        The tables as read; `{}` where there is none.
    base
        The folder that its paths and files are relative to.
    origin
        Its file, for messages.
    trusted
        Whether the code it names is the user's own word: not where it lies beside a checkpoint.
    """

    values: dict[str, Any]
    base: Path
    origin: str
    trusted: bool


def find_spec(
    checkpoint: Path | None,
    explicit: Path | None,
    metadata: Callable[[Path], Mapping[str, Any]] = lambda path: {},
) -> FoundSpec:
    """The specification for a checkpoint; `metadata` reads what Orbax keeps beside the arrays.

    Searched in this order: `--spec`; in the checkpoint; in its manager root; beside it as `CKPT.curv.toml`; the Orbax
    metadata key `curv`; the current folder or a parent of it.
    """
    here = Path.cwd()
    if explicit is not None:
        if not is_there(explicit, file=True):
            raise NotFoundError(f"no specification {explicit}", "check the path given to --spec")
        return _read(explicit, trusted=True)
    carried = carried_spec(checkpoint, metadata) if checkpoint is not None else None
    if carried is not None:
        return carried
    for folder in (here, *here.parents):
        if _is_file(folder / NAME):
            return _read(folder / NAME, trusted=True)
    return FoundSpec({}, here, "the command line", trusted=True)


def carried_spec(checkpoint: Path, metadata: Callable[[Path], Mapping[str, Any]]) -> FoundSpec | None:
    """The specification in a checkpoint, in its manager root, beside it or in its metadata; None if there is none."""
    place = Path(os.path.abspath(checkpoint))  # noqa: PTH100 - absolute() keeps "..", resolve() follows links
    # A step folder lies in its manager root, and an item folder in its step.
    step = next((folder for folder in (place, place.parent) if step_number(folder.name)), None)
    folders = [checkpoint, *(place.parents[: 1 + (step != place)] if step else [])]
    for path in (*(folder / NAME for folder in folders), place.with_name(place.name + f".{NAME}")):
        if _is_file(path):
            return _read(path, trusted=path.name == NAME and path.parent.resolve() == Path.cwd().resolve())
    embedded = metadata(checkpoint).get("curv") if checkpoint.is_dir() else None
    if isinstance(embedded, dict):
        return FoundSpec(embedded, checkpoint, f"the metadata of {checkpoint}", trusted=False)
    return None


def _is_file(path: Path) -> bool:
    """Whether the file is there; where even that may not be known, reading the checkpoint will tell."""
    try:
        return path.is_file()
    except OSError:
        return False


def _read(path: Path, *, trusted: bool) -> FoundSpec:
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
            f"{path} is not valid TOML: {error}", "mend the line named, or write it anew: curv init"
        ) from error
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}", "give a regular file") from error
    return FoundSpec(values, path.parent, str(path), trusted)


def merge(found: FoundSpec, overrides: Mapping[str, Mapping[str, Any]]) -> ProblemSpec:
    """The specification with what the command line (or environment) gave laid over it; None there means not given.

    Raises
    ------
    SpecError
        A key is unknown or has a value of the wrong type; the message names it.
    """
    values = {table: dict(entries) if isinstance(entries, dict) else entries for table, entries in found.values.items()}
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
                if table == "data" and "sha256" in entry and not _is_stored(found, key, value):
                    del entry["sha256"]  # of other arrays than those asked for now
                entry[key] = value
    try:
        return ProblemSpec.model_validate(values, strict=True)  # a number in quotes is no number
    except ValidationError as error:
        raise SpecError(*_told(error, found.origin)) from error


def _is_stored(found: FoundSpec, key: str, value: Any) -> bool:
    """Whether the file's own `[data]` says the same."""
    stored = found.values["data"].get(key, DataSpec.model_fields[key].default)
    if key == "path" and isinstance(stored, str):
        return value == stored or os.path.realpath(found.base / stored) == os.path.realpath(value)
    return value == stored


def pinned(spec: ProblemSpec, found: FoundSpec, checkpoint: Path) -> ProblemSpec:
    """The specification without the digest of another checkpoint than the one that is read."""
    named = found.base / (spec.checkpoint.path or "")
    if spec.checkpoint.path is None or os.path.realpath(named) == os.path.realpath(checkpoint):
        return spec
    return spec.model_copy(update={"checkpoint": spec.checkpoint.model_copy(update={"sha256": None})})


def _told(error: ValidationError, origin: str) -> tuple[str, str]:
    """The first problem of a validation error, in words."""
    first = error.errors()[0]
    *tables, key = [str(part) for part in first["loc"]]
    where = f"[{'.'.join(tables)}] {key}" if tables else f"[{key}]"
    if first["type"] == "extra_forbidden":
        known = ProblemSpec.model_fields
        if tables:
            model = known[tables[0]].default.__class__ if tables[0] in known else ProblemSpec
            known = model.model_fields
        return f"unknown key {where} in {origin}", f"known here: {', '.join(known)}"
    return f"{where} in {origin}: {first['msg']}", "see: curv schema curv.toml"


def relative_to(
    spec: ProblemSpec, *, checkpoint: Path, base: Path, folder: Path, copied: Path | None = None
) -> dict[str, dict[str, Any]]:
    """The specification as the tables of a curv.toml in another folder, its files relative to that; defaults left out.

    Parameters
    ----------
    spec
        As resolved.
    checkpoint
        Where the weights are.
    base
        What the paths of `spec` are relative to.
    folder
        Where the new curv.toml will lie.
    copied
        A folder that `folder` is a copy of: what lies in it is named where it lies in the copy.
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
    named = {"model": ("target",), "data": ("path",), "loss": ("name", "likelihood", "regulariser")}
    for table, key in ((table, key) for table, keys in named.items() for key in keys):
        if key in document.get(table, {}):
            document[table][key] = moved(document[table][key], key)
    return document
