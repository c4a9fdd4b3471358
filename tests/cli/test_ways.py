"""How products are computed, as a user sees and sets it; and what is compiled again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from curvcli.analyses.common import tuning

SAMPLED = ("spectrum", "--method", "xtrace", "--probes", 4, "--steps", 8, "--skip-checks")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache folder of this test."""
    monkeypatch.setenv("CURV_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.slow
def test_plan_of_a_report_is_followed_and_repeated(project, curv):
    way = {"batch_size": 7, "application": "map", "residuals": "fresh"}
    project.write("plan.json", json.dumps(way))
    report = curv(*SAMPLED, "--plan", "plan.json").report
    assert report["cost"]["way"] == way
    assert report["settings"]["plan"] == "plan.json"
    # That of the report, in turn, and what `curv inspect` makes of it.
    project.write("spectrum.json", json.dumps(report))
    assert curv("inspect", "--plan", "spectrum.json", "-o", "inspected.json").code == 0
    inspected = json.loads((project.folder / "inspected.json").read_text())
    assert inspected["result"]["plan"] == {
        **way, "chosen": "given", "batches": 9, "padded": 3, "resident": True, "probes_at_once": 64,
        "basis": "device", "reason": None,
    }  # fmt: skip
    assert curv(*SAMPLED, "--plan", "inspected.json").report["result"] == report["result"]


@pytest.mark.slow
def test_every_plan_gives_the_same_answer(project, curv):
    values = []
    for application in ("vmap", "map"):
        for residuals in ("kept", "fresh"):
            way = {"batch_size": 20, "application": application, "residuals": residuals}
            project.write("plan.json", json.dumps(way))
            report = curv(*SAMPLED, "--plan", "plan.json", "--dtype", "float64").report
            values.append(report["result"]["lambda_max"]["value"])
    assert values == pytest.approx([values[0]] * 4, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"batch_size": 0, "application": "map", "residuals": "kept"}', '{"batch_size": 5}',
             '{"batch_size": 5, "application": "scan", "residuals": "kept"}', '{"result": {"plan": 3}}'],
)  # fmt: skip
def test_a_file_that_is_no_plan(project, curv, text):
    project.write("plan.json", text)
    outcome = curv(*SAMPLED, "--plan", "plan.json")
    assert outcome.code == 2
    assert "--plan plan.json: not a plan" in outcome.error


def test_a_plan_that_is_not_there(project, curv):
    outcome = curv(*SAMPLED, "--plan", "nowhere.json")
    assert outcome.code == 2
    assert "curv inspect" in outcome.error


@pytest.mark.nightly
def test_calibration_is_remembered_for_this_network_alone(project, curv, tmp_path):
    plan = curv("inspect", "--calibrate").report["result"]["plan"]
    assert plan["chosen"] == "measured"
    report = curv("inspect").report
    assert report["result"]["plan"] == {**plan, "chosen": "remembered"}
    assert curv("inspect", "--matrix", "ggn").report["result"]["plan"]["chosen"] == "default"
    assert curv("inspect", "--no-cache").report["result"]["plan"]["chosen"] == "default"
    (remembered,) = (tmp_path / "cache" / "plans").glob("*.json")
    assert remembered.parent.stat().st_mode & 0o077 == 0
    for damage in ("", "{", '{"batch_size": -1}'):
        remembered.write_text(damage)
        assert curv("inspect").report["result"]["plan"]["chosen"] == "default"


def test_dry_run_times_nothing(project, curv, monkeypatch):
    monkeypatch.setattr(tuning, "RATE", 1.0)
    timed: list[Any] = []
    monkeypatch.setattr(tuning, "seconds_per_vector", lambda *args: timed.append(args) or 1.0)
    assert curv(*SAMPLED, "--dry-run").report["plan"]["chosen"] == "default"
    assert not timed
    assert curv(*SAMPLED).report["cost"]["way"]["batch_size"] > 0
    assert timed


@pytest.mark.first_tier("command1")
@pytest.mark.parametrize(
    "command", [SAMPLED, ("trace", "--method", "xtrace", "--probes", 8), ("diag", "--method", "xdiag", "--probes", 8),
                ("eigs", "--method", "lanczos", "-k", 2)],
)  # fmt: skip
def test_later_checkpoints_of_a_run_compile_nothing(project, curv, command):
    count = 10 if command is SAMPLED else 4
    root = project.steps("run", range(count))
    reports = curv(*command, root, "--all-steps").lines
    assert len(reports) == count
    compiling = [report["cost"]["compile_seconds"] for report in reports]
    assert compiling[0] > 0
    assert compiling[1:] == [0.0] * (count - 1)
    assert len({report["problem"]["checkpoint"]["sha256"] for report in reports}) == count
    alone = curv(*command, root, "--step", 3).report
    assert alone["result"] == reports[3]["result"]


def test_profile_accounts_for_the_time(project, curv):
    cost = curv(*SAMPLED, "--profile").report["cost"]
    parts = cost["profile"]
    assert set(parts) == {"load", "compile", "products", "orthogonalisation", "rest"}
    assert sum(parts.values()) == pytest.approx(cost["seconds"], rel=0.01)
    assert min(parts["load"], parts["products"], parts["orthogonalisation"], parts["rest"]) > 0
    assert curv(*SAMPLED).report["cost"]["profile"] is None
