"""`batch_stats`: what the losses along lines are normalised by, against networks written by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pydantic import ValidationError

from curvcli.analyses.common.context import Context
from curvcli.analyses.lines import direction, landscape
from curvcli.analyses.lines.batch_statistics import LEAST_VARIANCE, between
from curvcli.analyses.lines.directions import Inputs as LineInputs
from curvcli.curvature.batch_norm import recomputed, stored
from curvcli.curvature.flatten import Layout
from curvcli.figures.landscape import _line
from curvcli.linalg.iterate import Silent
from curvcli.problem import Problem
from curvcli.schema.direction import DirectionSettings
from curvcli.schema.landscape import LandscapeSettings
from curvcli.schema.lines import LineSettings
from curvcli.schema.settings import AnalysisSettings
from tests.analyses.batch_norm import (
    COUNT,
    Linen,
    Nnx,
    NoTraining,
    Own,
    X,
    Y,
    linen_variables,
    nnx_variables,
    outputs,
    params_of,
)
from tests.analyses.test_batch_norm import asked

OTHER = "checkpoint:other"
ENDS = {
    Linen: (Linen(), linen_variables(Linen(), 0), linen_variables(Linen(), 1)),
    Nnx: (Nnx, nnx_variables(Nnx, 0), nnx_variables(Nnx, 1)),
}


def problem_at(model: Any, variables: Any, size: int = COUNT) -> Problem:
    problem = asked(model)._held.at(variables, None, AnalysisSettings(dtype="float64")).problem
    return replace(problem, batches=problem.batches.resized(size))


def ends(cls: Any, size: int = COUNT) -> tuple[Problem, dict[str, Any], dict[str, Any]]:
    """The problem at one end; the way to the other, and its statistics, as they are read from files."""
    model, here, there = ENDS[cls]
    problem, other = problem_at(model, here, size), problem_at(model, there, size)
    way = {name: np.asarray(other.params[name]) - np.asarray(leaf) for name, leaf in problem.params.items()}
    return problem, {OTHER: way}, {OTHER: stored(other)}


def loss(cls: Any, s: float, statistics: Any = None) -> float:
    """The loss at a point between both ends, by hand; the statistics of all data are the default."""
    one, two = (params_of(cls, variables) for variables in ENDS[cls][1:])
    mixed = jax.tree.map(lambda a, b: (1 - s) * a + s * b, one, two)
    given = None if statistics is None else {"fixed": one[1], "interpolate": mixed[1]}[statistics]
    z = outputs(cls, mixed[0], jnp.asarray(X), given)[0]
    return float(optax.softmax_cross_entropy_with_integer_labels(z, jnp.asarray(Y)).mean())


def run(analysis: Any, kind: Any, cls: Any, size: int = COUNT, **settings: Any) -> Any:
    problem, way, statistics = ends(cls, size)
    given = {"dtype": "float64", "skip_checks": True, "along": [OTHER], "points": 5, "range": ["-0.5:1.5"], **settings}
    return analysis.run(Context(problem, Silent(), LineInputs(way, statistics)), kind(**given))


@pytest.mark.first_tier("recompute-Linen", "fixed-Nnx")
@pytest.mark.parametrize("cls", ENDS)
@pytest.mark.parametrize("asked_for", [None, "recompute", "interpolate", "fixed"])
def test_losses_between_two_runs(cls: Any, asked_for: Any) -> None:
    answer = run(landscape, LandscapeSettings, cls, batch_stats=asked_for)
    result, kind = answer.result, asked_for or "recompute"
    truth = [loss(cls, s, None if kind == "recompute" else kind) for s in result.a]
    np.testing.assert_allclose(result.loss, truth, rtol=1e-12)
    assert result.batch_stats == kind
    np.testing.assert_allclose([result.loss_at_weights, result.end_loss], [truth[1], truth[3]], rtol=1e-12)
    assert any("not the one that it has by itself" in one for one in answer.warnings) == (kind == "fixed")
    # The quadratic model is that of the statistics held fixed, whichever the losses have.
    np.testing.assert_allclose(result.quadratic[1], loss(cls, 0.0, "fixed"), rtol=1e-12)
    profile = run(direction, DirectionSettings, cls, batch_stats=asked_for).result
    np.testing.assert_allclose(profile.profile.loss, truth, rtol=1e-12)
    assert profile.batch_stats == kind
    assert kind == "fixed" or profile.model_radius is None


@pytest.mark.parametrize("cls", ENDS)
def test_recomputed_statistics_are_means_over_batches(cls: Any) -> None:
    """The first layer's are those of all data at any batch size; the others' are means over nearly equal parts."""
    problem, _, _ = ends(cls, 20)
    vector = jnp.asarray(np.random.default_rng(3).normal(size=(1, problem.dim)))
    points = np.array([[0.0], [0.3], [-0.2]])
    found = recomputed(problem, vector, points)
    assert found is not None
    assert {name: leaf.shape[0] for name, leaf in found.items()} == dict.fromkeys(found, 3)
    layout = Layout.of(problem.params)
    for row, (s,) in enumerate(points):
        flat = layout.unravel(layout.ravel(problem.params) + s * vector[0])
        nested: dict[str, Any] = {}
        for name, leaf in flat.items():
            layer, _, last = name.rpartition("/")
            nested.setdefault(layer, {})[last] = leaf
        pieces = [outputs(cls, nested, jnp.asarray(X[i : i + 16]))[1] for i in range(0, COUNT, 16)]
        whole = outputs(cls, nested, jnp.asarray(X))[1]
        prefix = "batch_stats/" if cls is Linen else ""
        first, second = whole.keys()
        for name in ("mean", "var"):
            np.testing.assert_allclose(found[f"{prefix}{first}/{name}"][row], whole[first][name], rtol=1e-11)
        means = np.array([one[second]["mean"] for one in pieces])
        variances = np.array([one[second]["var"] for one in pieces])
        np.testing.assert_allclose(found[f"{prefix}{second}/mean"][row], means.mean(0), rtol=1e-11)
        np.testing.assert_allclose(found[f"{prefix}{second}/var"][row], variances.mean(0) + means.var(0), rtol=1e-11)


def test_running_averages_of_a_users_own_layer_are_taken_apart() -> None:
    problem = problem_at(Own(), linen_variables(Own(), 0))
    found = recomputed(problem, jnp.zeros((1, problem.dim)), np.zeros((1, 1)))
    assert found is not None
    before = X @ np.asarray(problem.params["Dense_0/kernel"]) + np.asarray(problem.params["Dense_0/bias"])
    np.testing.assert_allclose(found["batch_stats/centre"][0], before.mean(0), rtol=1e-10)
    np.testing.assert_allclose(found["batch_stats/running_var"][0], before.var(0), rtol=1e-10)


def test_a_plane_and_what_its_picture_says() -> None:
    answer = run(landscape, LandscapeSettings, Linen, along=[OTHER, "random"], range=["0:1", "-0.1:0.1"], points=3)
    assert answer.result.batch_stats == "recompute"
    np.testing.assert_allclose([answer.result.loss[0][1], answer.result.loss[2][1]], [loss(Linen, 0), loss(Linen, 1)])
    line = run(landscape, LandscapeSettings, Linen).result
    assert "recomputed from the data" in _line(line, "").words


def test_directions_of_their_own_keep_the_statistics_unless_asked() -> None:
    problem, way, statistics = ends(Linen)
    settings = {"dtype": "float64", "skip_checks": True, "points": 3, "range": ["-0.1:0.1"]}
    both = direction.run(
        Context(problem, Silent(), LineInputs(way, statistics)), DirectionSettings(along=["random", OTHER], **settings)
    ).result.directions
    assert [one.batch_stats for one in both] == ["fixed", "recompute"]
    assert both[0].model_radius is not None
    assert both[1].model_radius is None
    alone = direction.run(
        Context(problem, Silent(), LineInputs({})),
        DirectionSettings(along=["random"], batch_stats="recompute", **settings),
    )
    assert alone.result.batch_stats == "recompute"
    with pytest.raises(ValidationError, match="interpolate goes with --along checkpoint"):
        LineSettings(along=["random"], batch_stats="interpolate")
    with pytest.raises(ValidationError, match="--batch-norm fixed"):
        LineSettings(batch_stats="fixed", batch_norm="batch")


def test_fallbacks_say_why() -> None:
    model = NoTraining()
    here = model.init(jax.random.key(0), X)
    problem = problem_at(model, here)
    way = {OTHER: {name: np.ones(leaf.shape) for name, leaf in problem.params.items()}}
    statistics = {OTHER: {"batch_stats/var": np.full(5, 4.0)}}
    settings = {"dtype": "float64", "skip_checks": True, "along": [OTHER], "points": 3, "range": ["0:1"]}
    answer = landscape.run(Context(problem, Silent(), LineInputs(way, statistics)), LandscapeSettings(**settings))
    assert answer.result.batch_stats == "interpolate"
    assert any("cannot be recomputed" in one and "no call in training mode" in one for one in answer.warnings)
    answer = landscape.run(
        Context(problem, Silent(), LineInputs(way, {})), LandscapeSettings(**settings, batch_stats="recompute")
    )
    assert answer.result.batch_stats == "fixed"
    assert any("cannot be recomputed" in one for one in answer.warnings)


def test_variances_stay_positive_beyond_the_ends() -> None:
    here, differences = np.array([1.0, 4.0]), np.array([[2.0, -3.5]])
    points = np.array([[-1.0], [0.0], [0.5], [1.0], [2.0]])
    linear = here + points * differences
    np.testing.assert_allclose(between("a/mean", here, differences, points), linear)
    floor = LEAST_VARIANCE * np.array([1.0, 0.5])
    np.testing.assert_allclose(between("a/var", here, differences, points), np.maximum(linear, floor))
