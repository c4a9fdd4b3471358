"""Self-checks: what they catch, and what they must not complain of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.reliability_checks import alarms, relu_problem
from curvcli.analyses import eigs, trace
from curvcli.analyses.common.checks import self_checks
from curvcli.analyses.common.context import Context
from curvcli.curvature import build
from curvcli.linalg.iterate import Silent
from curvcli.losses import user_loss
from curvcli.problem import Problem
from curvcli.schema.eigs import EigsSettings
from curvcli.schema.settings import AnalysisSettings
from curvcli.schema.trace import TraceSettings
from tests.problems import make_problem, mlp, mlp_params, mlp_problem


def checks(problem: Any, seed: int = 0) -> tuple[set[str], list[str]]:
    """Names of the checks that fail, and the warnings."""
    settings = AnalysisSettings(dtype=str(problem.dtype), seed=seed)  # type: ignore[arg-type]
    found, warnings = self_checks(problem, build(problem, "hessian"), settings, block=4)
    return {name for name, check in found.items() if not check.passed}, warnings


def network(change: Callable[[Any], Any], dtype: str = "float64") -> Any:
    """A two-layer network with something done to its hidden units."""
    params = mlp_params((6, 10, 3))
    rng = np.random.default_rng(0)

    def predict(p: dict, x: Any) -> Any:
        return change(x @ p["a/kernel"]) @ p["b/kernel"] + p["b/bias"][None] + 0 * jnp.sum(p["a/bias"])

    targets = rng.integers(0, 3, 40).astype(np.int32)
    return make_problem(predict, params, rng.normal(size=(40, 6)), targets, "softmax_cross_entropy", dtype=dtype)


@jax.custom_vjp
def _wrong(x: Any) -> Any:
    return jnp.tanh(x)


_wrong.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (1.1 * g * (1 - jnp.tanh(x) ** 2),))


@jax.custom_jvp
def _wrong_too(x: Any) -> Any:
    return jnp.tanh(x)


@_wrong_too.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return jnp.tanh(primals[0]), 1.1 * tangents[0] * (1 - jnp.tanh(primals[0]) ** 2)


@pytest.mark.first_tier("stop_gradient*-float32", "custom_jvp*-float32")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("stop_gradient", lambda h: jnp.tanh(h) * jax.lax.stop_gradient(jnp.cos(h))),
        ("a straight-through estimator", lambda h: h + jax.lax.stop_gradient(jnp.round(2 * h) / 2 - h)),
        ("custom_vjp _wrong", lambda h: _wrong(jax.nn.softplus(h))),
        ("custom_jvp _wrong_too", lambda h: _wrong_too(jax.nn.softplus(h))),
    ],
)
def test_caught_and_named(name: str, change: Callable[[Any], Any], dtype: str) -> None:
    failed, warnings = checks(network(change, dtype))
    assert failed & {"gradient_vs_loss", "product_vs_gradient"}
    assert len(warnings) == len(failed)
    for warning in warnings:
        _, found = warning.split("; found in the model or loss: ")
        assert found.startswith(name)
        assert found.startswith("custom") == (f"({Path(__file__).name}:" in found)


MIXING: dict[str, Callable[[Any], Any]] = {
    "batch statistics": lambda h: jnp.tanh((h - jnp.mean(h, 0, keepdims=True)) / jnp.std(h, 0, keepdims=True)),
    "random draws": lambda h: jnp.tanh(h) * jax.random.bernoulli(jax.random.key(0), 0.5, h.shape),
}


@pytest.mark.parametrize("name", MIXING)
def test_examples_that_are_mixed_are_caught_and_named(name: str) -> None:
    failed, warnings = checks(network(MIXING[name], "float32"))
    assert failed == {"per_example"}
    assert name in warnings[0]
    assert ("found in the model or loss: random draws" in warnings[0]) == (name == "random draws")


def test_randomness_is_caught() -> None:
    """Dropout left on: another draw at each call, as a model with a host-side generator makes it."""
    state = np.random.default_rng(0)

    def draw() -> Any:
        return state.random(10)

    def dropout(h: Any) -> Any:
        mask = jax.pure_callback(lambda: draw(), jax.ShapeDtypeStruct((10,), h.dtype))
        return jnp.tanh(h) * jnp.where(mask > 0.5, 2.0, 0.0)[None]

    failed, warnings = checks(network(dropout))
    assert "deterministic" in failed
    assert "dropout left on?" in warnings[0]
    assert "a callback to Python" in warnings[0]


@pytest.mark.first_tier("tanh-0-float32", "relu-1-float64", "gelu-2-float32")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.relu, jax.nn.gelu])
def test_no_false_alarm(activation: Callable[[Any], Any], seed: int, dtype: str) -> None:
    assert checks(network(activation, dtype), seed) == (set(), [])


DEEP = (8, *(30,) * 8, 4)


@pytest.mark.slow
def test_no_false_alarm_where_a_kink_is_near() -> None:
    """Within 1e-6 of the weights' size, along the gradient: one seed in forty of this network."""
    assert alarms(relu_problem(DEEP, dtype="float32"), [77]).alarms == 0


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("widths", [DEEP, (20, 50, 10), (20, 200, 200, 10)], ids=str)
def test_no_false_alarm_at_any_of_many_seeds(widths: tuple[int, ...], dtype: str) -> None:
    assert alarms(relu_problem(widths, dtype=dtype), range(200)).alarms == 0


@pytest.mark.first_tier("float32")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_false_alarm_at_a_minimum_or_without_curvature(dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(20, 3)), rng.normal(size=(3, 1))
    at_minimum = make_problem(lambda p, x: x @ p["w"], {"w": w}, x, x @ w, dtype=dtype)
    assert checks(at_minimum) == (set(), [])
    flat = make_problem(lambda p, x: x @ p["w"] * 0.0, {"w": w}, x, x @ w, dtype=dtype)
    assert checks(flat) == (set(), [])


@pytest.mark.first_tier("softmax_cross_entropy", "poisson")
@pytest.mark.parametrize("loss", ["squared_error", "softmax_cross_entropy", "sigmoid_cross_entropy", "poisson"])
def test_no_false_alarm_for_any_loss(loss: str) -> None:
    for dtype in ("float32", "float64"):
        assert checks(mlp_problem(loss, l2=1e-3, dtype=dtype)) == (set(), [])


def test_mlp_helper_matches_its_parameters() -> None:
    assert mlp(mlp_params((4, 5, 3)), jnp.ones((2, 4))).shape == (2, 3)


def checked(problem: Problem, matrix: str) -> dict[str, Any]:
    """The checks that fail, for a block of 8 vectors."""
    settings = AnalysisSettings(matrix=matrix, dtype=problem.dtype.name)  # type: ignore[arg-type]
    checks, _ = self_checks(problem, build(problem, matrix), settings, 8)
    return {name: check for name, check in checks.items() if not check.passed}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_matrix_that_is_zero_but_for_rounding_is_no_fault(dtype: str) -> None:
    """The covariance of one gradient, or of copies of it; H − G where every example is fitted; a linear loss."""
    alone = mlp_problem(sizes=(20, 30, 5), count=1, dtype=dtype, batch_size=1)
    assert not checked(alone, "gradient-covariance")
    for method in ("dense", "hutchinson"):
        asked = TraceSettings(matrix="gradient-covariance", dtype=dtype, method=method, probes=8)  # type: ignore[arg-type]
        low, high = trace.run(Context(alone, Silent()), asked).result.trace.interval
        assert low <= 0 <= high < 1e-4
    pairs = eigs.run(Context(alone, Silent()), EigsSettings(matrix="gradient-covariance", dtype=dtype, k=2))  # type: ignore[arg-type]
    assert all(one.interval[0] <= 0 <= one.interval[1] for one in pairs.result.eigenvalues)
    copies = mlp_problem(sizes=(20, 30, 5), count=16, dtype=dtype)
    batches = copies.batches
    same = {"inputs": np.repeat(batches.inputs[:1], 16, 0), "targets": np.repeat(batches.targets[:1], 16, 0)}
    copies = replace(copies, batches=replace(batches, **same))
    assert not checked(copies, "gradient-covariance")
    # Two examples whose terms of H − G cancel: the same inputs, residuals of opposite signs.
    pair = mlp_problem("squared_error", sizes=(5, 6, 3), count=2, dtype=dtype)
    inputs = np.repeat(pair.batches.inputs[:1], 2, 0)
    outputs = np.asarray(pair.predict(pair.params, pair.frozen, jnp.asarray(inputs, dtype)), np.float64)
    targets = outputs + np.array([[1.0], [-1.0]]) * np.array([[0.3, 0.7, -0.4]])
    assert not checked(replace(pair, batches=replace(pair.batches, inputs=inputs, targets=targets)), "residual")


@pytest.mark.first_tier("float32")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_curvature_that_is_zero_is_no_fault(dtype: str) -> None:
    linear = user_loss("linear", lambda z, t: jnp.sum(z * t, axis=-1))
    random = np.random.default_rng(0)
    problem = make_problem(
        lambda p, x: x @ p["w"], {"w": random.normal(size=(4, 3))}, random.normal(size=(20, 4)),
        random.normal(size=(20, 3)), linear, dtype=dtype,
    )  # fmt: skip
    for matrix in ("hessian", "ggn", "residual"):
        assert not checked(problem, matrix)
