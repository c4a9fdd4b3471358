"""Numbers that carry their uncertainty."""

from __future__ import annotations

from pydantic import Field, model_validator

from curvcli.schema.base import Strict


class Interval(Strict):
    """Shared by every uncertain number: where the true value is said to lie."""

    value: float
    interval: tuple[float, float] = Field(description="[low, high], for the examples used, rounding included")
    data_stderr: float | None = Field(
        default=None, ge=0, description="standard error that comes from the examples left out; null where all are used"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        low, high = self.interval
        if not low <= self.value <= high:
            raise ValueError(f"value {self.value} outside its interval [{low}, {high}]")
        return self


class Estimate(Interval):
    """A number that came from sampling (or, with `method: exact`, did not)."""

    stderr: float = Field(ge=0, description="standard error; 0 for exact numbers")
    confidence: float = Field(gt=0, lt=1, description="how often such an interval contains the true value")
    samples: int = Field(ge=0, description="independent probes it rests on; 0 for exact numbers")
    method: str

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.4g}" if low == high else f"{self.value:.4g} in [{low:.4g}, {high:.4g}]"

    @classmethod
    def exact(cls, value: float, confidence: float) -> Estimate:
        """A number without sampling error."""
        return cls(value=value, stderr=0, interval=(value, value), confidence=confidence, samples=0, method="exact")


class Beyond(Strict):
    """What may lie outside an extreme eigenvalue: a Krylov method can miss eigenvalues, with small probability."""

    bound: float = Field(description="no eigenvalue lies beyond this value")
    probability: float = Field(
        gt=0,
        le=1,
        description="with at least this probability over the random start vectors (Kuczyński and Woźniakowski 1992)",
    )


class Eigenvalue(Interval):
    """An eigenvalue from iteration: the matrix has an eigenvalue in [value − residual, value + residual]."""

    residual: float = Field(
        ge=0, description="‖Ay − θy‖ for the unit vector y, by a product in float64: the rounding of others is in it"
    )
    converged: bool = Field(description="whether the residual met the tolerance asked for")
    beyond: Beyond | None = Field(default=None, description="for extremes: what may have been missed")
