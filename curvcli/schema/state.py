"""The files of a state folder, validated when they are read."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field, model_validator

from curvcli.schema.base import Strict
from curvcli.schema.plan import Way

Facts = dict[str, Any]


class StateRecord(Strict):
    """The content of `problem.json`: the problem and settings of the stored values."""

    needed: Facts = Field(description="what values depend on")
    soft: dict[str, int] = Field(description="what only their rounding depends on")
    way: Way
    memory: int = Field(ge=0, description="bytes that the first run might take")


class RowsRecord(Strict):
    """The description before some rows of `records`."""

    keys: list[Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]]
    size: int = Field(ge=0, description="bytes of the values")
    crc: int = Field(ge=0, lt=1 << 32)
    dtype: str = Field(pattern=r"^[<>|][bcfiu](1|2|4|8|16)$")
    shape: list[Annotated[int, Field(ge=0)]]

    @model_validator(mode="after")
    def _consistent(self) -> RowsRecord:
        if not self.shape or len(self.keys) != self.shape[0]:
            raise ValueError(f"{len(self.keys)} keys for the shape {self.shape}")
        if math.prod(self.shape) * int(self.dtype[2:]) != self.size:
            raise ValueError(f"{self.size} bytes for the shape {self.shape}")
        return self


class FinishedRecord(Strict):
    """The mark of a finished run."""

    size: int = Field(ge=0, le=0)
