"""Where settings come from: the command line, the environment, a file or the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curvcli.cli.options import Request
from curvcli.errors import CurvError


def of_settings(request: Request, settings: Any) -> dict[str, str]:
    """Where each setting of an analysis comes from: `flag`, `environment` or `default`."""
    return {name: request.sources.get(name, "default") for name in type(settings).model_fields}


def line(origins: Mapping[str, str], file: str | None) -> str:
    """One line with the settings that come from a file; empty where none does."""
    names = [name for name, origin in origins.items() if origin == file]
    return f"settings from {file}: {', '.join(names)}" if names else ""


def is_unexpected(request: Request) -> bool:
    """Whether the command line names model, data and loss, but no file that could add to them."""
    return request.spec["spec"] is None and all(request.spec[name] for name in ("model", "data", "loss"))


def add_origin(error: CurvError, file: str, origins: Mapping[str, str]) -> None:
    """Name the file that settings come from in an error that does not name it."""
    if (told := line(origins, file)) and file not in f"{error.message} {error.hint}":
        error.hint = f"{error.hint} ({told})"
