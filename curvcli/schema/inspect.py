"""Settings, result and report of `curv inspect`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from curvcli.schema.base import Strict
from curvcli.schema.plan import Plan
from curvcli.schema.report import Report, one_line
from curvcli.schema.settings import FIXED
from curvcli.schema.spectrum import SpectrumSettings


class InspectSettings(SpectrumSettings):
    """Settings of `curv inspect`: those of `curv spectrum`, whose cost it forecasts."""

    calibrate: bool = Field(
        default=False, description="time several ways of computing products, and remember the fastest for later runs"
    )
    state: None = Field(default=None, json_schema_extra=FIXED)  # pyright: ignore[reportIncompatibleVariableOverride]


class ParameterRecord(Strict):
    """A parameter array of the checkpoint."""

    name: str
    shape: list[int]
    size: int
    stored_dtype: str
    differentiated: bool
    norm: float


class ArrayRecord(Strict):
    """An array of the data, or an output of the model."""

    name: str
    shape: list[int]
    dtype: str


class DataSummary(Strict):
    """Summary of the data: arrays, masked fraction, classes."""

    num_examples: int
    arrays: list[ArrayRecord]
    outputs: ArrayRecord = Field(description="of the model, for one batch")
    masked_fraction: float = Field(ge=0, le=1, description="of examples or tokens left out")
    classes: list[int] | None = Field(
        default=None, description="examples (or tokens) of each class, for integer labels"
    )


class Forecast(Strict):
    """Forecast of the cost of `curv spectrum` with these settings."""

    products: int
    data_passes: int
    bytes: int = Field(
        description="peak of memory beyond a bare process: parameters, data, batches, Krylov basis, compiled programs"
    )
    runtime_bytes: int = Field(
        description="of these: compilation and compiled programs, from experience; --max-memory limits the others"
    )
    seconds: float | None = Field(default=None, description="from one timed product; null with --dry-run")


class ForecastRecord(Strict):
    """The record that `--dry-run` prints."""

    schema_name: Literal["curv.forecast/1"] = Field(default="curv.forecast/1", alias="schema")
    plan: Plan
    forecast: Forecast

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        return one_line(self)


class Collectives(Strict):
    """The communication between devices for one product, according to the compiled programs."""

    vectors: int = Field(description="in the block that is multiplied")
    bytes: dict[str, int] = Field(
        description="by kind of collective, of one pass over the data, on each device: sizes of the arrays worked on"
    )
    flops: float = Field(description="of the same on each device, as XLA counts them")
    accessed_bytes: float = Field(description="that the same reads and writes on each device, as XLA counts them")


class InspectResult(Strict):
    """Parameters, data, loss, gradient norm, plan and forecast of a problem."""

    parameters: list[ParameterRecord]
    layers: dict[str, int] = Field(description="differentiated parameters of each layer")
    collections: dict[str, int] = Field(description="entries of collections held fixed")
    data: DataSummary
    loss_value: float
    gradient_norm: float
    plan: Plan
    forecast: Forecast
    collectives: Collectives | None = Field(
        default=None, description="null on one device, and for matrices that are no sum over linearised batches"
    )


class InspectReport(Report[InspectSettings, InspectResult]):
    """The report of `curv inspect`."""

    schema_name: Literal["curv.inspect/1"] = Field(default="curv.inspect/1", alias="schema")
