"""`curv eigs` as people and scripts use it."""

import jsonschema
import numpy as np
import pytest

from curvcli.schema.eigs import EigsReport
from tests.cli.test_spectrum import dense_matrix

FAST = ("eigs", "--skip-checks")
LANCZOS = (*FAST, "--method", "lanczos")


def eigenvalues(report):
    return np.array([pair["value"] for pair in report["result"]["eigenvalues"]])


def test_one_line_of_json_that_fits_its_schema(project, curv, schema_of):
    answered = curv("eigs")
    assert (answered.code, answered.err) == (0, "")
    report = answered.report
    jsonschema.validate(report, schema_of("eigs"), jsonschema.Draft202012Validator)
    assert EigsReport.model_validate(report).to_json() + "\n" == answered.out
    assert report["schema"] == "curv.eigs/1"
    assert report["warnings"] == []
    result = report["result"]
    assert set(result) >= {"eigenvalues", "which", "vectors"}
    assert (result["which"], result["vectors"], result["method"], result["dim"]) == ("largest", None, "dense", 67)
    assert len(result["eigenvalues"]) == 10
    assert set(result["eigenvalues"][0]) >= {"value", "residual", "interval", "converged"}
    assert all(check["passed"] for check in report["checks"].values())


@pytest.mark.first_tier("hessian-lanczos")
@pytest.mark.parametrize("method", ["dense", "lanczos"])
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_numbers_are_those_of_the_matrix_written_down_anew(project, curv, matrix, method):
    options = (*FAST, "--dtype", "float64", "--method", method, "--matrix", matrix, "-k", 12)
    exact = np.linalg.eigvalsh(dense_matrix(project, matrix))[::-1]
    np.testing.assert_allclose(eigenvalues(curv(*options).report), exact[:12], atol=1e-6 * exact[0])
    both = curv(*options, "--which", "both", "-k", 5).report
    np.testing.assert_allclose(eigenvalues(both), np.r_[exact[:3], exact[-2:]], atol=1e-6 * exact[0])


@pytest.mark.parametrize("name", ["pairs.npz", "pairs.safetensors"])
def test_vectors_file(project, curv, name):
    report = curv(*LANCZOS, "--dtype", "float64", "-k", 3, "--vectors", name).report
    assert report["result"]["vectors"] == name
    if name.endswith(".npz"):
        arrays = dict(np.load(project.folder / name))
    else:
        from safetensors.numpy import load_file

        arrays = load_file(project.folder / name)
    assert set(arrays) == {"eigenvalues", "residuals", *(f"vectors/{path}" for path in project.params)}
    for path, leaf in project.params.items():
        assert arrays[f"vectors/{path}"].shape == (3, *leaf.shape)
    flat = np.concatenate([arrays[f"vectors/{path}"].reshape(3, -1) for path in sorted(project.params)], axis=1)
    matrix = dense_matrix(project, "hessian")
    np.testing.assert_array_equal(arrays["eigenvalues"], eigenvalues(report))
    true = np.linalg.norm(flat @ matrix - arrays["eigenvalues"][:, None] * flat, axis=1)
    assert np.all(true <= 1.01 * arrays["residuals"] + 1e-14)
    np.testing.assert_allclose(flat @ flat.T, np.eye(3), atol=1e-12)


def test_usage_errors(project, curv):
    zero = curv(*FAST, "-k", 0)
    assert zero.code == 2
    assert "-k 0" in zero.error
    assert curv(*FAST, "--probes", 0).code == 2
    assert curv(*FAST, "--which", "middle").code == 2
    assert curv(*FAST, "--vectors", "pairs.txt").code == 2
    assert curv(*FAST, "--vectors", "missing/pairs.npz").code == 74
    assert curv(*LANCZOS, "--max-memory", "1kB").code == 71
    assert not [path for path in project.folder.iterdir() if "pairs" in path.name]


def test_more_than_there_are(project, curv):
    answered = curv(*FAST, "-k", 100)
    assert answered.code == 0
    assert len(eigenvalues(answered.report)) == 67
    assert "warning: -k 100" in answered.err


def test_out_of_products(project, curv):
    report = curv(*LANCZOS, "-k", 6, "--probes", 14).report
    pairs = report["result"]["eigenvalues"]
    assert not all(pair["converged"] for pair in pairs)
    assert any("have not converged" in warning for warning in report["warnings"])
    assert report["cost"]["products"] <= 14
    limited = curv(*LANCZOS, "--time-limit", 1e-6)
    assert limited.code == 0
    assert any("time limit" in warning for warning in limited.report["warnings"])


def test_dry_run(project, curv):
    forecast = curv("eigs", "--dry-run", "-o", "-").report["forecast"]
    assert forecast["products"] == 67
    forecast = curv("eigs", "--dry-run", "--method", "lanczos", "-o", "-").report["forecast"]
    assert 0 < forecast["products"] < 67
    assert forecast["bytes"] > 0


@pytest.mark.slow
def test_part_of_the_examples(project, curv):
    part = curv(*FAST, "--num-examples", 30, "-k", 4)
    errors = [pair["data_stderr"] for pair in part.report["result"]["eigenvalues"]]
    assert all(error > 0 for error in errors)
    assert all(pair["data_stderr"] is None for pair in curv(*FAST, "-k", 2).report["result"]["eigenvalues"])


@pytest.mark.parametrize(
    ("options", "headline"),
    [
        (("-k", 30), "30 largest eigenvalues of hessian: "),
        (("-k", 1), "1 largest eigenvalue of hessian: "),
        (("-k", 6, "--which", "both", "--num-examples", 30), "6 extreme eigenvalues of hessian: "),
        (("-k", 6, "--which", "smallest", "--matrix", "ntk"), "6 smallest eigenvalues of ntk: "),
        (("-k", 6, "--probes", 12, "--method", "lanczos"), "6 largest eigenvalues of hessian: "),
    ],
)
def test_one_screen(project, curv, monkeypatch, options, headline):
    monkeypatch.setenv("COLUMNS", "80")
    answered = curv(*FAST, *options, "--vectors", "v.npz", "--format", "text")
    lines = answered.out.splitlines()
    assert lines[0].startswith(headline)
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 40
    assert "\x1b" not in answered.out
    assert ("not converged" in answered.out) == ("--probes" in options)
    assert "v.npz" in answered.out
