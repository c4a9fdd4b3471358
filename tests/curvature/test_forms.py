"""Each example's share of a quadratic form, against explicit matrices and single examples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.curvature import MATRICES, build
from curvcli.curvature.matrices import has
from curvcli.curvature.operators import example_forms
from curvcli.errors import SpecError
from curvcli.losses import LOSSES, user_loss
from tests.problems import SUMMED, dense_matrix, mlp_problem, token_problem

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


FORMS = {name for name in MATRICES if has(name, "forms")}


def probes(problem: Any, count: int = 3) -> Any:
    return jnp.asarray(np.random.default_rng(3).normal(size=(count, problem.dim)))


def quadratic(matrix: np.ndarray, vectors: Any) -> np.ndarray:
    return np.einsum("kd,de,ke->k", vectors, matrix, vectors)


def test_every_matrix_but_the_kernel_has_forms() -> None:
    assert set(SUMMED) - {"ntk"} == FORMS
    with pytest.raises(SpecError, match="ntk has no forms"):
        example_forms(mlp_problem(), "ntk", probes(mlp_problem()))


@pytest.mark.first_tier("*-5")
@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("matrix", sorted(FORMS))
@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "poisson"])
def test_mean_is_the_quadratic_form(loss: str, matrix: str, batch_size: int) -> None:
    problem = mlp_problem(loss, l2=0.3, batch_size=batch_size)  # the regulariser is no part of it
    shares = example_forms(problem, matrix, probes(problem), mc_samples=2, seed=4)
    assert shares.shape == (3, 23)
    assert shares.dtype == np.float64
    expected = quadratic(dense_matrix(problem, matrix, mc_samples=2, seed=4), probes(problem))
    np.testing.assert_allclose(shares.mean(axis=1), expected, **CLOSE)


@pytest.mark.first_tier("ggn", "fisher-mc")
@pytest.mark.parametrize("matrix", sorted(FORMS))
def test_masked_tokens(matrix: str) -> None:
    problem = token_problem(batch_size=4)
    weight = problem.batches.weight.copy()
    weight[[2, 5]] = 0  # whole examples left out
    problem = replace(problem, batches=replace(problem.batches, weight=weight))
    shares = example_forms(problem, matrix, probes(problem))
    np.testing.assert_allclose(shares.mean(axis=1), quadratic(dense_matrix(problem, matrix), probes(problem)), **CLOSE)
    assert not shares[:, [2, 5]].any()
    assert shares[:, [0, 1, 3]].all()


@pytest.mark.first_tier("fisher", "ggn")
@pytest.mark.parametrize("matrix", sorted(FORMS - {"gradient-covariance", "fisher-mc"}))
def test_share_of_an_example_is_the_form_of_that_example_alone(matrix: str) -> None:
    problem = mlp_problem("squared_error", count=6)
    shares, batches = example_forms(problem, matrix, probes(problem)), problem.batches
    for n in range(6):
        rows = slice(n, n + 1)
        one = replace(batches, inputs=batches.inputs[rows], targets=batches.targets[rows], weight=batches.weight[rows])
        alone = replace(problem, batches=one, normaliser=1.0)
        np.testing.assert_allclose(shares[:, n], quadratic(dense_matrix(alone, matrix), probes(problem)), **CLOSE)


def test_forms_and_products_have_the_same_draws() -> None:
    problem = mlp_problem(dtype="float32", batch_size=4)
    vectors = probes(problem).astype("float32")
    products = build(problem, "fisher-mc", mc_samples=2, seed=9).matmat(vectors)
    shares = example_forms(problem, "fisher-mc", vectors, mc_samples=2, seed=9)
    np.testing.assert_allclose(shares.mean(axis=1), np.sum(products * vectors, axis=1), rtol=1e-5)


@pytest.mark.slow
def test_a_users_loss_that_couples_tokens() -> None:
    def smooth(z: Any, t: Any) -> Any:
        return jnp.sum((z[:, 1:] - z[:, :-1]) ** 2, axis=(1, 2)) + jnp.sum(
            LOSSES["softmax_cross_entropy"].value(z, t), 1
        )

    tokens = token_problem(batch_size=4)
    batches = replace(tokens.batches, weight=np.arange(9) % 3 / 2)
    problem = replace(tokens, loss=user_loss("mine", smooth), batches=batches)
    for matrix in FORMS - {"fisher", "fisher-mc"}:
        expected = quadratic(dense_matrix(problem, matrix), probes(problem))
        np.testing.assert_allclose(example_forms(problem, matrix, probes(problem)).mean(axis=1), expected, **CLOSE)
    with pytest.raises(SpecError, match="likelihood"):
        example_forms(problem, "fisher", probes(problem))
