"""curv: loss curvature of trained JAX networks, with an honest uncertainty on every number.

From Python: `Objective` (docs/python.md), `Found`, `CurvError`, which all errors are, and `CurvWarning`.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["CurvError", "CurvWarning", "Found", "Objective", "__version__"]

if TYPE_CHECKING:
    from curvcli.api import Found, Objective
    from curvcli.errors import CurvError, CurvWarning


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: the command line starts without them."""
    import importlib

    if name in ("Found", "Objective"):
        return getattr(importlib.import_module("curvcli.api"), name)
    if name in ("CurvError", "CurvWarning"):
        return getattr(importlib.import_module("curvcli.errors"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
