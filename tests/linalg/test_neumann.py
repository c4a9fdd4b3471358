"""The Neumann series against dense solves: LiSSA's recursion and its limit, divergence that is told."""

import jax
import numpy as np
import pytest

from curvcli.linalg.iterate import Silent
from curvcli.linalg.meter import Meter
from curvcli.linalg.operator import dense_operator
from curvcli.linalg.solvers import neumann
from tests.linalg.systems import EPS, gaussian, solved, symmetric, true_residuals
from tests.monitors import StopAfter


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_the_iterates_are_those_of_lissa(damping):
    """h ← v + (1 − d) h − A h/s from h = v, whose limit over s is (A + s d I)⁻¹ v."""
    matrix, rhs, scale = symmetric(np.linspace(0.5, 3, 20)), gaussian(3, 20), 3.2
    h = rhs
    for _ in range(6):
        h = rhs + (1 - damping) * h - h @ matrix / scale
    found = solved(neumann.solve, matrix, rhs, max_steps=7, scale=scale, damping=damping)
    np.testing.assert_allclose(found.x, h / scale, rtol=1e-10, atol=1e-13)
    limit = solved(neumann.solve, matrix, rhs, tol=1e-11, max_steps=500, scale=scale, damping=damping)
    damped = matrix + scale * damping * np.eye(20)
    assert limit.status == ["converged"] * 3
    np.testing.assert_allclose(limit.x, np.linalg.solve(damped, rhs.T).T, atol=1e-9)
    np.testing.assert_allclose(limit.residuals, true_residuals(damped, rhs, limit), rtol=1e-3, atol=1e3 * EPS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_right_hand_sides_of_any_size(dtype):
    matrix = symmetric(np.linspace(1, 4, 15))
    rhs, meter = gaussian(4, 15) * [[1e-9], [1.0], [0.0], [1e9]], Meter()
    found = solved(neumann.solve, matrix, rhs, dtype, tol=1e-5, scale=4.0, operator=meter.count)
    assert found.status == ["converged"] * 4
    assert found.iterations[2] == 0
    scaled = np.maximum(np.linalg.norm(rhs, axis=1, keepdims=True), 1e-30)
    np.testing.assert_allclose(found.x / scaled, np.linalg.solve(matrix, rhs.T).T / scaled, atol=3e-5)
    assert meter.data_passes == found.iterations.max() + 1


@pytest.mark.first_tier("values1")
@pytest.mark.parametrize("values", [np.linspace(0.1, 9, 30), np.r_[np.full(29, 1e-2), 50.0], np.full(5, 2.0)])
def test_the_automatic_scale_converges(values):
    matrix, meter = symmetric(values), Meter()
    scale = neumann.safe_scale(meter.count(dense_operator(matrix)), jax.random.key(0), Silent())
    assert values.max() / 2 < scale <= 1.5 * values.max()
    assert meter.products <= 10
    found = solved(neumann.solve, matrix, gaussian(2, len(values)), tol=0.5, max_steps=5000, scale=scale)
    assert found.status == ["converged"] * 2


def test_divergence_is_told_and_stopped():
    meter = Meter()
    found = solved(
        neumann.solve, np.diag([3.0, 1.0, -0.5]), np.array([[1.0, 1, 1], [1.0, 1, 0]]), scale=3.5, operator=meter.count
    )
    assert found.status == ["indefinite", "converged"]
    assert found.lowest[0] < 0 < found.lowest[1]
    assert found.residuals[0] <= 1
    short = solved(neumann.solve, np.diag([1.0, 5.0]), np.ones((1, 2)), scale=2.0)
    assert short.status == ["not-converged"]
    assert short.iterations[0] < 10
    assert short.residuals[0] <= 1


def test_where_the_matrix_is_zero():
    found = solved(neumann.solve, np.diag([0.0, 2.0, 3.0]), np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]]), scale=3.0)
    assert found.status == ["least-squares", "converged"]
    np.testing.assert_allclose(found.residuals[0], np.sqrt(1 / 3))
    np.testing.assert_allclose(found.x[1], [0, 1 / 2, 1 / 3])


def test_a_stopped_run_answers_with_what_it_has():
    matrix, rhs = symmetric(np.geomspace(1e-2, 1, 20)), gaussian(2, 20)
    found = solved(neumann.solve, matrix, rhs, scale=1.0, monitor=StopAfter(3))
    assert found.iterations.tolist() == [4, 4]
    assert found.status == ["not-converged"] * 2
    np.testing.assert_allclose(found.residuals, true_residuals(matrix, rhs, found), rtol=1e-10)
