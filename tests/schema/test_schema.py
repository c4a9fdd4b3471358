"""Strict in, strict out."""

from __future__ import annotations

import json

import jsonschema
import pytest
from pydantic import ValidationError

from curvcli.registry import schemas
from curvcli.schema.estimate import Estimate
from curvcli.schema.report import ErrorRecord, load_json
from curvcli.schema.settings import AnalysisSettings
from curvcli.schema.spec import ProblemSpec

SCHEMAS = schemas()


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_valid_json_schemas(name: str) -> None:
    document = SCHEMAS[name].model_json_schema()
    jsonschema.Draft202012Validator.check_schema(document)
    assert json.loads(json.dumps(document)) == document


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_no_number_is_infinite_or_nan(number: float) -> None:
    with pytest.raises(ValidationError):
        Estimate(value=number, stderr=0, interval=(0, 1), confidence=0.9, samples=1, method="")
    with pytest.raises(ValidationError):
        Estimate(value=0, stderr=0, interval=(0, number), confidence=0.9, samples=1, method="")


def test_a_value_lies_in_its_interval() -> None:
    with pytest.raises(ValidationError, match="outside its interval"):
        Estimate(value=2, stderr=0, interval=(0, 1), confidence=0.9, samples=1, method="")
    assert Estimate.exact(3.0, 0.95).interval == (3, 3)


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": Infinity}', '{"a": 1, "a": 2}', "{", '{"a": {"b": 1, "b": 1}}'])
def test_strict_reading(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        load_json(text)


def test_unknown_keys_are_errors() -> None:
    with pytest.raises(ValidationError):
        ProblemSpec.model_validate({"loss": {"nmae": "squared_error"}})
    with pytest.raises(ValidationError):
        AnalysisSettings.model_validate({"probe": 3})


def test_probes_default_depends_on_rtol() -> None:
    assert AnalysisSettings().max_probes == 10
    assert AnalysisSettings(rtol=0.01).max_probes == 512
    assert AnalysisSettings(rtol=0.01, probes=20).max_probes == 20


def test_error_record_is_one_line() -> None:
    record = ErrorRecord(checkpoint="a", step=None, error="e", hint="h", exit_code=65)
    assert json.loads(record.to_json())["schema"] == "curv.error/1"
    assert "\n" not in record.to_json()
