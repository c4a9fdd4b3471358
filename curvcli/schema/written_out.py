"""The field `written_out` of several results: the side of a matrix that was written out for an exact answer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

WrittenOut = Literal["parameters", "outputs", "factors"] | None
WRITTEN_OUT: Any = Field(
    default=None,
    description="method dense: the side that was written out, the rows of the matrix (`parameters`; those of the "
    "kernel for ntk), the outputs of all examples, whose smaller matrix has the same nonzero eigenvalues, or the "
    "Kronecker factors",
)
