"""The whole analysis against dense float64 truth, and pruning against a computation by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.analyses import diag
from curvcli.analyses.common.answer import Answer
from curvcli.analyses.common.context import Context
from curvcli.curvature.flatten import Layout
from curvcli.errors import MemoryLimitError, UsageError
from curvcli.linalg.iterate import Silent
from curvcli.problem import Problem
from curvcli.schema.diag import DiagResult, DiagSettings
from tests.monitors import StopAfter
from tests.problems import (
    dense_ggn,
    dense_hessian,
    dense_matrix,
    dense_objective,
    flat_params,
    make_problem,
    mlp_params,
    mlp_problem,
)  # fmt: skip


def run(problem: Problem, monitor: Any = None, **settings: Any) -> Answer[DiagResult]:
    settings = {"dtype": "float64", "skip_checks": True, **settings}
    return diag.run(Context(problem, monitor or Silent()), DiagSettings(**settings))


def flat(problem: Problem, answer: Answer[DiagResult], suffix: str = "") -> np.ndarray:
    """The arrays as one vector."""
    layout = Layout.of(problem.params)
    assert set(answer.arrays) == {*layout.names, *(f"{name}.stderr" for name in layout.names)}
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        assert answer.arrays[name + suffix].shape == shape
    return np.concatenate([answer.arrays[name + suffix].ravel() for name in layout.names])


def relu_mlp(params: dict[str, Any], x: Any) -> Any:
    for layer in "ab":
        x = jax.nn.relu(x @ params[f"{layer}/kernel"] + params[f"{layer}/bias"][None])
    return x @ params["c/kernel"] + params["c/bias"][None]


def tokens_problem() -> Problem:
    """[b, T, V] outputs of an embedding, with masked tokens."""
    random = np.random.default_rng(0)

    def predict(params: dict[str, Any], x: Any) -> Any:
        return jnp.tanh(params["embed"][x]) @ params["out/kernel"]

    params = {"embed": random.normal(size=(6, 5)), "out/kernel": random.normal(size=(5, 6))}
    inputs, targets = random.integers(0, 6, (9, 4)), random.integers(0, 6, (9, 4)).astype(np.int32)
    weight = random.integers(0, 2, (9, 4))
    return make_problem(
        predict, params, inputs, targets, "softmax_cross_entropy", weight=weight, normaliser=float(weight.sum()),
        batch_size=4, l2=0.01,
    )  # fmt: skip


@pytest.fixture(scope="module")
def network() -> tuple[Problem, np.ndarray]:
    problem = mlp_problem(sizes=(8, 12, 5), count=60, l2=1e-3, batch_size=17)
    return problem, np.diag(dense_hessian(problem))


@pytest.mark.first_tier("softmax", "squared")
@pytest.mark.parametrize("kind", ["softmax", "squared", "tokens"])
def test_dense_is_exact(kind: str) -> None:
    problem = tokens_problem() if kind == "tokens" else mlp_problem(
        {"softmax": "softmax_cross_entropy", "squared": "squared_error"}[kind], l2=1e-3
    )  # fmt: skip
    truth = np.diag(dense_hessian(problem))
    answer = run(problem, matrix="hessian")
    np.testing.assert_allclose(flat(problem, answer), truth, atol=1e-13)
    np.testing.assert_array_equal(flat(problem, answer, ".stderr"), 0)
    assert answer.result.method == "dense"
    assert sum(layer.dim * layer.mean.value for layer in answer.result.layers) == pytest.approx(truth.sum())
    assert {layer.mean.method for layer in answer.result.layers} == {"exact"}


@pytest.mark.nightly
def test_diagonals_of_hessian_and_ggn_agree_for_relu() -> None:
    random = np.random.default_rng(3)
    problem = make_problem(
        relu_mlp, mlp_params((5, 7, 6, 3)), random.normal(size=(30, 5)), random.integers(0, 3, 30).astype(np.int32),
        "softmax_cross_entropy",
    )  # fmt: skip
    hessian, ggn = (run(problem, matrix=matrix) for matrix in ("hessian", "ggn"))
    np.testing.assert_allclose(flat(problem, hessian), flat(problem, ggn), atol=1e-13)
    np.testing.assert_allclose(flat(problem, ggn), np.diag(dense_ggn(problem)), atol=1e-13)
    assert np.abs(dense_hessian(problem) - dense_ggn(problem)).max() > 0.01


@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_sampled_against_dense(network: tuple[Problem, np.ndarray], method: str) -> None:
    problem, truth = network
    layout = Layout.of(problem.params)
    answer = run(problem, method=method, probes=40, seed=2)
    result, value, stderr = answer.result, flat(problem, answer), flat(problem, answer, ".stderr")
    assert answer.meter.products == 40
    start = 0
    held = []
    for layer in result.layers:
        part = slice(start, start + layer.dim)
        start += layer.dim
        held.append(np.abs(value[part] - truth[part]) <= layer.factor * stderr[part])
        assert layer.mean.interval[0] <= truth[part].mean() <= layer.mean.interval[1]
        assert layer.mean.value == pytest.approx(value[part].mean())
        assert (layer.min, layer.max) == (value[part].min(), value[part].max())
        assert layer.stderr == pytest.approx(np.sqrt(np.mean(stderr[part] ** 2)))
    assert [layer.name for layer in result.layers] == list(layout.layers)
    assert np.mean(np.concatenate(held)) >= 0.9
    error = np.sqrt(np.mean((value - truth) ** 2))
    assert 0.7 <= np.sqrt(np.mean(stderr**2)) / error <= 1.4


@pytest.mark.nightly
def test_auto_takes_xdiag_where_it_pays(network: tuple[Problem, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diag, "DENSE_DIM", 0)

    def penalty(params: dict) -> Any:  # a regulariser of the user's own: no output side
        return 0.5e-3 * sum(jnp.sum(jnp.square(leaf)) for leaf in params.values())

    few = mlp_problem(sizes=(8, 12, 5), count=8, regulariser=penalty)  # the ggn has rank 32 but for the regulariser
    truth = np.diag(dense_ggn(few)) + 1e-3
    answer = run(few, probes=64, matrix="ggn")
    assert (answer.result.method, answer.meter.products) == ("xdiag", 64)
    assert "images of 32" in answer.result.reason
    plain = run(few, probes=64, matrix="ggn", method="hutchinson")
    errors = [np.sum((flat(few, one) - truth) ** 2) for one in (answer, plain)]
    assert errors[0] < 0.01 * errors[1]
    problem, _ = network
    flatter = run(problem, probes=64)
    assert (flatter.result.method, flatter.meter.products) == ("hutchinson", 64)
    assert "not worth" in flatter.result.reason
    assert run(problem, probes=6).result.method == "hutchinson"
    assert run(problem, probes=problem.dim).result.method == "dense"


@pytest.mark.slow
def test_same_seed_same_numbers_whatever_the_batches(network: tuple[Problem, np.ndarray]) -> None:
    problem, _ = network
    other = replace(problem, batches=problem.batches.resized(7))
    for method in ("hutchinson", "xdiag", "dense"):
        settings: dict[str, Any] = {"method": method, "probes": 12}
        first, again, batches = run(problem, **settings), run(problem, **settings), run(other, **settings)
        assert first.result.model_dump_json() == again.result.model_dump_json()
        np.testing.assert_allclose(flat(problem, batches), flat(problem, first), atol=1e-13)
    sampled = [flat(problem, run(problem, method="hutchinson", probes=4, seed=seed)) for seed in (0, 1)]
    assert np.abs(sampled[0] - sampled[1]).max() > 1e-6


@pytest.mark.slow
def test_rtol_goes_on_until_it_is_met(network: tuple[Problem, np.ndarray]) -> None:
    problem, truth = network
    loose, tight = (run(problem, method="xdiag", rtol=rtol) for rtol in (0.5, 0.02))
    assert loose.meter.products < tight.meter.products <= 2048
    assert loose.warnings == tight.warnings == []
    error = np.sqrt(np.mean((flat(problem, tight) - truth) ** 2) / np.mean(truth**2))
    assert error <= 0.02
    short = run(problem, method="hutchinson", rtol=1e-3, probes=20)
    assert short.meter.products == 20
    assert any("--rtol" in warning for warning in short.warnings)


def test_damping_is_in_the_diagonal_and_not_in_saliencies(network: tuple[Problem, np.ndarray]) -> None:
    problem, truth = network
    plain, damped = (run(problem, damping=damping) for damping in (0.0, 2.0))
    np.testing.assert_allclose(flat(problem, damped), truth + 2.0, atol=1e-12)
    assert plain.result.saliency is not None
    assert damped.result.saliency is not None
    first, second = plain.result.saliency, damped.result.saliency
    for before, after in zip(first, second, strict=True):
        assert after.total == pytest.approx(before.total, abs=1e-12)


def test_saliencies(network: tuple[Problem, np.ndarray]) -> None:
    problem, truth = network
    saliency = run(problem).result.saliency
    assert saliency is not None
    each = 0.5 * truth * np.asarray(flat_params(problem)) ** 2
    by_name = {layer.name: layer for layer in saliency}
    start = 0
    for name, leaves in Layout.of(problem.params).layers.items():
        part = slice(start, start + sum(Layout.of(problem.params).sizes[i] for i in leaves))
        start = part.stop
        assert by_name[name].total == pytest.approx(each[part].sum())
        assert by_name[name].max == pytest.approx(each[part].max())
        assert by_name[name].negative_fraction == np.mean(truth[part] < 0)
    means = [layer.mean for layer in saliency]
    assert means == sorted(means, reverse=True)


@pytest.mark.parametrize("matrix", ["ntk", "empirical-fisher", "gradient-covariance", "residual"])
def test_matrices_that_are_no_curvature_have_no_saliencies(matrix: str) -> None:
    problem = mlp_problem()
    answer = run(problem, matrix=matrix)
    assert answer.result.saliency is None
    assert answer.result.prune is None
    with pytest.raises(UsageError, match=matrix):
        run(problem, matrix=matrix, prune=0.1)
    if matrix == "ntk":
        assert [layer.name for layer in answer.result.layers] == ["outputs"]
        assert answer.arrays["outputs"].shape == (23 * 3,)


def test_pruning_by_hand(network: tuple[Problem, np.ndarray]) -> None:
    problem, truth = network
    prune = run(problem, prune=0.25).result.prune
    assert prune is not None
    w, objective = np.asarray(flat_params(problem)), dense_objective(problem)
    count = round(0.25 * problem.dim)
    each = 0.5 * truth * w**2
    gone, smallest = np.argsort(each, kind="stable")[:count], np.argsort(np.abs(w), kind="stable")[:count]
    delta = np.zeros_like(w)
    delta[gone] = -w[gone]
    without = w.copy()
    without[smallest] = 0
    gradient, hessian = np.asarray(jax.grad(objective)(jnp.asarray(w))), dense_hessian(problem)
    before = float(objective(jnp.asarray(w)))
    assert prune.weights == count == sum(layer.weights for layer in prune.layers)
    assert prune.threshold == pytest.approx(each[gone].max())
    assert prune.predicted_by_diagonal.value == pytest.approx(each[gone].sum())
    assert prune.predicted_by_diagonal.stderr == 0
    assert prune.first_order == pytest.approx(gradient @ delta)
    assert prune.predicted_by_quadratic == pytest.approx(gradient @ delta + 0.5 * delta @ hessian @ delta)
    assert prune.actual == pytest.approx(float(objective(jnp.asarray(w + delta))) - before)
    assert prune.magnitude_actual == pytest.approx(float(objective(jnp.asarray(without))) - before)
    assert 0 < prune.resolution < 1e-12


@pytest.mark.nightly
def test_the_prediction_of_sampled_pruning_covers(network: tuple[Problem, np.ndarray]) -> None:
    problem, truth = network
    w, held = np.asarray(flat_params(problem)), 0
    for seed in range(20):
        settings = {"method": "hutchinson", "probes": 16, "seed": seed, "prune": 0.4, "damping": 0.5}
        answer = run(problem, **settings)
        prune = answer.result.prune
        assert prune is not None
        value = flat(problem, answer) - 0.5
        score = 0.5 * np.maximum(value, flat(problem, answer, ".stderr")) * w**2
        gone = np.argsort(score, kind="stable")[: prune.weights]
        exact = 0.5 * truth[gone] @ w[gone] ** 2
        low, high = prune.predicted_by_diagonal.interval
        held += low <= exact <= high
    assert held >= 17


def test_a_stopped_run_answers_with_what_there_is(network: tuple[Problem, np.ndarray]) -> None:
    problem, _ = network
    answer = run(problem, StopAfter(4), method="xdiag", probes=64)
    assert answer.result.method == "hutchinson"
    assert "stopped before that" in answer.result.reason
    assert answer.result.layers[0].mean.samples == 32


def test_too_few_products_and_too_little_memory(network: tuple[Problem, np.ndarray]) -> None:
    problem, _ = network
    for method, least in (("hutchinson", 2), ("xdiag", 4)):
        with pytest.raises(UsageError, match=str(least)):
            run(problem, method=method, probes=least - 1)
        run(problem, method=method, probes=least)
    with pytest.raises(MemoryLimitError):
        run(problem, method="xdiag", probes=64, max_memory=10_000)


def test_forecast(network: tuple[Problem, np.ndarray]) -> None:
    problem, _ = network
    dense = diag.forecast(Context(problem), DiagSettings())[1]
    sampled = diag.forecast(Context(problem), DiagSettings(method="xdiag", probes=40))[1]
    assert (dense.products, sampled.products) == (problem.dim, 40)
    pruned = run(problem, method="xdiag", probes=40, prune=0.1)
    assert (
        pruned.meter.products
        == diag.forecast(Context(problem), DiagSettings(method="xdiag", probes=40, prune=0.1))[1].products
    )
    assert sampled.bytes > diag.forecast(Context(problem), DiagSettings(method="hutchinson", probes=40))[1].bytes


@pytest.mark.first_tier("ggn")
@pytest.mark.parametrize("matrix", ["ggn", "empirical-fisher"])
def test_the_output_side_gives_the_diagonal(matrix: str) -> None:
    problem = mlp_problem(sizes=(4, 16, 3), count=23, l2=1e-2)
    shift = 0.3 + (1e-2 if matrix == "ggn" else 0)
    answer = run(problem, matrix=matrix, damping=0.3)
    result = answer.result
    assert (result.method, result.written_out, answer.meter.products) == ("dense", "outputs", 69)
    np.testing.assert_allclose(flat(problem, answer), np.diag(dense_matrix(problem, matrix)) + shift, rtol=1e-10)
    assert not flat(problem, answer, ".stderr").any()
    assert "69 products" in result.reason
    assert result.layers[0].mean.method == "exact"
    assert diag.forecast(Context(problem), DiagSettings(matrix=matrix))[1].products == 69  # type: ignore[arg-type]
