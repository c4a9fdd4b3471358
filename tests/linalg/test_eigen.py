"""Thick-restart block Lanczos against dense eigenvalues, hard cases included."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvcli.linalg.iterate import Silent, iterate
from curvcli.linalg.krylov import eigen
from curvcli.linalg.krylov import spaces as krylov
from curvcli.linalg.krylov.lanczos import Lanczos
from curvcli.linalg.meter import Meter
from curvcli.linalg.operator import LinearOperator, dense_operator
from curvcli.linalg.probes import sphere

KEY = jax.random.key(3)


def rotated(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """A dense symmetric matrix with these eigenvalues."""
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    matrix = (rotation * values) @ rotation.T
    return 0.5 * (matrix + matrix.T)


def start_block(dim: int, block: int, dtype: str = "float64") -> krylov.KrylovSpace:
    """The empty space before random start vectors."""
    return krylov.from_random(KEY, min(block, dim), dim, dtype)


def search(
    matrix: np.ndarray, low: int, high: int, *, capacity: int = 40, tol: float = 1e-10, block: int = 2,
    budget: int = 5000, **rest: bool,
) -> tuple[eigen.ThickRestart, eigen.Search, LinearOperator, Meter]:  # fmt: skip
    """A finished run."""
    meter = Meter()
    operator = meter.count(dense_operator(jnp.asarray(matrix)))
    start = start_block(len(matrix), block, str(operator.dtype))
    algorithm = eigen.ThickRestart(low, high, tol, capacity, budget, start, key=jax.random.key(9), **rest)
    return algorithm, iterate(algorithm, operator, KEY, monitor=Silent(), stage=""), operator, meter


def solve(matrix: np.ndarray, low: int, high: int, **options: float) -> eigen.EigenResult:
    """What was found, its residuals and its orthonormality checked."""
    algorithm, state, operator, meter = search(matrix, low, high, **options)  # type: ignore[arg-type]
    assert state.products == meter.products
    found = algorithm.result(state)
    norm, tol = np.linalg.norm(matrix, 2) or 1.0, options.get("tol", 1e-10)
    quotients, residuals = eigen.true_residuals(operator, found.vectors, 3)
    assert np.all(residuals <= 2 * tol * norm + 1e-13 * norm)
    np.testing.assert_allclose(quotients, found.values, atol=1e-11 * norm)
    gram = np.asarray(found.vectors) @ np.asarray(found.vectors).T
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-11)
    return found


def ends(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """The wanted ones of a spectrum."""
    values = np.sort(values)
    return np.concatenate([values[:low], values[len(values) - high :]])


HARD = {
    "decaying": 0.7 ** np.arange(100),
    "linear": np.linspace(-1, 1, 100),
    "clustered": np.concatenate([1 + 1e-6 * np.arange(5), np.linspace(0, 0.5, 95)]),
    "indefinite": np.random.default_rng(0).normal(size=100),
    "outlier": np.concatenate([[1e6], np.linspace(0, 1, 99)]),
    "identity": np.ones(100),
    "zero": np.zeros(100),
    "rank one": np.concatenate([[2.0], np.zeros(99)]),
    "negative rank one": np.concatenate([[-2.0], np.zeros(99)]),
    "triple at the top": np.concatenate([[3.0] * 3, np.linspace(0, 1, 97)]),
    "sevenfold inside": np.concatenate([[5.0], [3.0] * 7, np.linspace(-1, 1, 92)]),
    "two values": np.concatenate([[5.0] * 20, np.ones(80)]),
    "equal at both ends": np.concatenate([[-2.0] * 4, np.linspace(-1, 1, 90), [2.0] * 6]),
    "close to the edge": np.concatenate([[1.001] * 5, [1.0], np.linspace(0, 0.99, 94)]),
}


@pytest.mark.first_tier("2-3-*e*-1")
@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize(("low", "high"), [(2, 3), (0, 12), (12, 0)])
def test_extremes_match_dense_eigenvalues(name: str, low: int, high: int, block: int) -> None:
    # Some 65 eigenvalues of the decaying spectrum exceed the tolerance: the basis must hold them to see past them.
    found = solve(rotated(HARD[name]), low, high, capacity=80 if name == "decaying" else 40, block=block)
    norm = np.abs(HARD[name]).max()
    np.testing.assert_allclose(found.values, ends(HARD[name], low, high), atol=1e-9 * norm)


@pytest.mark.parametrize("name", ["indefinite", "equal at both ends", "negative rank one", "decaying", "zero"])
@pytest.mark.parametrize("count", [1, 4, 9])
def test_largest_magnitude(name: str, count: int) -> None:
    found = solve(rotated(HARD[name]), 0, count, capacity=80, magnitude=True)
    expected = np.sort(HARD[name][np.argsort(-np.abs(HARD[name]), kind="stable")[:count]])
    np.testing.assert_allclose(np.sort(np.abs(found.values)), np.sort(np.abs(expected)), atol=1e-9)
    assert np.all(np.diff(found.values) >= 0)
    if name != "equal at both ends":  # where −2 and 2 are as large, either will do
        np.testing.assert_allclose(found.values, expected, atol=1e-9)


@pytest.mark.parametrize("values", [[2.0], [0.0], [-1.0, 4.0], [4.0, 4.0], [0.0, 0.0, 1.0]])
@pytest.mark.parametrize(("low", "high"), [(1, 0), (0, 1), (0, 2)])
def test_tiny_matrices(values: list[float], low: int, high: int) -> None:
    found = solve(rotated(np.array(values)), low, high)
    high = min(high, len(values))
    np.testing.assert_allclose(found.values, ends(np.array(values), low, high), atol=1e-12)


@pytest.mark.parametrize("count", [57, 59, 60, 70])
def test_nearly_all_pairs(count: int) -> None:
    values = np.random.default_rng(1).normal(size=60)
    found = solve(rotated(values), 0, count, capacity=count + 10)
    np.testing.assert_allclose(found.values, np.sort(values)[-count:], atol=1e-10)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    multiplicities=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    seed=st.integers(0, 1000),
    low=st.integers(0, 8),
    high=st.integers(0, 8),
)
def test_multiplicities_come_out_right(multiplicities: list[int], seed: int, low: int, high: int) -> None:
    if low + high == 0:
        high = 1
    distinct = np.random.default_rng(seed).choice(np.arange(-20, 21), len(multiplicities), replace=False)
    values = np.repeat(distinct / 7.0, multiplicities)
    values = np.concatenate([values, np.zeros(40 - len(values) % 40)])  # of two sizes, so that little is compiled
    found = solve(rotated(values, seed), low, high, capacity=64)
    np.testing.assert_allclose(found.values, ends(values, low, high), atol=1e-9)


def test_invariant_subspace_of_equal_eigenvalues() -> None:
    """The vectors of a multiple eigenvalue span its eigenspace."""
    values = HARD["sevenfold inside"]
    matrix = rotated(values)
    found = solve(matrix, 0, 8)
    exact = np.linalg.eigh(matrix)[1][:, -8:]
    cosines = np.linalg.svd(np.asarray(found.vectors) @ exact)[1]
    np.testing.assert_allclose(cosines, 1, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_no_product_is_spent_on_copies_that_cannot_be(seed: int) -> None:
    values = np.concatenate([[4.0, 4.0, 3.0], np.random.default_rng(seed).uniform(-1, 1, 197)])
    simple = np.concatenate([[4.0, 3.5, 3.0], values[3:]])
    spent = [search(rotated(v), 0, 3, block=3, capacity=100)[1] for v in (values, simple)]
    assert [state.starts for state in spent] == [3, 3]
    assert search(rotated(values), 0, 3, block=2, capacity=100)[1].starts > 2


def test_float32() -> None:
    values = np.concatenate([[30.0, 15.0, 3.0, 3.0, 3.0], 0.9 ** np.arange(295)])
    matrix = rotated(values).astype(np.float32)
    algorithm, state, operator, _ = search(matrix, 0, 9, tol=2e-6, capacity=60)
    found = algorithm.result(state)
    np.testing.assert_allclose(found.values, np.sort(values)[-9:], atol=30 * 1e-5)
    values_again, residuals = eigen.true_residuals(operator, found.vectors, 2)
    assert np.all(residuals <= 30 * 4e-6)
    np.testing.assert_allclose(values_again, np.sort(values)[-9:], atol=30 * 2e-6)
    gram = np.asarray(found.vectors, float) @ np.asarray(found.vectors, float).T
    np.testing.assert_allclose(gram, np.eye(9), atol=1e-5)


def test_restarts_keep_what_is_known_of_the_matrix() -> None:
    """A Vᵀ = Vᵀ T + Fᵀ B, after steps, restarts, breakdowns and fresh directions."""
    values = np.concatenate([[5.0] * 4, np.linspace(-1, 1, 56)])
    matrix = rotated(values)
    operator = dense_operator(jnp.asarray(matrix))
    space = start_block(60, 3)
    for step in range(12):
        if step in (4, 8):
            space = krylov.compress(space, (3, 6))
        if step == 6:
            space = krylov.add_directions(space, sphere(KEY, 50, 1, 60, "float64"))
        space = krylov.extend(operator, space)
        rows = np.concatenate([np.asarray(chunk[0]) for chunk in space.basis.chunks])[: space.size]
        front = np.asarray(space.front)
        both = np.concatenate([rows, front])
        np.testing.assert_allclose(both @ both.T, np.eye(len(both)), atol=1e-13)
        np.testing.assert_allclose(rows @ matrix @ rows.T, space.projected, atol=1e-13)
        np.testing.assert_allclose(matrix @ rows.T, rows.T @ space.projected + front.T @ space.outgoing, atol=1e-12)


def test_continuing_a_lanczos_run_costs_no_product_when_it_has_converged() -> None:
    values = 0.5 ** np.arange(100)
    operator = LinearOperator(lambda v: v * jnp.asarray(values)[None], 100, np.dtype(float))
    lanczos = Lanczos(sphere(KEY, 0, 2, 100, "float64"), 30)
    state = iterate(lanczos, operator, KEY, monitor=Silent(), stage="")
    space = krylov.from_lanczos(state, 1)
    assert np.abs(space.projected - np.diag(np.diag(space.projected))).max() > 0
    algorithm = eigen.ThickRestart(0, 1, 1e-8, 60, 100, krylov.compress(space, (0, 12)))
    end = iterate(algorithm, operator, KEY, monitor=Silent(), stage="", state=algorithm.init(operator))
    assert end.products == 0
    assert algorithm.result(end).values[0] == pytest.approx(1.0, abs=1e-12)


def test_continuing_reaches_what_the_start_had_not() -> None:
    values = np.concatenate([np.linspace(0, 1, 400), [1.02]])
    operator = LinearOperator(lambda v: v * jnp.asarray(values)[None], 401, np.dtype(float))
    lanczos = Lanczos(sphere(KEY, 0, 1, 401, "float64"), 12)
    state = iterate(lanczos, operator, KEY, monitor=Silent(), stage="")
    space = krylov.compress(krylov.from_lanczos(state, 0), (0, 6))
    assert np.linalg.eigvalsh(space.projected)[-1] < 1.0199
    algorithm = eigen.ThickRestart(0, 1, 1e-9, 24, 2000, space)
    end = iterate(algorithm, operator, KEY, monitor=Silent(), stage="")
    found = algorithm.result(end)
    assert found.values[0] == pytest.approx(1.02, abs=1e-12)
    assert eigen.true_residuals(operator, found.vectors)[1][0] < 2e-9


def test_an_invariant_lanczos_space_is_an_answer() -> None:
    values = np.repeat([1.0, 2.0, 7.0], 10)
    operator = LinearOperator(lambda v: v * jnp.asarray(values)[None], 30, np.dtype(float))
    state = iterate(Lanczos(sphere(KEY, 0, 1, 30, "float64"), 20), operator, KEY, monitor=Silent(), stage="")
    algorithm = eigen.ThickRestart(1, 1, 1e-9, 24, 100, krylov.from_lanczos(state, 0))
    end = algorithm.init(operator)
    assert algorithm.done(end)
    np.testing.assert_allclose(algorithm.result(end).values, [1, 7], atol=1e-12)


def test_power_iteration_with_deflation_agrees() -> None:
    values = HARD["indefinite"]
    matrix = rotated(values)
    shifted = matrix - values.min() * np.eye(100)
    powers = []
    for seed in range(3):
        vector = np.random.default_rng(seed).normal(size=100)
        for _ in range(8000):
            vector = shifted @ vector
            vector /= np.linalg.norm(vector)
        powers.append(vector @ matrix @ vector)
        shifted = shifted - (vector @ shifted @ vector) * np.outer(vector, vector)
    np.testing.assert_allclose(solve(matrix, 0, 3).values[::-1], powers, atol=1e-7)


def test_out_of_products_is_said_by_the_residual() -> None:
    operator = LinearOperator(lambda v: v * jnp.linspace(0, 1, 5000)[None], 5000, np.dtype(float))
    algorithm = eigen.ThickRestart(0, 1, 1e-12, 16, 10, start_block(5000, 1))
    state = iterate(algorithm, operator, KEY, monitor=Silent(), stage="")
    found = algorithm.result(state)
    assert state.products == 10
    assert found.residuals[0] == pytest.approx(eigen.true_residuals(operator, found.vectors)[1][0], rel=1e-6)
    assert found.residuals[0] > 1e-4


@pytest.mark.first_tier("32")
@pytest.mark.parametrize("capacity", [20, 32, 64])
def test_small_bases_cost_products_not_accuracy(capacity: int) -> None:
    values = np.concatenate([np.linspace(0, 1, 196), [1.1, 1.2, 1.2, 1.5]])
    algorithm, state, _, _ = search(rotated(values), 0, 5, capacity=capacity, budget=20000)
    assert state.space.size <= capacity
    found = algorithm.result(state)
    assert np.all(found.residuals <= 1e-10 * 1.5)
    np.testing.assert_allclose(found.values, ends(values, 0, 5), atol=1e-9)
