"""The analyses from Python: the same numbers as the command line's, from objects in memory."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import curvcli
from curvcli import CurvError, Objective
from curvcli.analyses.common import machine
from curvcli.registry import schemas
from curvcli.zoo import MLP

SCHEMAS = schemas()


PAGE = Path(curvcli.__file__).parents[1] / "docs/python.md"


@pytest.fixture
def variables():
    random = np.random.default_rng(1)
    shapes = {"Dense_0": (4, 8), "Dense_1": (8, 3)}
    return {
        layer: {"kernel": random.normal(size=shape).astype(np.float32), "bias": np.zeros(shape[1], np.float32)}
        for layer, shape in shapes.items()
    }


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    return random.normal(size=(60, 4)).astype(np.float32), random.integers(0, 3, 60)


@pytest.fixture
def objective(data):
    return Objective(MLP(features=[8, 3]), data, "softmax_cross_entropy", l2=1e-3)


@pytest.mark.first_tier("trace-float32")
@pytest.mark.parametrize(("name", "dtype"), [("spectrum", "float64"), ("trace", "float32"), ("influence", "float32")])
def test_as_the_command_line(objective, variables, data, tmp_path, capfd, name, dtype):
    from curvcli.cli.main import run

    leaves = {f"{layer}/{leaf}": value for layer, one in variables.items() for leaf, value in one.items()}
    np.savez(tmp_path / "model.npz", **leaves)
    np.savez(tmp_path / "data.npz", x=data[0], y=data[1])
    own = {"influence": ["--remove", "--queries", "0:2"]}.get(name, [])
    options = {"influence": {"remove": True, "queries": "0:2"}}.get(name, {})
    capfd.readouterr()
    # The tests run with float64 switched on throughout; a command of its own would not have it.
    with jax.enable_x64(dtype == "float64"):
        code = run([name, f"{tmp_path}/model.npz", "--model", "curvcli.zoo:MLP", "--model-arg", "features=[8, 3]",
                    "--data", f"{tmp_path}/data.npz", "--loss", "softmax_cross_entropy", "--l2", "1e-3", "--no-cache",
                    "--dtype", dtype, *own])  # fmt: skip
    assert code == 0
    report = json.loads(capfd.readouterr().out)
    found = getattr(objective, name)(variables, at=7, dtype=dtype, **options)
    again = json.loads(found.report.to_json())
    assert again["result"] == report["result"]
    assert again["checks"] == report["checks"]
    assert again["problem"]["checkpoint"]["sha256"] == report["problem"]["checkpoint"]["sha256"]
    assert again["problem"]["checkpoint"]["step"] == 7
    SCHEMAS[name].model_validate(again)


def test_what_was_compiled_serves_other_weights(objective, data, variables):
    first = objective.eigs(variables, k=2, method="lanczos", dtype="float64")
    other = jax.tree.map(lambda leaf: 1.1 * leaf, variables)
    second = objective.eigs(other, k=2, method="lanczos", dtype="float64")
    assert first.report.cost.compile_seconds > 0
    assert second.report.cost.compile_seconds == 0
    assert second.result.eigenvalues[0].value != first.result.eigenvalues[0].value
    fresh = Objective(MLP(features=[8, 3]), data, "softmax_cross_entropy", l2=1e-3)
    assert fresh.eigs(other, k=2, method="lanczos", dtype="float64").result == second.result


@pytest.mark.slow
def test_a_time_limit_is_told(objective, variables):
    found = objective.trace(variables, method="hutchinson", rtol=1e-6, time_limit=1e-9)
    assert any("stopped early (time limit)" in one for one in found.report.warnings)


@pytest.mark.slow
def test_every_method(objective, variables):
    for name in ("diag", "saddle", "direction", "landscape", "compare"):
        found = getattr(objective, name)(variables, skip_checks=True)
        assert found.report.schema_name == f"curv.{name}/1"
        assert not found.params
    moved = objective.step(variables, skip_checks=True, dtype="float64")
    assert {path: leaf.shape for path, leaf in moved.params.items()}["Dense_0/kernel"] == (4, 8)
    nested = {layer: {leaf: moved.params[f"{layer}/{leaf}"] for leaf in one} for layer, one in variables.items()}
    after = objective.trace(nested, skip_checks=True, dtype="float64").report.problem.loss_value
    assert after == pytest.approx(moved.result.final_loss)


@pytest.mark.slow
def test_functions_and_nnx_modules(data, variables):
    def loss(outputs, labels):
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)

    def apply(params, x):
        hidden = jnp.tanh(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None])
        return hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"][None]

    model = nnx.Sequential(
        nnx.Linear(4, 8, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Dropout(0.5, rngs=nnx.Rngs(0)),
        nnx.Linear(8, 3, rngs=nnx.Rngs(1)),
    )  # fmt: skip
    for layer, name in ((model.layers[0], "Dense_0"), (model.layers[3], "Dense_1")):
        layer.kernel.set_value(jnp.asarray(variables[name]["kernel"]))
        layer.bias.set_value(jnp.asarray(variables[name]["bias"]))
    inputs, targets = data
    found = [
        Objective(MLP(features=[8, 3]), data, "softmax_cross_entropy").trace(variables, dtype="float64"),
        Objective(apply, {"inputs": inputs, "targets": targets}, loss).trace({"params": variables}, dtype="float64"),
        Objective(model, data, loss).trace(model, dtype="float64"),
    ]
    values = [one.result.trace.value for one in found]
    assert values == pytest.approx([values[0]] * 3, rel=1e-9)
    assert found[1].report.problem.loss == "memory:loss"


def test_a_mask_leaves_examples_out(data, variables):
    inputs, targets = data
    mask = np.r_[np.ones(30), np.zeros(30)].astype(np.float32)
    options = {"dtype": "float64", "skip_checks": True}
    masked = Objective(MLP(features=[8, 3]), {"inputs": inputs, "targets": targets, "mask": mask},
                       "softmax_cross_entropy", reduction="sum").trace(variables, **options)  # fmt: skip
    half = Objective(MLP(features=[8, 3]), (inputs[:30], targets[:30]), "softmax_cross_entropy", reduction="sum")
    assert masked.result.trace.value == pytest.approx(half.trace(variables, **options).result.trace.value, rel=1e-10)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"probs": 3}, "probs"),
        ({"probes": 0}, "probes"),
        ({"state": "folder"}, "state is of files"),
        ({"params": ["Conv*"]}, "no parameter matches"),
        ({"num_examples": 99}, "^num_examples 99: "),
        ({"at": 2.5}, "at=2.5 is no training step"),
    ],
)
def test_errors_are_those_of_the_command_line(objective, variables, settings, said):
    with pytest.raises(CurvError, match=said) as raised:
        objective.trace(variables, **settings)
    assert raised.value.hint


def test_objects_that_do_not_fit(data, variables):
    with pytest.raises(CurvError, match="differ"):
        Objective(MLP(features=[9, 3]), data, "softmax_cross_entropy").trace(variables)
    with pytest.raises(CurvError, match="weights are a list"):
        Objective(MLP(features=[8, 3]), data, "softmax_cross_entropy").trace([1.0])
    with pytest.raises(CurvError, match="NaN or infinite"):
        Objective(MLP(features=[8, 3]), (data[0] * np.nan, data[1]), "softmax_cross_entropy")
    with pytest.raises(CurvError, match="unknown loss"):
        Objective(MLP(features=[8, 3]), data, "cross_entropy").trace(variables)


def test_arguments_and_leaves_that_are_none_of_ours(objective, data, variables):
    net = MLP(features=[8, 3])
    with pytest.raises(CurvError, match=r"l2: .* greater"):
        Objective(net, data, "softmax_cross_entropy", l2=-1.0)
    with pytest.raises(CurvError, match="have arrays 'x', 'y'"):
        Objective(net, dict(zip("xy", data, strict=True)), "softmax_cross_entropy")
    with pytest.raises(CurvError, match="Dense_0/name is a str"):
        objective.trace({**variables, "Dense_0": {**variables["Dense_0"], "name": "first"}})
    with pytest.raises(CurvError, match="weights are traced"):
        jax.jit(lambda weights: objective.trace(weights).result.trace.value)(variables)
    with pytest.raises(CurvError, match="data are traced"):
        jax.jit(lambda inputs: Objective(net, (inputs, data[1]), "softmax_cross_entropy"))(data[0])


def test_functions_of_one_name_are_told_apart(data):
    """Loss, regulariser and sampler of a Fisher matrix may all be lambdas."""
    options = {"dtype": "float64", "skip_checks": True}
    held = Objective(
        lambda params, x: x @ params["w"], (data[0], data[0][:, :1]), lambda outputs, y: 0.5 * (outputs - y)[:, 0] ** 2,
        regulariser=lambda params: (params["w"] ** 2).sum(),
        likelihood=lambda outputs, key: outputs + jax.random.normal(key, outputs.shape),
    )  # fmt: skip
    found = held.trace({"w": np.zeros((4, 1))}, **options).result.trace.value
    assert found == pytest.approx((data[0].astype(float) ** 2).sum() / 60 + 8)
    assert held.trace({"w": np.zeros((4, 1))}, matrix="fisher-mc", mc_samples=1, **options).result.trace.value > 0


@pytest.mark.slow
def test_data_that_come_once_serve_every_call(data, variables):
    batches = ((inputs, targets) for inputs, targets in zip(*(np.split(one, 2) for one in data), strict=True))
    once = Objective(MLP(features=[8, 3]), batches, "softmax_cross_entropy")
    assert once.trace(variables, num_examples=10, skip_checks=True).report.problem.data.num_examples == 10


def test_settings_of_the_command_by_their_names(objective, variables, tmp_path):
    """`self`, which Python has a meaning of its own for, and files as paths."""
    found = objective.influence(variables, remove=True, self=True, damping=0.1, skip_checks=True,
                                scores=tmp_path / "s.npz")  # fmt: skip
    assert found.report.settings.self_
    assert (tmp_path / "s.npz").exists()
    boxed = nn.meta.Partitioned(variables["Dense_0"]["kernel"], names=(None, None))
    weights = {**variables, "Dense_0": {**variables["Dense_0"], "kernel": boxed}}
    again = objective.influence(weights, remove=True, self=True, damping=0.1, skip_checks=True)
    assert again.result.top == found.result.top


def test_a_faulty_jax_is_no_silent_one(data, monkeypatch):
    machine.check_sums.cache_clear()
    monkeypatch.setattr("curvcli.analyses.common.machine.sums_rightly", lambda: False)
    with pytest.raises(CurvError, match="sums wrongly") as raised:
        Objective(MLP(features=[8, 3]), data, "softmax_cross_entropy")
    assert "jaxlib" in raised.value.hint
    machine.check_sums.cache_clear()


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch, capfd):
    """The code of docs/python.md, in order, with a logger in place of the services."""

    class Run:
        logged: list = []  # noqa: RUF012

        def log(self, values, step):
            self.logged.append((step, values))

        def add_scalar(self, name, value, step):
            self.logged.append((step, {name: value}))

    monkeypatch.chdir(tmp_path)
    scope = {"__name__": "page", "run": Run()}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, scope)
    scope["log_to_tensorboard"](0, scope["found"], scope["run"])
    assert [step for step, _ in Run.logged] == [0, 1, 2, 3, 0, 0, 0]
    from curvcli.cli.main import run

    assert run(["plot", "run.jsonl", "--learning-rate", "0.1", "-o", "run.svg"]) == 0
    assert "Spectra of the Hessian over the run" in Path("run.svg").read_text()


@pytest.mark.slow
def test_the_page_s_numbers_in_a_fresh_process():
    """JAX has computed (`net.init`) before `Objective` is made, and no flag guards it: float32 agrees with float64."""
    first = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    check = """
import json
double = objective.spectrum(variables, probes=4, dtype="float64").result
print(json.dumps([[one.value, *one.interval] for pair in ((found.result, double),) for side in pair
                  for one in (side.lambda_max, side.lambda_min, side.trace, side.frobenius_norm)]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", first + check], env=environment, capture_output=True, text=True, check=True
    )
    numbers = np.array(json.loads(done.stdout.splitlines()[-1]))
    single, double = numbers[:4], numbers[4:]
    np.testing.assert_allclose(single[:, 0], double[:, 0], rtol=1e-4, atol=1e-5)
    assert np.all(single[:, 1] <= double[:, 2])
    assert np.all(double[:, 1] <= single[:, 2])
