"""Self-checks: what they catch, and what they must not complain of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.analyses.checks import self_checks
from curvcli.curvature import build
from curvcli.schema.settings import AnalysisSettings
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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("stop_gradient", lambda h: jnp.tanh(h) * jax.lax.stop_gradient(jnp.cos(h))),
        ("straight-through", lambda h: h + jax.lax.stop_gradient(jnp.round(2 * h) / 2 - h)),
    ],
)
def test_caught(name: str, change: Callable[[Any], Any], dtype: str) -> None:
    failed, warnings = checks(network(change, dtype))
    assert failed & {"gradient_vs_loss", "product_vs_gradient"}, name
    assert len(warnings) == len(failed)
    assert "stop_gradient" in " ".join(warnings)


def test_randomness_is_caught() -> None:
    """Dropout left on: another draw at each call, as a model with a host-side generator makes it."""
    state = np.random.default_rng(0)

    def draw() -> Any:
        return state.random(10)

    def dropout(h: Any) -> Any:
        mask = jax.pure_callback(lambda: draw(), jax.ShapeDtypeStruct((10,), h.dtype))
        return jnp.tanh(h) * jnp.where(mask > 0.5, 2.0, 0.0)[None]

    failed, _ = checks(network(dropout))
    assert "deterministic" in failed


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.relu, jax.nn.gelu])
def test_no_false_alarm(activation: Callable[[Any], Any], seed: int, dtype: str) -> None:
    assert checks(network(activation, dtype), seed) == (set(), [])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_false_alarm_at_a_minimum_or_without_curvature(dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(20, 3)), rng.normal(size=(3, 1))
    at_minimum = make_problem(lambda p, x: x @ p["w"], {"w": w}, x, x @ w, dtype=dtype)
    assert checks(at_minimum) == (set(), [])
    flat = make_problem(lambda p, x: x @ p["w"] * 0.0, {"w": w}, x, x @ w, dtype=dtype)
    assert checks(flat) == (set(), [])


@pytest.mark.parametrize("loss", ["squared_error", "softmax_cross_entropy", "sigmoid_cross_entropy", "poisson"])
def test_no_false_alarm_for_any_loss(loss: str) -> None:
    for dtype in ("float32", "float64"):
        assert checks(mlp_problem(loss, l2=1e-3, dtype=dtype)) == (set(), [])


def test_mlp_helper_matches_its_parameters() -> None:
    assert mlp(mlp_params((4, 5, 3)), jnp.ones((2, 4))).shape == (2, 3)
