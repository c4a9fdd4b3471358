"""Influence in closed form: quadratics, generalised linear models, and what no way of putting the data may change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from curvcli.problem import Batches, Problem
from tests.analyses.minima import at_minimum, run, scores, with_shift
from tests.problems import make_problem, mlp_problem

COUNT, DIM, L2 = 30, 5, 0.03
CLOSE: Any = {"rtol": 1e-10, "atol": 1e-12}
MODES = ("remove", "label_perturb", "input_perturb")


def linear(params: dict, x: Any) -> Any:
    return x @ params["w"]


def ridge(l2: float = L2, weight: Any = None, **rest: Any) -> Problem:
    """Least squares with weights a_n, at its minimum by the normal equations."""
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(COUNT, DIM)), rng.normal(size=(COUNT, 1))
    weight = rng.choice([0.5, 1.0, 2.0], COUNT) if weight is None else weight
    return ridge_fit(
        make_problem(linear, {"w": np.zeros((DIM, 1))}, x, t, "squared_error", l2=l2, weight=weight, **rest)
    )


def ridge_fit(problem: Problem) -> Problem:
    """The same at its minimum."""
    x, t, a, m = data(problem)
    w = np.linalg.solve(curvature(problem), (x * a[:, None]).T @ t / m)
    return replace(problem, params={"w": jnp.asarray(w)})


def curvature(problem: Problem) -> np.ndarray:
    x, _, a, m = data(problem)
    return (x * a[:, None]).T @ x / m + problem.regulariser.l2 * np.eye(DIM)


def data(problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    return problem.batches.inputs, problem.batches.targets, problem.batches.weight, problem.normaliser


def without(problem: Problem, rows: Any) -> Problem:
    weight = np.array(problem.batches.weight)
    weight[rows] = 0
    return ridge_fit(replace(problem, batches=replace(problem.batches, weight=weight)))


def outputs(problem: Problem, x: np.ndarray) -> np.ndarray:
    return x @ np.asarray(problem.params["w"])


def hat(problem: Problem) -> np.ndarray:
    """∂ŷ/∂t [N, N]."""
    x, _, a, m = data(problem)
    return x @ np.linalg.solve(curvature(problem), x.T) * a / m


def fresh(count: int = 6, inputs: int = DIM) -> Batches:
    """Queries that are no training examples."""
    rng = np.random.default_rng(7)
    return Batches(
        rng.normal(size=(count, inputs)), rng.normal(size=(count, 1)), np.ones(count), 4, np.dtype("float64")
    )


# --- ridge regression -----------------------------------------------------------------------------------


@pytest.mark.parametrize("matrix", ["ggn", "hessian", "gauss-newton", "fisher"])
def test_ridge_the_response_to_labels_is_the_hat_matrix(matrix: str) -> None:
    problem = ridge()
    found = scores(problem, problem.batches, label_perturb=True, measure="output", matrix=matrix)
    assert found.shape == (COUNT, 1, COUNT, 1)
    np.testing.assert_allclose(found[:, 0, :, 0], hat(problem), **CLOSE)


def test_ridge_the_response_to_labels_holds_for_changes_of_any_size() -> None:
    problem = ridge()
    change = 10 * np.random.default_rng(3).normal(size=(COUNT, 1))
    moved = ridge_fit(replace(problem, batches=replace(problem.batches, targets=problem.batches.targets + change)))
    actual = outputs(moved, fresh().inputs) - outputs(problem, fresh().inputs)
    found = scores(problem, fresh(), label_perturb=True, measure="output")
    np.testing.assert_allclose(np.einsum("qonc,nc->qo", found, change), actual, **CLOSE)


@pytest.mark.parametrize("solver", ["dense", "cg", "minres", "neumann"])
def test_ridge_removal_over_one_minus_h_is_leaving_one_out(solver: str) -> None:
    problem = ridge()
    loo = np.array(
        [outputs(without(problem, n), fresh().inputs) - outputs(problem, fresh().inputs) for n in range(COUNT)]
    )
    found = scores(problem, fresh(), remove=True, measure="output", solver=solver, tol=1e-13)
    h = np.diag(hat(problem))
    assert h.max() > 0.2  # far enough from 0 for the correction to count
    np.testing.assert_allclose(found[:, 0] / (1 - h), loo[:, :, 0].T, rtol=1e-8, atol=1e-10)


def test_ridge_leverage_is_exact() -> None:
    problem = ridge()
    found = run(problem, fresh(), remove=True, measure="output", leverage=True, self_=True)
    loo = np.array(
        [outputs(without(problem, n), fresh().inputs) - outputs(problem, fresh().inputs) for n in range(COUNT)]
    )
    np.testing.assert_allclose(found.arrays["corrected"].reshape(-1, COUNT), loo[:, :, 0].T, **CLOSE)
    h = np.diag(hat(problem))
    assert found.result.leverage.method == "exact"
    assert found.result.leverage.capped == 0
    np.testing.assert_allclose([found.result.leverage.largest, found.result.leverage.median], [h.max(), np.median(h)])
    np.testing.assert_allclose(found.result.self_influence.total_leverage.value, h.sum())


def test_ridge_self_influence_and_its_correction() -> None:
    problem = ridge()
    x, t, _, _ = data(problem)
    h, residual = np.diag(hat(problem)), (outputs(problem, x) - t)[:, 0]
    found = run(problem, remove=True, leverage=True)
    # The weight is in the removal, that is in h, and not in the loss that is asked about.
    np.testing.assert_allclose(found.arrays["scores"], h * residual**2, **CLOSE)
    np.testing.assert_allclose(found.arrays["corrected"], h * residual**2 / (1 - h), **CLOSE)
    of_labels = scores(problem, label_perturb=True, measure="output")
    np.testing.assert_allclose(of_labels.reshape(-1), h, **CLOSE)


def test_ridge_newton_for_groups_is_exact_removal() -> None:
    problem = ridge()
    groups = np.array(["many"] * 14 + ["few"] * 3 + ["one"] + ["rest"] * 12)
    found = run(problem, fresh(), remove=True, measure="output", group="g", given={"groups": groups}, tol=1e-12)
    before = outputs(problem, fresh().inputs)
    x, t, a, m = data(problem)
    inverse = np.linalg.inv(curvature(problem))
    for group in found.result.groups:
        rows = groups == group.name
        actual = (outputs(without(problem, rows), fresh().inputs) - before)[:, 0]
        np.testing.assert_allclose(group.newton, actual, rtol=1e-8, atol=1e-10)
        slope = (x * a[:, None])[rows].T @ (outputs(problem, x) - t)[rows, 0] / m
        part = (x * a[:, None])[rows].T @ x[rows] / m
        once = inverse @ slope
        np.testing.assert_allclose(group.first_order, fresh().inputs @ once, **CLOSE)
        np.testing.assert_allclose(group.second_order, fresh().inputs @ (once + inverse @ part @ once), **CLOSE)
        assert group.size == rows.sum()
        assert group.status == "converged"
    assert {group.name: group.disagree for group in found.result.groups}["many"]


# --- generalised linear models --------------------------------------------------------------------------


def logistic() -> tuple[Problem, Batches]:
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=(COUNT, DIM)), rng.integers(0, 2, (COUNT, 1)).astype(float)
    asked = replace(fresh(), targets=rng.integers(0, 2, (6, 1)).astype(float))
    return at_minimum(make_problem(linear, {"w": np.zeros((DIM, 1))}, x, t, "sigmoid_cross_entropy", l2=L2)), asked


def test_logistic_removal_and_labels_in_closed_form() -> None:
    problem, asked = logistic()
    x, t, _, m = data(problem)
    w = np.asarray(problem.params["w"])
    p, of_query = scipy.special.expit(x @ w), scipy.special.expit(asked.inputs @ w)
    hessian = (x * p * (1 - p)).T @ x / m + L2 * np.eye(DIM)
    solved = np.linalg.solve(hessian, ((of_query - asked.targets) * asked.inputs).T)  # [D, Q]
    slopes = (p - t) * x
    np.testing.assert_allclose(scores(problem, asked, remove=True), (slopes @ solved).T / m, **CLOSE)
    labels = scores(problem, asked, label_perturb=True)
    np.testing.assert_allclose(labels[..., 0], (x @ solved).T / m, **CLOSE)
    corrected = run(problem, asked, remove=True, leverage=True).arrays["corrected"]
    for n in range(COUNT):  # a Newton step without the example
        rest = hessian - p[n] * (1 - p[n]) * np.outer(x[n], x[n]) / m
        step = np.linalg.solve(rest, slopes[n]) / m
        np.testing.assert_allclose(corrected[:, n], (of_query - asked.targets)[:, 0] * (asked.inputs @ step), **CLOSE)


def test_softmax_leverage_is_a_newton_step_without_the_example() -> None:
    problem = softmax()
    x, t, w = problem.batches.inputs, problem.batches.targets, np.asarray(problem.params["w"])
    p, m = scipy.special.softmax(x @ w, axis=1), problem.normaliser
    parts = [np.kron(np.outer(x[n], x[n]), np.diag(p[n]) - np.outer(p[n], p[n])) / m for n in range(len(x))]
    hessian = np.sum(parts, axis=0) + L2 * np.eye(w.size)
    slopes = np.array([np.kron(x[n], p[n] - np.eye(3)[t[n]]) for n in range(len(x))])
    found = run(problem, problem.batches.chosen(np.arange(4)), remove=True, leverage=True)
    np.testing.assert_allclose(found.arrays["scores"], slopes[:4] @ np.linalg.solve(hessian, slopes.T) / m, **CLOSE)
    steps = np.array([np.linalg.solve(hessian - part, slope) for part, slope in zip(parts, slopes, strict=True)])
    np.testing.assert_allclose(found.arrays["corrected"], slopes[:4] @ steps.T / m, **CLOSE)


def softmax() -> Problem:
    """Softmax regression, not at its minimum."""
    rng = np.random.default_rng(5)
    x, t, w = rng.normal(size=(17, 4)), rng.integers(0, 3, 17), rng.normal(size=(4, 3))
    return make_problem(linear, {"w": w}, x, t, "softmax_cross_entropy", l2=L2)


# --- what must not matter, and what must sum to nothing ------------------------------------------------------


def test_scores_of_all_removals_sum_to_nothing_at_a_minimum() -> None:
    """Σ_n (1/M) s·∇L_n = s·∇J − l2 s·w."""
    bare = ridge(l2=0.0)
    found = scores(bare, fresh(), remove=True)
    np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-13 * np.abs(found).sum())
    problem = ridge()
    l2 = run(problem, fresh(), hyper=["l2"]).arrays["change"][0]
    np.testing.assert_allclose(scores(problem, fresh(), remove=True).sum(axis=1), L2 * l2, **CLOSE)


def test_an_example_given_twice_matters_half_as_much() -> None:
    problem, rows = mlp_problem(l2=0.1), np.repeat(np.arange(23), 2)
    twice = replace(problem, batches=problem.batches.chosen(rows), normaliser=2 * problem.normaliser)
    asked = problem.batches.chosen(np.arange(3))
    for mode in MODES:
        once, found = (scores(one, asked, damping=0.1, **{mode: True}) for one in (problem, twice))
        np.testing.assert_allclose(found, once[:, rows] / 2, **CLOSE)


@pytest.mark.nightly
def test_the_batch_size_does_not_matter() -> None:
    problem = mlp_problem(l2=0.1, weight=np.random.default_rng(0).choice([0.0, 1.0, 2.0], 23))

    def at(size: int, mode: str) -> Any:
        batches, extra = problem.batches.resized(size), {"leverage": True} if mode == "remove" else {}
        asked = batches.chosen(np.arange(5))
        return run(replace(problem, batches=batches), asked, self_=True, **{mode: True}, **extra).arrays

    for mode in MODES:
        one, other = at(23, mode), at(5, mode)
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.slow
def test_labels_as_numbers_and_as_rows_give_the_same() -> None:
    problem = mlp_problem(l2=0.1)
    rows = replace(problem, batches=replace(problem.batches, targets=np.eye(3)[problem.batches.targets]))
    asked = problem.batches.chosen(np.arange(3))
    for mode in MODES:
        found = [scores(one, asked, damping=0.1, **{mode: True}) for one in (problem, rows)]
        np.testing.assert_allclose(found[0], found[1], **CLOSE)


def test_moving_one_label_moves_its_prediction_as_the_scores_say() -> None:
    """The ranking's strength of a class-to-class move is the difference of its two scores."""
    problem = softmax()
    found = run(problem, problem.batches.chosen(np.arange(2)), label_perturb=True)
    for row, ranking in enumerate(found.result.top):
        for entry in (*ranking.highest, *ranking.lowest):
            assert entry.label == problem.batches.targets[entry.example]
            own = found.arrays["scores"][row, entry.example]
            np.testing.assert_allclose(entry.score, own[entry.towards] - own[entry.label], **CLOSE)


def test_ridge_input_response_in_closed_form() -> None:
    """∂w/∂x_n = −A⁻¹ (a_n/M) (r_n e_i + w_i x_n)."""
    problem = ridge()
    x, t, a, m = data(problem)
    w, residual = np.asarray(problem.params["w"])[:, 0], (outputs(problem, x) - t)[:, 0]
    solved = np.linalg.solve(curvature(problem), fresh().inputs.T)  # [D, Q]
    found = scores(problem, fresh(), input_perturb=True, measure="output")[:, 0]
    expected = -(residual[:, None] * solved.T[:, None] + (solved.T @ x.T)[..., None] * w) * (a / m)[:, None]
    np.testing.assert_allclose(found, expected, **CLOSE)
    n, i, by = 4, 2, 1e-5
    moved = [ridge_fit(with_shift(problem, "inputs", (n, i), sign * by)) for sign in (1, -1)]
    actual = (outputs(moved[0], fresh().inputs) - outputs(moved[1], fresh().inputs)) / (2 * by)
    np.testing.assert_allclose(found[:, n, i], actual[:, 0], rtol=1e-6, atol=1e-9)
