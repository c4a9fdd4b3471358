"""The output side and the forms of pairs against dense float64 matrices."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.curvature import MATRICES, build
from curvcli.curvature.matrices import has
from curvcli.curvature.products.gram import build_gram, output_rows
from curvcli.losses import LOSSES, user_loss
from curvcli.problem import Problem
from curvcli.schema.matrices import MATRICES as FACTS
from curvcli.schema.settings import AnalysisSettings
from tests.problems import dense_matrix, mlp_problem, token_problem

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def asked(matrix: str, **rest: Any) -> AnalysisSettings:
    return AnalysisSettings(matrix=matrix, dtype="float64", **rest)  # type: ignore[arg-type]


def weighted(problem: Problem) -> Problem:
    """With weights of all sizes, whole examples left out among them."""
    weight = problem.batches.weight * np.random.default_rng(5).random(problem.batches.weight.shape)
    weight[[2, 5]] = 0
    return replace(problem, batches=replace(problem.batches, weight=weight))


PROBLEMS = {
    "ragged": lambda: weighted(mlp_problem(count=23, sizes=(4, 16, 3), batch_size=7, l2=1e-2)),
    "one batch": lambda: weighted(mlp_problem("poisson", count=9, sizes=(4, 9, 3), batch_size=9)),
    "tokens": lambda: weighted(token_problem(batch_size=4, l2=1e-2)),
}


@cache
def made(kind: str) -> Problem:
    """One problem a kind: its programs are compiled once."""
    return PROBLEMS[kind]()


def whole(problem: Problem, matrix: str, damping: float = 0.0, **draws: Any) -> np.ndarray:
    shift = damping + (problem.regulariser.l2 if FACTS[matrix].regularised else 0.0)
    return dense_matrix(problem, matrix, **draws) + shift * np.eye(problem.dim)


@pytest.mark.first_tier("gauss-newton-ragged", "fisher-ragged", "empirical-fisher-ragged")
@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("matrix", [name for name in MATRICES if has(name, "output_side")])
def test_output_side(kind: str, matrix: str) -> None:
    problem = made(kind)
    settings = asked(matrix, damping=0.3, mc_samples=2, seed=4)
    exact = whole(problem, matrix, 0.3, mc_samples=2, seed=4)
    gram = build_gram(problem, settings)
    assert gram.rows == output_rows(problem, settings)
    kernel, diagonal = np.zeros((gram.rows, gram.rows)), np.full(problem.dim, gram.shift)
    for start, rows, squares in gram.blocks(8):
        kernel[start : start + len(rows)] = rows
        diagonal += squares
    np.testing.assert_allclose(kernel, kernel.T, **CLOSE)
    np.testing.assert_allclose(diagonal, np.diag(exact), **CLOSE)
    most = min(gram.rows, problem.dim)
    ours, theirs = np.linalg.eigvalsh(kernel)[::-1][:most] + gram.shift, np.linalg.eigvalsh(exact)[::-1][:most]
    np.testing.assert_allclose(ours, theirs, **CLOSE)
    assert np.abs(np.linalg.eigvalsh(kernel)[: gram.rows - most]).max(initial=0) < 1e-12
    # Eigenvectors are pulled back, from all batches at once.
    values, vectors = np.linalg.eigh(kernel)
    top = np.asarray(gram.pull(vectors[:, -3:].T))
    np.testing.assert_allclose(top @ exact, (values[-3:, None] + gram.shift) * top, **CLOSE)


def test_not_everything_has_an_output_side() -> None:
    tokens = token_problem()
    mine = user_loss("mine", LOSSES["softmax_cross_entropy"].value)
    assert output_rows(tokens, asked("ggn")) == 9 * 4 * 5
    for matrix in ("hessian", "residual", "gradient-covariance", "ntk"):
        assert output_rows(tokens, asked(matrix)) is None
    for matrix in ("ggn", "empirical-fisher"):  # indefinite, or coupling tokens
        assert output_rows(replace(tokens, loss=mine), asked(matrix)) is None
    assert output_rows(replace(tokens, loss=mine), asked("gauss-newton")) == 180
    assert output_rows(replace(mlp_problem(count=5), loss=mine), asked("empirical-fisher")) == 15
    curved = mlp_problem(count=5, regulariser=lambda p: jnp.sum(p["a/kernel"] ** 4))
    assert output_rows(curved, asked("ggn")) is None
    assert output_rows(curved, asked("ggn", regulariser=False)) == 15
    assert output_rows(curved, asked("empirical-fisher")) == 15


def test_a_users_loss_of_single_examples() -> None:
    def loss(z: Any, t: Any) -> Any:
        return jnp.log1p(jnp.square(z - t).sum(-1))

    problem = replace(mlp_problem("squared_error", count=6), loss=user_loss("mine", loss))
    gram = build_gram(problem, asked("empirical-fisher"))
    (_, kernel, squares), *_ = gram.blocks(18)
    exact = dense_matrix(problem, "empirical-fisher")
    np.testing.assert_allclose(squares, np.diag(exact), **CLOSE)
    np.testing.assert_allclose(np.linalg.norm(kernel), np.linalg.norm(exact), **CLOSE)


def test_outputs_without_an_axis_of_their_own() -> None:
    problem = mlp_problem("squared_error", count=6, sizes=(4, 5, 1))
    flat = replace(
        problem, predict=lambda p, frozen, x: problem.predict(p, frozen, x)[:, 0],
        loss=user_loss("mine", lambda z, t: 0.5 * jnp.square(z - t[:, 0])),
    )  # fmt: skip
    for matrix in ("gauss-newton", "empirical-fisher"):
        (_, kernel, squares), *_ = build_gram(flat, asked(matrix)).blocks(6)
        exact = dense_matrix(problem, matrix)
        np.testing.assert_allclose(squares, np.diag(exact), **CLOSE)
        np.testing.assert_allclose(np.linalg.norm(kernel), np.linalg.norm(exact), **CLOSE)


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("matrix", [name for name in MATRICES if has(name, "pairs")])
def test_forms_of_pairs(kind: str, matrix: str) -> None:
    problem = made(kind)
    vectors = np.random.default_rng(0).normal(size=(5, problem.dim))
    operator = build(problem, matrix, damping=0.3, mc_samples=2, seed=4)
    assert operator.forms is not None
    exact = whole(problem, matrix, 0.3, mc_samples=2, seed=4)
    np.testing.assert_allclose(operator.forms(jnp.asarray(vectors)), vectors @ exact @ vectors.T, **CLOSE)


def test_forms_of_pairs_with_a_users_regulariser() -> None:
    problem = mlp_problem(regulariser=lambda p: jnp.sum(jnp.cos(p["a/kernel"])), l2=0.1)
    vectors = jnp.asarray(np.random.default_rng(0).normal(size=(3, problem.dim)))
    operator = build(problem, "ggn", damping=0.2)
    assert operator.forms is not None
    np.testing.assert_allclose(operator.forms(vectors), operator.matmat(vectors) @ vectors.T, **CLOSE)
    assert build(problem, "hessian").forms is None
    assert build(problem, "ntk").forms is None
