"""The matrices against each other: identities that hold exactly, and what the sampled Fisher matrix tends to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.curvature import build, build_for, dimension
from curvcli.curvature.products import sums
from curvcli.errors import SpecError
from curvcli.linalg.operator import to_dense
from curvcli.losses import LOSSES, user_loss
from curvcli.schema.settings import AnalysisSettings
from tests.monitors import collected_compilations
from tests.problems import SUMMED, dense_matrix, make_problem, mlp_problem, token_problem

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def dense(problem: Any, name: str, **options: Any) -> np.ndarray:
    """The matrix written out."""
    return to_dense(build(problem, name, **options))


@pytest.mark.parametrize("loss", LOSSES)
def test_fisher_is_the_gauss_newton_matrix(loss: str) -> None:
    problem = token_problem(loss, batch_size=4)
    fisher = dense(problem, "fisher")
    np.testing.assert_allclose(fisher, dense(problem, "ggn"), **CLOSE)
    np.testing.assert_allclose(fisher, dense_matrix(problem, "fisher"), **CLOSE)


@pytest.mark.first_tier("poisson-*")
@pytest.mark.parametrize("matrix", [name for name in SUMMED if name not in ("hessian", "ggn", "gauss-newton")])
@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
def test_tokens_of_other_losses(loss: str, matrix: str) -> None:
    problem = token_problem(loss, batch_size=4)
    expected = dense_matrix(problem, matrix, mc_samples=2, seed=3)
    np.testing.assert_allclose(dense(problem, matrix, mc_samples=2, seed=3), expected, **CLOSE)


@pytest.mark.parametrize("loss", LOSSES)
def test_residual_is_what_the_gauss_newton_matrix_drops(loss: str) -> None:
    problem = mlp_problem(loss, l2=0.1)
    np.testing.assert_allclose(dense(problem, "residual"), dense(problem, "hessian") - dense(problem, "ggn"), **CLOSE)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_residual_for_a_linear_model(loss: str) -> None:
    problem = mlp_problem(loss, sizes=(4, 3))
    np.testing.assert_allclose(dense(problem, "hessian"), dense(problem, "ggn"), **CLOSE)
    assert not dense(problem, "residual").any()


def test_residual_keeps_its_digits_where_examples_are_fitted() -> None:
    """In float32, H − G of a residual 1e-6 times smaller would be its own rounding."""

    def fitted(dtype: str) -> Any:
        def predict(p: dict, x: Any) -> Any:
            return jnp.tanh(x @ p["w"])

        rng = np.random.default_rng(0)
        x, w, noise = rng.normal(size=(20, 3)), rng.normal(size=(3, 2)), rng.normal(size=(20, 2))
        with_dtype = np.asarray(x, np.float32).astype(dtype)
        targets = np.asarray(predict({"w": jnp.asarray(w, "float32")}, jnp.asarray(x, "float32"))).astype(dtype)
        return make_problem(predict, {"w": w.astype("float32")}, with_dtype, targets + 1e-4 * noise, dtype=dtype)

    exact = dense(fitted("float64"), "residual")
    np.testing.assert_allclose(dense(fitted("float32"), "residual"), exact, atol=2e-2 * np.abs(exact).max())
    assert np.abs(exact).max() < 1e-3 * np.abs(dense(fitted("float64"), "hessian")).max()


@pytest.mark.parametrize("loss", LOSSES)
def test_sampled_fisher_tends_to_the_fisher_matrix(loss: str) -> None:
    """The mean over many samples lies within 5 of its standard errors, entry by entry, and they shrink."""
    problem = mlp_problem(loss, sizes=(3, 2), count=5)
    exact = dense(problem, "fisher")
    draws = np.stack([dense(problem, "fisher-mc", seed=seed, mc_samples=8) for seed in range(200)])
    stderr = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(axis=0) - exact) <= 5 * stderr + 1e-12)
    assert stderr.max() < 0.1 * np.abs(exact).max()


def test_draws_belong_to_the_examples() -> None:
    """The same in every product, for every batch size, and for fewer samples; others for another seed."""
    problem = token_problem(batch_size=2)
    once = dense(problem, "fisher-mc", mc_samples=2, seed=5)
    operator = build(problem, "fisher-mc", mc_samples=2, seed=5)
    np.testing.assert_array_equal(to_dense(operator), to_dense(operator))
    resized = replace(problem, batches=problem.batches.resized(5))
    np.testing.assert_allclose(dense(resized, "fisher-mc", mc_samples=2, seed=5), once, **CLOSE)
    single = [dense(problem, "fisher-mc", mc_samples=s, seed=5) for s in (1, 2, 3)]
    second, third = 2 * single[1] - single[0], 3 * single[2] - 2 * single[1]
    for draw in (single[0], second, third):  # each is a sum of outer products: one more sample changes no other
        assert np.linalg.eigvalsh(draw).min() > -1e-12
    assert np.abs(dense(problem, "fisher-mc", mc_samples=2, seed=6) - once).max() > 1e-3


def test_traces_of_softmax_regression_at_zero() -> None:
    """At W = 0 the mean over labels of ‖dz‖² is that of every label: tr EF = tr F, although EF ≠ F."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.integers(0, 4, 40).astype(np.int32)
    problem = make_problem(lambda p, inputs: inputs @ p["w"], {"w": np.zeros((3, 4))}, x, y, "softmax_cross_entropy")
    observed, fisher = dense(problem, "empirical-fisher"), dense(problem, "fisher")
    assert np.trace(observed) == pytest.approx(np.trace(fisher), rel=1e-12)
    assert np.abs(observed - fisher).max() > 0.01


@pytest.mark.parametrize("weighted", [False, True])
def test_kernel_and_gauss_newton_have_the_same_eigenvalues(weighted: bool) -> None:
    weight = np.random.default_rng(0).integers(0, 3, 23) / 2 if weighted else np.ones(23)
    problem = mlp_problem(weight=weight, normaliser=weight.sum(), batch_size=5)
    kernel, other = dense(problem, "ntk"), dense(problem, "gauss-newton") * problem.normaliser
    assert kernel.shape == (69, 69) == (dimension(problem, "ntk"),) * 2
    assert np.trace(kernel) == pytest.approx(np.trace(other), rel=1e-12)
    nonzero = min(problem.dim, np.linalg.matrix_rank(kernel))
    np.testing.assert_allclose(
        np.linalg.eigvalsh(kernel)[-nonzero:], np.linalg.eigvalsh(other)[-nonzero:], rtol=1e-9, atol=1e-11
    )
    assert not kernel[np.repeat(weight == 0, 3)].any()


@pytest.mark.parametrize("matrix", SUMMED)
def test_streamed_data_and_one_program_for_all_batches(matrix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = mlp_problem(batch_size=4)
    vectors = jnp.asarray(np.random.default_rng(0).normal(size=(2, dimension(problem, matrix))))
    expected = build(problem, matrix).matmat(vectors)
    monkeypatch.setattr(sums, "RESIDENT_BYTES", 0)
    operator = build(problem, matrix)
    compiled: list[str] = []
    with jax.log_compiles(), collected_compilations(compiled):
        found = operator.matmat(vectors)
        assert compiled == []  # all six batches ran what was compiled above
        operator.matmat(vectors[:1])
    np.testing.assert_array_equal(found, expected)
    assert compiled  # another block size is compiled anew


def test_kernel_of_a_block_of_parameters_is_its_part_of_the_sum() -> None:
    problem = mlp_problem()

    def block(prefix: str) -> np.ndarray:
        chosen = {n: leaf for n, leaf in problem.params.items() if n.startswith(prefix)}
        held = {n: leaf for n, leaf in problem.params.items() if n not in chosen}
        return dense(replace(problem, params=chosen, frozen={"params": held, "collections": {}}), "ntk")

    np.testing.assert_allclose(block("a/") + block("b/"), dense(problem, "ntk"), **CLOSE)


def test_covariance_of_gradients_that_are_almost_the_same() -> None:
    """ḡ is 1e4 times the spread: in float32, Σ g gᵀ/N − ḡ ḡᵀ would have no digit left."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 3)), 1e4 + rng.normal(size=(50, 1))

    def problem(dtype: str) -> Any:
        return make_problem(lambda p, one: p["b"][None] + 0 * one[:, :1], {"b": np.zeros(1)}, x, y, dtype=dtype)

    assert dense(problem("float32"), "gradient-covariance")[0, 0] == pytest.approx(np.var(y), rel=0.01)
    assert dense(problem("float64"), "gradient-covariance")[0, 0] == pytest.approx(np.var(y), rel=1e-10)


def test_what_is_known_to_be_positive() -> None:
    flags = {name: build(mlp_problem(), name).psd for name in SUMMED}
    assert {name for name, known in flags.items() if not known} == {"hessian", "residual"}
    own = replace(mlp_problem("squared_error"), loss=user_loss("mine", squared, likelihood=LOSSES["squared_error"]))
    assert not build(own, "ggn").psd  # its convexity is not known
    assert build(own, "fisher").psd
    assert not build(mlp_problem(), "residual", damping=10.0).psd


def test_settings_reach_the_matrix() -> None:
    problem = mlp_problem(l2=0.2)
    settings = AnalysisSettings(
        matrix="fisher-mc", mc_samples=3, seed=7, damping=0.5, regulariser=False, dtype="float64"
    )
    expected = dense_matrix(problem, "fisher-mc", mc_samples=3, seed=7) + 0.5 * np.eye(problem.dim)
    np.testing.assert_allclose(to_dense(build_for(problem, settings)), expected, **CLOSE)


def squared(outputs: Any, targets: Any) -> Any:
    """A user's loss for outputs [b, C]: one an example."""
    return 0.5 * jnp.sum((outputs - targets) ** 2, axis=-1)


def test_declared_likelihood_of_a_users_loss() -> None:
    """The Fisher matrices are those of the family; the loss may be another."""
    known = mlp_problem("squared_error")
    tripled = user_loss("mine", lambda z, t: 3 * squared(z, t), likelihood=LOSSES["squared_error"])
    own = replace(known, loss=tripled)
    for name in ("fisher", "fisher-mc"):
        np.testing.assert_allclose(dense(own, name), dense(known, name), **CLOSE)
    np.testing.assert_allclose(dense(own, "ggn"), 3 * dense(known, "ggn"), **CLOSE)
    for name in ("empirical-fisher", "gradient-covariance"):
        np.testing.assert_allclose(dense(own, name), 9 * dense(known, name), **CLOSE)


@pytest.mark.parametrize("batch_size", [3, 9])
def test_sampler_of_a_users_own(batch_size: int) -> None:
    """Gradients of the user's loss at targets drawn by example, one key each."""

    def draw(outputs: Any, key: Any) -> Any:
        assert outputs.shape == (1, 4, 5)
        return jax.random.categorical(key, outputs)

    value = LOSSES["softmax_cross_entropy"].value
    drawn = replace(token_problem(batch_size=batch_size), loss=user_loss("mine", value, draw=draw))
    family = replace(drawn, loss=user_loss("mine", value, likelihood=LOSSES["softmax_cross_entropy"]))
    # The same keys and the same draws as the table's own sampler, whose gradients are in closed form.
    found, expected = (dense(problem, "fisher-mc", mc_samples=3) for problem in (drawn, family))
    np.testing.assert_allclose(found, expected, **CLOSE)
    with pytest.raises(SpecError, match="exact Fisher") as refused:
        build(drawn, "fisher")
    assert "fisher-mc" in refused.value.hint


def test_a_loss_that_couples_tokens_has_examples_for_units() -> None:
    """One loss an example: one gradient an example, its tokens summed."""
    value = LOSSES["softmax_cross_entropy"].value
    tokens = token_problem(mask=False, batch_size=4)
    coupled = replace(
        tokens,
        loss=user_loss("mine", lambda z, t: value(z, t).sum(1), draw=lambda z, key: jax.random.categorical(key, z)),
        batches=replace(tokens.batches, weight=np.ones(9)),
        normaliser=9.0,
    )  # fmt: skip
    observed = dense(coupled, "empirical-fisher")
    np.testing.assert_allclose(observed, dense_matrix(coupled, "empirical-fisher"), **CLOSE)
    mean = dense_mean_gradient(coupled)
    np.testing.assert_allclose(dense(coupled, "gradient-covariance"), observed - np.outer(mean, mean), **CLOSE)
    assert np.linalg.matrix_rank(dense(coupled, "fisher-mc"), tol=1e-9) <= 9


def dense_mean_gradient(problem: Any) -> np.ndarray:
    """ḡ of a problem without a regulariser, normalised by examples."""
    from curvcli.curvature.flatten import Layout
    from curvcli.curvature.products.sums import objective_and_gradient

    return np.asarray(objective_and_gradient(problem, Layout.of(problem.params))[1])


def test_fisher_without_a_likelihood() -> None:
    problem = replace(mlp_problem("squared_error"), loss=user_loss("net.py:mine", squared))
    for name in ("fisher", "fisher-mc"):
        for ask in (build, dimension):
            with pytest.raises(SpecError, match=r"net\.py:mine") as refused:
                ask(problem, name)
            assert "[loss] likelihood" in refused.value.hint
    assert build(problem, "empirical-fisher").psd


def test_outputs_without_an_axis_of_classes() -> None:
    """A user's loss takes outputs [b] as they are."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(11, 3)), rng.normal(size=11)
    loss = user_loss("mine", lambda z, t: 0.5 * (z - t) ** 2, likelihood=LOSSES["squared_error"])
    flat = make_problem(lambda p, one: jnp.tanh(one @ p["w"]), {"w": rng.normal(size=3)}, x, y, loss, batch_size=4)
    column = make_problem(
        lambda p, one: jnp.tanh(one @ p["w"])[:, None], flat.params, x, y[:, None], "squared_error", batch_size=4
    )
    for name in set(SUMMED) - {"fisher-mc"}:
        np.testing.assert_allclose(dense(flat, name), dense(column, name), **CLOSE)
    assert np.linalg.matrix_rank(dense(flat, "fisher-mc", mc_samples=2)) == 3
