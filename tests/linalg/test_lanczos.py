"""The Lanczos process: its relation, its moments, its end."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvcli.linalg.iterate import Silent, iterate
from curvcli.linalg.krylov import basis as bases
from curvcli.linalg.krylov.bounds import Measure
from curvcli.linalg.krylov.lanczos import Lanczos, LanczosState
from curvcli.linalg.operator import LinearOperator, dense_operator
from curvcli.linalg.probes import sphere

EPS = float(np.finfo(float).eps)
KEY = jax.random.key(0)


def random_symmetric(dim: int, seed: int = 0) -> np.ndarray:
    half = np.random.default_rng(seed).normal(size=(dim, dim))
    return half + half.T


def run(operator: LinearOperator, k: int, steps: int, reorthogonalize: str = "full") -> tuple[Lanczos, LanczosState]:
    start = sphere(KEY, 0, k, operator.dim, operator.dtype)
    algorithm = Lanczos(start, steps, reorthogonalize)  # type: ignore[arg-type]
    return algorithm, iterate(algorithm, operator, KEY, monitor=Silent(), stage="")


def rows(state: LanczosState) -> np.ndarray:
    return np.concatenate(state.basis.chunks, axis=1)[:, : state.basis.size]


def test_recurrence_and_orthogonality() -> None:
    matrix = random_symmetric(60)
    _, state = run(dense_operator(matrix), k=3, steps=40)
    norm = np.linalg.norm(matrix, 2)
    for i, q in enumerate(rows(state)):
        alpha, beta = state.alphas[i], state.betas[i]
        tridiagonal = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
        assert np.abs(q @ q.T - np.eye(40)).max() < 100 * EPS
        residual = q @ matrix - tridiagonal @ q
        residual[-1] -= beta[-1] * np.asarray(state.current[i])
        assert np.abs(residual).max() < 200 * EPS * norm


def test_two_distinct_eigenvalues_end_at_step_two() -> None:
    algorithm, state = run(dense_operator(np.diag([3.0] * 20 + [-1.0] * 30)), k=4, steps=30)
    for found in algorithm.result(state):
        assert found.invariant
        np.testing.assert_allclose(found.eigh()[0], [-1, 3], atol=100 * EPS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_breakdown_does_not_invent_eigenvalues(dtype: str) -> None:
    """Rank 5, D = 1000: going on past the breakdown gave extremes of ±1e3 (float32) and ±1e10 (float64)."""
    values = np.zeros(1000)
    values[:5] = [9.0, 5.0, 3.0, -1.0, -2.0]
    diagonal = jnp.asarray(values, dtype)
    operator = LinearOperator(lambda v: v * diagonal[None], 1000, np.dtype(dtype))
    algorithm, state = run(operator, k=5, steps=20)
    for found in algorithm.result(state):
        assert found.invariant
        theta = found.eigh()[0]
        assert theta.min() == pytest.approx(-2, rel=1e-5)
        assert theta.max() == pytest.approx(9, rel=1e-5)


@pytest.mark.parametrize("matrix", [np.zeros((6, 6)), 2.5 * np.eye(6), np.array([[4.0]]), np.diag([1.0, -1.0])])
def test_trivial_matrices(matrix: np.ndarray) -> None:
    algorithm, state = run(dense_operator(matrix), k=3, steps=10)
    for found in algorithm.result(state):
        assert found.invariant
        exact = np.linalg.eigvalsh(matrix)
        assert found.eigh()[0].min() == pytest.approx(exact[0], abs=1e-12)
        assert found.eigh()[0].max() == pytest.approx(exact[-1], abs=1e-12)


def test_moments_of_the_quadrature() -> None:
    """First and second moment equal vᵀAv and ‖Av‖² whatever the number of steps."""
    matrix = random_symmetric(50)
    start = np.asarray(sphere(KEY, 0, 4, 50, "float64"))
    algorithm, state = run(dense_operator(matrix), k=4, steps=6)
    for v, found in zip(start, algorithm.result(state), strict=True):
        measure = Measure.of(found)
        np.testing.assert_allclose(measure.weights @ measure.nodes, v @ matrix @ v, rtol=1e-12)
        np.testing.assert_allclose(measure.weights @ measure.nodes**2, np.sum((matrix @ v) ** 2), rtol=1e-12)


def test_without_reorthogonalisation_the_density_stays_right() -> None:
    values = np.concatenate([[100.0], np.linspace(0, 1, 399)])
    operator = LinearOperator(lambda v: v * jnp.asarray(values)[None], 400, np.dtype(float))
    both = [run(operator, 3, 120, mode) for mode in ("full", "none")]
    assert not both[1][1].basis.chunks
    for full, none in zip(both[0][0].result(both[0][1]), both[1][0].result(both[1][1]), strict=True):
        ghosts = np.sum(none.eigh()[0] > 50)
        assert ghosts > 1  # the copies that reorthogonalisation prevents
        assert np.sum(full.eigh()[0] > 50) == 1
        smooth = [np.exp(-((m.nodes / 10) ** 2)) @ m.weights for m in (Measure.of(full), Measure.of(none))]
        assert smooth[0] == pytest.approx(smooth[1], rel=1e-8)


def test_probes_do_not_depend_on_their_grouping() -> None:
    together = np.asarray(sphere(KEY, 0, 5, 33, "float64"))
    apart = np.concatenate([np.asarray(sphere(KEY, i, 1, 33, "float64")) for i in range(5)])
    np.testing.assert_array_equal(together, apart)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-14)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(dim=st.integers(1, 40), k=st.integers(1, 3), steps=st.integers(1, 45), seed=st.integers(0, 1000))
def test_ritz_values_lie_within_the_spectrum(dim: int, k: int, steps: int, seed: int) -> None:
    matrix = random_symmetric(dim, seed)
    exact = np.linalg.eigvalsh(matrix)
    slack = 1e3 * EPS * max(np.abs(exact).max(), 1)
    algorithm, state = run(dense_operator(matrix), k, steps)
    for found in algorithm.result(state):
        theta = found.eigh()[0]
        assert len(theta) <= min(dim, steps)
        assert exact[0] - slack <= theta[0]
        assert theta[-1] <= exact[-1] + slack


def test_basis_of_many_chunks() -> None:
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 37)))[0].T
    basis = bases.empty(50)
    for row in q:
        basis = bases.append(basis, jnp.asarray(row)[None])
    vector = np.random.default_rng(1).normal(size=(1, 50))
    rest, removed = bases.orthogonalise(basis, jnp.asarray(vector))
    np.testing.assert_allclose(np.asarray(rest) @ q.T, 0, atol=1e-14)
    np.testing.assert_allclose(bases.coefficients(basis, removed), vector @ q.T, atol=1e-13)
    weights = np.random.default_rng(2).normal(size=(1, 3, 37))
    np.testing.assert_allclose(bases.combine(basis, weights)[0], weights[0] @ q, atol=1e-13)


@pytest.mark.parametrize("scale", [1e-30, 1e-16, 1.0, 1e25])
def test_float32_scale_does_not_matter(scale: float) -> None:
    """Squares of float32 numbers below 1e-19 are zero: norms must be scaled first."""
    entries = jnp.asarray(scale * np.linspace(-1, 2, 2000), "float32")[None]
    operator = LinearOperator(lambda v: v * entries, 2000, np.dtype("float32"))
    algorithm, state = run(operator, k=2, steps=30)
    for found in algorithm.result(state):
        assert not found.invariant
        assert found.eigh()[0].max() / scale == pytest.approx(2, rel=1e-2)


def test_a_product_that_is_not_finite_is_an_error() -> None:
    from curvcli.errors import NumericsError

    operator = LinearOperator(lambda v: v * jnp.nan, 20, np.dtype(float))
    with pytest.raises(NumericsError, match="not finite"):
        run(operator, 2, 5)
