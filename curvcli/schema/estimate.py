"""Numbers with an uncertainty: estimates, eigenvalues and their intervals."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from curvcli.schema.base import Strict


class Interval(Strict):
    """The base of uncertain numbers: a value and an interval that contains the true value."""

    value: float
    interval: tuple[float, float] = Field(
        description="[low, high], rounding included; with a `data_stderr`, of the number for all examples"
    )
    interval_given_data: tuple[float, float] | None = Field(
        default=None,
        description="[low, high] of the number for the examples used; null where `interval` is that",
    )
    data_stderr: float | None = Field(
        default=None,
        ge=0,
        description="standard error that comes from the examples left out; null where all are used, or none is known",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        low, high = self.interval
        inner = self.interval_given_data or self.interval
        if not (low <= inner[0] <= inner[1] <= high and (self.value is None or inner[0] <= self.value <= inner[1])):
            raise ValueError(f"value {self.value} outside its interval {inner}, or that outside [{low}, {high}]")
        return self

    @property
    def given_data(self) -> tuple[float, float]:
        """The interval of the number over the examples used."""
        return self.interval_given_data or self.interval


class Estimate(Interval):
    """A number estimated by sampling, or exact with `method: exact`."""

    stderr: float = Field(ge=0, description="standard error; 0 for exact numbers")
    confidence: float = Field(gt=0, lt=1, description="how often such an interval contains the true value")
    samples: int = Field(ge=0, description="independent probes it rests on; 0 for exact numbers")
    method: str

    def __str__(self) -> str:
        low, high = self.interval
        if self.value is None:
            return f"not resolved, in [{low:.4g}, {high:.4g}]"
        certain = high - low <= 1e-8 * abs(self.value)
        return f"{self.value:.4g}" if certain else f"{self.value:.4g} in [{low:.4g}, {high:.4g}]"

    @classmethod
    def exact(cls, value: float, confidence: float) -> Self:
        """Return a number without sampling error."""
        return cls(value=value, stderr=0, interval=(value, value), confidence=confidence, samples=0, method="exact")


class Bounded(Estimate):
    """An estimate of a mass or a count, without a value where its interval is too wide."""

    # Instances do not change, and whoever reads a value that may be missing sees it by this type.
    value: float | None = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        description="null where not resolved"
    )
    resolved: bool = Field(
        default=True, description="false where the interval is wider than half of the possible range: no value"
    )

    def __str__(self) -> str:
        low, high = self.interval
        return super().__str__() if self.resolved else f"not resolved, in [{low:.4g}, {high:.4g}]"

    @classmethod
    def judged(cls, estimate: Estimate, largest: float) -> Bounded:
        """Return an estimate of a number between 0 and `largest`, without value if its interval is wider than half."""
        low, high = estimate.interval
        resolved = high - low <= 0.5 * largest
        fields = {name: getattr(estimate, name) for name in Estimate.model_fields}
        return cls(**{**fields, "value": estimate.value if resolved else None}, resolved=resolved)

    def times(self, count: float) -> Bounded:
        """Convert a fraction to a number of `count`."""
        low, high = self.interval
        value = None if self.value is None else count * self.value
        update = {"value": value, "stderr": count * self.stderr, "interval": (count * low, count * high)}
        return self.model_copy(update=update)

    def at_least(self, least: float) -> Bounded:
        """Raise the number and its interval to a lower bound."""
        low, high = self.interval
        value = None if self.value is None else max(self.value, least)
        return self.model_copy(update={"value": value, "interval": (max(low, least), max(high, least))})


class Beyond(Strict):
    """A bound on the spectrum beyond an extreme eigenvalue, as a Krylov method misses some with small probability."""

    bound: float = Field(description="no eigenvalue lies beyond this value")
    probability: float = Field(
        gt=0,
        le=1,
        description="with at least this probability over the random start vectors (Kuczyński and Woźniakowski 1992)",
    )


class Eigenvalue(Interval):
    """An eigenvalue from iteration: the matrix has an eigenvalue in [value − residual, value + residual].

    `interval` is this interval, widened by the error of the examples left out.
    """

    residual: float = Field(
        ge=0, description="‖Ay − θy‖ for the unit vector y, by a product in float64: the rounding of others is in it"
    )
    converged: bool = Field(description="whether the residual met the tolerance asked for")
    beyond: Beyond | None = Field(default=None, description="for extremes: what may have been missed")
