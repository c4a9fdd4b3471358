"""Thick-restart Lanczos against dense eigenvalues, hard cases included."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.linalg import eigen
from curvcli.linalg.iterate import Silent, iterate
from curvcli.linalg.lanczos import Lanczos
from curvcli.linalg.operator import LinearOperator, dense_operator
from curvcli.linalg.probes import sphere

KEY = jax.random.key(3)


def solve(
    values: np.ndarray, low: int, high: int, capacity: int = 20, tol: float = 1e-10, seed: int = 0
) -> eigen.EigenResult:
    dim = len(values)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]
    matrix = (rotation * values) @ rotation.T
    operator = dense_operator(0.5 * (matrix + matrix.T))
    start = eigen.from_vector(sphere(KEY, 0, 1, dim, "float64"))
    algorithm = eigen.ThickRestart(low, high, tol, capacity, 5000, start)
    found = algorithm.result(iterate(algorithm, operator, KEY, monitor=Silent(), stage=""))
    quotients, residuals = eigen.true_residuals(operator, found.vectors)
    norm = np.abs(values).max() or 1.0
    assert np.all(residuals <= 2 * tol * norm + 1e-13 * norm)
    np.testing.assert_allclose(quotients, found.values, atol=1e-11 * norm)
    gram = np.asarray(found.vectors) @ np.asarray(found.vectors).T
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-11)
    return found


HARD = {
    "decaying": 0.7 ** np.arange(200),
    "linear": np.linspace(-1, 1, 150),
    "clustered": np.concatenate([1 + 1e-6 * np.arange(5), np.linspace(0, 0.5, 95)]),
    "indefinite": np.random.default_rng(0).normal(size=120),
    "outlier": np.concatenate([[1e6], np.linspace(0, 1, 99)]),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize(("low", "high"), [(1, 0), (0, 1), (2, 3)])
def test_extremes_match_dense_eigenvalues(name: str, low: int, high: int) -> None:
    values = np.sort(HARD[name])
    # Some 65 eigenvalues of the decaying spectrum exceed the tolerance: the basis must hold them to see past them.
    found = solve(HARD[name], low, high, capacity=80 if name == "decaying" else 20)
    wanted = np.concatenate([values[:low], values[len(values) - high :]])
    np.testing.assert_allclose(found.values, wanted, atol=1e-9 * np.abs(values).max())


@pytest.mark.parametrize("values", [np.zeros(9), np.full(9, 3.0), np.array([2.0]), np.array([-1.0, 4.0])])
def test_trivial_matrices_end_at_once(values: np.ndarray) -> None:
    found = solve(values, 1, 1)
    assert found.invariant
    assert found.values[0] == pytest.approx(values.min(), abs=1e-12)
    assert found.values[-1] == pytest.approx(values.max(), abs=1e-12)


def test_continuing_a_lanczos_run_costs_no_product_when_it_has_converged() -> None:
    values = 0.5 ** np.arange(100)
    operator = LinearOperator(lambda v: v * jnp.asarray(values)[None], 100, np.dtype(float))
    lanczos = Lanczos(sphere(KEY, 0, 2, 100, "float64"), 30)
    state = iterate(lanczos, operator, KEY, monitor=Silent(), stage="")
    space = eigen.from_lanczos(state, 1)
    assert np.abs(space.projected - np.diag(np.diag(space.projected))).max() > 0
    algorithm = eigen.ThickRestart(0, 1, 1e-8, 60, 100, eigen.compress(space, (0, 12)))
    end = iterate(algorithm, operator, KEY, monitor=Silent(), stage="", state=algorithm.init(operator))
    assert end.products == 0
    assert algorithm.result(end).values[0] == pytest.approx(1.0, abs=1e-12)


def test_continuing_reaches_what_the_start_had_not() -> None:
    values = np.concatenate([np.linspace(0, 1, 400), [1.02]])
    operator = LinearOperator(lambda v: v * jnp.asarray(values)[None], 401, np.dtype(float))
    lanczos = Lanczos(sphere(KEY, 0, 1, 401, "float64"), 12)
    state = iterate(lanczos, operator, KEY, monitor=Silent(), stage="")
    space = eigen.compress(eigen.from_lanczos(state, 0), (0, 6))
    assert np.linalg.eigvalsh(space.projected)[-1] < 1.0199
    algorithm = eigen.ThickRestart(0, 1, 1e-9, 24, 2000, space)
    end = iterate(algorithm, operator, KEY, monitor=Silent(), stage="", state=space)
    found = algorithm.result(end)
    assert found.values[0] == pytest.approx(1.02, abs=1e-12)
    assert eigen.true_residuals(operator, found.vectors)[1][0] < 2e-9


def test_power_iteration_agrees() -> None:
    values = HARD["indefinite"]
    vector = np.random.default_rng(5).normal(size=120)
    shifted = values - values.min()
    for _ in range(20000):
        vector = shifted * vector
        vector /= np.linalg.norm(vector)
    assert solve(values, 0, 1).values[-1] == pytest.approx(vector @ (values * vector), abs=1e-7)


def test_out_of_products_is_said_by_the_residual() -> None:
    operator = LinearOperator(lambda v: v * jnp.linspace(0, 1, 5000)[None], 5000, np.dtype(float))
    algorithm = eigen.ThickRestart(0, 1, 1e-12, 16, 10, eigen.from_vector(sphere(KEY, 0, 1, 5000, "float64")))
    state = iterate(algorithm, operator, KEY, monitor=Silent(), stage="")
    found = algorithm.result(state)
    assert state.products == 10
    assert found.residuals[0] == pytest.approx(eigen.true_residuals(operator, found.vectors)[1][0], rel=1e-6)
    assert found.residuals[0] > 1e-4
