"""The origin of settings: command line, environment, file or default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curvcli.cli.options import Request
from curvcli.errors import CurvError


def of_settings(request: Request, settings: Any) -> dict[str, str]:
    """Return the origin of each setting of an analysis: `flag`, `environment` or `default`."""
    return {name: request.sources.get(name, "default") for name in type(settings).model_fields}


def line(origins: Mapping[str, str], file: str | None) -> str:
    """Return a line with the settings that come from a file; empty where none does."""
    names = [name for name, origin in origins.items() if origin == file]
    return f"settings from {file}: {', '.join(names)}" if names else ""


def is_unexpected(request: Request) -> bool:
    """Whether the command line names model, data and loss, and no file with further settings."""
    return request.spec["spec"] is None and all(request.spec[name] for name in ("model", "data", "loss"))


def add_origin(error: CurvError, file: str, origins: Mapping[str, str]) -> None:
    """Add the file that settings come from to an error that does not name it."""
    if (told := line(origins, file)) and file not in f"{error.message} {error.hint}":
        error.hint = f"{error.hint} ({told})"
