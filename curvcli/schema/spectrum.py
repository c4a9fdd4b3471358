"""Settings, result and report of `curv spectrum`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from curvcli.schema.base import Strict, same_shape
from curvcli.schema.estimate import Bounded, Eigenvalue, Estimate
from curvcli.schema.report import Report
from curvcli.schema.settings import AnalysisSettings
from curvcli.schema.written_out import WRITTEN_OUT, WrittenOut

SpectrumMethod = Literal["auto", "dense", "hutchinson", "xtrace"]


class SpectrumSettings(AnalysisSettings):
    """Settings of `curv spectrum`."""

    method: SpectrumMethod = Field(
        default="auto",
        description="dense: all eigenvalues, exact, from the smaller side, parameters or outputs; hutchinson: plain "
        "mean over probes; xtrace: each probe is freed of the outliers that the other probes found; auto: dense for "
        "small matrices, else xtrace",
    )
    steps: int = Field(default=80, ge=2, description="Lanczos steps a probe")
    reorthogonalize: Literal["auto", "full", "none"] = Field(
        default="auto",
        description="none: less memory, ghosts in the nodes; auto: full, wherever the basis fits: device, host or disk",
    )


class Density(Strict):
    """The smoothed spectral density, computed from nodes and weights."""

    grid: list[float] = Field(min_length=1)
    value: list[float]
    stderr: list[float]
    sigma: float = Field(ge=0, description="width of the Gaussian, in units of eigenvalues; 0 for a single point")

    _shape = same_shape("grid", "value", "stderr")


class Cumulative(Strict):
    """Bounds on the fraction of eigenvalues ≤ grid, by Chebyshev, Markov and Stieltjes, widened for sampling."""

    grid: list[float] = Field(min_length=1)
    lower: list[float]
    upper: list[float]

    _shape = same_shape("grid", "lower", "upper")


class SpectrumResult(Strict):
    """The spectral density, the extremes, the trace and the masses."""

    dim: int = Field(ge=1)
    method: Literal["dense", "hutchinson", "xtrace"] = Field(description="the one used")
    written_out: WrittenOut = WRITTEN_OUT
    nodes: list[Annotated[list[float], Field(min_length=1)]] = Field(
        min_length=1,
        description="[probe][m] Ritz values, ascending; dense: one row, all eigenvalues, one that every vector of the "
        "output side's null space has only once",
    )
    weights: list[list[float]] = Field(description="[probe][m]; each probe's weights sum to 1")
    lambda_max: Eigenvalue
    lambda_min: Eigenvalue
    trace: Estimate
    frobenius_norm: Estimate
    negative_mass: Bounded = Field(description="fraction of eigenvalues below −near_zero_tolerance")
    near_zero_mass: Bounded = Field(description="fraction of eigenvalues within ±near_zero_tolerance")
    near_zero_tolerance: float = Field(ge=0)
    deflated: int = Field(ge=0, description="outlying eigenvalues that count exactly, without sampling error")
    density: Density
    cumulative: Cumulative
    max_stable_learning_rate: float | None = Field(
        description="2/λ_max; null unless λ_max is positive beyond its residual, and the matrix one of J's curvature"
    )
    max_stable_learning_rate_interval: tuple[float, float | None] | None = Field(
        default=None, description="2/λ_max over the interval of λ_max, with no upper end (null) where that reaches 0"
    )

    _shape = same_shape("nodes", "weights")


class SpectrumReport(Report[SpectrumSettings, SpectrumResult]):
    """The report of `curv spectrum`."""

    schema_name: Literal["curv.spectrum/1"] = Field(default="curv.spectrum/1", alias="schema")
