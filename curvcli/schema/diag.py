"""Settings, result and report of `curv diag`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from curvcli.schema.base import Strict
from curvcli.schema.estimate import Estimate
from curvcli.schema.report import Report
from curvcli.schema.settings import AnalysisSettings
from curvcli.schema.written_out import WRITTEN_OUT, WrittenOut

DiagMethod = Literal["auto", "dense", "hutchinson", "xdiag"]


class DiagSettings(AnalysisSettings):
    """Settings of `curv diag`."""

    probes: int | None = Field(default=None, ge=1, description="products to spend; default 64, with rtol at most 2048")
    rtol: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="stop when the intervals' half-widths are this small beside the entries (root mean squares)",
    )
    method: DiagMethod = Field(
        default="auto",
        description="dense: exact, a product an entry or output; hutchinson: the mean over probes; xdiag: the "
        "dominant space exactly, the rest sampled; auto: dense for small matrices, else what the spectrum favours",
    )
    arrays: str | None = Field(default=None, description="write diagonal and errors here: FILE.npz or .safetensors")
    prune: float | None = Field(
        default=None, gt=0, lt=1, description="zero this fraction of the weights, those of least saliency, and compare"
    )

    @property
    def max_probes(self) -> int:
        """Maximum number of products."""
        return self.probes or (64 if self.rtol is None else 2048)


class LayerDiagonal(Strict):
    """The diagonal entries of one layer."""

    name: str
    dim: int = Field(ge=1)
    mean: Estimate
    min: float = Field(description="of the estimated entries")
    max: float = Field(description="of the estimated entries")
    stderr: float = Field(ge=0, description="root mean square of the entries' standard errors")
    factor: float = Field(
        ge=0, description="an entry's interval is its value ± factor · stderr; holds for entries drawn at random"
    )


class LayerSaliency(Strict):
    """The saliencies ½ H_ii w_i² of one layer (optimal brain damage)."""

    name: str
    dim: int = Field(ge=1)
    total: float
    stderr: float = Field(ge=0, description="of the total; an upper estimate")
    mean: float
    max: float
    negative_fraction: float = Field(ge=0, le=1, description="share of weights whose estimated curvature is negative")


class LayerPruned(Strict):
    """The number of weights zeroed in one layer."""

    name: str
    dim: int = Field(ge=1)
    weights: int = Field(ge=0, description="that were zeroed")


class Pruning(Strict):
    """Predicted and actual change of J by zeroing the weights of least saliency."""

    fraction: float
    weights: int = Field(ge=1, description="that were zeroed")
    threshold: float = Field(
        description="the largest saliency among them, a sampled curvature counting at least its standard error"
    )
    predicted_by_diagonal: Estimate = Field(
        description="½ Σ H_ii w_i² over them, from fresh probes: their own entries were selected for being small"
    )
    first_order: float = Field(description="gᵀδ, 0 at a minimum")
    predicted_by_quadratic: float = Field(description="gᵀδ + ½ δᵀHδ with the whole Hessian")
    actual: float = Field(description="J(w + δ) − J(w)")
    magnitude_actual: float = Field(description="the same for as many weights of least magnitude")
    resolution: float = Field(ge=0, description="rounding of the two differences of J")
    layers: list[LayerPruned]


class DiagResult(Strict):
    """The diagonal and the saliencies by layer, and the change by pruning."""

    dim: int = Field(ge=1)
    method: Literal["dense", "hutchinson", "xdiag"] = Field(description="the one used")
    reason: str = Field(description="why this method")
    written_out: WrittenOut = WRITTEN_OUT
    path: str | None = Field(description="of the arrays: entries by parameter path, standard errors as PATH.stderr")
    layers: list[LayerDiagonal] = Field(description="one, `outputs`, for ntk")
    saliency: list[LayerSaliency] | None = Field(
        description="largest mean first; without damping; null where the matrix is no curvature of J"
    )
    prune: Pruning | None


class DiagReport(Report[DiagSettings, DiagResult]):
    """The report of `curv diag`."""

    schema_name: Literal["curv.diag/1"] = Field(default="curv.diag/1", alias="schema")
