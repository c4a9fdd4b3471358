"""`curv step` as people and scripts use it."""

import json

import jsonschema
import numpy as np
import pytest

from curvcli.schema.step import StepReport

FAST = ("step", "--skip-checks")
METHODS = ("newton", "gauss-newton", "natural", "kfac", "ekfac", "hessian-free", "bfgs", "covariance")


@pytest.mark.first_tier("natural", "kfac", "ekfac", "hessian-free")
@pytest.mark.parametrize("method", METHODS)
def test_one_line_of_json_that_fits_its_schema(project, curv, schema_of, method):
    answered = curv("step", "--method", method, "--quiet")
    assert (answered.code, answered.err) == (0, "")
    report = answered.report
    jsonschema.validate(report, schema_of("step"), jsonschema.Draft202012Validator)
    assert StepReport.model_validate(report).to_json() + "\n" == answered.out
    assert report["result"].keys() >= {
        "method", "damping", "step_norm", "predicted_decrease", "actual_decrease", "reduction_ratio",
        "reduction_ratio_damped", "next_damping", "solve", "passes",
    }  # fmt: skip
    assert report["result"]["actual_decrease"] > 0
    assert all(check["passed"] for check in report["checks"].values())


def test_the_method_fixes_the_matrix(project, curv):
    answered = curv(*FAST, "--matrix", "ggn")
    assert answered.code == 2
    assert "--matrix" in answered.error


@pytest.mark.parametrize(
    "wrong",
    [("--method", "kfac", "--cg-steps", 3), ("--save", "nowhere/moved.npz"), ("--damping", -1), ("--damping", "some"),
     ("--stale-factors",), ("--arrays", "step.txt"), ("--method", "kfac", "--save-factors", "nowhere/k.npz"),
     ("--momentum", "none.npz"), ("--method", "kfac", "--factors-from", "none.npz")],
)  # fmt: skip
def test_what_cannot_be_is_refused(project, curv, wrong):
    answered = curv(*FAST, *wrong)
    assert answered.code == (66 if "none.npz" in wrong else 74 if any("nowhere" in str(one) for one in wrong) else 2)
    assert answered.error


def test_the_saved_checkpoint_has_the_loss_that_was_said(project, curv):
    report = curv(*FAST, "--method", "gauss-newton", "--steps", 3, "--save", "moved.npz", "--dtype", "float64").report
    assert report["result"]["saved"] == "moved.npz"
    after = curv("inspect", "moved.npz", "--skip-checks", "--dtype", "float64").report["result"]["loss_value"]
    assert after == pytest.approx(report["result"]["final_loss"], rel=1e-5)
    assert len(report["result"]["steps"]) == 3
    assert curv(*FAST, "--save", "moved.npz").code == 2  # nothing is overwritten


def test_factors_are_kept_for_the_next_command(project, curv):
    options = (*FAST, "--method", "kfac", "--damping", 0.1, "--quiet")
    first = curv(*options, "--save-factors", "k.npz").report["result"]
    again = curv(*options, "--factors-from", "k.npz").report["result"]
    assert again["step_norm"] == pytest.approx(first["step_norm"], rel=1e-6)
    assert again["passes"]["factors"] == 0 < first["passes"]["factors"]
    project.checkpoint("other.npz", Dense_0__bias=np.ones(8, np.float32))
    refused = curv("step", "other.npz", *options[1:], "--factors-from", "k.npz")
    assert refused.code == 2
    assert "other weights" in refused.error
    assert curv("step", "other.npz", *options[1:], "--factors-from", "k.npz", "--stale-factors").code == 0


def test_a_step_is_the_next_one_s_momentum(project, curv):
    curv(*FAST, "--damping", 0.1, "--arrays", "step.npz")
    result = curv(*FAST, "--method", "kfac", "--damping", 0.1, "--momentum", "step.npz", "--quiet").report["result"]
    assert set(result["momentum"]) == {"step", "previous"}
    with np.load("step.npz") as step:
        assert set(step.files) == set(project.params)


def test_the_same_seed_gives_the_same_bytes(project, curv):
    first, second = (
        json.dumps(curv(*FAST, "--method", "kfac", "--steps", 3, "--seed", 3, "--quiet").report["result"])
        for _ in range(2)
    )
    assert first == second


@pytest.mark.first_tier("newton", "kfac", "hessian-free")
@pytest.mark.parametrize("method", METHODS)
def test_for_people(project, curv, method):
    shown = curv(*FAST, "--format", "text", "--method", method, "--steps", 3, "--quiet").out
    assert shown.splitlines()[0].startswith(f"{method} step, λ = ")
    for part in ("‖δ‖", "outputs move by", "Q falls by", "next λ", "J after"):
        assert part in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_forecast(project, curv):
    for method in METHODS:
        assert curv("step", "--dry-run", "--method", method).report["forecast"]["products"] > 1
