"""`curv compare` as people and scripts use it."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest

from curvcli.schema.compare import CompareReport

FAST = ("compare", "--skip-checks")
ALL = ["hessian", "ggn", "empirical-fisher", "kfac", "ekfac", "diagonal"]


def test_one_line_of_json_that_fits_its_schema(project, curv, schema_of):
    answered = curv("compare")
    assert answered.code == 0, answered.err
    report = answered.report
    jsonschema.validate(report, schema_of("compare"), jsonschema.Draft202012Validator)
    assert CompareReport.model_validate(report).to_json() + "\n" == answered.out
    assert report["schema"] == "curv.compare/1"
    result = report["result"]
    assert set(result) >= {"distances", "traces", "top_eigenvalues", "overlaps", "step_angles"}
    assert result["matrices"] == list(result["traces"]) == list(result["top_eigenvalues"]) == ALL
    assert len(result["distances"]) == len(result["overlaps"]) == len(result["step_angles"]["pairs"]) == 15
    assert [one["name"] for one in result["equal"]] == ["fisher"]
    assert result["laplace"] is None
    assert all(check["passed"] for check in report["checks"].values())
    assert report["settings"]["matrices"] == []


@pytest.mark.slow
def test_traces_are_those_of_curv_trace(project, curv):
    found = curv(*FAST, "--factors", "exact").report["result"]
    for name in ("hessian", "ggn", "empirical-fisher", "kfac"):
        alone = curv("trace", "--skip-checks", "--matrix", name, "--factors", "exact").report["result"]
        assert found["traces"][name]["value"] == pytest.approx(alone["trace"]["value"], rel=1e-5)
        assert found["frobenius_norms"][name]["value"] == pytest.approx(alone["frobenius_norm"]["value"], rel=1e-5)


@pytest.mark.nightly
def test_sampled_in_float32_holds_the_exact_distances(project, curv):
    exact = curv(*FAST, "--dtype", "float64", "-k", 1).report["result"]
    told = (*FAST, "--method", "sampled", "--probes", "12", "--confidence", "0.999", "-k", 1)
    answered = curv(*told)
    found = answered.report["result"]
    for one, true in zip(found["distances"], exact["distances"], strict=True):
        low, high = one["relative_to_a"]["interval"]
        assert low <= true["relative_to_a"]["value"] <= high
    assert found["distances"][0]["relative_to_a"]["samples"] == 12
    assert json.dumps(curv(*told).report["result"]) == json.dumps(found)


def test_laplace_and_its_file(project, curv):
    options = ("--matrices", "ggn,kfac", "--laplace", "kfac")
    report = curv(*FAST, *options, "--arrays", "v.npz").report
    found = report["result"]["laplace"]
    assert found["prior"] == "of the loss"
    assert found["prior_precision"] == pytest.approx(60 * 1e-3)
    assert found["predictive"]["path"] == "v.npz"
    variance = np.load(project.folder / "v.npz")["variance"]
    assert variance.shape == (60, 3)
    assert found["predictive"]["mean"]["value"] == pytest.approx(variance.mean())
    text = curv(*FAST, *options, "--format", "text").out
    assert "log evidence" in text
    assert "mean confidence" in text


def test_usage_errors(project, curv):
    for arguments, named in (
        (["--matrices", "ggn,newton"], "--matrices"),
        (["--matrices", "ggn"], "--matrices"),
        (["--matrices", "ggn,kfac,ggn"], "--matrices"),
        (["--matrices", "ggn,fisher"], "one matrix"),
        (["--damping", "-1"], "--damping"),
        (["--probes", "3"], "--probes"),
        (["--arrays", "v.npz"], "--arrays"),
        (["--prior-precision", "2"], "--prior-precision"),
        (["--laplace", "kfac", "--l2", "0"], "--prior-precision"),
    ):
        outcome = curv(*FAST, *arguments)
        assert outcome.code == 2, arguments
        assert named in outcome.error


def test_forecast_spends_nothing(project, curv):
    exact = curv("compare", "--dry-run").report["forecast"]
    assert exact["products"] == 3 * 67
    sampled = curv("compare", "--dry-run", "--method", "sampled", "--laplace", "ggn").report["forecast"]
    assert sampled["products"] > exact["products"]
    assert sampled["bytes"] > 0


def test_part_of_the_examples_is_said(project, curv):
    report = curv(*FAST, "--num-examples", "20", "--matrices", "ggn,kfac").report
    assert any("20 of 60 examples were used" in one for one in report["warnings"])


@pytest.mark.slow
def test_view(project, curv):
    text = curv(*FAST, "--format", "text").out
    lines = text.splitlines()
    assert lines[0].startswith("Most alike: ")
    assert max(map(len, lines)) <= 80
    assert "fisher = ggn" in text
    assert "Relative distance" in text
    assert "cosine between damped steps" in text
    sampled = curv(*FAST, "--format", "text", "--method", "sampled", "--probes", "8", "-k", "1").out
    assert "95% intervals: up to ±" in sampled
    assert curv(*FAST, "--format", "text", "--matrices", "ggn,kfac").out.startswith("ggn and kfac: cosine ")
