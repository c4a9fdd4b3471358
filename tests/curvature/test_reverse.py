"""Networks with a `custom_vjp` and no rule for tangents: the same answers as without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.analyses.common.checks import examined
from curvcli.analyses.common.context import Context
from curvcli.analyses.compare import analysis as compare
from curvcli.curvature import along, build
from curvcli.curvature.influence.responses import shift_inputs
from curvcli.curvature.jaxprs.reverse import only_backwards, with_forward_mode
from curvcli.curvature.kronecker.kfac import Recipe, kfac
from curvcli.linalg.iterate import Silent
from curvcli.linalg.operator import to_dense
from curvcli.problem import Problem
from curvcli.schema.compare import CompareSettings
from curvcli.schema.settings import AnalysisSettings
from tests.problems import mlp, mlp_problem

EPS = float(np.finfo("float64").eps)


@jax.custom_vjp
def tanh(x: Any) -> Any:
    """As a kernel has it: its own backward pass, and no other; the forward pass calls the function, as is usual."""
    return jnp.tanh(x)


tanh.defvjp(lambda x: (tanh(x), x), lambda x, g: (g / jnp.cosh(x) ** 2,))


def twins() -> tuple[Problem, Problem]:
    """A network by JAX's tanh, and the same by its own."""
    problem = mlp_problem(l2=0.1, count=9, batch_size=4)
    sealed = lambda p, frozen, x: 2 * tanh(jax.jit(tanh)(mlp(p, x)) + x[:, :1])  # noqa: E731
    plain = lambda p, frozen, x: 2 * jnp.tanh(jnp.tanh(mlp(p, x)) + x[:, :1])  # noqa: E731
    return replace(problem, predict=plain), replace(problem, predict=sealed)


@pytest.mark.parametrize(
    "matrix", ["hessian", "ggn", "residual", "fisher-mc", "empirical-fisher", "gradient-covariance", "ntk"]
)
def test_every_matrix(matrix: Any) -> None:
    plain, sealed = (to_dense(build(one, matrix)) for one in twins())
    np.testing.assert_allclose(sealed, plain, atol=1e3 * EPS * np.abs(plain).max())


def test_forms_without_the_transpose() -> None:
    vectors = jnp.asarray(np.random.default_rng(0).normal(size=(3, twins()[0].dim)))
    plain, sealed = (build(one, "ggn").forms(vectors) for one in twins())  # type: ignore[misc]
    np.testing.assert_allclose(sealed, plain, rtol=1e5 * EPS, atol=1e5 * EPS)


def scanned(function: Any, x: Any) -> Any:
    """Three times, with constants, rows, a carry and what is stacked."""

    def step(carry: Any, row: Any) -> Any:
        return function(carry + row * jnp.mean(x)), function(carry)

    carry, stacked = jax.lax.scan(step, x, jnp.array([0.5, -0.25, 1.0]), reverse=True)
    return carry + jnp.sum(stacked, axis=0)


INSIDE: dict[str, Any] = {
    "scan": scanned,
    "map": lambda function, x: jax.lax.map(function, x),
    "checkpoint": lambda function, x: jax.checkpoint(function)(x),
    "checkpoint in scan": lambda function, x: scanned(jax.checkpoint(function), x),
    "scan in checkpoint": lambda function, x: jax.checkpoint(lambda h: scanned(function, h))(x),
    "cond": lambda function, x: jax.lax.cond(jnp.mean(x) > -9, lambda h: jnp.sin(function(h)), jnp.cos, x),
}


@pytest.mark.parametrize("where", INSIDE)
def test_inside_what_calls_a_function_of_its_own(where: str) -> None:
    problem, within = mlp_problem(count=5, batch_size=3), INSIDE[where]
    plain, sealed = (
        replace(problem, predict=lambda p, frozen, x, function=one: within(function, mlp(p, x)))
        for one in (jnp.tanh, tanh)
    )
    for matrix in ("hessian", "ggn") if " in " in where else ("ggn",):
        expected = to_dense(build(plain, matrix))
        np.testing.assert_allclose(to_dense(build(sealed, matrix)), expected, atol=1e3 * EPS * np.abs(expected).max())


def test_three_derivatives_along_a_line_and_factors_and_inputs() -> None:
    plain, sealed = twins()
    vector = np.random.default_rng(0).normal(size=(1, plain.dim))
    found = [along.derivatives(one, jnp.asarray(vector)) for one in (plain, sealed)]
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e6 * EPS, atol=1e6 * EPS)
    values = [kfac(one, Recipe("exact")).eigenvalues() for one in (plain, sealed)]
    np.testing.assert_allclose(values[1], values[0], atol=1e4 * EPS * values[0].max())
    change = np.random.default_rng(1).normal(size=np.shape(plain.batches.inputs))
    slopes = [build(shift_inputs(one, change), "hessian") for one in (plain, sealed)]
    dense = [to_dense(one) for one in slopes]
    np.testing.assert_allclose(dense[1], dense[0], atol=1e4 * EPS * np.abs(dense[0]).max())


def test_it_is_said_and_passes_the_self_checks() -> None:
    for problem, told in zip(twins(), (False, True), strict=True):
        settings = AnalysisSettings(matrix="ggn", dtype="float64")
        checks, warnings = examined(problem, build(problem, "ggn"), settings, 2)
        assert all(check.passed for check in checks.values())
        assert any("reverse over reverse" in warning for warning in warnings) == told


def test_it_is_said_once_of_several_matrices() -> None:
    settings = CompareSettings(dtype="float64", skip_checks=True, matrices=["hessian", "ggn"])
    warnings = compare.run(Context(twins()[1], Silent()), settings).warnings
    assert sum("reverse over reverse" in warning for warning in warnings) == 1


def test_a_wrong_backward_pass_is_caught() -> None:
    wrong = jax.custom_vjp(jnp.tanh)
    wrong.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (1.1 * g / jnp.cosh(x) ** 2,))
    problem = replace(mlp_problem(count=9), predict=lambda p, frozen, x: wrong(mlp(p, x)))
    settings = AnalysisSettings(matrix="ggn", dtype="float64")
    checks, _ = examined(problem, build(problem, "ggn"), settings, 2)
    assert not checks["gradient_vs_loss"].passed


def test_other_networks_are_left_alone() -> None:
    assert not only_backwards(jax.make_jaxpr(lambda x: jax.nn.relu(x))(1.0).jaxpr)  # a custom_jvp
    assert only_backwards(jax.make_jaxpr(jax.jit(lambda x: jax.lax.cond(x > 0, tanh, jnp.sin, x)))(1.0).jaxpr)
    assert with_forward_mode(jnp.sin) is with_forward_mode(jnp.sin)
