"""No minimum is said of a point beside which the loss itself falls: kinks and jumps that no derivative sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.problem import Problem
from tests.analyses.points import no_outputs, run
from tests.problems import make_problem

CASES: dict[str, Callable[[Any], Any]] = {
    # Automatic differentiation takes the flat side of each.
    "where": lambda w: jnp.where(w > 0, -10 * w, 0.0),
    "maximum": lambda w: -10 * jnp.maximum(w, 0) + jnp.where(w == 0, 5 * w, 0.0),
    "both sides": lambda w: jnp.where(w > 0, -10 * w, jnp.where(w < 0, 10 * w, 0.0)),
    "a jump": lambda w: -0.1 * jnp.ceil(w),
    "round": lambda w: -0.1 * jnp.round(w + 0.5),
}


def bowl(term: Callable[[Any], Any], dim: int, dtype: str = "float64", at: int = 2) -> Problem:
    """½‖w‖² at 0 but for a term of one coordinate; 1 in another, so that the weights have a size."""

    def form(params: dict) -> Any:
        w = params["w"]
        centre = jnp.zeros(dim, w.dtype).at[0].set(1.0)
        return 0.5 * jnp.sum(jnp.square(w - centre)) + jnp.sum(term(w[at : at + 1]))

    w = np.zeros(dim)
    w[0] = 1.0
    return make_problem(no_outputs, {"w": w}, np.zeros((1, 1)), np.zeros((1, 1)), regulariser=form, dtype=dtype)


@pytest.mark.parametrize("dim", [6, 60])
@pytest.mark.parametrize("name", CASES)
def test_a_fall_that_no_derivative_shows(name: str, dim: int) -> None:
    answer = run(bowl(CASES[name], dim))
    result = answer.result
    assert result.stationary is True, result.gradient_norm
    assert result.lambda_min.value == pytest.approx(1)
    assert result.classification == "undecided"
    fall = result.probes.steepest
    assert fall.loss_change < fall.allowed <= 0
    assert any("no minimum" in warning for warning in answer.warnings)
    if name in ("where", "both sides") and dim == 6:
        assert fall.slope == pytest.approx(-10, rel=0.01)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "term",
    [
        lambda w: 0.0 * w,
        lambda w: jnp.where(w > 0, 10 * w, jnp.where(w < 0, -10 * w, 0.0)),
        lambda w: jnp.where(w > 0, 30 * w, 0.0),
        lambda w: -1e3 * w**3,
        lambda w: jnp.where(w > 0, -(w**3), w**2),
        lambda w: -10 * jnp.maximum(w - 0.5, 0),
    ],
)
def test_minima_stay_minima(term: Any, dtype: str) -> None:
    """A kink upwards; a cubic that falls further off; a kink that is not here."""
    result = run(bowl(term, 6, dtype), dtype=dtype).result
    assert result.classification == "minimum-within-tolerance"
    assert result.probes.steepest is None
