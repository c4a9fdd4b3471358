"""The record of `curv diff`: two reports of one analysis, number by number."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from curvcli.schema.base import Strict
from curvcli.schema.report import one_line


class Side(Strict):
    """One of the two reports."""

    path: str
    checkpoint: str
    step: int | None
    matrix: str | None


class Difference(Strict):
    """A number, or word, of both results."""

    name: str = Field(description="its place in `result`: `trace`, `layers[Dense_0].trace`, `eigenvalues[0]`")
    kind: Literal["estimate", "eigenvalue", "number", "text"]
    a: float | str | bool | None
    b: float | str | bool | None
    change: float | None = Field(description="b − a; null for words, and where one of them is missing")
    relative: float | None = Field(description="change / |a|; null where a is 0, or nearly")
    interval: tuple[float, float] | None = Field(
        description="where the true change lies: from both intervals, taken as independent; null where none is stated"
    )
    significant: bool | None = Field(description="whether 0 lies outside the interval; null where there is none")


class Setting(Strict):
    """A setting in which the two runs differ."""

    name: str
    a: Any
    b: Any


class DiffRecord(Strict):
    """The record that `curv diff` prints."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    schema_name: Literal["curv.diff/1"] = Field(default="curv.diff/1", alias="schema")
    analysis: str = Field(description="the schema that both reports have")
    a: Side
    b: Side
    differences: list[Difference]
    significant: int = Field(ge=0, description="differences that the intervals do not explain")
    by_chance: float = Field(
        ge=0, description="how many of the estimates' would be so by chance if nothing had changed"
    )
    settings: list[Setting] = Field(description="of problem, matrix, settings and environment: what differs")
    untrusted: bool = Field(description="a self-check failed in one of the runs")

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        return one_line(self)
