"""The base of every schema: unknown keys are errors, and no number is NaN or infinite."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from curvcli.printable import printable

T = TypeVar("T")


class Strict(BaseModel):
    """A frozen model that rejects unknown keys, NaN and infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


def printable_values(value: T) -> T:
    """Make every string in a value of models, containers and strings printable, keys included."""
    made: Any = value
    if isinstance(value, str):
        made = printable(value)
    elif isinstance(value, BaseModel):
        made = value.model_copy(
            update={name: printable_values(getattr(value, name)) for name in type(value).model_fields}
        )
    elif isinstance(value, dict):
        made = {printable_values(key): printable_values(entry) for key, entry in value.items()}
    elif isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        # Long rows of numbers are the bulk of a report.
        made = value if value and isinstance(value[0], float) else type(value)(map(printable_values, value))
    return made
