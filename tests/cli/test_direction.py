"""`curv direction` as people and scripts use it."""

import jsonschema
import numpy as np
import pytest

from curvcli.schema.direction import DirectionReport
from tests.cli.conftest import REPOSITORY
from tests.cli.test_spectrum import dense_matrix

FAST = ("direction", "--skip-checks", "--dtype", "float64")
AUTOENCODER = REPOSITORY / "sample_models/linear_autoencoder.ckpt"
TANGENTS = """
import jax
import jax.numpy as jnp

def grow(params, s):
    return jax.tree.map(lambda w: w * (1 + s), params)

def shifted(params, s):
    return jax.tree.map(lambda w: w + s + 1, params)

def first_layer(params, s):
    return {"Dense_0": params["Dense_0"]}

def fails(params, s):
    return params["nothing"]

number = 3
"""


def flat(project, arrays):
    return np.concatenate([np.asarray(arrays[name], float).ravel() for name in sorted(project.params)])


def test_one_line_of_json_that_fits_its_schema(project, curv, schema_of):
    answered = curv("direction", "--points", 5)
    assert (answered.code, answered.err) == (0, "")
    report = answered.report
    jsonschema.validate(report, schema_of("direction"), jsonschema.Draft202012Validator)
    assert DirectionReport.model_validate(report).to_json() + "\n" == answered.out
    assert report["schema"] == "curv.direction/1"
    result = report["result"]
    assert set(result) >= {"direction", "norm", "slope", "rayleigh_quotient", "profile"}
    assert set(result["profile"]) == {"s", "loss", "quadratic"}
    assert (result["direction"], len(result["profile"]["s"])) == ("gradient", 5)
    assert all(check["passed"] for check in report["checks"].values())
    several = curv("direction", "--skip-checks", "--along", "gradient", "--along", "random", "--points", 3).report
    jsonschema.validate(several, schema_of("direction"), jsonschema.Draft202012Validator)
    assert set(several["result"]) == {"directions", "undefined"}
    assert [one["direction"] for one in several["result"]["directions"]] == ["gradient", "random"]


@pytest.mark.parametrize(("name", "curvature"), [("rescale", 1.358681), ("rotate", 4.1928e-4)])
def test_the_lectures_numbers(curv, name, curvature):
    result = curv(*FAST, AUTOENCODER, "--along", f"tangent:curvcli.zoo:{name}", "--points", 3).report["result"]
    assert f"{result['rayleigh_quotient']:.5g}" == f"{curvature:.5g}"
    assert abs(result["slope"]) < 1e-14
    if name == "rotate":
        # The reconstruction stays: only the regulariser resists.
        assert result["output_change"]["rms"] < 1e-14


@pytest.mark.slow
def test_directions_from_files(project, curv):
    hessian = dense_matrix(project, "hessian")
    curv("eigs", "--skip-checks", "--dtype", "float64", "-k", 3, "--vectors", "pairs.npz")
    vectors = dict(np.load(project.folder / "pairs.npz"))
    second = {name: vectors[f"vectors/{name}"][1] for name in project.params}
    np.savez(project.folder / "plain.npz", **{name: 2 * leaf for name, leaf in second.items()})
    project.checkpoint("other.npz", **{k.replace("/", "__"): v + second[k] for k, v in project.params.items()})
    project.write("moves.py", TANGENTS)
    along = ("array:pairs.npz#2", "array:plain.npz", "checkpoint:other.npz", "tangent:moves.py:grow")
    options = [word for one in along for word in ("--along", one)]
    answered = curv(*FAST, *options, "--range", "0:1", "--points", 2, "--arrays", "kept.npz")
    rows, plain, other, grown = answered.report["result"]["directions"]
    kept = dict(np.load(project.folder / "kept.npz"))
    assert kept["outputs"].shape == (4, 60, 3)
    for one, scale in ((rows, 1), (plain, 2), (other, 1)):
        np.testing.assert_allclose(one["norm"], scale, rtol=1e-7)
        np.testing.assert_allclose(one["rayleigh_quotient"], vectors["eigenvalues"][1], rtol=1e-5)
    unit = flat(project, project.params) / np.linalg.norm(flat(project, project.params))
    np.testing.assert_allclose(grown["rayleigh_quotient"], unit @ hessian @ unit, rtol=1e-9)
    np.testing.assert_allclose(
        flat(project, {k: kept[f"vectors/{k}"][3] for k in project.params}), flat(project, project.params), rtol=1e-7
    )
    # s = 1 is the other checkpoint.
    there = curv("inspect", "other.npz", "--spec", "curv.toml", "--dtype", "float64").report["result"]["loss_value"]
    np.testing.assert_allclose(other["profile"]["loss"], [rows["profile"]["loss"][0], there], rtol=1e-12)
    # What was written can be read again.
    again = curv(*FAST, "--along", "array:kept.npz#4", "--points", 2).report["result"]
    assert again["rayleigh_quotient"] == grown["rayleigh_quotient"]


def test_steps_of_a_run(project, curv):
    root = project.steps("run", range(1, 4))
    result = curv(*FAST, root, "--spec", "curv.toml", "--along", "checkpoint:run@1", "--points", 3).report["result"]
    np.testing.assert_allclose(result["norm"], 0.2 * np.linalg.norm(flat(project, project.params)), rtol=1e-6)
    assert curv(*FAST, root, "--spec", "curv.toml", "--along", "checkpoint:run@9").code == 66


def test_a_block_of_the_parameters(project, curv):
    project.write("moves.py", TANGENTS)
    answered = curv(*FAST, "--params", "Dense_0/*", "--along", "tangent:moves.py:grow", "--points", 2)
    kernel = [project.params[f"Dense_0/{name}"] for name in ("bias", "kernel")]
    np.testing.assert_allclose(
        answered.report["result"]["norm"], np.linalg.norm(np.concatenate([leaf.ravel() for leaf in kernel])), rtol=1e-6
    )
    assert "moves Dense_1/bias too" in answered.err


@pytest.mark.parametrize(
    ("along", "code", "said"),
    [
        ("gradiant", 2, "--along gradiant: no such direction"),
        ("eigenvector:0", 2, "K = 1 being the largest"),
        ("eigenvector", 2, "eigenvector:K"),
        ("random:3", 2, "write it as random"),
        ("checkpoint:missing.npz", 66, "no checkpoint missing.npz"),
        ("checkpoint:model.npz", 65, "the direction is zero"),
        ("checkpoint:narrow.npz", 65, "Dense_1/bias"),
        ("array:missing.npz", 66, "no array file missing.npz"),
        ("array:curv.toml", 65, "no file of arrays"),
        ("array:data.npz", 65, "there is no 'Dense_0/bias'"),
        ("array:bad.npz", 65, "'Dense_0/bias' is not finite"),
        ("array:rows.npz", 65, "holds 2 vectors"),
        ("array:rows.npz#3", 65, "the vectors 1 … 2"),
        ("array:bad.npz#1", 65, "no rows"),
        ("tangent:moves.py:shifted", 78, "not the identity"),
        ("tangent:moves.py:first_layer", 78, "returns no 'Dense_1/bias'"),
        ("tangent:moves.py:fails", 78, "fails: KeyError"),
        ("tangent:moves.py:number", 78, "no function"),
        ("tangent:elsewhere.py:grow", 66, "no file elsewhere.py"),
    ],
)
def test_what_does_not_fit_is_named(project, curv, along, code, said):
    project.write("moves.py", TANGENTS)
    project.checkpoint("narrow.npz", Dense_1__bias=np.zeros(2, np.float32))
    bad = {**project.params, "Dense_0/bias": np.full(8, np.nan)}
    np.savez(project.folder / "bad.npz", **bad)
    np.savez(
        project.folder / "rows.npz", **{f"vectors/{k}": np.stack([v, v]) for k, v in project.params.items()}
    )  # fmt: skip
    answered = curv(*FAST, "--along", along)
    assert answered.code == code
    assert said in answered.error


def test_ranges(project, curv):
    two = ("--along", "random", "--along", "random")
    assert curv(*FAST, "--range", "1:0").code == 2
    assert "--range 1: write it as LO:HI" in curv(*FAST, "--range", "1").error
    assert "one for each of the 2" in curv(*FAST, *two, "--range", "0:1", "--range", "0:1", "--range", "0:1").error
    results = curv(*FAST, *two, "--range", "-1:1", "--range", "0:2", "--points", 3).report["result"]["directions"]
    assert [one["profile"]["s"] for one in results] == [[-1, 0, 1], [0, 1, 2]]
    assert results[0]["slope"] != results[1]["slope"]
    assert curv(*FAST, "--points", 1).code == 2


def test_dry_run(project, curv):
    forecast = curv("direction", "--dry-run", "--along", "newton", "-o", "-").report["forecast"]
    assert 0 < forecast["products"] <= 68
    assert curv("direction", "--dry-run", "-o", "-").report["forecast"]["products"] == 0


@pytest.mark.parametrize("along", [["newton"], ["eigenvector:1"], ["gradient", "checkpoint:other.npz"]])
def test_one_screen(project, curv, monkeypatch, along):
    monkeypatch.setenv("COLUMNS", "80")
    project.checkpoint("other.npz", Dense_1__bias=np.ones(3, np.float32))
    answered = curv(*FAST, *(word for one in along for word in ("--along", one)), "--format", "text")
    lines = answered.out.splitlines()
    assert lines[0].startswith("Curvature ")
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 40
    assert "\x1b" not in answered.out
