"""Settings, result and report of `curv direction`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from curvcli.schema.base import Strict, same_shape
from curvcli.schema.lines import BatchStats, Line, LineSettings, Undefined
from curvcli.schema.report import Report


class DirectionSettings(LineSettings):
    """Settings of `curv direction`."""

    points: int = Field(default=21, ge=2, le=1_000_000, description="points of the profile, equally spaced")
    arrays: str | None = Field(
        default=None, description="write the vectors and the outputs' derivatives here: FILE.npz or .safetensors"
    )


class Quotients(Strict):
    """The quotients vᵀAv/vᵀv of two matrices, undamped."""

    hessian: float
    ggn: float


class OutputChange(Strict):
    """The derivative of the outputs along the unit vector, ‖J_n v‖/‖v‖ by example."""

    rms: float = Field(ge=0, description="root mean square over the examples, the mean weighted as in the loss")
    max: float = Field(ge=0, description="over the examples with any weight")
    example: int = Field(ge=0, description="the example that changes most")


class Profile(Strict):
    """The true loss along the vector, and its quadratic model; null where it is not finite, or was not reached."""

    s: list[float] = Field(min_length=1, description="in multiples of the vector as given")
    loss: list[float | None] = Field(description="J(w + s v)")
    quadratic: list[float] = Field(description="J + s ∇J·v + s²/2 vᵀAv")

    _shape = same_shape("s", "loss", "quadratic")


class DirectionResult(Line):
    """Curvature and loss along one direction."""

    rayleigh_quotients: Quotients
    third_derivative: float = Field(description="d³/dt³ J(w + t v/‖v‖) at t = 0: the remainder is t³/6 of it")
    output_change: OutputChange
    quadratic_minimum: float | None = Field(description="s at which the quadratic is least; null if it has no minimum")
    profile: Profile
    batch_stats: BatchStats | None = Field(
        default=None,
        description="statistics of batch normalisation of the losses; null where the network has none, or each batch "
        "its own; slope, curvature and quadratic model are those with the statistics fixed",
    )
    noise: float | None = Field(
        ge=0,
        description="differences of losses smaller than this are rounding: twice the largest change of J when all "
        "weights change in their last digit; null where no loss was reached",
    )
    model_radius: float | None = Field(
        ge=0,
        description="largest r such that for |s| ≤ r the loss is within 10 % of the largest change that the quadratic "
        "predicts up to there; null if it fails between 0 and the first point, was not reached, or has other batch "
        "statistics than the loss",
    )
    model_radius_censored: bool = Field(description="whether the radius is only where the range ends")


class Directions(Strict):
    """Curvature and loss along several directions, for repeated `--along`."""

    directions: list[DirectionResult] = Field(min_length=1)
    undefined: list[Undefined] = Field(description="asked for, but without meaning at these weights")


class DirectionReport(Report[DirectionSettings, DirectionResult | Directions]):
    """The report of `curv direction`."""

    schema_name: Literal["curv.direction/1"] = Field(default="curv.direction/1", alias="schema")
