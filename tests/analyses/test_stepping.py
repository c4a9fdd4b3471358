"""Several steps: what was previewed happens, minima are reached, factors are averaged."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from curvcli.curvature.kronecker import kfac
from curvcli.curvature.kronecker.kfac import Recipe, Taps, cotangents, measured
from curvcli.curvature.kronecker.running import Running
from curvcli.curvature.products.sums import objective
from curvcli.errors import DataError, UsageError
from curvcli.problem import Problem
from tests.analyses.steps import METHODS, answer, linear
from tests.analyses.test_step import reparameterised
from tests.problems import make_problem, mlp_problem

EPS = float(np.finfo("float64").eps)


def moved(problem: Problem, found) -> Problem:
    return replace(problem, params={name: jnp.asarray(leaf) for name, leaf in found.params.items()})


@pytest.mark.first_tier("gauss-newton", "kfac", "hessian-free")
@pytest.mark.parametrize("method", METHODS)
def test_what_is_previewed_happens(method: str) -> None:
    problem = mlp_problem(l2=0.01)
    found = answer(problem, method=method, steps=4, save="x")
    records, result = found.result.steps, found.result
    assert [one.step for one in records] == [1, 2, 3, 4]
    assert records[0].reduction_ratio == result.reduction_ratio
    for early, late in itertools.pairwise(records):
        fallen = early.actual_decrease if early.accepted else 0.0
        assert late.loss == pytest.approx(early.loss - fallen, rel=1e-9)
    assert objective(moved(problem, found)) == pytest.approx(result.final_loss, rel=1e-12)
    assert result.final_loss < records[0].loss
    # One step alone is the same step.
    alone = answer(problem, method=method)
    assert alone.result.actual_decrease == result.actual_decrease


def test_gauss_newton_steps_reach_the_minimum_that_scipy_finds() -> None:
    problem = reparameterised(np.eye(3), np.zeros(3))
    t, y = problem.batches.inputs[:, 0], problem.batches.targets[:, 0]
    theirs = scipy.optimize.least_squares(
        lambda u: u[0] * np.exp(-u[1] * t) + u[2] - y, np.asarray(problem.params["w"]), method="lm", xtol=1e-12,
        ftol=1e-12, gtol=1e-12,
    )  # fmt: skip
    found = answer(problem, method="gauss-newton", steps=15, save="x")
    np.testing.assert_allclose(found.params["w"], theirs.x, rtol=1e-6)
    assert found.result.final_loss == pytest.approx(theirs.cost / len(t), rel=1e-10)


def test_one_damped_gauss_newton_step_is_levenberg_s() -> None:
    """The augmented least-squares problem [J; √(Mλ) I] δ = [−r; 0], solved by orthogonal factors and not by G."""
    problem, damping = reparameterised(np.eye(3), np.zeros(3)), 0.02
    t, y, u = problem.batches.inputs[:, 0], problem.batches.targets[:, 0], np.asarray(problem.params["w"])
    jacobian = np.c_[np.exp(-u[1] * t), -u[0] * t * np.exp(-u[1] * t), np.ones_like(t)]
    rest = u[0] * np.exp(-u[1] * t) + u[2] - y
    augmented = np.concatenate([jacobian, np.sqrt(len(t) * damping) * np.eye(3)])
    expected = np.linalg.lstsq(augmented, np.r_[-rest, np.zeros(3)])[0]
    np.testing.assert_allclose(answer(problem, method="gauss-newton", damping=damping).arrays["w"], expected, rtol=1e-9)


def test_bfgs_with_exact_step_sizes_ends_a_quadratic_of_n_dimensions_in_n_steps() -> None:
    problem = linear(dim=2, outputs=1)
    best = objective(moved(problem, answer(problem, method="newton", damping=0.0, save="x")))
    for momentum in (None, "previous"):
        found = answer(problem, method="bfgs", damping=0.0, steps=3, momentum=momentum, save="x")
        assert found.result.final_loss == pytest.approx(best, rel=1e-9)
        assert found.result.steps[2].loss > best * (1 + 1e-6)


def test_under_auto_a_step_is_made_only_where_the_loss_falls() -> None:
    """exp(exp(w)) overflows after every step that 30 trials reach: λ goes on growing until one is short enough."""
    problem = make_problem(
        lambda p, x: jnp.exp(jnp.exp(x * p["w"][None])), {"w": np.array([0.1])}, np.ones((4, 1)), 1e4 * np.ones((4, 1))
    )
    found = answer(problem, method="gauss-newton", steps=12, save="x")
    made = [one.accepted for one in found.result.steps]
    assert not made[0]
    assert made[-1]
    assert found.result.actual_decrease is None
    losses = [one.loss for one in found.result.steps]
    assert losses[1] == losses[0]
    assert found.result.final_loss < losses[0]
    alone = answer(problem, method="gauss-newton", save="x")
    assert alone.params == {}
    assert any("no checkpoint is written" in said for said in alone.warnings)
    # With a damping that is given the step is made only if there is a loss to go on from.
    given = answer(problem, method="gauss-newton", damping=0.0, steps=3)
    assert [one.accepted for one in given.result.steps] == [False]


def test_factors_are_running_averages_updated_at_intervals() -> None:
    first, recipe = mlp_problem(), Recipe("exact")
    second = replace(first, params={name: 1.1 * leaf for name, leaf in first.params.items()})
    taps = Taps(first)
    a, b = (measured(one, taps, recipe).layers[0][0] for one in (first, second))
    running = Running(recipe, False, 2, True)
    matrix = running.at(first, 0)
    assert running.at(second, 1) is matrix
    running.at(second, 2)
    assert running.averaged is not None
    np.testing.assert_allclose(running.averaged.layers[0][0], 0.5 * a + 0.5 * b, rtol=1e3 * EPS)
    running.at(second, 4)
    np.testing.assert_allclose(running.averaged.layers[0][0], 2 / 3 * (0.5 * a + 0.5 * b) + b / 3, rtol=1e3 * EPS)


@pytest.mark.parametrize("sampling", ["exact", "sampled", "empirical"])
def test_passes_are_the_cotangents_that_were_taken(sampling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def counted(*given: Any) -> Any:
        found = cotangents(*given)
        taken.append(len(found))
        return found

    monkeypatch.setattr(kfac, "cotangents", counted)
    running = Running(Recipe(sampling, samples=3), True, 1, True)
    running.at(mlp_problem(count=4), 0)
    assert len(taken) == 2  # traced once for the factors, once for the eigenvalues
    assert running.passes == sum(taken)


def test_saved_factors_give_the_same_matrix_and_are_refused_for_other_weights() -> None:
    problem, recipe = mlp_problem(), Recipe("sampled", samples=2)
    running = Running(recipe, False, 1, True)
    vector = np.linspace(-1, 1, problem.dim)[None]
    expected = running.at(problem, 0).damped(0.1).function(lambda v: 1 / v)(vector)
    arrays = running.arrays(problem)
    again = Running(recipe, False, 1, True)
    again.read(problem, arrays, stale=False)
    np.testing.assert_allclose(again.at(problem, 0).damped(0.1).function(lambda v: 1 / v)(vector), expected, rtol=1e-12)
    assert again.passes == 0
    other = replace(problem, params={name: 1.1 * leaf for name, leaf in problem.params.items()})
    with pytest.raises(UsageError, match="other weights"):
        Running(recipe, False, 1, True).read(other, arrays, stale=False)
    Running(recipe, False, 1, True).read(other, arrays, stale=True)
    weighted = replace(problem, batches=replace(problem.batches, weight=1.5 * problem.batches.weight))
    with pytest.raises(UsageError, match="weights of the examples"):
        Running(recipe, False, 1, True).read(weighted, arrays, stale=False)
    with pytest.raises(UsageError, match=r"divided by 23\.0, and here it is divided by 1\.0"):
        Running(recipe, False, 1, True).read(replace(problem, normaliser=1.0), arrays, stale=False)
    with pytest.raises(DataError, match="gradients/a/kernel"):
        Running(recipe, False, 1, True).read(problem, {k: v for k, v in arrays.items() if k != "gradients/a/kernel"},
                                             stale=True)  # fmt: skip
