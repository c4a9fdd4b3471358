"""`curv saddle` as people and scripts use it."""

import json
import re

import jsonschema
import numpy as np
import pytest
from flax import serialization

from curvcli.schema.saddle import SaddleReport
from tests.cli.test_spectrum import dense_matrix

FAST = ("saddle", "--skip-checks")


def test_one_line_of_json_that_fits_its_schema(project, curv, schema_of):
    answered = curv("saddle")
    assert (answered.code, answered.err) == (0, "")
    report = answered.report
    jsonschema.validate(report, schema_of("saddle"), jsonschema.Draft202012Validator)
    assert SaddleReport.model_validate(report).to_json() + "\n" == answered.out
    result = report["result"]
    assert {
        "classification", "gradient_norm", "stationary", "lambda_min", "lambda_max", "negative_curvature_certified",
        "index", "null_space", "witness", "bound", "max_stable_learning_rate", "condition_number",
    } <= set(result)  # fmt: skip
    assert set(result["witness"]) >= {"curvature", "step", "loss_change"}
    assert all(check["passed"] for check in report["checks"].values())


@pytest.mark.first_tier("lanczos")
@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_numbers_are_those_of_the_matrix_written_down_anew(project, curv, method):
    values = np.linalg.eigvalsh(dense_matrix(project, "hessian"))
    result = curv(*FAST, "--dtype", "float64", "--method", method).report["result"]
    for name, value in (("lambda_min", values[0]), ("lambda_max", values[-1])):
        assert result[name]["value"] == pytest.approx(value, abs=1e-6 * values[-1])
    if method == "dense":
        assert result["index"]["value"] == np.sum(values < -1e-10 * values[-1])
    else:
        assert result["index"]["interval"][0] <= np.sum(values < 0) <= result["index"]["interval"][1]


def test_escape_writes_a_checkpoint_at_which_the_loss_is_as_said(project, curv):
    report = curv(*FAST, "--escape", "moved.npz", "--dtype", "float64").report
    assert report["result"]["escape"] == "moved.npz"
    before, change = report["problem"]["loss_value"], report["result"]["witness"]["loss_change"]
    after = curv("inspect", "moved.npz", "--skip-checks", "--dtype", "float64").report["result"]["loss_value"]
    assert after - before == pytest.approx(change, rel=1e-4)
    assert change < 0
    # Nothing is overwritten, and nothing computed before that is said.
    again = curv(*FAST, "--escape", "moved.npz")
    assert again.code == 2
    assert "moved.npz" in again.error


def test_what_is_no_question_about_a_saddle_is_refused(project, curv):
    for wrong in (("--matrix", "ggn"), ("--escape", "nowhere/moved.npz"), ("--damping", "1")):
        answered = curv(*FAST, *wrong)
        assert answered.code == (74 if wrong[0] == "--escape" else 2)
        assert wrong[0].removeprefix("--") in answered.error or "nowhere" in answered.error


def test_adam_where_the_checkpoint_has_none(project, curv):
    answered = curv(*FAST, "--optimizer-state")
    assert answered.code == 65
    assert "Adam" in answered.error


def test_adam_from_the_checkpoint(project, curv):
    params = {path: leaf.astype(np.float32) for path, leaf in project.params.items()}
    tree: dict = {}
    for path, leaf in params.items():
        layer, name = path.split("/")
        tree.setdefault(layer, {})[name] = leaf
    means = serialization.msgpack_restore(serialization.msgpack_serialize(tree))
    squares = {
        layer: {name: np.full_like(leaf, 4.0) for name, leaf in leaves.items()} for layer, leaves in tree.items()
    }
    state = {"params": tree, "opt_state": {"0": {"count": np.int32(100_000), "mu": means, "nu": squares}}}
    (project.folder / "state.msgpack").write_bytes(serialization.msgpack_serialize(state))
    options = ("--optimizer-state", "--learning-rate", "0.1", "--dtype", "float64")
    result = curv("saddle", "state.msgpack", "--skip-checks", *options).report["result"]
    # With equal second moments 4 the preconditioner is twice the identity.
    assert result["adam"]["lambda_max"]["value"] == pytest.approx(result["lambda_max"]["value"] / 2, rel=1e-6)
    assert result["adam"]["threshold"] == pytest.approx(380)
    assert result["adam"]["count"] == 100_000
    given = curv("saddle", "state.msgpack", "--skip-checks", *options, "--beta1", "0.5").report["result"]["adam"]
    assert given["threshold"] == pytest.approx(60)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(project, curv):
    first, second = (json.dumps(curv(*FAST, "--method", "lanczos", "--seed", 3).report["result"]) for _ in range(2))
    assert first == second


def test_for_people(project, curv):
    shown = curv(*FAST, "--format", "text", "--learning-rate", "0.1").out
    assert shown.splitlines()[0].startswith(("Not stationary", "Saddle", "Undecided"))
    for part in (
        "gradient",
        "λ_max",
        "along its vector",
        "negative",
        "near zero",
        "factor at lr 0.1",
        "steps to halve",
    ):
        assert part in shown
    assert max(map(len, shown.splitlines())) <= 80
    exact = curv(*FAST, "--format", "text", "--l2", "100").out  # convex, and every eigenvalue is known
    assert re.search(r"bound +no curvature below -\S+ *\n", exact)


@pytest.mark.slow
def test_forecast(project, curv):
    forecast = curv("saddle", "--dry-run", "--method", "lanczos").report["forecast"]
    assert forecast["products"] > 67
