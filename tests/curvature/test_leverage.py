"""Draws from a matrix, each example's own responses and gradients: against dense matrices and loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from curvcli.curvature.influence import leverage, queries, responses
from curvcli.curvature.matrices import has_root
from curvcli.losses import LOSSES, user_loss
from curvcli.problem import Batches, Problem
from tests.problems import dense_matrix, dense_objective, dense_unit_gradients, flat_params, mlp_problem, token_problem

SHIFT = 0.05
RNG = np.random.default_rng(0)


def weighted(**rest: Any) -> Problem:
    weight = np.random.default_rng(1).choice([0.0, 0.5, 1.0, 3.0], 23)
    return mlp_problem(weight=weight, **rest)


def of_own_loss() -> Problem:
    """Mean squared error of the user's, declared Gaussian."""
    family = LOSSES["squared_error"]
    loss = user_loss("own", lambda z, t: 2 * family.value(z, t), likelihood=family)
    return replace(mlp_problem("squared_error"), loss=loss)


@pytest.mark.first_tier("of_own_loss-fisher", "weighted-empirical-fisher", "token_problem-ggn")
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (mlp_problem, "ggn"),
        (lambda: mlp_problem("sigmoid_cross_entropy"), "ggn"),
        (lambda: mlp_problem("poisson"), "fisher"),
        (lambda: mlp_problem("squared_error"), "ggn"),
        (of_own_loss, "fisher"),
        (weighted, "ggn"),
        (weighted, "gauss-newton"),
        (weighted, "empirical-fisher"),
        (token_problem, "ggn"),
        (token_problem, "empirical-fisher"),
        (lambda: token_problem("squared_error"), "gauss-newton"),
    ],
)
def test_draws_have_the_covariance_of_the_matrix(make: Any, name: str) -> None:
    problem, count = make(), 2000
    assert has_root(name, problem.loss)
    drawn = np.asarray(leverage.draw(problem, name, SHIFT, 0, 0, count))
    truth = dense_matrix(problem, name) + SHIFT * np.eye(problem.dim)
    found, sizes = drawn.T @ drawn / count, np.diag(truth)
    # Of normal draws the variance of an entry is (A_ii A_jj + A_ij²)/K; random signs have less.
    spread = np.sqrt((np.outer(sizes, sizes) + truth**2) / count)
    assert np.abs((found - truth) / spread).max() < 5.5
    assert np.abs(drawn.mean(axis=0) / np.sqrt(sizes / count)).max() < 5.5


def test_no_draws_from_a_matrix_without_a_root() -> None:
    for name in ("hessian", "residual", "ntk"):
        assert not has_root(name, LOSSES["softmax_cross_entropy"])
    own = user_loss("own", LOSSES["squared_error"].value)
    assert not has_root("ggn", own)
    assert not has_root("fisher", own)
    assert has_root("gauss-newton", own)
    assert has_root("empirical-fisher", own)


@pytest.mark.parametrize("name", ["ggn", "empirical-fisher"])
@pytest.mark.parametrize("make", [mlp_problem, token_problem])
def test_draws_belong_to_examples_and_numbers(make: Any, name: str) -> None:
    problem = make()
    whole = leverage.draw(problem, name, SHIFT, 3, 0, 5)
    one_by_one = replace(problem, batches=problem.batches.resized(4))
    np.testing.assert_allclose(leverage.draw(one_by_one, name, SHIFT, 3, 0, 5), whole, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(leverage.draw(problem, name, SHIFT, 3, 2, 3), whole[2:], rtol=1e-12, atol=1e-13)
    other = leverage.draw(problem, name, SHIFT, 4, 0, 5)
    assert np.abs(np.asarray(other - whole)).min(axis=1).max() > 0


@pytest.mark.parametrize("make", [weighted, token_problem])
def test_losses_and_gradient_norms_are_those_of_a_loop(make: Any) -> None:
    problem = make()
    gradients, weight = dense_unit_gradients(problem)
    expected = np.linalg.norm(np.einsum("nud,nu->nd", gradients, weight), axis=1)
    losses, norms = leverage.loss_sizes(problem)
    np.testing.assert_allclose(norms, expected, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(losses.sum(), dense_objective(problem)(flat_params(problem)) * problem.normaliser)
    few = leverage.loss_sizes(problem, bytes_in_flight=problem.dim * 8 * 4 * 3)
    np.testing.assert_allclose(few, (losses, expected), rtol=1e-10, atol=1e-13)


@pytest.mark.first_tier("weighted-label-perturb", "token_problem-remove")
@pytest.mark.parametrize("parameter", ["remove", "label-perturb", "input-perturb"])
@pytest.mark.parametrize("make", [weighted, token_problem])
def test_blocks_of_vectors_and_examples_do_not_matter(make: Any, parameter: Any) -> None:
    problem = make()
    vectors = RNG.normal(size=(5, problem.dim))

    def whole(problem: Problem, at_once: int | None) -> np.ndarray:
        pieces = [one[""] for one in responses.entries(problem, parameter, vectors, at_once)]
        return np.concatenate(pieces, axis=1)

    expected = whole(problem, None)
    assert expected.shape[:2] == (5, problem.batches.num_examples)
    resized = replace(problem, batches=problem.batches.resized(4))
    for other, at_once in ((problem, 2), (problem, 100), (resized, 3)):
        np.testing.assert_allclose(whole(other, at_once), expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("measure", ["loss", "output"])
def test_own_entries_are_products_of_slopes_and_entries(measure: Any) -> None:
    problem = token_problem()
    vectors = RNG.normal(size=(5, problem.dim))
    slopes = queries.slopes(problem, problem.batches, measure, vectors)  # [k, N(, O)]
    entries = np.concatenate([one[""] for one in responses.entries(problem, "label-perturb", vectors)], axis=1)
    terms = np.einsum("kn,kntc->kntc", slopes, entries) if measure == "loss" else None
    terms = np.einsum("kno,kntc->knotc", slopes, entries) if terms is None else terms
    found = list(leverage.own_entries(problem, "label-perturb", measure, vectors, 2))
    for name, expected in (("total", terms.sum(axis=0)), ("squares", np.square(terms).sum(axis=0))):
        joined = np.concatenate([getattr(one, name)[""] for one in found])
        np.testing.assert_allclose(joined, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("make", [weighted, token_problem])
def test_leverages_are_the_blocks_of_the_hat_matrix(make: Any) -> None:
    problem = make()
    root = RNG.normal(size=(6, problem.dim))
    slopes = queries.slopes(problem, problem.batches, "output", root)
    expected = np.einsum("kno,knp->nop", slopes, slopes) / problem.normaliser
    found = np.concatenate(list(leverage.leverages(problem, root, 4)))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)


# --- some of the examples ---------------------------------------------------------------------------------


def test_chosen_rows_in_the_order_asked_for(tmp_path: Any) -> None:
    x, t = RNG.normal(size=(10, 2)), RNG.normal(size=(10, 3))
    np.save(tmp_path / "x.npy", x)
    batches = Batches(
        {"a": np.load(tmp_path / "x.npy", mmap_mode="r"), "b": 2 * x}, t, np.arange(10.0), 4, np.dtype("float64")
    )
    rows = np.array([7, 0, 7, 3, 9])
    found = batches.chosen(rows)
    assert (found.num_examples, found.batch_size, len(found)) == (5, 4, 2)
    np.testing.assert_array_equal(found.inputs["a"], x[rows])
    np.testing.assert_array_equal(found.inputs["b"], 2 * x[rows])
    np.testing.assert_array_equal(found.targets, t[rows])
    np.testing.assert_array_equal(found.weight, rows)
    np.testing.assert_array_equal(np.concatenate([one.index for one in found]), np.arange(8))  # numbered anew
    assert batches.chosen(np.arange(0)).num_examples == 0


def test_a_gradient_is_that_of_the_examples_chosen() -> None:
    problem = mlp_problem()
    rows = np.array([5, 2, 22])
    found = queries.gradients(problem, problem.batches.chosen(rows), "loss")
    gradients, weight = dense_unit_gradients(problem)
    assert found.shape == (3, len(flat_params(problem)))
    np.testing.assert_allclose(found, np.einsum("nud,nu->nd", gradients, weight)[rows], rtol=1e-10, atol=1e-13)
