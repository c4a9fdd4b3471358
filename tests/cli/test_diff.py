"""`curv diff` as people and scripts use it."""

import json
import math

import jsonschema
import pytest

FAST = ("--skip-checks", "--dtype", "float64")


@pytest.fixture
def reports(project, curv):
    """The spectrum before and after the weights have grown, written out as numbers."""
    project.checkpoint("grown.npz", **{name.replace("/", "__"): 1.5 * leaf for name, leaf in project.params.items()})
    for name, checkpoint, seed in (("a", "model.npz", 0), ("b", "grown.npz", 0), ("again", "model.npz", 1)):
        sampled = ("--method", "hutchinson", "--probes", 4, "--steps", 8, "--seed", seed)
        assert curv("spectrum", checkpoint, *FAST, *sampled, "-o", f"{name}.json").code == 0
    return [json.loads((project.folder / f"{name}.json").read_text()) for name in ("a", "b", "again")]


def rows(record):
    return {row["name"]: row for row in record["differences"]}


def test_what_changed_is_told_from_chance(reports, curv, schema_of):
    answered = curv("diff", "a.json", "b.json")
    assert (answered.code, answered.err) == (0, "")
    record = answered.report
    jsonschema.validate(record, schema_of("diff"), jsonschema.Draft202012Validator)
    a, b, _ = (one["result"] for one in reports)
    row = rows(record)["lambda_max"]
    assert (row["kind"], row["significant"]) == ("eigenvalue", True)
    assert row["change"] == b["lambda_max"]["value"] - a["lambda_max"]["value"]
    assert row["interval"][0] == pytest.approx(b["lambda_max"]["interval"][0] - a["lambda_max"]["interval"][1])
    trace = rows(record)["trace"]
    low = math.hypot(b["trace"]["value"] - b["trace"]["interval"][0], a["trace"]["interval"][1] - a["trace"]["value"])
    assert trace["interval"][0] == pytest.approx(trace["change"] - low)
    assert rows(record)["max_stable_learning_rate"]["significant"] is None
    assert not [one for one in record["settings"] if "checkpoint" in one["name"]]

    same = curv("diff", "a.json", "again.json").report
    assert rows(same)["trace"]["change"] != 0
    assert not rows(same)["trace"]["significant"]
    assert not rows(same)["lambda_max"]["significant"]
    assert [one["name"] for one in same["settings"]] == ["settings.seed"]


def test_layers_are_matched_by_name(project, curv):
    curv("trace", *FAST, "-o", "a.json")
    curv("trace", *FAST, "--params", "Dense_1/*", "-o", "b.json")
    found = rows(curv("diff", "a.json", "b.json").report)
    assert {name for name in found if name.startswith("layers")} == {"layers[Dense_1].trace"}


def test_for_people(reports, curv, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = curv("diff", "a.json", "b.json", "--format", "text").out.splitlines()
    assert "numbers changed by more than their intervals allow" in shown[0]
    assert any(line.startswith("* lambda_max") for line in shown)
    assert max(map(len, shown)) <= 80


@pytest.mark.first_tier("None-*", "{}-*")
@pytest.mark.parametrize(
    ("content", "code", "text"),
    [
        (None, 66, "no report c.json"),
        ("{", 65, "no JSON"),
        ("{}", 65, "no report of an analysis"),
        ("{}\n{}\n", 65, "holds 2 reports"),
        ('{"schema": "curv.spectrum/1"}', 65, "no report that this version"),
    ],
)
def test_what_is_no_report(reports, project, curv, content, code, text):
    if content is not None:
        project.write("c.json", content)
    answered = curv("diff", "a.json", "c.json")
    assert (answered.code, text in answered.error) == (code, True)


def test_two_analyses_are_not_compared(reports, project, curv):
    curv("trace", *FAST, "-o", "trace.json")
    assert "same analysis" in curv("diff", "a.json", "trace.json").error


def test_stdout_by_name(reports, project, curv):
    assert curv("diff", "a.json", "b.json", "-o", "-").report == curv("diff", "a.json", "b.json").report
    assert not (project.folder / "-").exists()
