"""Responses of networks beside central differences of refits, which know nothing of linear systems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.losses import LOSSES
from curvcli.problem import Batches, Problem, Regulariser
from tests.analyses.minima import at_minimum, difference, run, scores, soft, with_shift, with_weight
from tests.problems import mlp_problem, token_problem

MODES = ("remove", "label_perturb", "input_perturb")
CHANGED = 5
"""The example that is changed."""


@cache
def network(loss: str = "softmax_cross_entropy") -> Problem:
    """A tanh MLP at a minimum, where its Hessian is not its GGN; weights a_n."""
    weight = np.random.default_rng(4).choice([0.5, 1.0, 2.0], 23)
    return at_minimum(mlp_problem(loss, l2=0.05, weight=weight))


@cache
def softmax() -> Problem:
    """Softmax regression with soft labels, whose rows sum to other numbers than 1."""
    rng, problem = np.random.default_rng(0), soft(mlp_problem(sizes=(4, 3), l2=0.02))
    mixed = 0.8 * problem.batches.targets + 0.2 * rng.dirichlet(np.ones(3), 23)
    mixed *= rng.choice([0.5, 1.0, 3.0], (23, 1))
    return at_minimum(replace(problem, batches=replace(problem.batches, targets=mixed)))


@cache
def tokens() -> Problem:
    """A network over sequences, about a third of whose tokens are masked."""
    return at_minimum(token_problem(l2=0.05))


def queries(problem: Problem) -> Batches:
    """A training example, so that a change also moves its own prediction, and others."""
    return problem.batches.chosen(np.array([CHANGED, 0, 2, 7]))


def close(found: np.ndarray, actual: np.ndarray, scale: np.ndarray | None = None) -> None:
    size = np.abs(found if scale is None else scale).max()
    assert size > 0
    np.testing.assert_allclose(found, actual, rtol=1e-6, atol=1e-6 * size)


def entry(problem: Problem, mode: str, place: tuple[int, ...]) -> Callable[[float], Problem]:
    """The problem with one example's weight, or one entry of its labels or inputs, changed by θ."""
    if mode == "remove":
        return lambda theta: with_weight(problem, place[0], 1 - theta)
    return lambda theta: with_shift(problem, "targets" if mode == "label_perturb" else "inputs", place, theta)


@pytest.mark.first_tier("remove-*", "label_perturb-loss", "input_perturb-margin")
@pytest.mark.parametrize("measure", ["loss", "output", "margin"])
@pytest.mark.parametrize("mode", MODES)
def test_scores_of_a_network(mode: str, measure: str) -> None:
    problem = network()
    found = scores(problem, queries(problem), measure=measure, matrix="hessian", **{mode: True})
    place = (CHANGED,) if mode == "remove" else (CHANGED, 1)
    changed = problem if mode != "label_perturb" else soft(problem)
    actual = difference(entry(changed, mode, place), queries(problem), measure)
    index = (slice(None),) * actual.ndim + place
    close(found[index], actual, found)


@pytest.mark.first_tier("poisson")
@pytest.mark.parametrize("loss", ["squared_error", "sigmoid_cross_entropy", "poisson"])
def test_scores_with_other_losses(loss: str) -> None:
    problem = network(loss)
    for mode, place in (("label_perturb", (CHANGED, 2)), ("remove", (CHANGED,))):
        found = scores(problem, queries(problem), matrix="hessian", **{mode: True})
        actual = difference(entry(problem, mode, place), queries(problem), "loss")
        close(found[(slice(None), *place)], actual)


@pytest.mark.slow
def test_soft_labels_of_softmax_regression() -> None:
    problem = softmax()
    asked = replace(queries(problem), targets=np.array([0, 2, 1, 1]))
    labels = scores(problem, asked, label_perturb=True)  # here the Hessian is the GGN
    inputs = scores(problem, asked, input_perturb=True)
    for n, c in ((CHANGED, 0), (0, 2), (11, 1)):
        close(labels[:, n, c], difference(entry(problem, "label_perturb", (n, c)), asked, "loss"))
    close(inputs[:, CHANGED, 3], difference(entry(problem, "input_perturb", (CHANGED, 3)), asked, "loss"))


@pytest.mark.slow
def test_tokens_with_a_mask() -> None:
    problem = tokens()
    asked, mask = queries(problem), problem.batches.weight
    sequence, token = CHANGED, int(np.flatnonzero(mask[CHANGED])[0])
    hidden = int(np.flatnonzero(mask[sequence] == 0)[0])
    labels = scores(problem, asked, label_perturb=True, matrix="hessian")
    assert labels.shape == (4, 9, 4, 5)
    assert not labels[:, sequence, hidden].any()
    close(
        labels[:, sequence, token, 3],
        difference(entry(soft(problem), "label_perturb", (sequence, token, 3)), asked, "loss"),
    )
    removal = scores(problem, asked, remove=True, matrix="hessian")
    close(removal[:, sequence], difference(entry(problem, "remove", (sequence,)), asked, "loss"))
    outputs = scores(problem, asked, remove=True, measure="output", matrix="hessian")
    assert outputs.shape == (4, 20, 9)
    close(outputs[..., sequence], difference(entry(problem, "remove", (sequence,)), asked, "output"))
    margin = scores(problem, asked, remove=True, measure="margin", matrix="hessian")
    close(margin[..., sequence], difference(entry(problem, "remove", (sequence,)), asked, "margin"))


# --- hyperparameters ------------------------------------------------------------------------------------


def smoothed(z: Any, t: Any, theta: Any) -> Any:
    """Labels moved towards the uniform distribution."""
    return LOSSES["softmax_cross_entropy"].value(z, (1 - theta) * t + theta / 3)


def quartic(params: Any, theta: Any) -> Any:
    return theta * sum(jnp.sum(leaf**4) for leaf in params.values())


def test_hyperparameters_of_a_network() -> None:
    problem = soft(network())
    labels, targets = problem.batches.targets.argmax(axis=1), problem.batches.targets
    asked = replace(queries(problem), targets=queries(network()).targets)
    names = ["l2", "class-weights", "loss:smoothed", "regulariser:quartic"]
    given = {"functions": {"loss:smoothed": smoothed, "regulariser:quartic": quartic}}
    found = run(problem, asked, hyper=names, matrix="hessian", given=given)
    change = {one.name: np.array(one.change) for one in found.result.responses}
    np.testing.assert_array_equal(found.arrays["change"], list(change.values()))

    def l2(theta: float) -> Problem:
        return replace(problem, regulariser=Regulariser(problem.regulariser.l2 + theta))

    def weights(theta: float) -> Problem:
        weight = problem.batches.weight * np.where(labels == 1, 1 + theta, 1)
        return replace(problem, batches=replace(problem.batches, weight=weight))

    def smoothing(theta: float) -> Problem:
        return replace(problem, batches=replace(problem.batches, targets=(1 - theta) * targets + theta / 3))

    def fourth(theta: float) -> Problem:
        term = replace(problem.regulariser, fn=lambda params: quartic(params, theta))
        return replace(problem, regulariser=term)

    close(change["l2"], difference(l2, asked, "loss"))
    close(change["class-weights 1"], difference(weights, asked, "loss"))
    close(change["loss:smoothed"], difference(smoothing, asked, "loss"))
    close(change["regulariser:quartic"], difference(fourth, asked, "loss", 1e-7))  # fourth powers of large weights
    assert sorted(change) == sorted([*names[:1], *(f"class-weights {k}" for k in range(3)), *names[2:]])


# --- the other direction ---------------------------------------------------------------------------------


def test_a_change_of_data_agrees_with_the_scores_and_with_refits() -> None:
    problem, rng = network(), np.random.default_rng(8)
    asked, shapes = queries(problem), {"remove": (23,), "label_perturb": (23, 3), "input_perturb": (23, 4)}
    for mode, shape in shapes.items():
        change = rng.normal(size=shape)
        found = run(problem, asked, perturb="x.npy", matrix="hessian", given={"change": change}, **{mode: True})
        by_scores = scores(problem, asked, matrix="hessian", **{mode: True}).reshape(4, -1) @ change.reshape(-1)
        # Scores are of an example taken away, Δa of one added.
        expected = -by_scores if mode == "remove" else by_scores
        np.testing.assert_allclose(found.arrays["change"][0], expected, rtol=1e-9, atol=1e-12)

        def moved(theta: float, mode: str = mode, change: np.ndarray = change) -> Problem:
            batches = soft(problem).batches if mode == "label_perturb" else problem.batches
            name = {"remove": "weight", "label_perturb": "targets", "input_perturb": "inputs"}[mode]
            leaf = getattr(batches, name)
            by = leaf * change if mode == "remove" else change
            return replace(problem, batches=replace(batches, **{name: leaf + theta * by}))

        close(found.arrays["change"][0], difference(moved, asked, "loss"))
        up, down = (at_minimum(moved(theta)).params for theta in (1e-5, -1e-5))
        for name in problem.params:
            close(found.arrays[f"dw/{name}"][0], (np.asarray(up[name]) - np.asarray(down[name])) / 2e-5)


@pytest.mark.slow
def test_each_iteration_of_conjugate_gradients_comes_nearer() -> None:
    problem, change = softmax(), np.random.default_rng(8).normal(size=(23, 3))
    settings = {"label_perturb": True, "perturb": "x.npy", "measure": "output", "given": {"change": change}}
    exact = run(problem, queries(problem), **settings).arrays["change"]
    found = run(problem, queries(problem), **settings, per_iteration=True, solver="cg", tol=1e-12).arrays
    trail = found["iterations"]
    assert not trail[0].any()
    np.testing.assert_allclose(trail[-1], exact[0], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found["change"], exact, rtol=1e-8, atol=1e-10)
    assert 2 < len(trail) <= 1 + 1.5 * problem.dim
