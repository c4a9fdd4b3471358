"""How far a loss can fall, and verdicts that say where a model predicts more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from curvcli.analyses.common.context import Context
from curvcli.analyses.common.room import beyond, room_to_fall
from curvcli.analyses.influence import analysis as influence
from curvcli.analyses.influence.context import Inputs
from curvcli.curvature.products import sums
from curvcli.linalg.iterate import Silent
from curvcli.losses import LOSSES, user_loss
from curvcli.problem import Regulariser
from curvcli.schema.influence import InfluenceSettings
from tests.analyses.points import run
from tests.problems import make_problem

RNG = np.random.default_rng(0)
TARGETS = {
    "squared_error": RNG.normal(size=(7, 3)),
    "softmax_cross_entropy": np.r_[RNG.dirichlet(np.ones(3), 5) * RNG.uniform(0.5, 2, (5, 1)), [[0, 0, 0], [0, 1, 0]]],
    "sigmoid_cross_entropy": np.r_[RNG.random((5, 3)), [[0, 1, 1], [0, 0, 1]]],
    "poisson": np.r_[RNG.uniform(0, 3, (5, 3)), [[0, 2, 1], [0, 0, 0]]],
}


def free(loss: str, **rest: Any) -> Any:
    """Outputs that are the parameters themselves: every loss can be reached."""
    targets = rest.pop("targets", TARGETS[loss])
    inputs, params = np.arange(7.0)[:, None], {"z": RNG.normal(size=(7, 3))}
    return make_problem(lambda p, x: p["z"][x[:, 0].astype(int)], params, inputs, targets, loss, batch_size=3, **rest)


@pytest.mark.parametrize("loss", TARGETS)
def test_the_room_is_what_the_best_outputs_leave(loss: str) -> None:
    weight = np.array([1.0, 0.5, 2, 0, 1, 1, 3])
    problem = free(loss, weight=weight, normaliser=6.0)
    value = sums.objective(problem)
    least = 0.0
    for t, a in zip(TARGETS[loss], weight, strict=True):

        def value_at(z: Any, t: Any = t) -> float:
            return float(LOSSES[loss].value(jnp.asarray(z), jnp.asarray(t)))

        best = scipy.optimize.minimize(value_at, np.zeros(3), bounds=[(-30, 30)] * 3)
        least += a * best.fun / 6.0
    room = room_to_fall(problem, value)
    assert room == pytest.approx(value - least, abs=1e-3)


def test_losses_without_a_bound() -> None:
    problem = free("sigmoid_cross_entropy", targets=TARGETS["sigmoid_cross_entropy"] + 2)
    assert room_to_fall(problem, 1.0) is None
    assert room_to_fall(replace(problem, loss=user_loss("mine", lambda z, t: (z - t).sum(-1))), 1.0) is None
    bounded = free("squared_error")
    assert room_to_fall(replace(bounded, regulariser=Regulariser(0.1)), 2.0) == 2.0
    assert room_to_fall(replace(bounded, regulariser=Regulariser(0.0, lambda p: -p["z"].sum())), 2.0) is None
    labels = free("softmax_cross_entropy", targets=RNG.integers(0, 3, 7))
    assert room_to_fall(labels, 0.7) == 0.7
    assert beyond(0.31, 0.109)
    assert not beyond(0.1, 0.109)
    assert not beyond(1.0, None)


def far_away() -> Any:
    """A logistic regression in its flat part: the curvature is small, and a Newton step promises the impossible."""
    x = RNG.normal(size=(24, 2))
    y = (x[:, 0] > 0).astype(float)[:, None]
    return make_problem(lambda p, x: x @ p["w"], {"w": np.array([[-9.0], [4.0]])}, x, y, "sigmoid_cross_entropy")


def test_influence_marks_its_ranking() -> None:
    problem = far_away()
    settings = InfluenceSettings(remove=True, damping=0.0, dtype="float64", skip_checks=True, solver="dense")
    answer = influence.run(Context(problem, Silent(), Inputs()), settings)
    valid = answer.result.validity
    assert valid.decrement > sums.objective(problem) == pytest.approx(valid.loss_above_least)
    assert valid.model_holds is False
    assert "the quadratic model does not hold" in valid.words
    assert valid.words in answer.warnings
    assert all("does not hold" in ranking.caution for ranking in answer.result.top)


def test_saddle_says_that_the_model_does_not_hold() -> None:
    answer = run(far_away())
    test = answer.result.stationarity
    assert test.decrement > test.loss_above_least
    assert test.model_holds is False
    assert any("the quadratic model does not hold" in warning for warning in answer.warnings)
