"""`curv diag` as scripts use it: a report that fits its schema, arrays by parameter path, one screen for people."""

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file

from curvcli.schema.diag import DiagReport

FAST = ("diag", "--skip-checks")


def test_a_report_that_fits_its_schema(project, curv, schema_of):
    answered = curv("diag", "--prune", 0.2)
    assert (answered.code, answered.err) == (0, "")
    report = answered.report
    jsonschema.validate(report, schema_of("diag"), jsonschema.Draft202012Validator)
    assert DiagReport.model_validate(report).to_json() + "\n" == answered.out
    assert report["schema"] == "curv.diag/1"
    result = report["result"]
    assert (result["dim"], result["method"], result["path"]) == (67, "dense", None)
    assert [(layer["name"], layer["dim"]) for layer in result["layers"]] == [("Dense_0", 40), ("Dense_1", 27)]
    assert set(result["layers"][0]) >= {"mean", "min", "max", "stderr"}
    assert result["prune"]["weights"] == 13
    assert {layer["name"] for layer in result["saliency"]} == {"Dense_0", "Dense_1"}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays_by_parameter_path(project, curv, suffix):
    file = project.folder / f"diagonal{suffix}"
    report = curv(*FAST, "--method", "hutchinson", "--probes", 8, "--arrays", file).report
    assert report["result"]["path"] == str(file)
    arrays = load_file(file) if suffix == ".safetensors" else np.load(file)
    assert set(arrays) == {key for name in project.params for key in (name, f"{name}.stderr")}
    for name, leaf in project.params.items():
        assert arrays[name].shape == arrays[f"{name}.stderr"].shape == leaf.shape
        assert arrays[name].dtype == np.float32
        assert np.all(arrays[f"{name}.stderr"] > 0)
    layer = report["result"]["layers"][0]
    entries = np.concatenate([arrays["Dense_0/bias"], arrays["Dense_0/kernel"].ravel()])
    assert layer["mean"]["value"] == pytest.approx(entries.mean(), rel=1e-5)
    assert layer["mean"]["method"] == "hutchinson"
    assert layer["max"] == pytest.approx(entries.max(), rel=1e-6)


def test_the_kernel_of_the_network(project, curv):
    file = project.folder / "kernel.npz"
    report = curv(*FAST, "--matrix", "ntk", "--arrays", file).report
    assert report["result"]["saliency"] is None
    assert np.load(file)["outputs"].shape == (180,)


def test_one_screen_of_80_columns(project, curv, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = curv(*FAST, "--format", "text", "--prune", 0.2, "--method", "xdiag", "--probes", 12).out
    lines = text.splitlines()
    assert lines[0].startswith("Diagonal of the hessian: 67 entries from ")
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
    assert "\x1b" not in text
    for word in (
        "Dense_0",
        "saliency",
        "pruned",
        "in truth",
        "least magnitude",
        "xdiag (--method xdiag was asked for)",
    ):
        assert word in text


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--prune", 1.5), 2, "--prune"),
        (("--prune", 0.1, "--matrix", "ntk"), 2, "ntk"),
        (("--method", "xdiag", "--probes", 3), 2, "--probes 4"),
        (("--probes", 0), 2, "--probes"),
        (("--arrays", "diagonal.csv"), 2, ".npz"),
        (("--arrays", "missing/diagonal.npz"), 74, "folder"),
        (("--method", "xdiag", "--max-memory", "1kB"), 71, "--params"),
    ],
)
def test_what_goes_wrong(project, curv, arguments, code, said):
    answered = curv(*FAST, *arguments)
    assert answered.code == code
    assert said in answered.error


def test_dry_run_spends_nothing(project, curv):
    report = curv(*FAST, "--method", "xdiag", "--probes", 20, "--dry-run").report
    assert report["forecast"]["products"] == 20
    assert report["forecast"]["bytes"] > 0


def test_part_of_the_examples_is_a_warning(project, curv):
    answered = curv(*FAST, "--num-examples", 30)
    assert any("30 of 60 examples were used" in warning for warning in answered.report["warnings"])
