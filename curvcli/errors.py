"""What can go wrong, one class per exit code.

Every error carries two sentences: what happened (`message`) and what to do about it (`hint`, with the exact
option or key to change where there is one). The command line prints them as one line each, without a traceback.
"""

from __future__ import annotations

from curvcli.printable import printable


class CurvError(Exception):
    """A failure that is told in two lines.

    Parameters
    ----------
    message
        What happened, in one line, naming the file, key or option.
    hint
        What to do about it, in one line.
    """

    exit_code = 70

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = (printable(" ".join(text.split())) for text in (message, hint))


class CurvWarning(UserWarning):
    """A self-check failed: the result that comes back is not to be relied on."""


def suggest_float64(dtype: object, otherwise: str) -> str:
    """A hint that begins with --dtype float64, where the run is not in float64 already.

    >>> suggest_float64("float32", "check the loss"), suggest_float64("float64", "check the loss")
    ('use --dtype float64, or check the loss', 'check the loss')
    """
    return otherwise if str(dtype) == "float64" else f"use --dtype float64, or {otherwise}"


class UsageError(CurvError):
    """The command line itself is wrong: an option's value, or options that exclude each other."""

    exit_code = 2


class NumericsError(CurvError):
    """The computation ran and its numbers cannot be used: non-finite loss, gradient or product."""

    exit_code = 3


class DataError(CurvError):
    """Bad content: a damaged checkpoint, a leaf or label out of range, lengths that differ."""

    exit_code = 65


class NotFoundError(CurvError):
    """A checkpoint, data file or step that is not there."""

    exit_code = 66


class DistributedError(CurvError):
    """A run over several processes broke."""

    exit_code = 69


class InternalError(CurvError):
    """A bug of curv's own."""

    exit_code = 70


class MemoryLimitError(CurvError):
    """The analysis would need more memory than it may take; said before the memory is spent."""

    exit_code = 71


class StateLockedError(CurvError):
    """Another process writes to the same state directory."""

    exit_code = 73


class OutputError(CurvError):
    """The report or an array file could not be written."""

    exit_code = 74


class PermissionDeniedError(CurvError):
    """A file that may not be read."""

    exit_code = 77


class SpecError(CurvError):
    """A bad specification or model: unknown key, missing column, untrusted target, model that fails."""

    exit_code = 78


def require(module: str, extra: str, purpose: str) -> object:
    """Import an optional dependency, or say which extra brings it.

    Raises
    ------
    SpecError
        The module is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SpecError(
            f"{purpose} needs {module.split('.')[0]}, which is not installed",
            f"install the extra: pip install 'curvcli[{extra}]'",
        ) from error
