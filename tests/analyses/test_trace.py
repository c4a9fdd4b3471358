"""The whole analysis against dense float64 truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from curvcli.analyses import trace
from curvcli.analyses.common.answer import Answer
from curvcli.analyses.common.context import Context
from curvcli.analyses.common.subsampling import sampling_factor, shared_spread
from curvcli.curvature import build_for
from curvcli.curvature.flatten import Layout
from curvcli.errors import MemoryLimitError, UsageError
from curvcli.linalg.iterate import Silent
from curvcli.linalg.operator import to_dense
from curvcli.problem import Problem
from curvcli.schema.trace import TraceResult, TraceSettings
from tests.monitors import StopAfter
from tests.problems import dense_hessian, dense_matrix, make_problem, mlp, mlp_params, mlp_problem, targets_for


def run(problem: Problem, monitor: Any = None, **settings: Any) -> Answer[TraceResult]:
    settings = {"dtype": "float64", "skip_checks": True, **settings}
    return trace.run(Context(problem, monitor or Silent()), TraceSettings(**settings))


def holds(estimate: Any, truth: float) -> bool:
    return estimate.interval[0] - 1e-12 <= truth <= estimate.interval[1] + 1e-12


@pytest.fixture(scope="module")
def network() -> tuple[Problem, np.ndarray]:
    problem = mlp_problem(sizes=(8, 12, 5), count=60, l2=1e-3, batch_size=17)
    return problem, dense_hessian(problem)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small problems are answered as large ones are."""
    monkeypatch.setattr(trace, "DENSE_DIM", 0)


@pytest.mark.first_tier("6-hutch*")
@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("method", ["auto", "hutchinson", "hutch++", "xtrace"])
@pytest.mark.parametrize("probes", [6, 40])
def test_against_dense(network: tuple[Problem, np.ndarray], method: str, probes: int) -> None:
    problem, exact = network
    answer = run(problem, method=method, probes=probes, confidence=0.999)
    result = answer.result
    assert holds(result.trace, np.trace(exact))
    assert holds(result.frobenius_norm, np.linalg.norm(exact))
    layout = Layout.of(problem.params)
    ends = np.cumsum(layout.sizes)
    diagonal = np.diag(exact)
    for layer in result.layers:
        truth = sum(diagonal[ends[i] - layout.sizes[i] : ends[i]].sum() for i in layout.layers[layer.name])
        assert holds(layer.trace, truth)
    assert sum(layer.trace.value for layer in result.layers) == pytest.approx(result.trace.value, rel=1e-12)
    assert [layer.name for layer in result.layers] == list(layout.layers)
    assert answer.meter.products <= probes
    assert result.reason


def test_dense_is_exact(network: tuple[Problem, np.ndarray]) -> None:
    problem, exact = network
    result = run(problem).result
    assert result.method == "dense"
    assert result.trace.value == pytest.approx(np.trace(exact), rel=1e-12)
    assert result.frobenius_norm.value == pytest.approx(np.linalg.norm(exact), rel=1e-12)
    assert result.trace.stderr == 0
    assert sum(layer.trace.value for layer in result.layers) == pytest.approx(result.trace.value, rel=1e-12)
    assert result.more == []


MATRICES = ["ggn", "gauss-newton", "fisher", "fisher-mc", "empirical-fisher", "gradient-covariance", "residual", "ntk"]


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("matrix", MATRICES)
def test_every_matrix(network: tuple[Problem, np.ndarray], matrix: str) -> None:
    problem, _ = network
    settings = TraceSettings(matrix=matrix, dtype="float64")  # type: ignore[arg-type]
    exact = to_dense(build_for(problem, settings))
    result = run(problem, matrix=matrix, probes=32, confidence=0.999).result
    assert result.dim == len(exact)
    assert holds(result.trace, np.trace(exact))
    assert holds(result.frobenius_norm, np.linalg.norm(exact))
    assert bool(result.layers) == (matrix != "ntk")


@pytest.mark.slow
@pytest.mark.usefixtures("large")
def test_rtol_stops_when_it_is_met(network: tuple[Problem, np.ndarray]) -> None:
    problem, exact = network
    loose, tight = (run(problem, method="xtrace", rtol=rtol, seed=1) for rtol in (0.5, 0.05))
    for answer, rtol in ((loose, 0.5), (tight, 0.05)):
        low, high = answer.result.trace.interval
        assert 0.5 * (high - low) <= rtol * answer.result.trace.value
        assert holds(answer.result.trace, np.trace(exact))
        assert [more.products for more in answer.result.more if more.within == rtol] == [0]
    assert loose.meter.products < tight.meter.products
    missed = run(problem, method="hutchinson", rtol=0.001, probes=32)
    assert missed.meter.products == 32
    assert any("--rtol" in warning for warning in missed.warnings)


@pytest.mark.usefixtures("large")
def test_auto_gives_the_exact_answer_where_it_is_cheaper(network: tuple[Problem, np.ndarray]) -> None:
    problem, exact = network
    answer = run(problem, rtol=1e-4)
    assert answer.result.method == "dense"
    assert answer.result.trace.value == pytest.approx(np.trace(exact), rel=1e-12)
    assert answer.meter.products < 3 * problem.dim


@pytest.mark.usefixtures("large")
def test_auto_says_why(network: tuple[Problem, np.ndarray]) -> None:
    problem, _ = network
    assert "test vectors hold" in run(problem, probes=64).result.reason
    flat = make_problem(
        lambda p, x: x @ p["w"], {"w": np.ones((60, 1))}, np.sqrt(60) * np.eye(60), np.zeros((60, 1)), batch_size=60
    )
    assert run(flat, probes=16).result.trace.value == pytest.approx(60)


def test_methods_need_their_products(network: tuple[Problem, np.ndarray]) -> None:
    problem, _ = network
    for method, probes in (("xtrace", 3), ("hutch++", 2)):
        with pytest.raises(UsageError, match="at least"):
            run(problem, method=method, probes=probes)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("probes", [1, 2, 3, 4, 5])
def test_few_probes(network: tuple[Problem, np.ndarray], probes: int) -> None:
    problem, exact = network
    result = run(problem, probes=probes, confidence=0.99).result
    assert holds(result.trace, np.trace(exact))


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("questions", [0, 1, 2, 5])
@pytest.mark.parametrize("method", ["auto", "hutch++", "xtrace"])
def test_stopped_early_it_answers_with_what_there_is(
    network: tuple[Problem, np.ndarray], method: str, questions: int
) -> None:
    problem, exact = network
    answer = run(problem, StopAfter(questions), method=method, probes=64, confidence=0.999)
    assert holds(answer.result.trace, np.trace(exact))
    assert answer.meter.products <= 64
    if answer.result.method != method:
        assert "stopped" in answer.result.reason or method == "auto"


def test_memory_limit(network: tuple[Problem, np.ndarray]) -> None:
    problem, _ = network
    with pytest.raises(MemoryLimitError, match="vectors"):
        run(problem, method="xtrace", max_memory=1000)
    _, forecast = trace.forecast(Context(problem), TraceSettings(probes=40, method="xtrace"))
    assert forecast.products == 40
    assert forecast.bytes > 80 * 8 * problem.dim


def test_shared_spread_leaves_the_probes_own_error_out() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=4000)
    samples = truth + 3 * rng.normal(size=(8, 4000))
    spread, upper = shared_spread(samples)
    assert spread == pytest.approx(1, abs=0.1)
    assert spread < upper < 1.3
    assert np.std(samples[0], ddof=1) > 3


@pytest.mark.first_tier("ggn")
@pytest.mark.parametrize("matrix", ["hessian", "ggn", "empirical-fisher", "gradient-covariance"])
def test_error_of_the_examples_left_out(matrix: str) -> None:
    """Over random subsets: the mean squared error of the trace is the stated one."""
    whole, used = 200, 40
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(whole, 4)), targets_for("softmax_cross_entropy", whole, 3)
    made = make_problem(mlp, mlp_params((4, 5, 3)), inputs, targets, "softmax_cross_entropy", batch_size=40)

    def problem(chosen: np.ndarray) -> Problem:
        weight = made.batches.weight[chosen]
        batches = replace(made.batches, inputs=inputs[chosen], targets=targets[chosen], weight=weight)
        return replace(made, batches=batches, normaliser=float(len(chosen)))

    truth = run(problem(np.arange(whole)), matrix=matrix).result
    errors, stated = [], []
    for seed in range(60):
        chosen = np.random.default_rng(seed).choice(whole, used, replace=False)
        result = run(problem(chosen), matrix=matrix, seed=seed).result
        assert result.trace.data_stderr is not None
        assert result.frobenius_norm.data_stderr is not None
        assert all(layer.trace.data_stderr is not None for layer in result.layers)
        errors.append([
            result.trace.value - truth.trace.value, result.frobenius_norm.value - truth.frobenius_norm.value
        ])  # fmt: skip
        stated.append([result.trace.data_stderr, result.frobenius_norm.data_stderr])
    ratio = np.sqrt(np.mean(np.square(stated), axis=0) / np.mean(np.square(errors), axis=0))
    assert 0.7 < ratio[0] < 1.4
    assert 0.6 < ratio[1] < 1.6
    assert truth.trace.data_stderr is None


def test_sampling_factor() -> None:
    problem = mlp_problem(count=20)
    assert sampling_factor(problem) == 0
    assert sampling_factor(replace(problem, population=None)) == pytest.approx(20**-0.5)
    assert sampling_factor(replace(problem, population=40)) == pytest.approx(40**-0.5)


def test_the_batch_size_does_not_matter(network: tuple[Problem, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "DENSE_DIM", 0)
    problem, _ = network
    one, other = (
        run(replace(problem, batches=problem.batches.resized(size)), method="xtrace", probes=16).result
        for size in (7, 60)
    )
    assert one.trace.value == pytest.approx(other.trace.value, rel=1e-10)
    assert one.trace.stderr == pytest.approx(other.trace.stderr, rel=1e-6)


@pytest.mark.slow
def test_error_of_the_layers_is_that_of_their_blocks() -> None:
    """With one layer alone differentiated, the whole's error is the layer's."""
    problem = replace(mlp_problem(sizes=(4, 5, 3), count=80), population=400)
    layers = run(problem, matrix="ggn").result.layers
    for layer in layers:
        chosen = {name: leaf for name, leaf in problem.params.items() if name.startswith(layer.name + "/")}
        rest = {name: leaf for name, leaf in problem.params.items() if name not in chosen}
        block = replace(problem, params=chosen, frozen={"params": rest, "collections": {}})
        alone = run(block, matrix="ggn").result.trace
        assert alone.value == pytest.approx(layer.trace.value, rel=1e-9)
        assert alone.data_stderr is not None
        assert layer.trace.data_stderr is not None
        assert 0.4 < layer.trace.data_stderr / alone.data_stderr < 2.5  # 16 probes of one, 32 of the other


SANDWICHES = ["ggn", "gauss-newton", "fisher", "fisher-mc", "empirical-fisher"]


@pytest.fixture(scope="module")
def wide() -> Problem:
    """131 parameters, 69 outputs, the last batch ragged, some examples left out."""
    problem = mlp_problem(sizes=(4, 16, 3), count=23, l2=1e-2)
    weight = problem.batches.weight * np.random.default_rng(5).random(23)
    weight[[2, 5]] = 0
    return replace(problem, batches=replace(problem.batches, weight=weight))


@pytest.mark.first_tier("fisher", "fisher-mc")
@pytest.mark.parametrize("matrix", SANDWICHES)
def test_the_output_side_is_exact_where_it_is_smaller(wide: Problem, matrix: str) -> None:
    shift = 0.3 + (0.0 if matrix == "empirical-fisher" else 1e-2)
    exact = dense_matrix(wide, matrix) + shift * np.eye(wide.dim)
    answer = run(wide, matrix=matrix, damping=0.3)
    result = answer.result
    assert (result.method, result.written_out, answer.meter.products) == ("dense", "outputs", 69)
    assert result.trace.value == pytest.approx(np.trace(exact), rel=1e-12)
    assert result.frobenius_norm.value == pytest.approx(np.linalg.norm(exact), rel=1e-12)
    assert result.trace.stderr == result.frobenius_norm.stderr == 0
    truth = np.asarray(Layout.of(wide.params).leaf_sums(np.diag(exact)))
    assert [layer.trace.value for layer in result.layers] == pytest.approx(truth.reshape(2, 2).sum(1), rel=1e-12)


def test_the_parameters_side_where_that_is_smaller(wide: Problem) -> None:
    few = mlp_problem(count=60)
    assert run(few, matrix="ggn").result.written_out == "parameters"
    assert run(wide).result.written_out == "parameters"
    assert run(wide, matrix="ggn", method="xtrace", probes=8).result.written_out is None
    _, forecast = trace.forecast(Context(wide), TraceSettings(matrix="ggn"))
    assert forecast.products == 69
    assert forecast.bytes > 3 * 8 * 69**2 + 8 * wide.dim
    with pytest.raises(MemoryLimitError):
        run(wide, matrix="ggn", method="dense", max_memory=50_000)


@pytest.mark.first_tier("fisher-mc")
@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("matrix", ["ggn", "fisher-mc", "gradient-covariance"])
def test_forms_without_the_layers(wide: Problem, matrix: str) -> None:
    exact = to_dense(build_for(wide, TraceSettings(matrix=matrix, dtype="float64", damping=0.1)))  # type: ignore[arg-type]
    for probes in (4, 12, 40):
        answer = run(wide, matrix=matrix, damping=0.1, method="hutchinson", layers=False, probes=probes, seed=1)
        assert holds(answer.result.trace, np.trace(exact))
        assert holds(answer.result.frobenius_norm, np.linalg.norm(exact))
        assert (answer.meter.products, answer.meter.forms) == (0, probes)
        assert answer.result.layers == []
        assert "forms" in answer.result.reason


@pytest.mark.usefixtures("large")
def test_where_forms_do_not_help_products_are_made(wide: Problem) -> None:
    for options in (
        {"matrix": "hessian", "method": "hutchinson"}, {"matrix": "ggn", "method": "xtrace"},
        {"matrix": "ggn", "method": "hutchinson", "probes": 3},
    ):  # fmt: skip
        answer = run(wide, layers=False, **{"probes": 8, **options})
        assert answer.meter.forms == 0
        assert answer.meter.products > 0
        assert answer.result.layers == []


@pytest.mark.usefixtures("large")
def test_auto_ends_in_forms_where_no_space_dominates() -> None:
    inputs = np.random.default_rng(0).normal(size=(90, 60))
    problem = make_problem(lambda p, x: x @ p["w"], {"w": np.ones((60, 1))}, inputs, np.zeros((90, 1)), batch_size=45)
    exact = np.square(inputs).sum() / 90
    answer = run(problem, matrix="ggn", layers=False, probes=20)
    assert (answer.result.method, answer.meter.products, answer.meter.forms) == ("hutchinson", 10, 10)
    assert "10 samples are quadratic forms" in answer.result.reason
    assert holds(answer.result.trace, exact)
    assert answer.result.trace.samples == 20
    until = run(problem, matrix="ggn", layers=False, method="hutchinson", rtol=0.05)
    low, high = until.result.trace.interval
    assert 0.5 * (high - low) <= 0.05 * until.result.trace.value
    assert holds(until.result.trace, exact)
    assert until.meter.products == 0
    assert until.meter.forms == until.result.trace.samples
