"""Settings, result and report of `curv eigs`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from curvcli.schema.base import Strict
from curvcli.schema.estimate import Eigenvalue
from curvcli.schema.report import Report
from curvcli.schema.settings import AnalysisSettings

Which = Literal["largest", "smallest", "both", "magnitude"]
EigsMethod = Literal["auto", "dense", "lanczos"]


class EigsSettings(AnalysisSettings):
    """Settings of `curv eigs`."""

    probes: int | None = Field(default=None, ge=1, description="products to spend; default 20·(k + 50)")
    k: int = Field(default=10, ge=1, description="how many eigenpairs")
    which: Which = Field(
        default="largest",
        description="the algebraically largest or smallest, both: half at each end, magnitude: the largest |λ|",
    )
    method: EigsMethod = Field(
        default="auto",
        description="dense: diagonalise the whole matrix, exact; lanczos: thick-restart block Lanczos; auto: dense "
        "where the matrix is small, else lanczos",
    )
    vectors: str | None = Field(default=None, description="write the eigenvectors here: FILE.npz or .safetensors")

    @property
    def max_probes(self) -> int:
        """Maximum number of products, several times what networks typically need."""
        return self.probes or 20 * (self.k + 50)


class Eigenpair(Eigenvalue):
    """An eigenvalue, its residual, and the gradient's share along its vector."""

    gradient_cosine_squared: float | None = Field(
        ge=0, le=1, description="share of ‖∇J‖² along the vector; null where the matrix acts on no gradient, or ∇J = 0"
    )


class EigsResult(Strict):
    """The requested eigenpairs."""

    dim: int = Field(ge=1)
    method: Literal["dense", "lanczos"] = Field(description="the one used")
    which: Which
    eigenvalues: list[Eigenpair] = Field(description="descending")
    vectors: str | None = Field(description="path of the file that holds them")
    gradient_overlap: float | None = Field(
        ge=0, le=1, description="share of ‖∇J‖² in the span of all vectors; null where it has no meaning, or ∇J = 0"
    )
    block: int = Field(ge=1, description="vectors in a product at the end; larger where copies were looked for")
    starts: int = Field(ge=0, description="random vectors that the search rests on; 0 for dense")
    restarts: int = Field(ge=0, description="times the basis was compressed")


class EigsReport(Report[EigsSettings, EigsResult]):
    """The report of `curv eigs`."""

    schema_name: Literal["curv.eigs/1"] = Field(default="curv.eigs/1", alias="schema")
