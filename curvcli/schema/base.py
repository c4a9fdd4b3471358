"""The base of every schema: unknown keys are errors, and no number is NaN or infinite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator

from curvcli.printable import printable

T = TypeVar("T")


class Strict(BaseModel):
    """A frozen model that rejects unknown keys, NaN and infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


def same_shape(*names: str) -> Any:
    """A validator of a model: its lists of these names have one shape, [n] or [n][m]; a list that is None is left out.

    Examples
    --------
    >>> class Curve(Strict):
    ...     x: list[float]
    ...     y: list[float]
    ...     _shape = same_shape("x", "y")
    >>> Curve(x=[1.0], y=[])
    Traceback (most recent call last):
    pydantic_core._pydantic_core.ValidationError: 1 validation error for Curve
      Value error, x, y differ in shape ...
    """

    def check(model: Any) -> Any:
        lists = [value for name in names if (value := getattr(model, name)) is not None]
        if any(shape_of(value) != shape_of(lists[0]) for value in lists[1:]):
            raise ValueError(f"{', '.join(names)} differ in shape")
        return model

    return model_validator(mode="after")(check)


def shape_of(values: Sequence[Any]) -> list[int]:
    """Length of a list, or the lengths of its lists after their number.

    >>> shape_of([1.0, None]), shape_of([[1.0], [2.0, 3.0]]), shape_of([])
    ([2], [2, 1, 2], [0])
    """
    return [len(values), *(len(row) for row in values if isinstance(row, list))]


def array_shape(values: Any) -> tuple[int, ...]:
    """The shape of an array of numbers as nested lists; () of one number.

    Raises
    ------
    ValueError
        There is anything but numbers in it, or its rows differ in length.

    >>> array_shape([[1, 2.5], [3, 4]]), array_shape(0.5)
    ((2, 2), ())
    """
    if not isinstance(values, list):
        if isinstance(values, int | float) and not isinstance(values, bool):
            return ()
        raise ValueError("there is something else than numbers in it")
    shapes = {array_shape(value) for value in values}
    if len(shapes) > 1:
        raise ValueError("its rows differ in length")
    return (len(values), *(shapes.pop() if shapes else ()))


def printable_values(value: T) -> T:
    """Make every string in a value of models, containers and strings printable, keys included."""
    return _mapped(value, lambda leaf: printable(leaf) if isinstance(leaf, str) else leaf)


def without_tiny(value: T, least: float = 1e-100) -> T:
    """A value of models and containers in which numbers nearer to zero than `least` are zero.

    >>> without_tiny([1e-320, -2e-100, None])
    [0.0, -2e-100, None]
    """
    return _mapped(value, lambda leaf: 0.0 if isinstance(leaf, float) and abs(leaf) < least else leaf)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same models and containers with all that is in them changed."""
    if isinstance(value, BaseModel):
        fields = {name: _mapped(getattr(value, name), change) for name in type(value).model_fields}
        return value.model_copy(update=fields)
    if isinstance(value, dict):
        return {change(key): _mapped(entry, change) for key, entry in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_mapped(entry, change) for entry in value)
    return change(value)
