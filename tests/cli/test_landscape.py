"""`curv landscape` as people and scripts use it."""

import jsonschema
import numpy as np
import pytest

from curvcli.schema.landscape import LandscapeReport

FAST = ("landscape", "--skip-checks", "--dtype", "float64", "--points", 4)
PLANE = ("--along", "random", "--along", "filter-normalized")


@pytest.fixture
def other(project):
    """Another checkpoint, with the units of the hidden layer in another order."""
    order = np.random.default_rng(1).permutation(8)
    return project.checkpoint(
        "other.npz",
        Dense_0__kernel=project.params["Dense_0/kernel"][:, order],
        Dense_0__bias=project.params["Dense_0/bias"][order],
        Dense_1__kernel=project.params["Dense_1/kernel"][order],
    ).name


def test_a_plane(project, curv, schema_of):
    answered = curv("landscape", *PLANE, "--points", 4)
    assert (answered.code, answered.err) == (0, "")
    report = answered.report
    jsonschema.validate(report, schema_of("landscape"), jsonschema.Draft202012Validator)
    assert LandscapeReport.model_validate(report).to_json() + "\n" == answered.out
    result = report["result"]
    assert set(result) >= {"a", "b", "loss", "quadratic", "barrier"}
    assert np.shape(result["loss"]) == np.shape(result["quadratic"]) == (4, 4)
    assert result["barrier"] is None


def test_the_barrier_between_two_checkpoints(project, curv, schema_of, other):
    report = curv("landscape", "--skip-checks", "--dtype", "float64", "--along", f"checkpoint:{other}").report
    jsonschema.validate(report, schema_of("landscape"), jsonschema.Draft202012Validator)
    result = report["result"]
    assert (result["a"][0], result["a"][-1], len(result["a"])) == (-0.5, 1.5, 25)
    # The same function with its units reordered: the same loss at both ends, and a barrier between.
    np.testing.assert_allclose(result["end_loss"], result["loss_at_weights"], rtol=1e-7)
    assert result["barrier"] > 0
    np.testing.assert_allclose(result["barrier_above_higher_end"], result["barrier"], rtol=1e-5)
    direct = curv("direction", "--skip-checks", "--dtype", "float64", "--along", f"checkpoint:{other}", "--points", 25)
    assert direct.report["result"]["profile"]["loss"] == result["loss"]


def test_usage_errors(project, curv):
    assert "one direction or two" in curv(*FAST, *PLANE, "--along", "newton").error
    assert curv(*FAST, "--along", "random", "--matrix", "ntk").code == 2
    assert curv(*FAST, *PLANE, "--max-memory", "1kB").code == 71


def test_dry_run(project, curv):
    forecast = curv("landscape", *PLANE, "--points", 4, "--dry-run", "-o", "-").report["forecast"]
    assert forecast["products"] == 2


@pytest.mark.parametrize(
    ("along", "headline"),
    [(PLANE, "Loss over random × filter-normalized: "), (("--along", "checkpoint:other.npz"), "Barrier along check")],
)
def test_one_screen(project, curv, monkeypatch, other, along, headline):
    monkeypatch.setenv("COLUMNS", "80")
    answered = curv(*FAST, *along, "--points", 25, "--format", "text")
    lines = answered.out.splitlines()
    assert lines[0].startswith(headline)
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 40
    assert "\x1b" not in answered.out
