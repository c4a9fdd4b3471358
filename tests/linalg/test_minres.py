"""MINRES against dense solves: indefinite, singular, many right-hand sides."""

import jax
import numpy as np
import pytest

from curvcli.errors import NumericsError
from curvcli.linalg.iterate import Silent
from curvcli.linalg.meter import Meter
from curvcli.linalg.operator import LinearOperator, dense_operator
from curvcli.linalg.solvers.minres import solve

EPS = np.finfo(float).eps


def symmetric(values, seed=0):
    """A random symmetric matrix with these eigenvalues."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
    return (q * np.asarray(values)) @ q.T


def run(matrix, rhs, **options):
    options = {"tol": 1e-11, "max_steps": 200, "reorthogonalize": "full", **options}
    return solve(dense_operator(matrix), jax.numpy.asarray(rhs), monitor=Silent(), **options)


@pytest.mark.parametrize("reorthogonalize", ["full", "none"])
def test_indefinite_systems_in_lockstep(reorthogonalize):
    values = np.r_[np.linspace(-3, -0.5, 10), np.linspace(0.5, 20, 30)]
    matrix, rhs = symmetric(values), np.random.default_rng(1).normal(size=(3, 40)) * [[1e-9], [1.0], [1e9]]
    found = run(matrix, rhs, reorthogonalize=reorthogonalize, tol=1e-9)
    if reorthogonalize == "full":
        assert found.status == ["converged"] * 3
        size = np.linalg.norm(rhs, axis=1, keepdims=True)
        np.testing.assert_allclose(found.x / size, np.linalg.solve(matrix, rhs.T).T / size, atol=1e-8)
    true = np.linalg.norm(rhs - np.asarray(found.x) @ matrix, axis=1) / np.linalg.norm(rhs, axis=1)
    np.testing.assert_allclose(found.residuals, true, rtol=1e-3, atol=1e3 * EPS)
    # What is said of each system is true of it.
    assert all(
        (status == "converged") == (residual <= 2e-9) for status, residual in zip(found.status, true, strict=True)
    )


def test_residuals_fall_to_those_of_the_best_in_the_krylov_space():
    matrix, b = symmetric(np.r_[-2.0, -1.0, np.linspace(1, 9, 18)]), np.random.default_rng(2).normal(size=20)
    space = [b]
    for steps in range(1, 7):
        found = run(matrix, b[None], max_steps=steps)
        images = np.stack(space) @ matrix
        best = np.linalg.lstsq(images.T, b, rcond=None)
        assert found.status == ["not-converged"]
        assert found.iterations[0] == steps
        np.testing.assert_allclose(found.residuals[0] ** 2 * (b @ b), best[1][0], rtol=1e-7)
        space.append(images[-1] / np.linalg.norm(images[-1]))


def test_every_system_ends_by_itself():
    matrix = np.diag([1.0, 2.0, 5.0, -7.0])
    rhs = np.array([[3.0, 0, 0, 0], [1.0, 1, 0, 0], [0, 0, 0, 0], [1.0, 1, 1, 1]])
    meter = Meter()
    found = solve(meter.count(dense_operator(matrix)), jax.numpy.asarray(rhs), tol=1e-10, max_steps=9, monitor=Silent())
    np.testing.assert_allclose(found.x, rhs / np.diag(matrix), atol=1e-9)
    assert found.status == ["converged"] * 4
    assert found.iterations.tolist() == [1, 2, 0, 4]
    np.testing.assert_allclose(found.lowest, [1, 1, 0, -7], atol=1e-9)
    assert meter.data_passes == 5


def test_negative_curvature_is_told():
    found = run(np.diag([3.0, 1.0, -0.5]), np.ones((1, 3)))
    np.testing.assert_allclose(found.x, [[1 / 3, 1, -2]], rtol=1e-9)
    np.testing.assert_allclose(found.lowest, [-0.5], rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_singular_systems(scale):
    values = np.r_[np.zeros(5), np.linspace(-2, 6, 20)] * scale
    matrix = symmetric(values)
    inside = np.random.default_rng(3).normal(size=25) @ matrix
    found = run(matrix, np.stack([inside, np.random.default_rng(4).normal(size=25)]), tol=1e-9)
    assert found.status == ["converged", "least-squares"]
    b = np.random.default_rng(4).normal(size=25)
    _, vectors = np.linalg.eigh(matrix)
    null = vectors[:, np.abs(np.linalg.eigvalsh(matrix)) < 1e-9 * scale]
    np.testing.assert_allclose(found.residuals[1] * np.linalg.norm(b), np.linalg.norm(null.T @ b), rtol=1e-6)


def test_a_right_hand_side_where_the_matrix_is_zero():
    found = run(np.diag([0.0, 0.0, 2.0]), np.array([[1.0, 1.0, 0.0]]))
    assert found.status == ["least-squares"]
    np.testing.assert_array_equal(found.x, np.zeros((1, 3)))
    assert found.residuals.tolist() == [1.0]
    nothing = run(np.zeros((2, 2)), np.ones((1, 2)))
    assert (nothing.status, nothing.residuals.tolist()) == (["least-squares"], [1.0])


def test_one_number():
    found = run(np.array([[-4.0]]), np.array([[2.0], [0.0]]))
    np.testing.assert_array_equal(found.x, [[-0.5], [0.0]])
    assert found.status == ["converged"] * 2


def test_float32_does_not_say_more_than_it_knows():
    matrix, b = symmetric(np.geomspace(1e-7, 1, 60)), np.random.default_rng(5).normal(size=(1, 60))
    operator = dense_operator(matrix.astype(np.float32))
    found = solve(operator, jax.numpy.asarray(b, "float32"), tol=1e-6, max_steps=400, monitor=Silent())
    true = np.linalg.norm(b - np.asarray(found.x, float) @ matrix) / np.linalg.norm(b)
    assert found.status[0] != "converged"
    assert true < 1.5 * found.residuals[0] + 1e-3


def test_products_that_are_no_numbers():
    operator = LinearOperator(lambda vectors: vectors * np.nan, 3, np.dtype(float))
    with pytest.raises(NumericsError, match="not finite"):
        solve(operator, jax.numpy.ones((1, 3)), tol=1e-6, max_steps=3, monitor=Silent())
