"""The weights of the data are those of training: a query's own selects it, and multiplies nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from curvcli.curvature.influence import queries
from curvcli.errors import UsageError
from curvcli.losses import LOSSES
from curvcli.problem import Batches, Problem
from tests.analyses.minima import at_minimum, difference, run, scores, with_weight
from tests.problems import make_problem, mlp_problem, token_problem

COUNT, TRAINED, DIM, L2 = 24, 16, 4, 0.1
HELD_OUT = np.array([16, 20, 23])
MODES = ("remove", "label_perturb", "input_perturb")


def linear(params: dict, x: Any) -> Any:
    return x @ params["w"]


@cache
def masked() -> Problem:
    """Weighted least squares at its minimum, the last rows left out."""
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(COUNT, DIM)), rng.normal(size=(COUNT, 1))
    weight = np.r_[rng.choice([0.5, 1.0, 3.0], TRAINED), np.zeros(COUNT - TRAINED)]
    problem = make_problem(linear, {"w": np.zeros((DIM, 1))}, x, t, l2=L2, weight=weight, normaliser=TRAINED)
    return at_minimum(problem)


def parts(problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, residuals, weights, and (C + λI)⁻¹."""
    x, a = problem.batches.inputs, problem.batches.weight
    residual = x @ np.asarray(problem.params["w"]) - problem.batches.targets
    inverse = np.linalg.inv((x * a[:, None]).T @ x / problem.normaliser + L2 * np.eye(DIM))
    return x, residual[:, 0], a, inverse


@pytest.mark.first_tier("dense")
@pytest.mark.parametrize("solver", ["dense", "cg"])
def test_held_out_rows_are_queries_like_any_other(solver: str) -> None:
    problem = masked()
    x, r, a, inverse = parts(problem)
    rows = np.r_[HELD_OUT, 0, 3]
    asked = problem.batches.chosen(rows)
    expected = (x * r[:, None])[rows] @ inverse @ (x * (a * r)[:, None]).T / problem.normaliser
    found = run(problem, asked, remove=True, leverage=True, solver=solver, tol=1e-13)
    np.testing.assert_allclose(found.arrays["scores"], expected, rtol=1e-9, atol=1e-12)
    assert not expected[:, TRAINED:].any()
    assert np.abs(expected[:3, :TRAINED]).min(axis=1).all()
    h = np.einsum("nd,de,ne->n", x, inverse, x) * a / problem.normaliser
    if solver == "dense":
        np.testing.assert_allclose(found.arrays["corrected"], expected / (1 - h), rtol=1e-9, atol=1e-12)
    of_labels = scores(problem, asked, label_perturb=True)
    expected = (x * r[:, None])[rows] @ inverse @ (x * a[:, None]).T / problem.normaliser
    np.testing.assert_allclose(of_labels[..., 0], expected, rtol=1e-9, atol=1e-12)


def test_groups_and_refits_measure_held_out_rows_alike() -> None:
    problem = masked()
    x, r, a, inverse = parts(problem)
    groups = np.array(["left"] * 5 + ["right"] * (COUNT - 5))
    found = run(
        problem, problem.batches.chosen(HELD_OUT), remove=True, group="g", given={"groups": groups}, verify=6, tol=1e-12
    ).result

    def without(rows: Any) -> np.ndarray:
        left = np.array(a)
        left[rows] = 0
        system = (x * left[:, None]).T @ x / problem.normaliser + L2 * np.eye(DIM)
        fitted = np.linalg.solve(system, (x * left[:, None]).T @ problem.batches.targets / problem.normaliser)
        after = (x @ fitted - problem.batches.targets)[HELD_OUT, 0]
        return (after**2 - r[HELD_OUT] ** 2) / 2

    verified = found.verification
    expected = (x * r[:, None])[HELD_OUT] @ inverse @ (x * (a * r)[:, None]).T / problem.normaliser
    np.testing.assert_allclose(verified.predicted, expected.T[verified.examples], rtol=1e-9, atol=1e-13)
    actual = [without(example) for example in verified.examples]
    np.testing.assert_allclose(verified.actual, actual, rtol=1e-3, atol=1e-7)
    for group in found.groups:
        np.testing.assert_allclose(group.first_order, expected[:, groups == group.name].sum(axis=1))


def test_self_influence_has_the_weight_of_the_removal_alone() -> None:
    """Newton's step without the example is exact for least squares: the change of its own, unweighted loss."""
    problem = masked()
    x, r, a, inverse = parts(problem)
    h = np.einsum("nd,de,ne->n", x, inverse, x) / problem.normaliser
    found = run(problem, remove=True, leverage=True)
    np.testing.assert_allclose(found.arrays["scores"], a * h * r**2, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(found.arrays["corrected"], a * h * r**2 / (1 - a * h), rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(found.arrays["loss"], r**2 / 2, rtol=1e-9)
    np.testing.assert_allclose(found.arrays["gradient_norm"], np.abs(r) * np.linalg.norm(x, axis=1), rtol=1e-9)
    for n in (0, 5):
        actual = difference(
            lambda theta, n=n: with_weight(problem, n, 1 - theta), problem.batches.chosen(np.array([n])), "loss"
        )
        np.testing.assert_allclose(found.arrays["scores"][n], actual[0], rtol=1e-6)


@pytest.mark.first_tier("remove-loss", "label_perturb-margin")
@pytest.mark.parametrize("measure", ["loss", "margin"])
@pytest.mark.parametrize("mode", MODES)
def test_scores_do_not_depend_on_the_weights_of_the_queries(mode: str, measure: str) -> None:
    problem = at_minimum(mlp_problem(l2=0.05))
    asked = problem.batches.chosen(np.array([5, 0, 2]))
    expected = scores(problem, asked, measure=measure, **{mode: True})
    for weight in ([0.0, 0.0, 0.0], [3.0, 0.0, 0.25]):
        weighted = replace(asked, weight=np.array(weight))
        found = scores(problem, weighted, measure=measure, **{mode: True})
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_a_mask_of_tokens_selects_them() -> None:
    """Fractional weights count as 1; of a sequence without any, every token that has a label does."""
    problem = at_minimum(token_problem(l2=0.05))
    batches = problem.batches
    rows = np.array([5, 1])
    plain = batches.chosen(rows)
    expected = scores(problem, plain, remove=True)
    np.testing.assert_allclose(
        scores(problem, replace(plain, weight=2.5 * plain.weight), remove=True), expected, rtol=1e-12
    )
    every = scores(problem, replace(plain, weight=np.ones_like(plain.weight)), remove=True)
    none = scores(problem, replace(plain, weight=np.zeros_like(plain.weight)), remove=True)
    np.testing.assert_allclose(none, every, rtol=1e-12)
    assert np.abs(every - expected).max() > 1e-6
    targets = np.where(plain.weight > 0, plain.targets, -1)
    unlabelled = replace(plain, targets=targets, weight=np.zeros_like(plain.weight))
    np.testing.assert_allclose(scores(problem, unlabelled, remove=True), expected, rtol=1e-12)


def test_a_query_without_a_label_has_no_loss() -> None:
    problem = mlp_problem(l2=0.05)
    asked = problem.batches.chosen(np.array([5, 0, 2]))
    asked = replace(asked, targets=np.array([0, -1, 1], np.int32), weight=np.array([1.0, 0, 0]))
    for measure in ("loss", "margin"):
        with pytest.raises(UsageError, match="row 31 has none"):
            run(problem, asked, remove=True, measure=measure, given={"first": 30})
    assert np.abs(scores(problem, asked, remove=True, measure="output")[1]).max() > 0


def test_what_is_selected() -> None:
    def told(targets: Any, weight: Any, loss: str = "softmax_cross_entropy") -> np.ndarray:
        targets, weight = np.asarray(targets), np.asarray(weight, float)
        batches = Batches(np.zeros((len(weight), 2)), targets, weight, 2, np.dtype("float64"))
        return queries.selected(LOSSES[loss], batches, "loss").weight

    np.testing.assert_array_equal(told([0, 1, -1], [0.5, 0, 0]), [1, 1, 0])
    np.testing.assert_array_equal(told(np.eye(3) * [[1], [2], [0]], [0, 3, 0]), [1, 1, 0])
    np.testing.assert_array_equal(told([[0, -1], [1, 1]], [0, 2]), [[1, 0], [1, 1]])
    np.testing.assert_array_equal(told([[0, -1], [1, 1]], [[0, 0], [0, 2]]), [[1, 0], [0, 1]])
    np.testing.assert_array_equal(told([[-1.0], [2.0]], [0, 2], "squared_error"), [1, 1])
    np.testing.assert_array_equal(
        told(np.zeros((2, 3, 1)), [[0, 0, 0], [2, 0, 1]], "squared_error"), [[1] * 3, [1, 0, 1]]
    )
