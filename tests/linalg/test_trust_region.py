"""Newton's method in a trust region, on functions whose minima are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from curvcli.linalg.solvers.trust_region import Minimum, Point, minimise

EPS = float(np.finfo(float).eps)


def quadratic(matrix: np.ndarray, at: np.ndarray, level: float = 0.0) -> Callable[[np.ndarray], Point]:
    def function(w: np.ndarray) -> Point:
        away = w - at
        return Point(level + 0.5 * float(away @ matrix @ away), matrix @ away, lambda v: matrix @ v)

    return function


def rosenbrock(w: np.ndarray) -> Point:
    x, y = w
    gradient = np.array([2 * (x - 1) - 400 * x * (y - x * x), 200 * (y - x * x)])
    hessian = np.array([[2 - 400 * (y - 3 * x * x), -400 * x], [-400 * x, 200.0]])
    return Point((x - 1) ** 2 + 100 * (y - x * x) ** 2, gradient, lambda v: hessian @ v)


def double_well(w: np.ndarray) -> Point:
    """¼(x² − 1)² + ½y²: minima at (±1, 0), a saddle between them."""
    x, y = w
    hessian = np.diag([3 * x * x - 1, 1.0])
    return Point(0.25 * (x * x - 1) ** 2 + 0.5 * y * y, np.array([x**3 - x, y]), lambda v: hessian @ v)


def run(function: Callable[[np.ndarray], Point], start: Any, **rest: Any) -> Minimum:
    start = np.asarray(start, float)
    options = {"gtol": 1e-10, "radius": 0.1, "budget": 2000, "eps": EPS, **rest}
    return minimise(function, start, function(start), **options)


def spectrum(values: np.ndarray, seed: int = 0) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
    return (q * values) @ q.T


def test_a_quadratic_is_solved_by_few_products() -> None:
    matrix, at = spectrum(np.geomspace(1e-4, 10, 30)), np.random.default_rng(1).normal(size=30)
    found = run(quadratic(matrix, at), np.zeros(30), gtol=1e-9, radius=100.0)
    assert found.converged
    assert np.linalg.norm(matrix @ (found.w - at)) <= 1e-9
    assert found.evaluations < 200


def test_the_curved_valley_is_followed_to_its_end() -> None:
    found = run(rosenbrock, [-1.2, 1.0])
    assert found.converged
    np.testing.assert_allclose(found.w, 1, rtol=1e-8)


@pytest.mark.parametrize("side", [-1, 1])
def test_negative_curvature_is_left_downhill_and_the_well_is_not_changed(side: int) -> None:
    found = run(double_well, [0.01 * side, 0.3])
    assert found.converged
    np.testing.assert_allclose(found.w, [side, 0], atol=1e-9)


def test_digits_that_the_values_have_lost_come_from_the_gradients() -> None:
    """At f = 1e8 steps that lower f by 1e-12 are below its rounding by a factor of 1e4."""
    matrix, at = spectrum(np.geomspace(0.1, 10, 10)), np.ones(10)
    found = run(quadratic(matrix, at, level=1e8), at + 1e-4, gtol=1e-12)
    assert found.converged
    np.testing.assert_allclose(found.w, at, atol=1e-10)


def test_what_rounding_leaves_of_a_gradient_ends_the_iteration() -> None:
    rng, matrix, at = np.random.default_rng(0), spectrum(np.geomspace(0.1, 10, 10)), np.ones(10)
    exact = quadratic(matrix, at, level=1.0)

    def noisy(w: np.ndarray) -> Point:
        point = exact(w)
        return point._replace(gradient=point.gradient + 1e-9 * rng.normal(size=10))

    found = run(noisy, np.zeros(10), gtol=1e-14, budget=10_000)
    assert not found.converged
    assert found.evaluations < 200
    np.testing.assert_allclose(found.w, at, atol=1e-6)


def test_directions_without_curvature_are_left_alone() -> None:
    matrix = spectrum(np.r_[np.zeros(5), np.geomspace(0.1, 10, 10)])
    start = np.random.default_rng(1).normal(size=15)
    found = run(quadratic(matrix, np.zeros(15)), start)
    assert found.converged
    null = np.eye(15) - np.linalg.pinv(matrix, rcond=1e-10) @ matrix
    np.testing.assert_allclose(null @ found.w, null @ start, atol=1e-8)


def test_a_step_to_where_there_is_no_value_is_taken_back() -> None:
    def barrier(w: np.ndarray) -> Point:
        (x,) = w
        if x <= 0:
            return Point(np.inf, np.array([np.nan]), lambda v: v)
        return Point(float(x - np.log(x)), np.array([1 - 1 / x]), lambda v: v / x**2)

    found = run(barrier, [5.0], radius=10.0)
    assert found.converged
    np.testing.assert_allclose(found.w, 1, rtol=1e-9)


def test_the_budget_ends_it_unconverged() -> None:
    found = run(rosenbrock, [-1.2, 1.0], budget=5)
    assert not found.converged
    assert found.evaluations <= 6
    assert found.point.value < rosenbrock(np.array([-1.2, 1.0])).value
