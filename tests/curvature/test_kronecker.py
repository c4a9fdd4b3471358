"""K-FAC and E-KFAC against explicit matrices where they are exact, and by their identities elsewhere."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.curvature import build
from curvcli.curvature.kronecker.factors import Kronecker
from curvcli.curvature.kronecker.kfac import Recipe, kfac
from curvcli.linalg.operator import to_dense
from curvcli.problem import Problem
from tests.curvature.test_taps import embedding_problem, linen_problem
from tests.problems import dense_ggn, make_problem, mlp_problem, token_problem

EPS = float(np.finfo("float64").eps)


def written_out(matrix: Kronecker) -> np.ndarray:
    return np.asarray(matrix.function(lambda x: x)(jnp.eye(matrix.layout.dim)))


def in_blocks(matrix: Kronecker, full: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each layer's block of the approximation, and of the matrix."""
    approximate = written_out(matrix)
    places = [np.ix_(block.place.ravel(), block.place.ravel()) for block in matrix.blocks]
    return [(approximate[place], full[place]) for place in places]


@pytest.mark.parametrize("corrected", [False, True])
def test_a_deep_linear_network_is_exact_by_layer(corrected: bool) -> None:
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(4, 5)), "b": rng.normal(size=(5, 3))}
    problem = make_problem(
        lambda p, x: (x @ p["a"]) @ p["b"], params, rng.normal(size=(23, 4)), rng.normal(size=(23, 3)), l2=0.01
    )
    full = dense_ggn(problem) + 0.01 * np.eye(problem.dim)
    for found, true in in_blocks(kfac(problem, Recipe("exact"), corrected=corrected), full):
        np.testing.assert_allclose(found, true, atol=1e3 * EPS * np.abs(true).max())


@pytest.mark.first_tier("sigmoid_cross_entropy", "poisson", "squared_error")
@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "sigmoid_cross_entropy", "poisson", "squared_error"])
def test_one_datum_is_exact_by_layer(loss: str) -> None:
    problem = mlp_problem(loss, count=1)
    for found, true in in_blocks(kfac(problem, Recipe("exact")), dense_ggn(problem)):
        np.testing.assert_allclose(found, true, atol=1e3 * EPS * np.abs(true).max())


@pytest.mark.first_tier("mlp_problem")
@pytest.mark.parametrize("make", [mlp_problem, token_problem, linen_problem, embedding_problem])
def test_the_trace_of_ekfac_is_that_of_the_matrix(make) -> None:
    problem: Problem = make()
    made, full = kfac(problem, Recipe("exact"), corrected=True), dense_ggn(problem)
    assert made.eigenvalues().sum() == pytest.approx(np.trace(full), rel=1e4 * EPS)
    for found, true in in_blocks(made, full):
        assert np.trace(found) == pytest.approx(np.trace(true), rel=1e4 * EPS)


@pytest.mark.first_tier("empirical-*")
@pytest.mark.parametrize(("sampling", "name"), [("sampled", "fisher-mc"), ("empirical", "empirical-fisher")])
def test_the_same_draws_as_the_matrix_by_name(sampling, name: str) -> None:
    problem = mlp_problem()
    recipe = Recipe(sampling, samples=3 if sampling == "sampled" else 1, seed=5)
    true = np.trace(to_dense(build(problem, name, mc_samples=recipe.samples, seed=5)))
    assert kfac(problem, recipe, corrected=True).eigenvalues().sum() == pytest.approx(true, rel=1e4 * EPS)


@pytest.mark.parametrize("corrected", [False, True])
def test_the_eigendecomposition_in_closed_form(corrected: bool) -> None:
    problem = linen_problem()  # with parameters that have their diagonal alone
    matrix = kfac(problem, Recipe("exact"), corrected=corrected).damped(0.1)
    full, values = written_out(matrix), matrix.eigenvalues()
    norm = np.abs(full).max()
    np.testing.assert_allclose(np.linalg.eigvalsh(full), values, atol=1e4 * EPS * norm)
    np.testing.assert_allclose(np.diag(full), matrix.diagonal_entries(), atol=1e4 * EPS * norm)
    vectors = matrix.eigenvectors(np.arange(problem.dim))
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(problem.dim), atol=1e4 * EPS)
    np.testing.assert_allclose(vectors @ full, values[:, None] * vectors, atol=1e5 * EPS * norm)
    inverse = np.asarray(matrix.function(lambda x: 1 / x)(jnp.asarray(full)))
    np.testing.assert_allclose(inverse, np.eye(problem.dim), atol=1e6 * EPS)


@pytest.mark.slow
def test_parameters_without_a_layer_have_their_diagonal() -> None:
    problem = linen_problem()
    matrix = kfac(problem, Recipe("exact"))
    assert set(matrix.fallback) == {"LayerNorm_0/scale", "LayerNorm_0/bias"}
    true, found = np.diag(dense_ggn(problem)), matrix.diagonal_entries()
    for name in matrix.fallback:
        start = sum(matrix.layout.sizes[: matrix.layout.names.index(name)])
        stop = start + problem.params[name].size
        np.testing.assert_allclose(found[start:stop], true[start:stop], atol=1e4 * EPS * true.max())


def test_factored_damping() -> None:
    problem, damping = mlp_problem(), 0.05
    matrix = kfac(problem, Recipe("exact"))
    vectors = np.random.default_rng(0).normal(size=(2, problem.dim))
    expected = np.zeros_like(vectors)
    for block in matrix.blocks:
        left, right = np.asarray(block.input_basis), np.asarray(block.gradient_basis)
        a, s = (left * block.inputs) @ left.T, (right * block.gradients) @ right.T
        pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(s) / len(s)))
        a_damped, s_damped = a + pi * damping**0.5 * np.eye(len(a)), s + damping**0.5 / pi * np.eye(len(s))
        for row in range(2):
            expected[row, block.place] = np.linalg.solve(a_damped, vectors[row, block.place]) @ np.linalg.inv(s_damped)
    found = matrix.pi_inverse(damping)(jnp.asarray(vectors))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.first_tier("recipe1")
@pytest.mark.parametrize("recipe", [Recipe("exact"), Recipe("sampled", samples=2), Recipe("exact", "reduce")])
def test_the_batch_size_does_not_matter(recipe: Recipe) -> None:
    few, many = (written_out(kfac(token_problem(batch_size=size), recipe, corrected=True)) for size in (2, 9))
    np.testing.assert_allclose(few, many, atol=1e4 * EPS * np.abs(many).max())


@pytest.mark.slow
def test_reduce_is_exact_where_positions_share_a_sum() -> None:
    # The outputs are a mean over positions of a linear map: the mean input then is all that the loss sees.
    rng = np.random.default_rng(0)
    problem = make_problem(
        lambda p, x: (x @ p["w"]).mean(axis=1), {"w": rng.normal(size=(3, 2))}, rng.normal(size=(8, 5, 3)),
        rng.normal(size=(8, 2)),
    )  # fmt: skip
    found, true = in_blocks(kfac(problem, Recipe("exact", "reduce")), dense_ggn(problem))[0]
    np.testing.assert_allclose(found, true, atol=1e3 * EPS * np.abs(true).max())
