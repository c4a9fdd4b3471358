"""What every analysis can be told. These classes are the only home of defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from curvcli.schema.base import Strict
from curvcli.schema.matrices import MATRICES, refused, taken_by

if TYPE_CHECKING:
    MatrixName = str
else:
    MatrixName = Literal[taken_by("matrix")]

MIXED = "with the statistics of a batch an example has no loss of its own, which that rests on"

Dtype = Literal["float32", "float64"]

FIXED: Any = {"fixed": True}
"""Marks a field that a subclass leaves at one value: it is no option of that command."""


class DataSettings(Strict):
    """How much of the problem, in which arithmetic."""

    params: list[str] = Field(default_factory=list, description="globs: only these parameters are differentiated")
    exclude: list[str] = Field(default_factory=list, description="globs: these parameters are held fixed")
    num_examples: int | None = Field(default=None, ge=1, description="use the first N examples (default: all)")
    batch_size: int | None = Field(default=None, ge=1, description="examples at once (default: chosen by size)")
    batch_norm: Literal["fixed", "batch"] = Field(
        default="fixed",
        description="fixed: by the statistics of the checkpoint; batch: by those of each batch, as in training, on the "
        "batches of --batch-size, which is then part of the answer",
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="every random draw comes from it")
    dtype: Dtype = Field(default="float32", description="arithmetic of all products")
    threads: int | None = Field(default=None, ge=1, description="CPU threads (default: all cores)")
    devices: Annotated[int, Field(ge=1)] | Literal["all"] | None = Field(
        default=None, description="devices that share every batch: a number, or all (default: one)"
    )
    shard_params: bool = Field(default=False, description="cut the parameters across the devices too")
    distributed: bool = Field(
        default=False, description="one of several processes, each started like this one; see docs/scale.md"
    )

    @property
    def block(self) -> str:
        """Which parameters, in words; empty where it is all of them."""
        return ", ".join([*self.params, *(f"not {glob}" for glob in self.exclude)])


class InitSettings(DataSettings):
    """What `curv init` can be told."""

    batch_norm: Literal["fixed"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="fixed", json_schema_extra=FIXED
    )

    pin: bool = Field(
        default=False,
        description="write the digests of weights and data too, so that a change of either is an error",
    )


class AnalysisSettings(DataSettings):
    """Shared by the analyses of a matrix."""

    use: ClassVar[str] = "matrix"
    """The fact of `schema.matrices` that says which matrices are taken."""

    matrix: MatrixName = Field(default="hessian", description="which curvature matrix")
    mc_samples: int = Field(
        default=1, ge=1, le=1_000_000, description="label samples an example, or token, for fisher-mc, kfac, ekfac"
    )
    factors: Literal["exact", "sampled", "empirical"] = Field(
        default="sampled",
        description="of kfac and ekfac: from all columns of the output Hessians' roots, from labels drawn (as many as "
        "--mc-samples), or from the observed labels",
    )
    sharing: Literal["expand", "reduce"] = Field(
        default="expand", description="of kfac and ekfac, weights used at several positions: all of them, or their sums"
    )
    damping: float = Field(default=0.0, ge=0, description="λ; λI is added to the matrix")
    regulariser: bool = Field(default=True, description="whether the regulariser's curvature is part of the matrix")
    probes: int | None = Field(default=None, ge=1, description="random vectors; default 10, with rtol at most 512")
    tol: float = Field(default=1e-6, gt=0, description="eigenvalue residual relative to the norm of the matrix")
    rtol: float | None = Field(
        default=None, gt=0, lt=1, description="stop when the interval is this narrow, relatively"
    )
    confidence: float = Field(default=0.95, gt=0, lt=1, description="of every interval")
    time_limit: float | None = Field(default=None, gt=0, description="seconds after which to answer with what there is")
    max_memory: int | None = Field(
        default=None, ge=1, description="bytes that may be taken (default: 70 % of what is free)"
    )
    plan: str | None = Field(
        default=None, description="compute products as this report of curv inspect, or its plan, says"
    )
    skip_checks: bool = Field(default=False, description="leave out the self-checks")
    state: str | None = Field(
        default=None, description="keep what is computed in this folder: killed, the same command goes on from there"
    )

    @field_validator("matrix", mode="before")
    @classmethod
    def _taken(cls, value: Any) -> Any:
        return refused(value, cls.use)

    @model_validator(mode="after")
    def _examples_apart(self) -> AnalysisSettings:
        if self.batch_norm == "batch" and (what := self.rests_on_examples):
            raise ValueError(f"--batch-norm batch does not go with {what}: {MIXED}")
        return self

    @property
    def rests_on_examples(self) -> str:
        """What asks for each example's own gradient, or layers for each example by itself; empty where nothing does."""
        return f"the matrix {self.matrix}" if MATRICES[self.matrix].by_examples else ""

    @property
    def regulariser_included(self) -> bool:
        """Whether ∇²R is in the matrix."""
        return self.regulariser and MATRICES[self.matrix].regularised

    @property
    def max_probes(self) -> int:
        """Probes that may be drawn: a fixed number, or room for `rtol` to be met."""
        return self.probes or (10 if self.rtol is None else 512)
