"""`curv inspect`, `curv init` and `curv schema`."""

import tomllib

import jax
import jsonschema
import numpy as np
import pytest

from curvcli.schema.inspect import InspectReport
from curvcli.schema.report import load_json
from curvcli.schema.spec import ProblemSpec

FAST = ("--skip-checks", "--method", "hutchinson", "--probes", 4, "--steps", 8)


def reference(project):
    """Loss and gradient norm, written down anew in float64 numpy and JAX."""

    def objective(params):
        hidden = jax.numpy.tanh(project.x @ params["Dense_0/kernel"] + params["Dense_0/bias"])
        z = hidden @ params["Dense_1/kernel"] + params["Dense_1/bias"]
        losses = jax.scipy.special.logsumexp(z, axis=1) - z[np.arange(60), project.y]
        return losses.mean() + 0.5e-3 * sum(jax.numpy.sum(w**2) for w in params.values())

    params = {name: jax.numpy.asarray(value, "float64") for name, value in project.params.items()}
    with jax.numpy_rank_promotion("allow"):
        value, gradient = jax.value_and_grad(objective)(params)
    return float(value), float(np.sqrt(sum(np.sum(np.square(g)) for g in gradient.values())))


def test_inspect_sees_what_is_there(project, curv, schema_of):
    answered = curv("inspect", "--dtype", "float64")
    assert (answered.code, answered.err) == (0, "")
    report = answered.report
    jsonschema.validate(report, schema_of("inspect"), jsonschema.Draft202012Validator)
    assert InspectReport.model_validate(report).to_json() + "\n" == answered.out
    result = report["result"]
    assert report["matrix"] == "hessian"
    assert result["layers"] == {"Dense_0": 40, "Dense_1": 27}
    assert {p["name"]: (p["shape"], p["size"], p["stored_dtype"]) for p in result["parameters"]} == {
        name: (list(value.shape), value.size, "float32") for name, value in project.params.items()
    }
    for parameter in result["parameters"]:
        np.testing.assert_allclose(parameter["norm"], np.linalg.norm(project.params[parameter["name"]]), rtol=1e-6)
    assert result["data"]["num_examples"] == 60
    assert result["data"]["classes"] == np.bincount(project.y).tolist()
    assert result["data"]["masked_fraction"] == 0
    value, norm = reference(project)
    np.testing.assert_allclose(result["loss_value"], value, rtol=1e-12)
    np.testing.assert_allclose(result["gradient_norm"], norm, rtol=1e-12)
    assert report["problem"]["loss_value"] == result["loss_value"]
    assert result["forecast"]["products"] == 67
    assert result["forecast"]["seconds"] > 0
    assert report["checks"]


def test_inspect_says_what_devices_exchange(project, curv):
    options = ("--skip-checks", "--batch-size", "32", "--matrix", "ggn", "--dtype", "float64")
    assert curv("inspect", *options).report["result"]["collectives"] is None
    report = curv("inspect", *options, "--devices", "2").report
    moved = report["result"]["collectives"]
    # Two batches; each sums the images of the block, of 67 parameters.
    assert moved["bytes"] == {"all-reduce": 2 * moved["vectors"] * 67 * 8}
    assert moved["flops"] > 0
    shown = curv("inspect", *options, "--devices", "2", "--format", "text").out
    assert f"all-reduce {moved['bytes']['all-reduce'] / 1e6:.3g} MB on each device" in " ".join(shown.split())


def test_inspect_of_a_block_for_people(project, curv):
    answered = curv("inspect", "--skip-checks", "--exclude", "Dense_1/*", "--format", "text")
    assert answered.code == 0
    assert answered.out.startswith("Loss ")
    assert "Dense_0" in answered.out
    assert "(not Dense_1/*)" in answered.out
    assert not any(line.startswith("Dense_1") for line in answered.out.splitlines())
    assert curv("inspect", "--dry-run").report["forecast"]["seconds"] is None


def test_init_writes_a_specification_that_works(project, curv, monkeypatch):
    (project.folder / "curv.toml").unlink()
    (project.folder / "runs").mkdir()
    problem = (
        "--model", "curvcli.zoo:MLP", "--model-arg", "features=[8, 3]", "--data", "data.npz",
        "--loss", "softmax_cross_entropy", "--l2", "1e-3",
    )  # fmt: skip
    answered = curv("init", "model.npz", *problem, "-o", "runs/curv.toml")
    assert (answered.code, answered.err) == (0, "")
    assert answered.out.startswith("runs/curv.toml: loss ")
    document = tomllib.loads((project.folder / "runs" / "curv.toml").read_text())
    assert ProblemSpec.model_validate(document).model_dump(exclude_defaults=True) == document
    assert document["data"]["path"] == "../data.npz"
    direct = curv("spectrum", "model.npz", *problem, *FAST).report
    monkeypatch.chdir(project.folder / "runs")
    through = curv("spectrum", *FAST).report
    assert through["result"] == direct["result"]
    assert through["problem"]["data"]["sha256"] == direct["problem"]["data"]["sha256"]


def test_init_refuses_to_overwrite_and_to_write_what_does_not_work(project, curv):
    before = (project.folder / "curv.toml").read_text()
    refused = curv("init", "model.npz")
    assert refused.code == 2
    assert "exists already" in refused.error
    assert (project.folder / "curv.toml").read_text() == before
    failed = curv("init", "model.npz", "--loss", "squared_error", "-o", "new.toml")
    assert failed.code == 65
    assert "squared_error" in failed.error
    assert not (project.folder / "new.toml").exists()
    assert curv("init", "model.npz", "-o", "missing/new.toml").code == 74


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_init_prints_a_specification(project, curv, name):
    (project.folder / "curv.toml").rename(project.folder / "given.toml")
    printed = curv("init", "model.npz", "--spec", "given.toml", "-o", name)
    assert printed.code == 0
    assert printed.err.startswith("loss ")
    assert tomllib.loads(printed.out) == tomllib.loads((project.folder / "given.toml").read_text())
    assert not (project.folder / "curv.toml").exists()
    assert not (project.folder / "-").exists()
    assert curv("init", "model.npz", "--spec", "given.toml", "-q", "-o", name).err == ""
    project.write("curv.toml", printed.out)
    assert curv("trace", "--skip-checks").code == 0


def test_schema_names(curv, schema_of):
    names = curv("schema").out.split()
    assert {"spectrum", "inspect", "error", "curv.toml"} <= set(names)
    for name in names:
        schema = schema_of(name)
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["additionalProperties"] is False


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": 1, "a": 2}', '{"a": -Infinity}', '{"a": 1} x', "{'a': 1}"])
def test_reports_are_read_strictly(text):
    with pytest.raises(ValueError, match=r".+"):
        load_json(text)
