"""Grids against the loss itself; barriers."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from curvcli.analyses.common.answer import Answer
from curvcli.analyses.common.context import Context
from curvcli.analyses.lines import landscape
from curvcli.analyses.lines.directions import Inputs as LineInputs
from curvcli.analyses.lines.landscape import barrier
from curvcli.curvature.flatten import Layout
from curvcli.errors import NumericsError
from curvcli.linalg.iterate import Silent
from curvcli.problem import Problem
from curvcli.schema.landscape import LandscapeSettings
from tests.problems import dense_hessian, dense_objective, flat_params, make_problem, mlp_problem

GIVEN = ("array:a", "array:b")


@pytest.fixture(scope="module")
def network() -> Problem:
    return mlp_problem(sizes=(3, 4, 3), l2=0.01, batch_size=7)


@pytest.fixture(scope="module")
def vectors(network: Problem) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(2, network.dim)) * [[1.0], [0.3]]


def run(problem: Problem, *along: str, vectors: Any = None, **settings: Any) -> Answer[Any]:
    settings = {"dtype": "float64", "skip_checks": True, "along": list(along), "points": 5, **settings}
    layout = Layout.of(problem.params)
    given = {} if vectors is None else {
        name: layout.unravel(jax.numpy.asarray(row)) for name, row in zip(GIVEN, vectors, strict=True)
    }  # fmt: skip
    monitor = settings.pop("monitor", Silent())
    return landscape.run(Context(problem, monitor, LineInputs(given)), LandscapeSettings(**settings))


@pytest.mark.slow
def test_a_plane(network: Problem, vectors: np.ndarray) -> None:
    answer = run(network, *GIVEN, vectors=vectors, range=["-1:1", "0:2"])
    result = answer.result
    assert (result.a, result.b) == (np.linspace(-1, 1, 5).tolist(), np.linspace(0, 2, 5).tolist())
    objective, w = jax.jit(dense_objective(network)), flat_params(network)
    a, b = vectors
    gradient, hessian = np.asarray(jax.grad(dense_objective(network))(w)), dense_hessian(network)
    for i, x in enumerate(result.a):
        for j, y in enumerate(result.b):
            step = x * a + y * b
            np.testing.assert_allclose(result.loss[i][j], objective(w + step), rtol=1e-13)
            model = objective(w) + gradient @ step + 0.5 * step @ hessian @ step
            np.testing.assert_allclose(result.quadratic[i][j], model, rtol=1e-11)
    np.testing.assert_allclose(result.curvature, vectors @ hessian @ vectors.T, rtol=1e-11)
    np.testing.assert_allclose(result.cosine, a @ b / np.linalg.norm(a) / np.linalg.norm(b), rtol=1e-12)
    np.testing.assert_allclose(result.loss_at_weights, objective(w), rtol=1e-14)
    assert [one.direction for one in result.directions] == list(GIVEN)
    np.testing.assert_allclose(
        [one.rayleigh_quotient for one in result.directions],
        [v @ hessian @ v / (v @ v) for v in vectors], rtol=1e-11,
    )  # fmt: skip
    assert result.barrier is None
    assert answer.warnings == []


def test_a_line(network: Problem, vectors: np.ndarray) -> None:
    result = run(network, "array:a", vectors=vectors, range=["-0.5:1.5"], points=9).result
    assert (result.b, result.cosine) == (None, None)
    objective, w = jax.jit(dense_objective(network)), flat_params(network)
    np.testing.assert_allclose(result.loss, [objective(w + s * vectors[0]) for s in result.a], rtol=1e-13)
    np.testing.assert_allclose(result.end_loss, objective(w + vectors[0]), rtol=1e-13)
    between = np.linspace(0, 1, 5)
    straight = (1 - between) * result.loss_at_weights + between * result.end_loss
    excess = np.array(result.loss[2:7]) - straight
    np.testing.assert_allclose(result.barrier, max(excess.max(), 0), atol=1e-14)
    assert run(network, "array:a", vectors=vectors, range=["0:0.9"]).result.barrier is None


def test_a_plane_of_one_kind_has_two_directions(network: Problem) -> None:
    result = run(network, "filter-normalized", "filter-normalized", points=2).result
    assert abs(result.cosine) < 0.9
    assert result.a == result.b == [-1, 1]


def test_a_run_that_is_stopped(network: Problem, vectors: np.ndarray) -> None:
    class Later(Silent):
        calls = 0

        def stop(self) -> str | None:
            self.calls += 1
            return "time limit" if self.calls > 9 else None

    answer = run(network, *GIVEN, vectors=vectors, monitor=Later())
    rows = [None not in row for row in answer.result.loss]
    assert rows == [True, False, False, False, False]
    assert any("4 of 6 rows were not reached" in warning for warning in answer.warnings)
    stopped = type("At once", (Silent,), {"stop": lambda self: "time limit"})()
    line = run(network, "array:a", vectors=vectors, monitor=stopped).result
    assert line.loss == [None] * 5
    assert line.barrier is None


def test_directions_that_do_not_exist() -> None:
    stationary = make_problem(lambda p, x: x * p["w"][None] ** 2, {"w": np.zeros(1)}, [[3.0]], [[2.0]])
    with pytest.raises(NumericsError, match="gradient of the loss is exactly zero"):
        run(stationary, "random", "gradient")
    assert run(stationary, "random", points=3).result.loss[1] == 2


def test_barriers() -> None:
    s = np.linspace(-0.5, 1.5, 21)
    height = barrier(s, np.sin(np.pi * s) ** 2 + 2 - s, 2.0, 1.0)
    assert height is not None
    np.testing.assert_allclose([height.height, height.at], [1, 0.5], atol=1e-12)
    # The highest of sin² + 2 − s on the grid, above 2.
    np.testing.assert_allclose(height.above_higher_end, np.max((np.sin(np.pi * s) ** 2 - s)[5:16]), atol=1e-12)
    convex = barrier(s, s**2, 0.0, 1.0)
    assert convex is not None
    assert (convex.height, convex.above_higher_end) == (0, 0)
    assert barrier(s, s, 0.0, None) is None
    assert barrier(s, np.where(s > 0.5, np.nan, s), 0.0, 1.0) is None
