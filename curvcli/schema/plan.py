"""The plan of a computation: the way products are computed, and batches."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from curvcli.schema.base import Strict


class Way(Strict):
    """The way products are computed, as in `--plan` and the cache; it affects the answer by rounding alone."""

    model_config = ConfigDict(extra="ignore")  # a whole `plan` of a report is one too

    batch_size: int = Field(ge=1)
    application: Literal["vmap", "map"] = Field(description="all vectors of a block at once, or one after the other")
    residuals: Literal["kept", "fresh"] = Field(
        description="the forward and backward passes of each batch: kept from product to product, or made afresh"
    )


class Plan(Way):
    """The plan of the products: batches and the way of computing."""

    model_config = ConfigDict(extra="forbid")

    chosen: Literal["default", "measured", "remembered", "given"] = Field(
        description="from sizes alone, by timing now or earlier on this machine, or by --plan or --batch-size"
    )
    batches: int
    padded: int = Field(description="rows of padding in the last batch")
    resident: bool = Field(description="whether the data stay on the device")
    probes_at_once: int
    basis: Literal["device", "host", "disk", "none"] = Field(
        default="device",
        description="where a Krylov basis is kept: on the device; where it does not fit, in the host's memory, on a "
        "CPU on the disk; or nowhere: without reorthogonalisation",
    )
    reason: str | None = Field(default=None, description="why the basis is not on the device")
