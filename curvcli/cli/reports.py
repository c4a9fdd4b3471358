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


def read_one(path: Path) -> dict[str, Any]:
    """Read the only report of a file, as it was written.

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
    _checked(path, records[0])
    return records[0]


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
        if not _is_shell_pipe(path):
            register(path, f"the report {path}")
        text = sys.stdin.read() if path == Path("-") else path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(f"no report {path}", "write one: curv spectrum CKPT -o report.json") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a report", WRITTEN) from error
    try:
        # Files that Windows shells write begin with a mark.
        return load_json_values(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON: {error}", WRITTEN) from error


def _is_shell_pipe(path: Path) -> bool:
    """Whether a path is stdin, or a pipe that the shell opened for the command: `<(…)`."""
    return path in (Path("-"), Path("/dev/stdin")) or path.parent in (Path("/dev/fd"), Path("/proc/self/fd"))


def _checked(path: Path, report: Any) -> Any:
    """Validate a report against its schema."""
    name = str(report.get("schema", "")) if isinstance(report, dict) else ""
    analysis = ANALYSES.get(analysis_of(name))
    if analysis is None:
        raise DataError(f"{path} is no report of an analysis", WRITTEN)
    try:
        return analysis.report.model_validate(report)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise DataError(
            f"{path} is no report that this version of curv knows: {place}", "make it again with this version"
        ) from error
