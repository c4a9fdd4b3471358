"""Every schema by the name that `curv schema NAME` knows it by."""

from __future__ import annotations

from pydantic import BaseModel

from curvcli.schema.compare import CompareReport
from curvcli.schema.diag import DiagReport
from curvcli.schema.diff import DiffRecord
from curvcli.schema.direction import DirectionReport
from curvcli.schema.doctor import DoctorRecord
from curvcli.schema.eigs import EigsReport
from curvcli.schema.influence import InfluenceReport
from curvcli.schema.inspect import ForecastRecord, InspectReport
from curvcli.schema.landscape import LandscapeReport
from curvcli.schema.report import ErrorRecord
from curvcli.schema.saddle import SaddleReport
from curvcli.schema.spec import ProblemSpec
from curvcli.schema.spectrum import SpectrumReport
from curvcli.schema.step import StepReport
from curvcli.schema.trace import TraceReport

SCHEMAS: dict[str, type[BaseModel]] = {
    "spectrum": SpectrumReport,
    "trace": TraceReport,
    "diag": DiagReport,
    "eigs": EigsReport,
    "saddle": SaddleReport,
    "direction": DirectionReport,
    "landscape": LandscapeReport,
    "influence": InfluenceReport,
    "step": StepReport,
    "compare": CompareReport,
    "inspect": InspectReport,
    "diff": DiffRecord,
    "doctor": DoctorRecord,
    "forecast": ForecastRecord,
    "error": ErrorRecord,
    "curv.toml": ProblemSpec,
}
