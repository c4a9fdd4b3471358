"""`curv spectrum` as scripts use it: one line of strict JSON, whose every number means what its name says."""

import json
import os
import threading

import jax
import jsonschema
import numpy as np
import pytest

from curvcli.schema.report import ErrorRecord, load_json
from curvcli.schema.spectrum import SpectrumReport
from curvcli.zoo import MLP

FAST = ("spectrum", "--skip-checks")
SAMPLED = (*FAST, "--method", "hutchinson", "--probes", 4, "--steps", 8)


def flat_objective(project, l2=1e-3):
    """J of the flattened parameters (kernels and biases in sorted order), written down anew, in float64."""
    names = sorted(project.params)
    sizes = np.cumsum([project.params[name].size for name in names])[:-1]

    def outputs(w):
        tree = {}
        for name, part in zip(names, jax.numpy.split(w, sizes), strict=True):
            layer, leaf = name.split("/")
            tree.setdefault(layer, {})[leaf] = part.reshape(project.params[name].shape)
        return MLP([8, 3]).apply({"params": tree}, project.x.astype(np.float64))

    def loss(z):
        return -jax.numpy.mean(jax.nn.log_softmax(z)[np.arange(60), project.y])

    start = np.concatenate([project.params[name].ravel() for name in names]).astype(np.float64)
    return lambda w: loss(outputs(w)) + 0.5 * l2 * w @ w, outputs, loss, jax.numpy.asarray(start)


def dense_matrix(project, matrix, l2=1e-3):
    """The matrix by brute force."""
    objective, outputs, loss, start = flat_objective(project, l2)
    if matrix == "hessian":
        return np.asarray(jax.hessian(objective)(start))
    jacobian = np.asarray(jax.jacobian(outputs)(start)).reshape(180, 67)
    inner = np.asarray(jax.hessian(lambda z: loss(z.reshape(60, 3)))(outputs(start).ravel()))
    return jacobian.T @ inner @ jacobian + l2 * np.eye(67)


def test_one_line_of_json_that_fits_its_schema(project, curv, schema_of):
    answered = curv("spectrum")
    assert answered.code == 0
    assert answered.err == ""
    report = answered.report
    jsonschema.validate(report, schema_of("spectrum"), jsonschema.Draft202012Validator)
    again = SpectrumReport.model_validate(report)
    assert again.to_json() + "\n" == answered.out
    assert next(iter(report)) == "schema"
    assert report["schema"] == "curv.spectrum/1"
    assert set(report) >= {"curv", "problem", "matrix", "settings", "result", "checks", "cost", "environment"}
    assert report["warnings"] == []
    assert set(report["problem"]) >= {
        "checkpoint", "model", "num_params", "loss", "reduction", "normaliser", "l2", "data", "mode", "loss_value",
    }  # fmt: skip
    assert set(report["problem"]["checkpoint"]) >= {"path", "format", "step", "sha256"}
    assert set(report["result"]) >= {
        "dim", "nodes", "weights", "lambda_max", "lambda_min", "trace", "frobenius_norm", "negative_mass",
        "near_zero_mass", "near_zero_tolerance", "density",
    }  # fmt: skip
    assert set(report["result"]["trace"]) >= {"value", "stderr", "interval", "confidence", "samples", "method"}
    assert set(report["result"]["lambda_max"]) >= {"value", "residual", "interval", "converged"}
    assert set(report["result"]["density"]) >= {"grid", "value", "stderr", "sigma"}
    assert set(report["cost"]) >= {"products", "data_passes", "seconds", "compile_seconds", "peak_memory_bytes"}
    assert set(report["checks"]) >= {"deterministic", "symmetric", "gradient_vs_loss", "product_vs_gradient"}
    assert all(check["passed"] for check in report["checks"].values())
    assert report["problem"]["num_params"] == report["result"]["dim"] == 67
    assert report["problem"]["normaliser"] == 60
    assert not report["untrusted"]


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_numbers_are_those_of_the_matrix_written_down_anew(project, curv, matrix):
    result = curv(*FAST, "--dtype", "float64", "--matrix", matrix).report["result"]
    expected = np.linalg.eigvalsh(dense_matrix(project, matrix))
    np.testing.assert_allclose(result["nodes"], [expected], atol=1e-12)
    np.testing.assert_allclose(result["weights"], np.full((1, 67), 1 / 67))
    np.testing.assert_allclose(result["lambda_max"]["value"], expected[-1])
    np.testing.assert_allclose(result["lambda_min"]["value"], expected[0], atol=1e-12)
    np.testing.assert_allclose(result["trace"]["value"], expected.sum())
    np.testing.assert_allclose(result["frobenius_norm"]["value"], np.linalg.norm(expected))
    assert result["trace"]["method"] == "exact"
    assert result["trace"]["stderr"] == 0
    assert result["negative_mass"]["value"] == np.mean(expected < -result["near_zero_tolerance"])
    np.testing.assert_allclose(result["near_zero_tolerance"], 1e-10 * np.abs(expected).max())


@pytest.mark.slow
def test_settings_of_a_report_give_its_result_again_and_other_seeds_another(project, curv):
    first = curv(*SAMPLED, "--seed", 5, "--confidence", 0.9, "--exclude", "*/bias").report
    again: list[object] = ["spectrum"]
    for name, value in first["settings"].items():
        option = "--" + name.replace("_", "-")
        if name == "regulariser":
            assert value is True
        elif value is True:
            again.append(option)
        elif value not in (None, False, []):
            again += [part for one in (value if isinstance(value, list) else [value]) for part in (option, one)]
    second = curv(*again).report
    assert json.dumps(second["result"]) == json.dumps(first["result"])
    assert second["settings"] == first["settings"]
    again[again.index("--seed") + 1] = 6
    third = curv(*again).report
    assert third["result"]["nodes"] != first["result"]["nodes"]


def test_the_answer_does_not_depend_on_the_batch_size(project, curv):
    results = [curv(*FAST, "--dtype", "float64", "--batch-size", size).report["result"] for size in (1, 7, 60)]
    for result in results[1:]:
        np.testing.assert_allclose(result["nodes"], results[0]["nodes"], atol=1e-13)


@pytest.mark.first_tier("xtrace")
@pytest.mark.parametrize("method", ["hutchinson", "xtrace"])
def test_sampling_covers_the_exact_numbers(project, curv, method):
    result = curv(*FAST, "--method", method, "--probes", 6, "--steps", 12, "--matrix", "ggn").report["result"]
    exact = np.linalg.eigvalsh(dense_matrix(project, "ggn"))
    assert result["method"] == method
    assert [len(row) for row in result["nodes"]] == [12] * 6
    np.testing.assert_allclose(np.sum(result["weights"], axis=1), 1)
    assert abs(result["lambda_max"]["value"] - exact[-1]) <= 2 * result["lambda_max"]["residual"]
    low, high = result["trace"]["interval"]
    assert low <= exact.sum() <= high  # one draw of a 95 % interval: true for this seed
    assert result["trace"]["samples"] == 6
    assert result["trace"]["stderr"] > 0


def test_options_that_change_the_matrix(project, curv):
    def nodes(*options):
        return np.array(curv(*FAST, "--dtype", "float64", *options).report["result"]["nodes"][0])

    plain = nodes()
    np.testing.assert_allclose(nodes("--damping", 0.5), plain + 0.5, atol=1e-13)
    np.testing.assert_allclose(nodes("--no-regulariser"), plain - 1e-3, atol=1e-13)
    names = sorted(project.params)
    rows = {}
    for name in names:
        rows[name] = range(sum(map(len, rows.values())), sum(map(len, rows.values())) + project.params[name].size)
    hessian = dense_matrix(project, "hessian")
    for options, kept in (
        (("--params", "Dense_0/*", "--params", "*/bias"), names[:3]),
        (("--exclude", "*/bias"), names[1::2]),
    ):
        block = np.concatenate([rows[name] for name in kept])
        # The l2 term covers the differentiated parameters, and the block's own curvature is the same.
        np.testing.assert_allclose(nodes(*options), np.linalg.eigvalsh(hessian[np.ix_(block, block)]), atol=1e-12)


@pytest.mark.slow
def test_options_that_change_how_much_is_looked_at(project, curv):
    options = ("--num-examples", 10, "--reorthogonalize", "none", "--confidence", 0.5, "--threads", 1)
    report = curv(*SAMPLED, *options).report
    assert report["problem"]["data"]["num_examples"] == report["problem"]["normaliser"] == 10
    assert report["settings"]["reorthogonalize"] == "none"
    assert report["result"]["trace"]["confidence"] == 0.5
    assert report["environment"]["dtype"] == "float32"
    assert report["environment"]["threads"] == 1


def test_rtol_stops_early_and_says_when_it_was_not_reached(project, curv):
    loose = (*FAST, "--method", "xtrace", "--steps", 8, "--matrix", "ggn", "--rtol")
    early = curv(*loose, 0.9, "--probes", 60).report
    assert early["result"]["trace"]["samples"] < 60
    late = curv(*loose, 1e-6, "--probes", 6)
    assert late.code == 0
    assert any("--rtol" in warning for warning in late.report["warnings"])


def test_a_time_limit_gives_an_answer_and_a_warning(project, curv):
    answered = curv(*FAST, "--method", "hutchinson", "--probes", 4, "--time-limit", 1e-6)
    assert answered.code == 0
    assert any("time limit" in warning for warning in answered.report["warnings"])
    assert "warning: stopped early (time limit)" in answered.err
    assert len(answered.report["result"]["nodes"][0]) < 67


def test_too_little_memory_is_said_before_the_work(project, curv):
    refused = curv(*SAMPLED, "--max-memory", "1kB")
    assert refused.code == 71
    assert "1 kB" in refused.error


def test_dry_run_forecasts(project, curv):
    answered = curv("spectrum", "--dry-run", "-o", "-")
    assert answered.code == 0
    forecast = answered.report
    assert forecast["schema"] == "curv.forecast/1"
    assert forecast["forecast"]["products"] == 67
    assert forecast["plan"]["batches"] == 1
    curv("spectrum", "--dry-run", "-o", "forecast.json")
    assert load_json((project.folder / "forecast.json").read_text()) == forecast
    assert curv("spectrum", "--dry-run", "--format", "text").out.startswith("67 products in ")


def test_flag_over_environment_over_spec_over_default(project, curv, monkeypatch):
    def problem_and_seed(*options):
        report = curv(*SAMPLED, *options).report
        return report["problem"]["l2"], report["settings"]["seed"]

    assert problem_and_seed() == (1e-3, 0)
    monkeypatch.setenv("CURV_L2", "0.5")
    monkeypatch.setenv("CURV_SEED", "3")
    assert problem_and_seed() == (0.5, 3)
    assert problem_and_seed("--l2", 0.25, "--seed", 4) == (0.25, 4)
    monkeypatch.setenv("CURV_SEED", "many")
    assert curv("spectrum").code == 2


def test_steps_of_a_run(project, curv):
    root = project.steps("run", range(1, 4))
    latest = curv(*SAMPLED, root).report
    assert latest["problem"]["checkpoint"]["step"] == 3
    one = curv(*SAMPLED, root, "--step", 1).report
    assert one["problem"]["checkpoint"]["step"] == 1
    assert one["problem"]["loss_value"] != latest["problem"]["loss_value"]
    assert "available steps: 1, 2, 3" in curv(*FAST, root, "--step", 9).error

    (root / "2" / "default" / "_METADATA").unlink()
    every = curv(*SAMPLED, root, "--all-steps")
    first, failed, last = every.lines
    assert every.code == 65
    assert (first["result"], last["result"]) == (one["result"], latest["result"])
    record = ErrorRecord.model_validate(failed)
    assert (record.schema_name, record.step, record.exit_code) == ("curv.error/1", 2, 65)
    assert record.checkpoint == str(root)
    assert every.err.count("error: ") == every.err.count("hint: ") == 1


def test_all_steps_of_several_folders_of_which_one_has_none(project, curv):
    project.steps("run", range(2))
    answered = curv(*SAMPLED, "--all-steps", "model.npz", "run")
    assert [line["schema"] for line in answered.lines] == ["curv.error/1", "curv.spectrum/1", "curv.spectrum/1"]
    assert answered.code == answered.lines[0]["exit_code"] == 2
    assert curv(*FAST, "--all-steps", "model.npz").code == 2
    assert curv(*FAST, "--all-steps", "--step", 1, "run").code == 2


def test_several_checkpoints_go_on_after_a_failure_and_into_one_file(project, curv):
    project.checkpoint("other.npz", Dense_0__bias=np.ones(8, np.float32))
    names = ("model.npz", "missing.npz", "other.npz")
    streamed = curv(*SAMPLED, *names)
    assert streamed.code == 66
    assert [line["schema"].split("/")[0] for line in streamed.lines] == ["curv.spectrum", "curv.error", "curv.spectrum"]
    assert streamed.lines[1]["checkpoint"] == "missing.npz"
    assert "error: no checkpoint missing.npz" in streamed.err

    filed = curv(*SAMPLED, *names, "-o", "reports.jsonl")
    assert filed.code == 66
    assert filed.out == ""
    lines = [load_json(line) for line in (project.folder / "reports.jsonl").read_text().splitlines()]
    assert [line.get("result") for line in lines] == [line.get("result") for line in streamed.lines]


def test_what_a_model_prints_goes_to_stderr(project, curv):
    project.write(
        "loud.py",
        "import os\nfrom curvcli.zoo import MLP\n"
        "class Loud(MLP):\n"
        "    def __call__(self, x):\n"
        "        print('PRINTED')\n"
        "        os.write(1, b'WRITTEN')\n"
        "        return super().__call__(x)\n",
    )
    answered = curv(*SAMPLED, "--model", "loud.py:Loud")
    assert answered.code == 0
    assert answered.report["problem"]["num_params"] == 67
    assert "PRINTED" in answered.err
    assert "WRITTEN" in answered.err


def test_output_file(project, curv, tmp_path):
    printed = curv(*SAMPLED).report
    answered = curv(*SAMPLED, "-o", "report.json")
    assert (answered.code, answered.out) == (0, "")
    text = (project.folder / "report.json").read_text()
    assert text.endswith("}\n")
    assert load_json(text)["result"] == printed["result"]
    assert (project.folder / "report.json").stat().st_mode & 0o777 == 0o666 & ~_umask()

    (tmp_path / "elsewhere.json").write_text("old")
    (project.folder / "link.json").symlink_to(tmp_path / "elsewhere.json")
    assert curv(*SAMPLED, "-o", "link.json").code == 0
    assert (project.folder / "link.json").is_symlink()
    assert load_json((tmp_path / "elsewhere.json").read_text())["result"] == printed["result"]

    refused = curv(*SAMPLED, "-o", "missing/report.json")
    assert refused.code == 74
    assert "missing/report.json" in refused.error
    assert curv(*SAMPLED, "-o", ".").code == 74
    assert curv(*SAMPLED, "-o", "/dev/full").code == 74
    assert {path.name for path in project.folder.iterdir()} == {
        "curv.toml", "data.npz", "model.npz", "report.json", "link.json",
    }  # fmt: skip


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_stdout_by_name(project, curv, name):
    assert curv(*SAMPLED, "-o", name).report["schema"] == "curv.spectrum/1"


def test_a_pipe_as_output_file_is_written_to_and_stays(project, curv):
    pipe = project.folder / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    assert curv(*SAMPLED, "-o", pipe).code == 0
    reader.join(10)
    assert load_json(read[0])["schema"] == "curv.spectrum/1"
    assert pipe.is_fifo()


def test_quiet_and_verbose(project, curv):
    limited = (*SAMPLED, "--time-limit", 1e-9)
    assert curv(*limited, "-q").err == ""
    assert "warning: " in curv(*limited).err
    assert "67 parameters" in curv(*SAMPLED, "-v").err


@pytest.mark.slow
def test_from_a_folder_inside_the_project(project, curv, monkeypatch):
    (project.folder / "notes").mkdir()
    monkeypatch.chdir(project.folder / "notes")
    assert curv(*SAMPLED).report["problem"]["num_params"] == 67
    # What the command line names is relative to the current folder, not to the curv.toml above it.
    assert curv(*SAMPLED, "--data", "../data.npz").code == 0
    assert curv(*SAMPLED, "--data", "data.npz").code == 66
    assert curv(*SAMPLED, "../model.npz", "--spec", "../curv.toml").code == 0
    assert curv(*SAMPLED, "--model", "net.py:Net").code == 66
    monkeypatch.chdir("/")
    assert curv(*SAMPLED, project.folder / "model.npz", "--spec", project.folder / "curv.toml").code == 0


def test_everything_on_the_command_line(project, curv):
    (project.folder / "curv.toml").unlink()
    # Folders and files that merely have the name of a module or a loss.
    project.write("softmax_cross_entropy", "")
    (project.folder / "nets").mkdir()
    project.write("nets/__init__.py", "from curvcli.zoo import MLP\n")
    answered = curv(
        *SAMPLED, "model.npz", "--model", "nets:MLP", "--model-arg", "features = [8, 3]", "--model-arg",
        'activation="relu"', "--kind", "linen", "--data", "data.npz", "--inputs", "x", "--targets", "y",
        "--loss", "softmax_cross_entropy", "--l2", "1e-4", "--reduction", "sum",
    )  # fmt: skip
    assert answered.code == 0
    problem = answered.report["problem"]
    assert problem["spec"]["model"]["kwargs"] == {"features": [8, 3], "activation": "relu"}
    assert (problem["normaliser"], problem["l2"], problem["reduction"]) == (1, 1e-4, "sum")


@pytest.mark.slow
def test_odd_file_names(project, curv):
    odd = os.fsdecode(b"r\xff n: 1.npz")
    project.checkpoint(odd)
    spaced = project.data("my data.npz")
    answered = curv(*SAMPLED, odd, "--data", spaced.name)
    assert os.fsencode(answered.report["problem"]["checkpoint"]["path"]) == os.fsencode(odd)
    answered.out.encode("utf-8")  # not so with a raw byte of the name in it
    assert curv(*SAMPLED, odd, "-o", os.fsdecode(b"\xff.json")).code == 0
    assert curv(*SAMPLED, odd, "--format", "text").code == 0
    assert curv(*SAMPLED, os.fsdecode(b"no\xff")).code == 66
