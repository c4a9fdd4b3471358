"""Steps against dense closed forms: what is proposed, what is predicted, what the rule makes of it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given as given_data
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from curvcli.analyses.step.analysis import Inputs
from curvcli.analyses.step.judging import next_damping
from curvcli.curvature.flatten import Layout
from curvcli.problem import Problem
from curvcli.schema.step import StepSettings
from tests.analyses.steps import METHODS, answer, decay, delta, linear
from tests.problems import (
    dense_ggn,
    dense_hessian,
    dense_matrix,
    dense_objective,
    flat_params,
    make_problem,
    mlp_problem,
)

EPS = float(np.finfo("float64").eps)


def gradient(problem: Problem) -> np.ndarray:
    return np.asarray(jax.grad(dense_objective(problem))(flat_params(problem)))


def loss(problem: Problem, step: np.ndarray | float = 0.0) -> float:
    return float(dense_objective(problem)(flat_params(problem) + step))


def dense_curvature(problem: Problem, method: str) -> np.ndarray:
    """C of a method, l2 included."""
    if method == "newton":
        return dense_hessian(problem)
    if method == "covariance":
        return dense_matrix(problem, "gradient-covariance")
    return dense_ggn(problem) + problem.regulariser.l2 * np.eye(problem.dim)


@pytest.mark.first_tier("newton-more1", "gauss-newton-more2", "natural-more0")
@pytest.mark.parametrize("more", [{}, {"cg_steps": 200}, {"cg_steps": 200, "precondition": "diagonal"}])
@pytest.mark.parametrize("method", ["newton", "gauss-newton", "natural"])
def test_the_step_solves_the_damped_system(method: str, more: dict[str, Any]) -> None:
    problem = mlp_problem(l2=0.01)
    matrix, g, damping = dense_curvature(problem, method), gradient(problem), 0.5
    expected = -np.linalg.solve(matrix + damping * np.eye(len(g)), g)
    found = answer(problem, method=method, damping=damping, tol=1e-10, **more)
    step, result = delta(problem, found), found.result
    np.testing.assert_allclose(step, expected, atol=1e-8 * np.linalg.norm(expected))
    predicted = -(g @ step + 0.5 * step @ matrix @ step)
    assert result.predicted_decrease == pytest.approx(predicted, rel=1e-9)
    assert result.predicted_decrease_damped == pytest.approx(predicted - 0.5 * damping * step @ step, rel=1e-9)
    actual = loss(problem) - loss(problem, step)
    assert result.actual_decrease == pytest.approx(actual, rel=1e-9)
    assert result.reduction_ratio == pytest.approx(actual / predicted, rel=1e-9)
    assert result.reduction_ratio_damped == pytest.approx(actual / result.predicted_decrease_damped, rel=1e-9)
    assert result.step_size == pytest.approx(1, rel=1e-6)
    assert result.step_norm == pytest.approx(np.linalg.norm(step))
    assert result.solve.status == "converged"
    assert result.solve.residual <= 2e-10


@pytest.mark.slow
def test_covariance_inverts_the_covariance_and_is_judged_by_the_ggn() -> None:
    problem = mlp_problem(sizes=(2, 2, 2), count=30)
    covariance, ggn, g = dense_curvature(problem, "covariance"), dense_ggn(problem), gradient(problem)
    r = -np.linalg.solve(covariance + 0.1 * np.eye(len(g)), g)
    found = answer(problem, method="covariance", damping=0.1)
    alpha = -(g @ r) / (r @ ggn @ r)
    np.testing.assert_allclose(delta(problem, found), alpha * r, rtol=1e-8)
    assert found.result.step_size == pytest.approx(alpha)
    assert found.result.rescaled
    plain = answer(problem, method="covariance", damping=0.1, rescale=False)
    np.testing.assert_allclose(delta(problem, plain), r, rtol=1e-8)


@pytest.mark.slow
def test_on_linear_least_squares_every_singular_direction_shrinks_by_its_factor() -> None:
    problem, damping = linear(), 0.05
    values, vectors = np.linalg.eigh(dense_ggn(problem))
    minimum = np.asarray(flat_params(problem)) - np.linalg.solve(dense_ggn(problem), gradient(problem))
    step = delta(problem, answer(problem, method="gauss-newton", damping=damping))
    before = vectors.T @ (np.asarray(flat_params(problem)) - minimum)
    after = vectors.T @ (np.asarray(flat_params(problem)) + step - minimum)
    np.testing.assert_allclose(after, damping / (values + damping) * before, rtol=1e-9)


@pytest.mark.first_tier("gauss-newton", "ekfac", "bfgs")
@pytest.mark.parametrize("method", METHODS)
def test_on_a_quadratic_the_undamped_ratio_is_one(method: str) -> None:
    result = answer(linear(l2=0.1), method=method, damping=0.0).result
    assert result.reduction_ratio == pytest.approx(1, abs=1e-10)
    assert result.actual_decrease > 0
    # Less λ can do no harm here, and next to none is less.
    assert result.next_damping == 0.0


@pytest.mark.parametrize("method", ["kfac", "ekfac"])
def test_kronecker_factors_of_one_linear_layer_are_exact(method: str) -> None:
    problem = linear(l2=0.1)
    exact = delta(problem, answer(problem, method="gauss-newton", damping=0.3))
    found = answer(problem, method=method, damping=0.3, factors="exact")
    np.testing.assert_allclose(delta(problem, found), exact, rtol=1e-8)
    assert found.result.step_size == pytest.approx(1)
    assert found.result.model == "ggn"


def test_factored_damping_is_the_product_of_damped_factors() -> None:
    problem, damping = linear(), 0.3
    found = delta(problem, answer(problem, method="kfac", damping=damping, factors="exact", factored_damping=True,
                                  rescale=False))  # fmt: skip
    x = np.c_[problem.batches.inputs, np.ones(problem.batches.num_examples)]
    inputs, gradients = x.T @ x / len(x), np.eye(2)
    pi = np.sqrt(np.trace(inputs) / len(inputs) / (np.trace(gradients) / 2))
    left, right = inputs + pi * damping**0.5 * np.eye(5), gradients + damping**0.5 / pi * np.eye(2)
    by_path = Layout.of(problem.params).unravel(jnp.asarray(gradient(problem)))
    weights = np.concatenate([by_path["a/kernel"], by_path["a/bias"][None]])
    expected = -np.linalg.solve(left, weights) @ np.linalg.inv(right)
    np.testing.assert_allclose(found, np.r_[expected[-1], expected[:-1].ravel()], rtol=1e-8)


@pytest.mark.nightly
def test_hessian_free_comes_near_the_minimum_of_its_quadratic_and_keeps_the_best_iterate() -> None:
    problem = mlp_problem(sizes=(6, 8, 5), count=80)
    g, matrix = gradient(problem), dense_ggn(problem) + 0.01 * np.eye(problem.dim)
    result = answer(problem, method="hessian-free", damping=0.01).result
    lowest = -0.5 * g @ np.linalg.solve(matrix, g)
    assert result.solve.status == "relative-progress"
    assert lowest <= min(one.quadratic for one in result.cg) <= 0.98 * lowest
    looked = [one.loss for one in result.cg if one.loss is not None]
    assert len(looked) >= 2
    assert loss(problem) - result.actual_decrease == pytest.approx(min(looked), rel=1e-9)


def test_a_warm_start_is_used_by_hessian_free() -> None:
    problem = linear(l2=0.1)
    exact = delta(problem, answer(problem, method="gauss-newton", damping=0.3))
    layout = Layout.of(problem.params)
    behind = {name: np.asarray(leaf) for name, leaf in layout.unravel(jnp.asarray(exact / 0.95)).items()}
    warm = answer(problem, Inputs(previous=behind), method="hessian-free", damping=0.3).result
    assert warm.solve.iterations == 0
    assert warm.reduction_ratio == pytest.approx(1, rel=1e-9)


def test_with_the_step_before_the_least_of_the_plane_is_taken() -> None:
    problem, rng = mlp_problem(), np.random.default_rng(4)
    behind = {name: rng.normal(size=leaf.shape) for name, leaf in problem.params.items()}
    before = np.concatenate([np.ravel(behind[name]) for name in sorted(behind)])
    alone = delta(problem, answer(problem, method="kfac", damping=0.1, rescale=False))
    found = answer(problem, Inputs(previous=behind), method="kfac", damping=0.1)
    rows, matrix = np.stack([alone, before]), dense_ggn(problem) + 0.1 * np.eye(problem.dim)
    chosen = -np.linalg.solve(rows @ matrix @ rows.T, rows @ gradient(problem))
    assert [found.result.momentum.step, found.result.momentum.previous] == pytest.approx(chosen.tolist(), rel=1e-8)
    np.testing.assert_allclose(delta(problem, found), chosen @ rows, rtol=1e-8)


def test_bfgs_learns_from_the_step_before() -> None:
    problem = linear()
    s = np.linspace(-1, 1, problem.dim)
    behind = {name: np.asarray(leaf) for name, leaf in Layout.of(problem.params).unravel(jnp.asarray(s)).items()}
    found = answer(problem, Inputs(previous=behind), method="bfgs", damping=0.0, rescale=False)
    assert found.result.solve.iterations == 1
    y = dense_ggn(problem) @ s
    b = (y @ y) / (s @ y) * np.eye(len(s))
    b += np.outer(y, y) / (y @ s) - b @ np.outer(s, s) @ b / (s @ b @ s)
    rows = np.stack([-np.linalg.solve(b, gradient(problem)), s])
    chosen = -np.linalg.solve(rows @ dense_ggn(problem) @ rows.T, rows @ gradient(problem))
    np.testing.assert_allclose(delta(problem, found), chosen @ rows, rtol=1e-7, atol=1e-9)


def test_negative_curvature_is_followed_and_said() -> None:
    problem = mlp_problem()
    assert np.linalg.eigvalsh(dense_hessian(problem))[0] < -1e-3
    found = answer(problem, method="newton", damping=0.0)
    negative = found.result.negative_curvature
    assert negative is not None
    assert negative.used
    assert negative.curvature < 0
    assert found.result.actual_decrease > 0
    assert found.result.solve.status == "negative-curvature"
    assert any("negative curvature" in said for said in found.warnings)


@pytest.mark.slow
def test_no_step_leaves_the_trust_region() -> None:
    for method in METHODS:
        result = answer(mlp_problem(), method=method, damping=1e-3, radius=0.1).result
        assert result.step_norm <= 0.1 * (1 + 1e-9)


def test_the_rule() -> None:
    assert next_damping(1.0, 0.2, 9.0) == 1.5
    assert next_damping(1.0, 0.8, 9.0) == pytest.approx(2 / 3)
    assert next_damping(1.0, 0.5, 9.0) == next_damping(1.0, None, 9.0) == 1.0
    assert next_damping(0.0, -np.inf, 9.0) == 13.5


@pytest.mark.parametrize("method", ["gauss-newton", "natural", "kfac", "bfgs"])
def test_auto_tries_damping_by_the_rule_and_keeps_the_lowest(method: str) -> None:
    result = answer(mlp_problem(), method=method).result
    tried = [one.damping for one in result.trials]
    assert 1 < len(tried) <= 30
    factors = {round(late / early, 9) for early, late in itertools.pairwise(tried)}
    assert factors in ({1.5}, {round(2 / 3, 9)})  # it never turns back
    assert result.actual_decrease == max(one.actual_decrease for one in result.trials)
    for one in result.trials[:-1]:
        assert one.reduction_ratio < 0.25 if tried[-1] > tried[0] else one.reduction_ratio > 0.75


def test_at_the_minimum_no_ratio_is_reported_as_noise() -> None:
    problem = linear()
    layout = Layout.of(problem.params)
    minimum = flat_params(problem) - np.linalg.solve(dense_ggn(problem), gradient(problem))
    result = answer(replace(problem, params=layout.unravel(minimum)), method="gauss-newton", damping=0.0).result
    assert result.reduction_ratio is None
    assert "rounding" in result.ratio_reason


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "sigmoid_cross_entropy", "poisson", "squared_error"])
@pytest.mark.parametrize("weight", [np.ones(23), np.r_[0.0, np.random.default_rng(5).uniform(0.1, 4, 22)]])
def test_how_far_outputs_move(name: str, weight: np.ndarray) -> None:
    problem = mlp_problem(name, weight=weight)
    found = answer(problem, method="gauss-newton", damping=0.1)

    def outputs(flat: Any) -> np.ndarray:
        params = Layout.of(problem.params).unravel(flat)
        return np.asarray(problem.predict(params, problem.frozen, jnp.asarray(problem.batches.inputs)))

    z, after = outputs(flat_params(problem)), outputs(flat_params(problem) + delta(problem, found))
    change = found.result.function_change
    assert change.rms == pytest.approx(np.sqrt(np.average(np.sum((after - z) ** 2, axis=1), weights=weight)), rel=1e-9)
    if name == "softmax_cross_entropy":
        p, q = (np.exp(one - one.max(1, keepdims=True)) for one in (z, after))
        p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
        kl = np.sum(p * np.log(p / q), axis=1)
    elif name == "sigmoid_cross_entropy":
        p, q = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-after))
        kl = np.sum(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)), axis=1)
    elif name == "poisson":
        kl = np.sum(np.exp(z) * (z - after) + np.exp(after) - np.exp(z), axis=1)
    else:
        kl = 0.5 * np.sum((after - z) ** 2, axis=1)
    assert change.kl == pytest.approx(np.average(kl, weights=weight), rel=1e-9)


DECAY = replace(decay(), frozen={"params": {}, "collections": {}})


def reparameterised(matrix: np.ndarray, offset: np.ndarray) -> Problem:
    """`decay` in the coordinates v with u = A v + b: the same functions, so that nothing is compiled anew."""
    start = np.asarray(DECAY.params["w"])
    frozen = {"A": jnp.asarray(matrix), "b": jnp.asarray(offset)}
    inside = jnp.asarray(np.linalg.solve(matrix, start - offset))
    return replace(DECAY, params={"w": inside}, frozen={"params": frozen, "collections": {}})


@pytest.mark.parametrize("method", ["newton", "gauss-newton"])
@hypothesis_settings(max_examples=20, deadline=None)
@given_data(seed=st.integers(0, 2**20), spread=st.floats(0.1, 10))
def test_undamped_steps_do_not_depend_on_an_affine_reparameterisation(method: str, seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    right, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix = left * np.array([1.0, spread, 3.0]) @ right
    problem, plain = reparameterised(matrix, rng.normal(size=3)), reparameterised(np.eye(3), np.zeros(3))
    there = matrix @ delta(problem, answer(problem, method=method, damping=0.0))
    here = delta(plain, answer(plain, method=method, damping=0.0))
    np.testing.assert_allclose(there, here, rtol=1e-7, atol=1e-9)


def test_damped_steps_do() -> None:
    matrix = np.diag([1.0, 5.0, 0.2])
    problem, plain = reparameterised(matrix, np.zeros(3)), reparameterised(np.eye(3), np.zeros(3))
    there = matrix @ delta(problem, answer(problem, method="gauss-newton", damping=0.1))
    here = delta(plain, answer(plain, method="gauss-newton", damping=0.1))
    assert np.linalg.norm(there - here) > 0.1 * np.linalg.norm(here)


def test_options_that_do_not_go_together() -> None:
    for wrong in (
        {"method": "newton", "matrix": "ggn"}, {"method": "kfac", "cg_steps": 3},
        {"method": "kfac", "precondition": "kfac"},
        {"method": "newton", "factored_damping": True}, {"method": "ekfac", "factored_damping": True},
        {"method": "newton", "save_factors": "x.npz"}, {"method": "kfac", "stale_factors": True},
        {"momentum": "previous"},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="--"):
            StepSettings(**wrong)
    assert StepSettings(method="covariance").matrix == "gradient-covariance"


def test_a_loss_that_is_not_finite_is_said() -> None:
    problem = make_problem(
        lambda p, x: jnp.exp(jnp.exp(x * p["w"][None])), {"w": np.array([0.1])}, np.ones((4, 1)), 100 * np.ones((4, 1))
    )
    found = answer(problem, method="gauss-newton", damping=0.0)
    assert found.result.actual_decrease is None
    assert found.result.reduction_ratio is None
    assert found.result.function_change is None
    assert any("not finite" in said for said in found.warnings)
    # The rule grows λ until J falls.
    assert answer(problem, method="gauss-newton").result.actual_decrease > 0
