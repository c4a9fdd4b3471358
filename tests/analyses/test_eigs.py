"""The whole analysis against dense float64 truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from curvcli.analyses import eigs
from curvcli.analyses.common.answer import Answer
from curvcli.analyses.common.context import Context
from curvcli.curvature import build
from curvcli.curvature.flatten import Layout
from curvcli.errors import MemoryLimitError
from curvcli.linalg.iterate import Silent
from curvcli.linalg.operator import LinearOperator
from curvcli.problem import Problem
from curvcli.schema.eigs import EigsResult, EigsSettings
from tests.monitors import StopAfter
from tests.problems import dense_ggn, dense_hessian, dense_objective, flat_params, make_problem, mlp_problem

BOTH_WAYS = pytest.mark.parametrize("method", ["dense", "lanczos"])


def run(problem: Problem, monitor: Any = None, **settings: Any) -> Answer[EigsResult]:
    settings = {"dtype": "float64", "skip_checks": True, "vectors": "kept.npz", **settings}
    return eigs.run(Context(problem, monitor or Silent()), EigsSettings(**settings))


def values(answer: Answer[EigsResult]) -> np.ndarray:
    return np.array([pair.value for pair in answer.result.eigenvalues])


def flat_vectors(problem: Problem, answer: Answer[EigsResult]) -> np.ndarray:
    """The vectors of the file as rows."""
    names = Layout.of(problem.params).names
    return np.concatenate([answer.arrays[f"vectors/{name}"].reshape(len(values(answer)), -1) for name in names], axis=1)


@pytest.fixture(scope="module")
def network() -> tuple[Problem, np.ndarray]:
    problem = mlp_problem(sizes=(8, 12, 5), count=60, l2=1e-3, batch_size=17)
    return problem, dense_hessian(problem)


@pytest.mark.first_tier("5-*")
@BOTH_WAYS
@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("k", [1, 5, 24])
def test_against_dense(network: tuple[Problem, np.ndarray], method: str, which: str, k: int) -> None:
    problem, matrix = network
    exact = np.linalg.eigvalsh(matrix)[::-1]
    expected = {
        "largest": exact[:k],
        "smallest": exact[len(exact) - k :],
        "both": np.concatenate([exact[: k - k // 2], exact[len(exact) - k // 2 :]]),
        "magnitude": np.sort(exact[np.argsort(-np.abs(exact))[:k]])[::-1],
    }[which]
    answer = run(problem, method=method, which=which, k=k)
    norm = np.abs(exact).max()
    assert (answer.result.method, answer.result.which, answer.result.dim) == (method, which, len(exact))
    np.testing.assert_allclose(values(answer), expected, atol=1e-6 * norm)
    vectors = flat_vectors(problem, answer)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(k), atol=1e-10)
    true = np.linalg.norm(vectors @ matrix - values(answer)[:, None] * vectors, axis=1)
    said = np.array([pair.residual for pair in answer.result.eigenvalues])
    assert np.all(true <= 1.01 * said + 1e-14)
    assert np.all(said <= 1e-6 * norm)
    assert all(pair.converged for pair in answer.result.eigenvalues)
    assert answer.warnings == []
    np.testing.assert_array_equal(answer.arrays["eigenvalues"], values(answer))
    np.testing.assert_array_equal(answer.arrays["residuals"], said)


@BOTH_WAYS
def test_subspaces_agree(network: tuple[Problem, np.ndarray], method: str) -> None:
    problem, matrix = network
    exact = np.linalg.eigh(matrix)[1][:, ::-1][:, :6]
    found = flat_vectors(problem, run(problem, method=method, k=6, tol=1e-9))
    np.testing.assert_allclose(np.linalg.svd(found @ exact)[1], 1, atol=1e-9)


def test_power_iteration_agrees(network: tuple[Problem, np.ndarray]) -> None:
    problem, matrix = network
    operator, vectors = build(problem, "ggn", with_regulariser=False), np.zeros((0, len(matrix)))
    found = values(run(problem, matrix="ggn", regulariser=False, method="lanczos", k=3))
    for index in range(3):
        vector = np.random.default_rng(index).normal(size=len(matrix))
        for _ in range(400):
            vector -= vectors.T @ (vectors @ vector)
            vector = np.asarray(operator.matmat(jax.numpy.asarray(vector[None])))[0]
            vector = vector / np.linalg.norm(vector)
        vectors = np.vstack([vectors, vector])
        image = np.asarray(operator.matmat(jax.numpy.asarray(vector[None])))[0]
        assert found[index] == pytest.approx(vector @ image, abs=1e-4 * found[0])


def test_products_against_sixth_order_differences(network: tuple[Problem, np.ndarray]) -> None:
    """H v from gradients at six points: an error of order h⁶, no autodiff of second order."""
    problem, _ = network
    gradient, w = jax.jit(jax.grad(dense_objective(problem))), flat_params(problem)
    vectors = np.random.default_rng(0).normal(size=(3, len(w))) / np.sqrt(len(w))
    products = np.asarray(build(problem, "hessian").matmat(jax.numpy.asarray(vectors)))
    step = 2e-2
    for vector, product in zip(vectors, products, strict=True):
        slopes = [
            np.asarray(gradient(w + j * step * vector) - gradient(w - j * step * vector)) / (2 * j * step)
            for j in (1, 2, 3)
        ]
        difference = 1.5 * slopes[0] - 0.6 * slopes[1] + 0.1 * slopes[2]
        np.testing.assert_allclose(product, difference, atol=1e-8 * np.abs(product).max())


@BOTH_WAYS
def test_overlap_with_the_gradient(network: tuple[Problem, np.ndarray], method: str) -> None:
    problem, matrix = network
    gradient = np.asarray(jax.grad(dense_objective(problem))(flat_params(problem)))
    answer = run(problem, method=method, k=7, tol=1e-9)
    exact = np.linalg.eigh(matrix)[1][:, ::-1][:, :7]
    shares = np.square(exact.T @ gradient) / (gradient @ gradient)
    found = [pair.gradient_cosine_squared for pair in answer.result.eigenvalues]
    np.testing.assert_allclose(found, shares, atol=1e-6)
    assert answer.result.gradient_overlap == pytest.approx(shares.sum(), abs=1e-6)


def linear_problem(features: int, outputs: int, rank: int | None = None) -> tuple[Problem, np.ndarray]:
    """Least squares: H = I_outputs ⊗ XᵀX/N, each eigenvalue `outputs`-fold; zero but for `rank` of them."""
    x = np.random.default_rng(1).normal(size=(40, features))
    if rank is not None:
        x = x[:, :rank] @ np.random.default_rng(2).normal(size=(rank, features))
    problem = make_problem(lambda p, x: x @ p["w"], {"w": np.ones((features, outputs))}, x, np.zeros((40, outputs)))
    return problem, np.sort(np.repeat(np.linalg.eigvalsh(x.T @ x / 40), outputs))[::-1]


@pytest.mark.first_tier("7-*")
@BOTH_WAYS
@pytest.mark.parametrize("k", [1, 7, 15])
def test_multiple_eigenvalues_come_as_often_as_they_are(method: str, k: int) -> None:
    problem, exact = linear_problem(12, 5)
    answer = run(problem, method=method, k=k)
    np.testing.assert_allclose(values(answer), exact[:k], atol=1e-6 * exact[0])


@BOTH_WAYS
def test_low_rank_and_zero(method: str) -> None:
    problem, exact = linear_problem(12, 4, rank=2)
    answer = run(problem, method=method, k=20)
    np.testing.assert_allclose(values(answer), exact[:20], atol=1e-9 * exact[0])
    zero = replace(problem, predict=lambda p, frozen, x: 0.0 * (x @ p["w"]))
    answer = run(zero, method=method, k=3)
    assert values(answer).tolist() == [0, 0, 0]
    assert answer.result.gradient_overlap is None
    assert answer.result.eigenvalues[0].gradient_cosine_squared is None


@pytest.mark.first_tier("1-*")
@BOTH_WAYS
@pytest.mark.parametrize("features", [1, 2])
def test_one_and_two_parameters(method: str, features: int) -> None:
    problem, exact = linear_problem(features, 1)
    answer = run(problem, method=method, k=10)
    np.testing.assert_allclose(values(answer), exact, rtol=1e-9)
    assert any("-k 10" in warning for warning in answer.warnings)
    assert answer.result.gradient_overlap == pytest.approx(1)


@pytest.mark.first_tier("dense")
@BOTH_WAYS
def test_all_pairs(method: str) -> None:
    problem = mlp_problem(sizes=(4, 5, 3))
    answer = run(problem, method=method, k=problem.dim)
    np.testing.assert_allclose(values(answer), np.linalg.eigvalsh(dense_hessian(problem))[::-1], atol=1e-9)


@pytest.mark.slow
def test_float32_holds_the_float64_truth(network: tuple[Problem, np.ndarray]) -> None:
    problem = mlp_problem(sizes=(8, 12, 5), count=60, l2=1e-3, dtype="float32")
    exact = np.linalg.eigvalsh(network[1])[::-1]
    for method in ("dense", "lanczos"):
        answer = run(problem, dtype="float32", method=method, k=20)
        assert all(pair.converged for pair in answer.result.eigenvalues)
        for pair, truth in zip(answer.result.eigenvalues, exact, strict=False):
            assert pair.interval[0] <= truth <= pair.interval[1]


def test_same_seed_same_bytes_and_other_seed_other_vectors(network: tuple[Problem, np.ndarray]) -> None:
    problem, _ = network
    first, again, other = (run(problem, method="lanczos", k=3, seed=seed) for seed in (1, 1, 2))
    assert first.result.model_dump_json() == again.result.model_dump_json()
    assert np.array_equal(flat_vectors(problem, first), flat_vectors(problem, again))
    assert not np.array_equal(flat_vectors(problem, first), flat_vectors(problem, other))


def test_method_auto() -> None:
    """Dense where it is cheap or nearly all is wanted, unless the products or the memory do not reach."""

    def chosen(dim: int, **settings: Any) -> str:
        problem = make_problem(lambda p, x: x @ p["w"], {"w": np.zeros((dim, 1))}, np.ones((3, dim)), np.zeros((3, 1)))
        return eigs.memory_plan(problem, EigsSettings(dtype="float64", **settings)).method

    assert chosen(1500) == "dense"
    assert chosen(1600) == "lanczos"
    assert chosen(1600, k=1500) == "dense"
    assert chosen(1500, probes=100) == "lanczos"
    assert chosen(1500, max_memory=20_000_000) == "lanczos"


@pytest.mark.parametrize("questions", [0, 1, 5])
def test_stopped_early_it_answers_with_what_there_is(network: tuple[Problem, np.ndarray], questions: int) -> None:
    problem, matrix = network
    answer = run(problem, StopAfter(questions), method="lanczos", k=8)
    vectors = flat_vectors(problem, answer)
    true = np.linalg.norm(vectors @ matrix - values(answer)[:, None] * vectors, axis=1)
    for pair, residual in zip(answer.result.eigenvalues, true, strict=True):
        assert pair.residual == pytest.approx(residual, rel=1e-6, abs=1e-13)
    unconverged = sum(not pair.converged for pair in answer.result.eigenvalues)
    assert unconverged
    assert any(f"{unconverged} of {len(true)} eigenvalues have not converged" in w for w in answer.warnings)
    assert any("only" in w for w in answer.warnings) == (len(true) < 8)


@pytest.mark.parametrize("probes", [1, 20, 40])
def test_no_more_products_than_allowed(network: tuple[Problem, np.ndarray], probes: int) -> None:
    answer = run(network[0], method="lanczos", k=10, probes=probes)
    assert answer.meter.products <= max(probes, 4)  # one block and the residuals of its pairs, at least
    assert any("have not converged" in warning for warning in answer.warnings)


def test_less_memory_costs_restarts_not_accuracy(network: tuple[Problem, np.ndarray]) -> None:
    problem, matrix = network
    options = {"method": "lanczos", "k": 12, "which": "both"}
    plenty = eigs.memory_plan(problem, EigsSettings(dtype="float64", **options))
    least = eigs.memory_plan(problem, EigsSettings(dtype="float64", max_memory=int(plenty.bytes * 0.7), **options))
    assert least.bytes <= plenty.bytes * 0.7
    assert least.capacity < plenty.capacity
    answer = run(problem, max_memory=least.bytes, **options)
    assert answer.result.restarts > 0
    exact = np.linalg.eigvalsh(matrix)[::-1]
    np.testing.assert_allclose(values(answer), np.r_[exact[:6], exact[-6:]], atol=1e-6 * exact[0])
    with pytest.raises(MemoryLimitError, match="a basis of 35 vectors"):
        run(problem, max_memory=1000, **options)
    with pytest.raises(MemoryLimitError, match="written out"):
        run(problem, max_memory=1000, method="dense")


def test_forecast_spends_nothing_and_is_near(network: tuple[Problem, np.ndarray]) -> None:
    problem, _ = network
    _, cost = eigs.forecast(Context(problem), EigsSettings(dtype="float64", method="lanczos", k=10))
    spent = run(problem, method="lanczos", k=10).meter.products
    assert 0.5 * spent <= cost.products <= 2 * spent
    _, cost = eigs.forecast(Context(problem), EigsSettings(dtype="float64", k=10))
    assert cost.products == problem.dim


@pytest.mark.nightly
def test_error_of_using_part_of_the_data() -> None:
    """Over many parts, its square is the mean square of the eigenvalue's error."""
    whole = mlp_problem(sizes=(4, 6, 3), count=400, batch_size=400)
    truth = np.linalg.eigvalsh(dense_ggn(whole))[::-1][:2]
    random, errors, said = np.random.default_rng(0), [], []
    for _ in range(16):
        rows = random.permutation(400)[:200]
        batches = replace(
            whole.batches, inputs=whole.batches.inputs[rows], targets=whole.batches.targets[rows],
            weight=whole.batches.weight[rows],
        )  # fmt: skip
        part = replace(whole, batches=batches.resized(200), normaliser=200.0)
        answer = run(part, matrix="ggn", k=2, method="dense")
        errors.append(values(answer) - truth)
        said.append([pair.data_stderr for pair in answer.result.eigenvalues])
    assert run(whole, matrix="ggn", k=2).result.eigenvalues[0].data_stderr is None
    ratio = np.sqrt(np.mean(np.square(errors), axis=0)) / np.mean(said, axis=0)
    np.testing.assert_allclose(ratio, 1, atol=0.35)


def test_ntk() -> None:
    problem = mlp_problem(sizes=(4, 5, 3), count=9)
    answer = run(problem, matrix="ntk", k=4, method="lanczos")
    outputs = jax.jacobian(
        lambda w: problem.predict(Layout.of(problem.params).unravel(w), problem.frozen, problem.batches.inputs)
    )(flat_params(problem))
    jacobian = np.asarray(outputs).reshape(27, -1)
    exact = np.linalg.eigvalsh(jacobian @ jacobian.T)[::-1][:4]
    np.testing.assert_allclose(values(answer), exact, rtol=1e-5)
    assert answer.arrays["vectors"].shape == (4, 27)
    assert answer.result.gradient_overlap is None
    assert answer.result.eigenvalues[0].gradient_cosine_squared is None


def test_products_are_of_two_shapes_at_most(network: tuple[Problem, np.ndarray], monkeypatch: Any) -> None:
    """Every shape of a block is a compilation."""
    problem, _ = network
    shapes, real = set(), eigs.build_for

    def watched(*arguments: Any) -> LinearOperator:
        operator = real(*arguments)
        return replace(operator, matmat=lambda v: (shapes.add(v.shape), operator.matmat(v))[1])

    monkeypatch.setattr(eigs, "build_for", watched)
    run(problem, method="lanczos", k=24)
    assert shapes == {(2, problem.dim)}
