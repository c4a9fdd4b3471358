"""Max-pooling by strided slices against the pooling that the network was written with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.curvature import build
from curvcli.curvature.jaxprs.pooling import with_fast_pooling
from curvcli.jax_internals import equations
from curvcli.linalg.operator import to_dense
from tests.problems import make_problem

KINDS: dict[str, Any] = {
    "halves": {"window_shape": (2, 2), "strides": (2, 2)},
    "overlapping": {"window_shape": (3, 3), "strides": (2, 2), "padding": "SAME"},
    "one axis": {"window_shape": (3,), "strides": (1,), "padding": ((1, 0),)},
    "uneven": {"window_shape": (2, 3), "strides": (3, 2)},
}
X = np.random.default_rng(0).normal(size=(5, 7, 6, 2))


def primitives(function: Any, *args: Any) -> set[str]:
    return {equation.primitive.name for equation in equations(jax.make_jaxpr(function)(*args).jaxpr)}


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_all_derivatives(kind: str) -> None:
    x = X[..., 0] if kind == "one axis" else X
    x = jnp.asarray(x)

    def pooled(x: Any) -> Any:
        return jnp.sin(nn.max_pool(jnp.cos(x), **KINDS[kind]))

    sliced = with_fast_pooling(pooled)
    assert "reduce_window_max" in primitives(pooled, x)
    assert "reduce_window_max" not in primitives(sliced, x)
    np.testing.assert_array_equal(sliced(x), pooled(x))
    v = jax.random.normal(jax.random.key(0), x.shape)

    def objective(function: Any) -> Any:
        return lambda y: jnp.sum(jnp.exp(function(y)))

    for derivative in (
        lambda f: jax.jvp(f, (x,), (v,))[1],
        lambda f: jax.grad(objective(f))(x),
        lambda f: jax.jvp(jax.grad(objective(f)), (x,), (v,))[1],
        lambda f: jax.jvp(lambda y: jax.jvp(f, (y,), (v,))[1], (x,), (v,))[1],
    ):
        np.testing.assert_allclose(derivative(sliced), derivative(pooled), rtol=1e-12, atol=1e-14)


def test_of_equal_entries_the_first_has_the_derivative() -> None:
    x = jnp.zeros((1, 2, 2, 1))
    sliced = with_fast_pooling(lambda x: nn.max_pool(x, (2, 2), (2, 2)))
    np.testing.assert_array_equal(jax.grad(lambda y: sliced(y).sum())(x).ravel(), [1, 0, 0, 0])


@pytest.mark.parametrize("matrix", ["hessian", "ggn", "residual"])
def test_products_of_a_network_with_pooling(matrix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside functions that are jitted and rematerialised, beside custom derivatives."""

    @jax.jit
    def block(x: Any, w: Any) -> Any:
        x = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return nn.max_pool(nn.relu(x), (2, 2), (2, 2))

    def predict(params: Any, x: Any) -> Any:
        x = block(x, params["first"])
        x = jax.checkpoint(jnp.tanh)(block(x, params["second"]))
        return x.reshape(len(x), -1) @ params["out"]

    random = np.random.default_rng(1)
    params = {"first": random.normal(size=(3, 3, 2, 3)), "second": random.normal(size=(3, 3, 3, 2)) / 4,
              "out": random.normal(size=(2, 3))}  # fmt: skip
    problem = make_problem(predict, params, X, random.integers(0, 3, 5), "softmax_cross_entropy", batch_size=2)
    sliced = to_dense(build(problem, matrix))
    monkeypatch.setenv("CURV_REWRITE", "0")
    as_written = replace(problem, predict=lambda *args: problem.predict(*args))  # another function: traced anew
    np.testing.assert_allclose(sliced, to_dense(build(as_written, matrix)), rtol=1e-10, atol=1e-12)
    assert np.abs(sliced).max() > 0


def test_what_is_not_sliced() -> None:
    for function, x in (
        (
            lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 5, 5, 1), (1, 1, 1, 1), "VALID"),
            jnp.asarray(X),
        ),
        (lambda x: nn.max_pool(x, (2, 2)), jnp.zeros((1, 4, 4, 1), jnp.int32)),
    ):
        assert "reduce_window_max" in primitives(with_fast_pooling(function), x)


def test_equal_functions_give_one_object() -> None:
    def network(x: Any) -> Any:
        return x

    assert with_fast_pooling(network) is with_fast_pooling(network)
