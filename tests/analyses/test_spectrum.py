"""The whole analysis against dense float64 truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.analyses import spectrum
from curvcli.analyses.common.answer import Answer
from curvcli.analyses.common.context import Context
from curvcli.analyses.common.subsampling import eigenvalue_errors, images
from curvcli.analyses.spectrum import look_schedule
from curvcli.curvature import build_for
from curvcli.linalg.iterate import Silent
from curvcli.linalg.operator import to_dense
from curvcli.problem import Problem
from curvcli.schema.spectrum import SpectrumResult, SpectrumSettings
from tests.monitors import StopAfter
from tests.problems import dense_ggn, dense_hessian, make_problem, mlp_problem


def run(problem: Problem, monitor: Any = None, **settings: Any) -> Answer[SpectrumResult]:
    settings = {"dtype": "float64", "skip_checks": True, **settings}
    return spectrum.run(Context(problem, monitor or Silent()), SpectrumSettings(**settings))


def holds(estimate: Any, truth: float) -> bool:
    return estimate.interval[0] - 1e-12 <= truth <= estimate.interval[1] + 1e-12


@pytest.fixture(scope="module")
def network() -> tuple[Problem, np.ndarray]:
    problem = mlp_problem(sizes=(8, 12, 5), count=60, l2=1e-3, batch_size=17)
    return problem, np.linalg.eigvalsh(dense_hessian(problem))


@pytest.mark.first_tier("xtrace")
@pytest.mark.parametrize("method", ["hutchinson", "xtrace"])
def test_against_dense(network: tuple[Problem, np.ndarray], method: str) -> None:
    problem, exact = network
    result = run(problem, method=method, probes=8, steps=40, seed=3).result
    norm = np.abs(exact).max()
    for found, truth in ((result.lambda_max, exact[-1]), (result.lambda_min, exact[0])):
        assert found.converged
        assert found.residual <= 1e-6 * norm
        assert abs(found.value - truth) <= 1e-6 * norm
        assert holds(found, truth)
    assert result.lambda_max.beyond is None or exact[-1] <= result.lambda_max.beyond.bound
    assert holds(result.trace, exact.sum())
    assert holds(result.frobenius_norm, np.linalg.norm(exact))
    cut = result.near_zero_tolerance
    assert holds(result.negative_mass, np.mean(exact < -cut))
    assert holds(result.near_zero_mass, np.mean(np.abs(exact) <= cut))
    assert result.max_stable_learning_rate == pytest.approx(2 / exact[-1])
    for weights in result.weights:
        assert sum(weights) == pytest.approx(1)


def test_dense_is_exact(network: tuple[Problem, np.ndarray]) -> None:
    problem, exact = network
    result = run(problem).result
    assert result.method == "dense"
    np.testing.assert_allclose(result.nodes[0], exact, atol=1e-13)
    np.testing.assert_allclose(result.weights[0], 1 / problem.dim)
    assert result.trace.value == pytest.approx(exact.sum())
    assert result.trace.stderr == 0
    assert result.trace.method == "exact"
    assert np.trapezoid(result.density.value, result.density.grid) == pytest.approx(1, abs=1e-3)
    assert result.cumulative.lower == result.cumulative.upper


def test_ggn_against_dense() -> None:
    problem = mlp_problem(sizes=(8, 12, 5), count=60, batch_size=11)
    exact = np.linalg.eigvalsh(dense_ggn(problem))
    result = run(problem, matrix="ggn", method="xtrace", probes=6, steps=60).result
    assert result.lambda_max.value == pytest.approx(exact[-1], abs=1e-6 * exact[-1])
    assert abs(result.lambda_min.value) <= 1e-6 * exact[-1]
    assert holds(result.trace, exact.sum())


def test_same_seed_same_bytes_and_other_seed_other_probes(network: tuple[Problem, np.ndarray]) -> None:
    problem, _ = network
    first, again, other = (run(problem, method="xtrace", probes=3, steps=20, seed=seed).result for seed in (1, 1, 2))
    assert first.model_dump_json() == again.model_dump_json()
    assert first.nodes != other.nodes


def test_without_reorthogonalisation(network: tuple[Problem, np.ndarray]) -> None:
    problem, exact = network
    result = run(problem, method="xtrace", reorthogonalize="none", probes=6, steps=60).result
    assert result.lambda_max.value == pytest.approx(exact[-1], abs=1e-6)
    assert result.lambda_min.value == pytest.approx(exact[0], abs=1e-6)
    assert result.lambda_max.beyond is None
    assert holds(result.trace, exact.sum())


def test_rtol_stops_early_and_says_when_it_could_not(network: tuple[Problem, np.ndarray]) -> None:
    problem, exact = network
    loose = run(problem, method="xtrace", rtol=0.9, steps=40).result
    assert loose.trace.samples == 4
    tight = run(problem, method="hutchinson", rtol=1e-4, probes=8, steps=20)
    assert tight.result.trace.samples == 8
    assert any("--rtol" in warning for warning in tight.warnings)
    assert holds(loose.trace, exact.sum())


def test_look_schedule() -> None:
    assert look_schedule(10, None) == [10]
    assert look_schedule(3, 0.1) == [3]
    assert look_schedule(16, 0.1) == [4, 8, 16]
    assert look_schedule(20, 0.1) == [4, 8, 16, 20]


@pytest.mark.parametrize("questions", [0, 1, 5, 30])
def test_stopped_early_it_answers_with_what_there_is(network: tuple[Problem, np.ndarray], questions: int) -> None:
    problem, exact = network
    answer = run(problem, StopAfter(questions), method="xtrace", probes=4, steps=20)
    assert answer.result.lambda_max.value <= exact[-1] + 1e-9
    assert answer.result.lambda_min.value >= exact[0] - 1e-9
    for found in (answer.result.lambda_max, answer.result.lambda_min):
        assert found.converged or any("not converged" in warning for warning in answer.warnings)


def test_memory_limit_cuts_the_probes_into_rounds(network: tuple[Problem, np.ndarray]) -> None:
    from curvcli.analyses.common.planning import plan_lanczos
    from curvcli.errors import MemoryLimitError

    problem, _ = network
    options = {"probes": 10, "steps": 32, "full": True}
    all_at_once = plan_lanczos(problem, SpectrumSettings(), **options)
    assert all_at_once.at_once == 10
    some = plan_lanczos(problem, SpectrumSettings(max_memory=all_at_once.bytes // 2), **options)
    assert 1 <= some.at_once < 10
    assert some.bytes <= all_at_once.bytes // 2
    with pytest.raises(MemoryLimitError, match="one probe of 32 steps"):
        plan_lanczos(problem, SpectrumSettings(max_memory=1000), **options)
    whole = run(problem, method="xtrace", probes=6, steps=32).result
    parts = run(problem, method="xtrace", probes=6, steps=32, max_memory=all_at_once.bytes // 3).result
    assert parts.trace.value == pytest.approx(whole.trace.value, rel=1e-9)


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_one_parameter(matrix: str) -> None:
    problem = make_problem(lambda p, x: x @ p["w"], {"w": np.array([[2.0]])}, np.ones((3, 1)), np.zeros((3, 1)))
    for method in ("auto", "xtrace"):
        result = run(problem, matrix=matrix, method=method).result
        assert result.lambda_max.value == pytest.approx(1)
        assert result.lambda_min.value == pytest.approx(1)
        assert result.trace.value == pytest.approx(1)


def test_zero_matrix() -> None:
    problem = make_problem(lambda p, x: x @ p["w"] * 0.0, {"w": np.ones((4, 1))}, np.ones((3, 4)), np.zeros((3, 1)))
    for method in ("auto", "xtrace"):
        result = run(problem, method=method).result
        assert result.lambda_max.value == 0
        assert result.max_stable_learning_rate is None
        assert result.near_zero_mass.value == 1
        assert result.trace.value == 0


@pytest.mark.slow
def test_num_parameters_below_the_steps() -> None:
    problem = mlp_problem(sizes=(2, 2), count=9)
    exact = np.linalg.eigvalsh(dense_hessian(problem))
    result = run(problem, method="xtrace", steps=80, probes=3).result
    assert all(len(nodes) <= problem.dim for nodes in result.nodes)
    assert result.lambda_max.value == pytest.approx(exact[-1], abs=1e-12)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_scale_of_the_loss_does_not_matter(scale: float) -> None:
    from dataclasses import replace

    problem = mlp_problem(sizes=(6, 8, 4), count=30)
    scaled = replace(problem, normaliser=problem.normaliser / scale)
    one, other = (run(p, method="xtrace", probes=4, steps=30).result for p in (problem, scaled))
    assert other.lambda_max.value == pytest.approx(scale * one.lambda_max.value, rel=1e-6)
    assert other.trace.value == pytest.approx(scale * one.trace.value, rel=1e-9)
    assert other.negative_mass.value == pytest.approx(one.negative_mass.value, abs=1e-6)


@pytest.mark.slow
def test_float32_holds_the_float64_truth() -> None:
    problem = mlp_problem(sizes=(8, 12, 5), count=60, l2=1e-3, dtype="float32")
    exact = np.linalg.eigvalsh(dense_hessian(mlp_problem(sizes=(8, 12, 5), count=60, l2=1e-3)))
    for method in ("dense", "xtrace"):
        result = run(problem, dtype="float32", method=method, probes=6, steps=60).result
        assert holds(result.lambda_max, exact[-1])
        assert holds(result.lambda_min, exact[0])
        assert result.lambda_max.converged


def test_user_warning_for_a_loss_that_is_not_finite() -> None:
    from curvcli.errors import NumericsError

    problem = make_problem(lambda p, x: jnp.log(x @ p["w"]), {"w": -np.ones((2, 1))}, np.ones((3, 2)), np.zeros((3, 1)))
    with pytest.raises(NumericsError, match="the loss is nan"):
        run(problem)


@pytest.mark.first_tier("dense")
@pytest.mark.parametrize("method", ["dense", "xtrace"])
def test_error_of_the_examples_left_out(method: str) -> None:
    """λ_max of random subsets spreads as stated; nothing is stated where nothing is left out."""
    from dataclasses import replace

    whole, used = 300, 60
    full = mlp_problem(sizes=(4, 5, 3), count=whole)
    truth = run(full, matrix="ggn").result
    assert truth.lambda_max.data_stderr is None
    errors, stated = [], []
    for seed in range(25 if method == "dense" else 3):
        chosen = np.random.default_rng(seed).choice(whole, used, replace=False)
        batches = replace(
            full.batches, inputs=full.batches.inputs[chosen], targets=full.batches.targets[chosen],
            weight=full.batches.weight[chosen],
        )  # fmt: skip
        part = replace(full, batches=batches, normaliser=float(used))
        result = run(part, matrix="ggn", method=method, seed=seed, probes=4, steps=20).result
        assert result.trace.data_stderr is not None
        assert result.frobenius_norm.data_stderr is not None
        assert result.lambda_min.data_stderr is not None
        assert result.lambda_max.data_stderr is not None
        errors.append(result.lambda_max.value - truth.lambda_max.value)
        stated.append(result.lambda_max.data_stderr)
    if method == "dense":
        assert 0.6 < np.sqrt(np.mean(np.square(stated)) / np.mean(np.square(errors))) < 1.6
    assert np.max(np.abs(errors) / stated) < 5


@pytest.mark.first_tier("gauss-newton", "fisher-mc")
@pytest.mark.parametrize("matrix", ["ggn", "gauss-newton", "fisher-mc", "empirical-fisher"])
def test_the_output_side_has_the_same_spectrum(matrix: str) -> None:
    problem = replace(mlp_problem(sizes=(4, 16, 3), count=23, l2=1e-2), population=50)
    exact = np.linalg.eigvalsh(to_dense(build_for(problem, SpectrumSettings(matrix=matrix, damping=0.3))))  # type: ignore[arg-type]
    answer = run(problem, matrix=matrix, damping=0.3)
    result = answer.result
    assert (result.method, result.written_out, result.deflated) == ("dense", "outputs", problem.dim)
    (nodes,), (weights,) = result.nodes, result.weights
    every = np.repeat(nodes, np.rint(problem.dim * np.array(weights)).astype(int))
    np.testing.assert_allclose(every, exact, rtol=1e-10)
    assert sum(weights) == pytest.approx(1)
    assert result.trace.value == pytest.approx(exact.sum(), rel=1e-12)
    assert result.frobenius_norm.value == pytest.approx(np.linalg.norm(exact), rel=1e-12)
    assert result.trace.stderr == result.frobenius_norm.stderr == result.negative_mass.value == 0
    for found, truth in ((result.lambda_min, exact[0]), (result.lambda_max, exact[-1])):
        assert holds(found, truth)
        assert found.converged
    assert result.lambda_max.residual < 1e-12 * exact[-1]
    assert answer.meter.products == 69 + 2 + 8  # λ_max pulled back, its residual; the norm's data error
    band, truth = result.cumulative, np.searchsorted(exact, result.cumulative.grid, side="right") / problem.dim
    np.testing.assert_allclose(band.lower, truth, atol=1e-12)
    # What the examples left out may do to the eigenvalues, beside what the parameters' side says.
    written = spectrum.SpectrumSettings(matrix=matrix, damping=0.3, dtype="float64")  # type: ignore[arg-type]
    operator = build_for(problem, written)
    vectors = np.linalg.eigh(to_dense(operator))[1][:, [0, -1]].T
    known = images(written, operator)
    errors = eigenvalue_errors(problem, written, exact[[0, -1]], vectors, ["bottom", "top"], known)
    assert result.lambda_min.data_stderr == pytest.approx(errors[0].stderr, abs=1e-12)
    assert result.lambda_max.data_stderr == pytest.approx(errors[1].stderr, rel=1e-8)
    low, high = result.lambda_max.interval
    assert result.lambda_max.value * np.log(result.lambda_max.value / low) == pytest.approx(errors[1].below, rel=1e-6)
    assert high - result.lambda_max.value == pytest.approx(errors[1].above, rel=1e-6)


def test_near_zero_mass_of_the_output_side() -> None:
    problem = mlp_problem(sizes=(4, 16, 3), count=23)
    exact = np.linalg.eigvalsh(to_dense(build_for(problem, SpectrumSettings(matrix="ggn"))))
    result = run(problem, matrix="ggn").result
    assert result.near_zero_mass.value == np.mean(exact < result.near_zero_tolerance) > 0.6
    assert result.lambda_min.value == 0


def test_nothing_but_zeros() -> None:
    problem = make_problem(lambda p, x: 0 * (x @ p["w"]), {"w": np.ones((6, 2))}, np.ones((2, 6)), np.zeros((2, 2)))
    result = run(problem, matrix="gauss-newton", damping=0.5).result
    assert result.written_out == "outputs"
    assert result.trace.value == 6
    assert result.lambda_max.value == result.lambda_min.value == 0.5
