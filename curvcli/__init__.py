"""curv: loss curvature of trained JAX networks, with an honest uncertainty on every number.

From Python: `Objective` (docs/python.md), `Found`, and `CurvError`, which all errors are.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["CurvError", "Found", "Objective", "__version__"]

if TYPE_CHECKING:
    from curvcli.api import Found, Objective
    from curvcli.errors import CurvError


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: the command line starts without them."""
    import importlib

    if name in ("Found", "Objective"):
        return getattr(importlib.import_module("curvcli.api"), name)
    if name == "CurvError":
        return importlib.import_module("curvcli.errors").CurvError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
