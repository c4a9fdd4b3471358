"""Truncated conjugate gradients against dense algebra: exact in n steps, stopped where it pays no more, downwards."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from curvcli.linalg.solvers.subspace import least_over
from curvcli.linalg.solvers.truncated_cg import PROGRESS, Truncated, truncated_cg
from tests.linalg.systems import EPS, gaussian, symmetric


def run(matrix: np.ndarray, gradient: np.ndarray, **rest: Any) -> Truncated:
    options = {"tolerance": 1e-10, "most": 200, "eps": EPS, **rest}
    return truncated_cg(lambda v: matrix @ v, gradient, **options)


def value(matrix: np.ndarray, gradient: np.ndarray, p: np.ndarray) -> float:
    return float(gradient @ p + 0.5 * p @ matrix @ p)


def test_a_quadratic_of_n_dimensions_is_exact_in_n_steps() -> None:
    matrix, gradient = symmetric(np.linspace(1, 3, 8)), gaussian(8)
    found = run(matrix, gradient, tolerance=1e3 * EPS * np.linalg.norm(gradient))
    assert (found.ending, found.products) == ("converged", 8)
    np.testing.assert_allclose(found.p, -np.linalg.solve(matrix, gradient), rtol=1e3 * EPS)


def test_the_trace_is_of_the_true_quadratic_which_falls() -> None:
    matrix, gradient = symmetric(np.geomspace(1e-2, 1, 20)), gaussian(20)
    found = run(matrix, gradient, most=7)
    assert found.ending == "not-converged"
    assert found.trace[-1].quadratic == pytest.approx(value(matrix, gradient, found.p), rel=1e4 * EPS)
    assert found.trace[-1].residual == pytest.approx(np.linalg.norm(gradient + matrix @ found.p), rel=1e5 * EPS)
    assert np.all(np.diff([one.quadratic for one in found.trace]) < 0)


def test_martens_rule_ends_where_an_iteration_gains_little() -> None:
    matrix, gradient = symmetric(np.geomspace(1e-3, 1, 300)), gaussian(300)
    found = run(matrix, gradient, by_progress=True)
    assert found.ending == "relative-progress"
    values = [one.quadratic for one in found.trace]
    last = len(values) - 1
    gains = [(values[i] - values[i - max(10, i // 10)]) / values[i] / max(10, i // 10) for i in range(11, last + 1)]
    assert gains[-1] < PROGRESS <= min(gains[:-1])
    numbers = [iteration for iteration, _ in found.kept]
    assert numbers[-1] == last
    assert all(late >= 1.3 * early for early, late in itertools.pairwise(numbers[:-1]))
    for iteration, p in found.kept:
        assert value(matrix, gradient, p) == pytest.approx(values[iteration], rel=1e-9)


def test_a_warm_start_at_the_solution_costs_one_product() -> None:
    matrix, gradient = symmetric(np.linspace(1, 3, 8)), gaussian(8)
    found = run(matrix, gradient, start=-np.linalg.solve(matrix, gradient))
    assert (found.ending, found.products) == ("converged", 1)


def test_the_exact_inverse_as_preconditioner_needs_one_iteration() -> None:
    matrix, gradient = symmetric(np.geomspace(1e-4, 1, 20)), gaussian(20)
    inverse = np.linalg.inv(matrix)
    found = run(matrix, gradient, precondition=lambda v: inverse @ v, tolerance=1e-8)
    assert (found.ending, found.products) == ("converged", 1)


@pytest.mark.parametrize("start", [False, True])
def test_no_step_is_longer_than_the_radius(start: bool) -> None:
    matrix, gradient = symmetric(np.geomspace(1e-2, 1, 20)), gaussian(20)
    warm = gaussian(20, seed=4) if start else None
    found = run(matrix, gradient, radius=0.5, start=warm)
    assert found.ending == "boundary"
    assert found.on_boundary
    assert np.linalg.norm(found.p) == pytest.approx(0.5, rel=10 * EPS)
    assert found.trace[-1].quadratic == pytest.approx(value(matrix, gradient, found.p), rel=1e4 * EPS)


def test_negative_curvature_is_an_answer() -> None:
    matrix, gradient = symmetric(np.r_[-0.5, np.linspace(1, 3, 9)]), gaussian(10)
    found = run(matrix, gradient)
    assert found.ending == "negative-curvature"
    assert found.negative is not None
    direction, start = found.negative.direction, found.negative.start
    np.testing.assert_array_equal(found.p, start)
    assert direction @ matrix @ direction / (direction @ direction) == pytest.approx(found.negative.curvature)
    assert found.negative.curvature < 0
    lower = value(matrix, gradient, start + direction)
    assert value(matrix, gradient, start + 10 * direction) < lower < value(matrix, gradient, start)
    bounded = run(matrix, gradient, radius=50.0)
    assert np.linalg.norm(bounded.p) == pytest.approx(50, rel=10 * EPS)
    np.testing.assert_array_equal(bounded.negative.start, start)  # type: ignore[union-attr]


def test_what_has_no_curvature_is_left_alone() -> None:
    found = run(np.diag([1.0, 1.0, 0.0]), np.array([1.0, 0.5, 0.0]))
    assert found.ending == "converged"
    flat = run(np.zeros((3, 3)), np.ones(3))
    assert (flat.ending, flat.p.any()) == ("flat", False)


def test_the_least_over_the_gradient_and_the_step_before_is_conjugate_gradients() -> None:
    matrix, gradient = symmetric(np.linspace(1, 10, 6)), gaussian(6)
    p, before = np.zeros(6), np.zeros(6)
    for most in range(1, 7):
        rows = np.stack([-(gradient + matrix @ p), before])
        chosen = least_over(rows, rows @ matrix, gradient + matrix @ p, EPS)
        assert chosen is not None
        before = chosen @ rows
        p = p + before
        np.testing.assert_allclose(p, run(matrix, gradient, most=most, tolerance=0.0).p, atol=1e-10)
    np.testing.assert_allclose(p, -np.linalg.solve(matrix, gradient), atol=1e-10)


def test_there_is_no_least_where_the_span_curves_downwards() -> None:
    rows = np.eye(2)
    assert least_over(rows, np.diag([1.0, -1.0]), np.ones(2), EPS) is None
    assert least_over(rows[:1], np.zeros((1, 2)), np.ones(2), EPS) is None
    twice = np.ones((2, 2))
    np.testing.assert_allclose(least_over(twice, 2 * twice, np.ones(2), EPS), [-0.25, -0.25])
