"""Reading of report files, for `curv diff` and `curv plot`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from curvcli.errors import DataError, NotFoundError
from curvcli.registry import ANALYSES
from curvcli.schema.report import ErrorRecord, analysis_of, load_json_values
from curvcli.sources import register

WRITTEN = "give what curv wrote with -o FILE"

LARGEST_FILE = 1 << 30
"""Characters of a file of reports."""

LARGEST = 1e100
"""Of numbers: ratios and squares of what is read stay far from where float64 ends."""

DEEPEST = 100
"""Levels of lists and objects in one another."""


def read_one(path: Path) -> dict[str, Any]:
    """Read the only report of a file: the fields that it has, as values of its schema.

    Raises
    ------
    NotFoundError
        The file does not exist.
    DataError
        The file holds no report, or several.
    """
    records = _records(path)
    if len(records) != 1:
        raise DataError(f"{path} holds {len(records)} reports", f"take one of them out: sed -n 1p {path} > one.json")
    return _checked(path, records[0]).model_dump(mode="json", by_alias=True, exclude_unset=True)


def read_all(path: Path) -> tuple[list[Any], int]:
    """Read every report of a file, or of stdin for `-`, and count the error records.

    Raises
    ------
    NotFoundError
        The file does not exist.
    DataError
        The file holds something other than reports.
    """
    records = _records(path)
    if not records:
        raise DataError(f"{path} holds no report", WRITTEN)
    failed = ErrorRecord.model_fields["schema_name"].default
    reports = [record for record in records if not (isinstance(record, dict) and record.get("schema") == failed)]
    return [_checked(path, record) for record in reports], len(records) - len(reports)


def _records(path: Path) -> list[Any]:
    """Read JSON values: one a line, as curv writes them, or each over many lines, as jq prints them."""
    try:
        text = _text(path)
    except FileNotFoundError as error:
        raise NotFoundError(f"no report {path}", "write one: curv spectrum CKPT -o report.json") from error
    except (OSError, ValueError) as error:  # the latter: no UTF-8, a null byte in the name
        raise DataError(f"{path} cannot be read as a report", WRITTEN) from error
    if len(text) > LARGEST_FILE:
        raise DataError(f"{path} is larger than any file of reports", WRITTEN)
    try:
        # Files that Windows shells write begin with a mark.
        return load_json_values(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON: {error}", WRITTEN) from error


def _text(path: Path) -> str:
    """As much of a file as may be read."""
    if path == Path("-"):
        if sys.stdin is None:
            raise NotFoundError("stdin is closed", WRITTEN)
        return sys.stdin.read(LARGEST_FILE + 1)
    if not _is_shell_pipe(path):
        register(path, f"the report {path}")
    with path.open(encoding="utf-8") as stream:
        return stream.read(LARGEST_FILE + 1)


def _is_shell_pipe(path: Path) -> bool:
    """Whether a path is stdin, or a pipe that the shell opened for the command: `<(…)`."""
    return path in (Path("-"), Path("/dev/stdin")) or path.parent in (Path("/dev/fd"), Path("/proc/self/fd"))


def _checked(path: Path, report: Any) -> Any:
    """Validate a report against its schema."""
    name = str(report.get("schema", "")) if isinstance(report, dict) else ""
    analysis = ANALYSES.get(analysis_of(name))
    if analysis is None:
        raise DataError(f"{path} is no report of an analysis", WRITTEN)
    place = _out_of_bounds(report)
    if place is not None:
        raise DataError(
            f"{path} has a number beyond ±{LARGEST:g}, or more than {DEEPEST} levels, in {_joined(place)}",
            "take the report out: what is so large cannot be compared or drawn",
        )
    try:
        return analysis.report.model_validate(report)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        first = max(errors, key=lambda one: len(one["loc"]))  # of several kinds of results, the one that is nearest
        raise DataError(
            f"{path} is no report that this version of curv knows: {_joined(first['loc'])}: {first['msg']}",
            "make it again with this version",
        ) from error


def _joined(place: tuple[int | str, ...]) -> str:
    return ".".join(map(str, place))


def _out_of_bounds(report: Any) -> tuple[int | str, ...] | None:
    """Where a report has a number that is too large, or is nested too deeply; None where it has not.

    Arguments of the model are the user's own: nothing is computed with them.
    """
    waiting: list[tuple[tuple[int | str, ...], Any]] = [((), report)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict | list):
            if len(place) == DEEPEST:
                return place
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [
                ((*place, key), entry)
                for key, entry in entries
                if not isinstance(entry, float) or not abs(entry) <= LARGEST
            ]
        elif isinstance(value, int | float) and abs(value) > LARGEST and place[:2] != ("problem", "spec"):
            return place
    return None
