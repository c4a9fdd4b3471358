"""Every schema by the name that `curv schema NAME` knows it by."""

from __future__ import annotations

from pydantic import BaseModel

from curvcli.schema.inspect import ForecastRecord, InspectReport
from curvcli.schema.report import ErrorRecord
from curvcli.schema.spec import ProblemSpec
from curvcli.schema.spectrum import SpectrumReport

SCHEMAS: dict[str, type[BaseModel]] = {
    "spectrum": SpectrumReport,
    "inspect": InspectReport,
    "forecast": ForecastRecord,
    "error": ErrorRecord,
    "curv.toml": ProblemSpec,
}
