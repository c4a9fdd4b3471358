"""Settings, result and report of `curv trace`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from curvcli.schema.base import Strict
from curvcli.schema.estimate import Estimate
from curvcli.schema.report import Report
from curvcli.schema.settings import AnalysisSettings
from curvcli.schema.written_out import WRITTEN_OUT, WrittenOut

TraceMethod = Literal["auto", "dense", "hutchinson", "hutch++", "xtrace"]


class TraceSettings(AnalysisSettings):
    """Settings of `curv trace`."""

    probes: int | None = Field(default=None, ge=1, description="products to spend; default 64, with rtol at most 2048")
    method: TraceMethod = Field(
        default="auto",
        description="dense: exact, a product a parameter or output, whichever are fewer; hutchinson: the mean over "
        "probes; hutch++, xtrace: the dominant space exactly, the rest sampled; auto: dense for small matrices, else "
        "what the spectrum favours",
    )

    layers: bool = Field(
        default=True,
        description="whether the layers' traces are wanted; without them a matrix like the GGN needs forward "
        "derivatives only, half the cost",
    )

    @property
    def max_probes(self) -> int:
        """Maximum number of products."""
        return self.probes or (64 if self.rtol is None else 2048)


class LayerTrace(Strict):
    """The trace of one layer's block."""

    name: str
    dim: int = Field(ge=1)
    trace: Estimate


class More(Strict):
    """The cost of a narrower interval of the trace."""

    within: float = Field(gt=0, description="half-width relative to the value")
    products: int = Field(
        ge=0,
        description="beyond those spent (forms, if the answer is of these), if the error falls as 1/√products (xtrace: "
        "or faster)",
    )


class TraceResult(Strict):
    """The trace, the Frobenius norm, and the trace of every layer."""

    dim: int = Field(ge=1)
    method: Literal["dense", "hutchinson", "hutch++", "xtrace"] = Field(description="the one used")
    reason: str = Field(description="why this method")
    written_out: WrittenOut = WRITTEN_OUT
    trace: Estimate
    frobenius_norm: Estimate
    layers: list[LayerTrace] = Field(description="their values sum to the trace; empty for ntk and with --no-layers")
    more: list[More] = Field(description="what ±10 %, ±1 %, ±0.1 % of the trace would cost")


class TraceReport(Report[TraceSettings, TraceResult]):
    """The report of `curv trace`."""

    schema_name: Literal["curv.trace/1"] = Field(default="curv.trace/1", alias="schema")
