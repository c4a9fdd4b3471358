"""The record of `curv doctor`, which describes this machine."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from curvcli.schema.base import Strict
from curvcli.schema.report import one_line


class Cache(Strict):
    """The cache folder and its size."""

    path: str
    bytes: int = Field(ge=0)
    files: int = Field(ge=0)


class Memory(Strict):
    """Memory of the first device, or of the machine where the device is a CPU."""

    available: int = Field(ge=0, description="bytes that are free")
    limit: int = Field(ge=0, description="bytes that curv takes at most without --max-memory")


class Speed(Strict):
    """Speed of this machine, measured for a second."""

    product_seconds: float = Field(
        gt=0, description="of a Hessian product: an MLP 64-128-128-10 on 1,797 examples, a vector in a block of 8"
    )
    products: int = Field(ge=1, description="that were made in the time")
    matrix_gflops: float = Field(gt=0, description="10⁹ operations a second of products of float32 matrices, 1024 wide")


class DoctorRecord(Strict):
    """The record that `curv doctor` prints."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    schema_name: Literal["curv.doctor/1"] = Field(default="curv.doctor/1", alias="schema")
    curv: str
    python: str
    platform: str
    packages: dict[str, str | None] = Field(description="versions; null where a package is not installed")
    devices: list[str]
    threads: int
    cache: Cache | None = Field(description="null where no folder can be had")
    memory: Memory
    speed: Speed
    problems: list[str] = Field(description="what will go wrong, with what helps; empty where nothing was found")

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        return one_line(self)
