"""Laplace's approximation against Bayesian linear regression, where it is exact, and against dense matrices."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from curvcli.analyses.common.context import Context
from curvcli.analyses.compare import analysis as compare
from curvcli.errors import UsageError
from curvcli.linalg.iterate import Silent
from curvcli.problem import Problem
from curvcli.schema.compare import CompareSettings
from tests.problems import dense_jacobian, dense_matrix, flat_params, make_problem, mlp_problem

PRIOR = 0.7


def read_out(problem: Problem, matrix: str = "ggn", **asked: Any) -> tuple[Any, Any]:
    given = {"dtype": "float64", "skip_checks": True, "matrices": "ggn,empirical-fisher", "laplace": matrix, **asked}
    answer = compare.run(Context(problem, Silent()), CompareSettings(**given))
    return answer.result.laplace, answer


def regression(count: int = 12) -> tuple[Problem, np.ndarray, np.ndarray]:
    """Linear regression with noise of variance 1 at its most probable weights, J a mean over examples."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(count, 4)), rng.normal(size=count)
    weights = np.linalg.solve(x.T @ x + PRIOR * np.eye(4), x.T @ y)
    problem = make_problem(lambda p, inputs: inputs @ p["w"], {"w": weights[:, None]}, x, y[:, None], l2=PRIOR / count)
    return problem, x, y


@pytest.mark.parametrize("matrix", ["ggn", "kfac", "ekfac"])
def test_bayesian_linear_regression(matrix: str) -> None:
    """One layer and one output: K-FAC is exact, and so is Laplace's approximation."""
    problem, x, y = regression()
    found, answer = read_out(problem, matrix, arrays="v.npz")
    evidence = scipy.stats.multivariate_normal(np.zeros(len(y)), np.eye(len(y)) + x @ x.T / PRIOR).logpdf(y)
    assert found.log_evidence.value == pytest.approx(evidence, rel=1e-10)
    assert (found.log_evidence.method, found.log_evidence.stderr) == ("exact", 0)
    assert (found.prior, found.prior_precision) == ("of the loss", pytest.approx(PRIOR))
    precision = x.T @ x + PRIOR * np.eye(4)
    variances = np.diag(x @ np.linalg.solve(precision, x.T))
    np.testing.assert_allclose(answer.arrays["variance"][:, 0], variances, rtol=1e-9)
    assert found.predictive.mean.value == pytest.approx(variances.mean())
    assert found.predictive.largest == pytest.approx(variances.max())
    assert found.predictive.median == pytest.approx(np.median(variances))
    assert found.effective_parameters.value == pytest.approx(np.trace(x.T @ x @ np.linalg.inv(precision)))
    assert found.log_det.value == pytest.approx(np.linalg.slogdet(precision)[1])
    residuals = y - x @ np.asarray(problem.params["w"])[:, 0]
    assert found.log_likelihood == pytest.approx(scipy.stats.norm.logpdf(residuals).sum())
    weights = np.asarray(flat_params(problem))
    assert found.log_prior == pytest.approx(scipy.stats.norm(scale=PRIOR**-0.5).logpdf(weights).sum())


@pytest.mark.parametrize("matrix", ["ggn", "kfac"])
def test_rows_that_sum_to_s_are_s_labels(matrix: str) -> None:
    """Evidence and variances are those of rows that sum to 1 with weights s."""
    rng, problem = np.random.default_rng(3), mlp_problem(l2=0.05)
    shares, sizes = rng.dirichlet(np.ones(3), 23), rng.choice([0.25, 1.0, 4.0], 23)
    rows = replace(problem, batches=replace(problem.batches, targets=shares * sizes[:, None]))
    weights = replace(problem, batches=replace(problem.batches, targets=shares, weight=sizes))
    found, expected = (read_out(one, matrix)[0] for one in (rows, weights))
    for name in ("log_evidence", "effective_parameters"):
        assert getattr(found, name).value == pytest.approx(getattr(expected, name).value, rel=1e-10)
    assert found.predictive.largest == pytest.approx(expected.predictive.largest, rel=1e-9)


@pytest.mark.parametrize("matrix", ["ggn", "kfac"])
def test_away_from_the_maximum_it_says_how_far(matrix: str) -> None:
    """Of a linear model ½ gᵀP⁻¹g is by how much the log posterior at its maximum exceeds that at the weights."""
    problem, x, y = regression()
    found, answer = read_out(problem, matrix)
    assert found.decrement == pytest.approx(0, abs=1e-9)
    assert not [one for one in answer.warnings if "no maximum of the posterior" in one]
    best = np.asarray(problem.params["w"])[:, 0]
    away = best + np.array([1.0, -0.5, 0.3, 0.8])

    def log_posterior(w: np.ndarray, precision: float) -> float:
        return -0.5 * float(np.sum((y - x @ w) ** 2) + precision * w @ w)

    moved = replace(problem, params={"w": jnp.asarray(away[:, None])})
    found, answer = read_out(moved, matrix)
    assert found.decrement == pytest.approx(log_posterior(best, PRIOR) - log_posterior(away, PRIOR), rel=1e-9)
    assert found.decrement > 1
    assert [one for one in answer.warnings if "no maximum of the posterior" in one]
    other = np.linalg.solve(x.T @ x + 3.0 * np.eye(4), x.T @ y)
    found, _ = read_out(moved, matrix, prior_precision=3.0)  # another prior has its maximum elsewhere
    assert found.decrement == pytest.approx(log_posterior(other, 3.0) - log_posterior(away, 3.0), rel=1e-9)


@pytest.mark.slow
def test_the_sampled_read_out_has_the_same_decrement() -> None:
    problem = mlp_problem(sizes=(4, 5, 3), count=30, l2=0.05)
    dense, _ = read_out(problem, method="dense")
    sampled, _ = read_out(problem, method="sampled", tol=1e-10)
    assert dense.decrement > 1e-3
    assert sampled.decrement == pytest.approx(dense.decrement, rel=1e-6)


def test_the_parts_make_the_evidence() -> None:
    found, _ = read_out(mlp_problem(l2=0.02), "kfac")
    dim = mlp_problem().dim
    parts = found.log_likelihood + found.log_prior + 0.5 * dim * math.log(2 * math.pi) - 0.5 * found.log_det.value
    assert found.log_evidence.value == pytest.approx(parts)


@pytest.mark.first_tier("poisson")
@pytest.mark.parametrize("loss", ["poisson", "sigmoid_cross_entropy", "softmax_cross_entropy", "squared_error"])
def test_the_likelihood_is_normalised(loss: str) -> None:
    problem = mlp_problem(loss, l2=0.1)
    found, _ = read_out(problem)
    z, targets = np.asarray(dense_jacobian(problem)[0]), np.asarray(problem.batches.targets)
    true = {
        "poisson": lambda: scipy.stats.poisson(np.exp(z)).logpmf(targets).sum(),
        "sigmoid_cross_entropy": lambda: scipy.stats.bernoulli(1 / (1 + np.exp(-z))).logpmf(targets).sum(),
        "softmax_cross_entropy": lambda: scipy.special.log_softmax(z, axis=1)[range(len(z)), targets].sum(),
        "squared_error": lambda: scipy.stats.norm(z).logpdf(targets).sum(),
    }[loss]()
    assert found.log_likelihood == pytest.approx(true)


@pytest.mark.nightly
@pytest.mark.parametrize("matrix", ["ggn", "kfac"])
def test_draws_agree_with_the_matrix_written_out(matrix: str) -> None:
    problem = mlp_problem(l2=0.05, count=60)
    exact, dense = read_out(problem, matrix, arrays="v.npz")
    found, answer = read_out(
        problem, matrix, arrays="v.npz", method="sampled", samples=400, probes=4, tol=1e-8, confidence=0.999
    )
    assert found.method == {"ggn": "sampled", "kfac": "factors"}[matrix]
    low, high = found.predictive.mean.interval
    assert low <= exact.predictive.mean.value <= high
    ratio = answer.arrays["variance"] / dense.arrays["variance"]
    assert np.abs(ratio - 1).max() < 6 * found.predictive.relative_stderr
    for field in ("log_det", "log_evidence", "effective_parameters"):
        low, high = getattr(found, field).interval
        assert low - 1e-9 <= getattr(exact, field).value <= high + 1e-9
    before, after = exact.predictive.confidence
    assert after < before


def test_few_outputs_give_the_determinant_exactly() -> None:
    problem = mlp_problem(l2=0.05, count=5)
    exact, _ = read_out(problem)
    found, _ = read_out(problem, method="sampled", probes=4, samples=4)
    assert found.method == "outputs"
    assert found.log_evidence.value == pytest.approx(exact.log_evidence.value)
    assert found.log_evidence.stderr == 0


def test_the_dense_answer_is_that_of_the_posterior() -> None:
    problem = mlp_problem(l2=0.05)
    found, answer = read_out(problem, arrays="v.npz", prior_precision=3.0)
    precision = problem.normaliser * dense_matrix(problem, "ggn") + 3.0 * np.eye(problem.dim)
    z, jacobian = dense_jacobian(problem)
    variances = np.sum(jacobian * np.linalg.solve(precision, jacobian.T).T, axis=1).reshape(z.shape)
    np.testing.assert_allclose(answer.arrays["variance"], variances, rtol=1e-8)
    assert found.log_det.value == pytest.approx(np.linalg.slogdet(precision)[1])
    assert found.prior == "given"


def test_a_prior_is_needed() -> None:
    with pytest.raises(UsageError, match="a loss without l2"):
        read_out(mlp_problem())
    with pytest.raises(UsageError, match="regulariser of your own"):
        read_out(mlp_problem(l2=0.1, regulariser=lambda params: 0.0))
