"""Which side of a matrix an exact answer was read from: a field that several results have."""

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
