"""Settings, result and report of `curv landscape`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from curvcli.schema.base import Strict, shape_of
from curvcli.schema.lines import BatchStats, Line, LineSettings
from curvcli.schema.report import Report


class LandscapeSettings(LineSettings):
    """Settings of `curv landscape`."""

    points: int = Field(default=25, ge=2, le=10_000, description="along each direction, equally spaced over its range")

    @field_validator("along")
    @classmethod
    def _one_or_two(cls, value: list[str]) -> list[str]:
        if len(value) > 2:
            raise ValueError("a landscape has one direction or two")
        return value


class LandscapeResult(Strict):
    """The loss on a line or a plane through the weights.

    With one direction `loss` and `quadratic` are lists over `a`; with two, `loss[i][j]` is J(w + a_i A + b_j B).
    """

    directions: list[Line] = Field(min_length=1, max_length=2, description="A, and B where there are two")
    cosine: float | None = Field(description="of the angle between A and B, which are used as given; null for one")
    curvature: list[list[float]] = Field(description="AᵀMA, AᵀMB, …, M the matrix asked for, of the vectors as given")
    loss_at_weights: float = Field(description="J(w), computed as the grid is")
    a: list[float] = Field(min_length=1, description="multiples of A, ascending")
    b: list[float] | None = Field(min_length=1, description="multiples of B, ascending; null for one direction")
    loss: list[float | None] | list[list[float | None]] = Field(
        description="the true loss; null where it is not finite, or was not reached"
    )
    quadratic: list[float] | list[list[float]] = Field(description="the model of second order at w")
    batch_stats: BatchStats | None = Field(
        default=None,
        description="statistics of batch normalisation of the losses; null where the network has none, or each batch "
        "its own; slope, curvature and quadratic model are those with the statistics fixed",
    )
    noise: float | None = Field(
        ge=0,
        description="differences of losses smaller than this are rounding; null where no loss was reached",
    )
    barrier: float | None = Field(
        ge=0,
        description="one direction whose range holds [0, 1]: largest excess of the loss over the straight line between "
        "J(w) and J(w + A); null elsewhere",
    )
    barrier_above_higher_end: float | None = Field(ge=0, description="the largest loss above the higher of both ends")
    barrier_at: float | None = Field(ge=0, le=1, description="where the excess is largest")
    end_loss: float | None = Field(description="J(w + A), where there is a barrier")

    @model_validator(mode="after")
    def _one_grid(self) -> LandscapeResult:
        sides = [self.a] if self.b is None else [self.a, self.b]
        if len(sides) != len(self.directions) or any(sorted(side) != side for side in sides):
            raise ValueError("a, b do not ascend, one for each of the directions")
        grid = [len(self.a)] if self.b is None else [len(self.a), *[len(self.b)] * len(self.a)]
        if shape_of(self.loss) != grid or shape_of(self.quadratic) != grid:
            raise ValueError("loss, quadratic are not over a and b")
        return self


class LandscapeReport(Report[LandscapeSettings, LandscapeResult]):
    """The report of `curv landscape`."""

    schema_name: Literal["curv.landscape/1"] = Field(default="curv.landscape/1", alias="schema")
