"""`curv trace` as a user runs it."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from curvcli.schema.trace import TraceReport


def test_report(project: Any, curv: Any) -> None:
    outcome = curv("trace")
    assert outcome.code == 0, outcome.err
    report = outcome.report
    assert report["schema"] == "curv.trace/1"
    jsonschema.validate(report, TraceReport.model_json_schema(by_alias=True))
    result = report["result"]
    assert [layer["name"] for layer in result["layers"]] == ["Dense_0", "Dense_1"]
    total = sum(layer["trace"]["value"] for layer in result["layers"])
    assert total == pytest.approx(result["trace"]["value"], rel=1e-6)
    assert result["trace"]["method"] == "exact"
    assert result["trace"]["data_stderr"] is None


@pytest.mark.first_tier("hutch++")
@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_sampled_answers_hold_the_exact_one(project: Any, curv: Any, method: str) -> None:
    exact = curv("trace", "--dtype", "float64").report["result"]
    found = curv("trace", "--dtype", "float64", "--method", method, "--probes", "12", "--confidence", "0.999").report
    for name in ("trace", "frobenius_norm"):
        low, high = found["result"][name]["interval"]
        assert low <= exact[name]["value"] <= high
    assert found["result"]["method"] == method
    again = curv("trace", "--dtype", "float64", "--method", method, "--probes", "12", "--confidence", "0.999").report
    assert json.dumps(again["result"]) == json.dumps(found["result"])


@pytest.mark.slow
def test_part_of_the_examples(project: Any, curv: Any) -> None:
    result = curv("trace", "--num-examples", "20", "--matrix", "ggn").report["result"]
    assert result["trace"]["data_stderr"] > 0
    assert result["frobenius_norm"]["data_stderr"] > 0
    assert curv("trace", "--num-examples", "60").report["result"]["trace"]["data_stderr"] is None


@pytest.mark.first_tier("fisher-mc")
@pytest.mark.parametrize("matrix", ["fisher-mc", "gradient-covariance", "ntk"])
def test_other_matrices(project: Any, curv: Any, matrix: str) -> None:
    report = curv("trace", "--matrix", matrix, "--method", "xtrace", "--probes", "8").report
    assert report["matrix"] == matrix
    assert report["result"]["trace"]["value"] > 0
    assert bool(report["result"]["layers"]) == (matrix != "ntk")


def test_usage_errors(project: Any, curv: Any) -> None:
    for arguments, named in (
        (["--probes", "0"], "--probes"),
        (["--method", "xtrace", "--probes", "3"], "at least 4"),
        (["--method", "xdiag"], "xdiag"),
        (["--rtol", "2"], "--rtol"),
    ):
        outcome = curv("trace", *arguments)
        assert outcome.code == 2
        assert named in outcome.error


def test_forecast_spends_nothing(project: Any, curv: Any) -> None:
    forecast = curv("trace", "--dry-run", "--method", "xtrace", "--probes", "20").report["forecast"]
    assert forecast["products"] == 20
    assert forecast["bytes"] > 0


def test_view(project: Any, curv: Any) -> None:
    text = curv("trace", "--format", "text", "--method", "hutchinson", "--probes", "16").out
    lines = text.splitlines()
    assert lines[0].startswith("Trace of the hessian: ")
    assert max(map(len, lines)) <= 80
    assert "Dense_1" in text
    assert "more products" in text
    assert np.any(["±" in line for line in lines])


@pytest.mark.slow
def test_without_the_layers_forms_replace_products(project: Any, curv: Any) -> None:
    arguments = ("--matrix", "ggn", "--dtype", "float64")
    exact = curv("trace", *arguments).report["result"]
    told = (
        *arguments,
        "--no-layers",
        "--method",
        "hutchinson",
        "--probes",
        "16",
        "--skip-checks",
        "--confidence",
        "0.999",
    )
    report = curv("trace", *told).report
    jsonschema.validate(report, TraceReport.model_json_schema(by_alias=True))
    assert report["settings"]["layers"] is False
    assert report["result"]["layers"] == []
    assert (report["cost"]["forms"], report["cost"]["products"]) == (16, 0)
    for name in ("trace", "frobenius_norm"):
        low, high = report["result"][name]["interval"]
        assert low <= exact[name]["value"] <= high
    text = curv("trace", *told, "--format", "text").out
    assert "16 forms" in text
    assert "Dense_0" not in text
    hessian = curv("trace", "--no-layers", "--method", "hutchinson", "--probes", "16", "--skip-checks").report
    # And two random vectors, in float32 and in float64, for the rounding.
    assert (hessian["cost"]["forms"], hessian["cost"]["products"]) == (0, 16 + 4)


@pytest.mark.slow
def test_few_outputs_are_written_out(project: Any, curv: Any) -> None:
    for command in ("trace", "spectrum"):
        report = curv(command, "--num-examples", "5", "--matrix", "ggn", "--skip-checks").report
        assert report["result"]["written_out"] == "outputs"  # 15, and 67 parameters
        assert report["result"]["trace"]["method"] == "exact"
        assert curv(command, "--matrix", "ggn", "--skip-checks").report["result"]["written_out"] == "parameters"
    forecast = curv("spectrum", "--num-examples", "5", "--matrix", "ggn", "--dry-run").report["forecast"]
    assert forecast["products"] == 15
