"""What the evidence on a point must not be taken for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.errors import NumericsError
from curvcli.problem import Problem
from tests.analyses.points import LARGE, diagonal, no_outputs, quadratic, run, verdict
from tests.monitors import StopAfter
from tests.problems import make_problem


def with_slope(function: Any, slope: Any) -> Any:
    """A function of one number whose derivative is said to be another's."""
    bent = jax.custom_jvp(function)
    bent.defjvp(lambda primals, tangents: (function(primals[0]), slope(primals[0]) * tangents[0]))
    return bent


def bare(regulariser: Any, size: int) -> Problem:
    """A problem that is its regulariser alone, at 0."""
    return make_problem(no_outputs, {"w": np.zeros(size)}, np.zeros((1, 1)), np.zeros((1, 1)), regulariser=regulariser)


def test_a_second_difference_that_crosses_the_wrong_curvature_confirms_nothing() -> None:
    """The loss bends up at the minimum; its second difference falls with the step and is −2 at one of them."""
    farthest = 4 * 0.01 * 3**0.5
    quartic = 2 / (farthest**2 / 16)
    curve = with_slope(lambda w: w**2 - quartic * w**4, lambda w: -2 * w)
    found = verdict(bare(lambda p: p["w"][0] ** 2 + 2 * p["w"][1] ** 2 + curve(p["w"][2]), 3))
    assert found.lambda_min.value == pytest.approx(-2)
    assert not found.negative_curvature_certified
    assert found.classification == "undecided"


@pytest.mark.parametrize("looks", [0, 5, 200, 360])
def test_a_run_that_was_stopped_says_nothing_that_the_whole_one_denies(looks: int) -> None:
    """A point that is not stationary, by a decrement that only the whole run knows; and a minimum that is."""
    values = np.r_[2e-3, np.linspace(0.1, 1, 1599)]
    at = np.r_[4e-5 / 2e-3, np.zeros(1598), 4e-5]
    moved = replace(diagonal(values), params={"w": jnp.asarray(at)})
    assert run(moved, monitor=StopAfter(looks)).result.classification in ("undecided", "not-stationary")
    flat = np.r_[np.full(1599, 1e-4), 1.0]
    found = run(replace(diagonal(flat), params={"w": jnp.asarray(np.r_[np.zeros(1599), 2e-5])}),
                monitor=StopAfter(looks), learning_rate=3.0).result  # fmt: skip
    assert found.classification in ("undecided", "minimum-within-tolerance")
    assert found.gradient_descent.stable is not True
    assert found.max_stable_learning_rate in (None, pytest.approx(2, rel=1e-5))


def test_whole_runs_of_the_same_points() -> None:
    values = np.r_[2e-3, np.linspace(0.1, 1, 1599)]
    moved = replace(diagonal(values), params={"w": jnp.asarray(np.r_[4e-5 / 2e-3, np.zeros(1598), 4e-5])})
    assert verdict(moved).classification == "not-stationary"


def test_arithmetic_coarser_than_asked_for_is_what_counts() -> None:
    """Seven directions of eight in bfloat16: the null space is within its rounding, not that of float64."""
    rng = np.random.default_rng(1)
    x = np.asarray(rng.integers(-3, 4, size=(40, 7)), float) @ np.eye(7, 8)
    problem = make_problem(
        lambda p, x: (x.astype(jnp.bfloat16) @ p["w"].astype(jnp.bfloat16)).astype(x.dtype),
        {"w": np.zeros((8, 1))}, x, np.zeros((40, 1)),
    )  # fmt: skip
    answer = run(problem)
    assert answer.result.classification in ("degenerate", "undecided")
    assert answer.result.tolerance > 1e-2 * answer.result.lambda_max.value
    assert any("coarser" in warning for warning in answer.warnings)


def test_the_regulariser_counts_for_the_rounding_too() -> None:
    def coarse(p: dict) -> Any:
        w = p["w"].astype(jnp.float32)
        return (w[0] ** 2 - 1e-9 * w[1] ** 2).astype(p["w"].dtype)

    found = verdict(bare(coarse, 2))
    assert found.certificate is None or found.certificate.error > 1e-6
    assert found.classification != "saddle"


def test_the_condition_number_is_a_true_lower_bound() -> None:
    values = np.r_[-1.5, -np.linspace(0.5, 1, 799), np.linspace(0.5, 1, 799), 1.5]
    found = verdict(diagonal(values), epsilon=0.05, probes=3, steps=21)
    assert found.condition_number is not None
    assert not found.condition_number_exact
    assert 1 <= found.condition_number <= 3 * (1 + 1e-6)


def test_no_curvature_at_all_beside_a_slope() -> None:
    found = verdict(quadratic(np.zeros((3, 3)), np.ones(3), np.array([1.0, 0.0, 0.0])))
    assert found.classification == "not-stationary"
    assert found.condition_number is None


def test_a_loss_without_a_bottom() -> None:
    found = verdict(bare(lambda p: -jnp.exp(1e6 * p["w"][0] ** 2) + p["w"][1] ** 2, 2))
    assert found.negative_curvature_certified
    assert found.witness is not None
    assert np.isfinite(found.witness.loss_change)


def test_float32_has_no_room_below_its_smallest_number() -> None:
    with pytest.raises(NumericsError) as caught:
        verdict(diagonal(1e-36 * LARGE["saddle"], "float32"), dtype="float32")
    assert "float64" in caught.value.hint
