"""Refits against exact ones: hat matrices, leave-one-out, dense Newton iterations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from curvcli.analyses.influence.refits import Change, choose_examples, verify
from curvcli.curvature.flatten import Layout
from curvcli.curvature.influence import queries
from curvcli.linalg.iterate import Silent
from curvcli.problem import Batches, Problem
from curvcli.schema.settings import AnalysisSettings
from curvcli.schema.verification import Verification
from tests.monitors import StopAfter, collected_compilations
from tests.problems import dense_hessian, dense_objective, flat_params, make_problem, mlp_problem, token_problem

N, L2 = 12, 0.05
RNG = np.random.default_rng(0)
X, T, AT = RNG.normal(size=(N, 4)), RNG.normal(size=(N, 1)), RNG.normal(size=(5, 4))


def linear(params: dict, x: Any) -> Any:
    return x @ params["w"]


def regression(loss: str = "squared_error", targets: Any = T, **rest: Any) -> Problem:
    classes = targets.shape[1] if targets.ndim > 1 else 3
    start = np.random.default_rng(1).normal(size=(4, classes))
    return make_problem(linear, {"w": start}, X, targets, loss, **{"l2": L2, **rest})


def asking(problem: Problem, inputs: np.ndarray = AT, targets: Any = None) -> Batches:
    """Query examples; their targets are zeros of the problem's kind where the measure does not need them."""
    own = np.asarray(problem.batches.targets)
    targets = np.zeros((len(inputs), *own.shape[1:]), own.dtype) if targets is None else targets
    return Batches(inputs, targets, np.ones(len(inputs)), 3, problem.dtype)


def run(
    problem: Problem, changes: Sequence[Change], predicted: Any = None, *,
    asked: Batches | None = None, measure: queries.Measure = "output", monitor: Any = None, **rest: Any,
) -> Verification:  # fmt: skip
    asked = asking(problem) if asked is None else asked
    if predicted is None:
        outputs = len(queries.values(problem, asked, measure).reshape(-1))
        predicted = np.zeros((len(changes), outputs))
    rest = {"rtol": 1e-9, **rest}
    return verify(problem, asked, measure, changes, predicted, AnalysisSettings(), monitor or Silent(), **rest)


def dense_newton(problem: Problem) -> Callable[[Any, Any], tuple[Any, Any]]:
    """A step on the dense objective, and the gradient before it, as a function of w [D] and the examples' weights."""

    def step(flat: Any, weight: Any) -> tuple[Any, Any]:
        objective = dense_objective(replace(problem, batches=replace(problem.batches, weight=weight)))
        gradient = jax.grad(objective)(flat)
        return flat - jnp.linalg.solve(jax.hessian(objective)(flat), gradient), gradient

    return jax.jit(step)


def refits(problem: Problem, examples: Sequence[int], starts: Any = None) -> list[dict[str, Any]]:
    """Weights at the minimum nearby, and at those without each of the examples."""
    step, layout, found = dense_newton(problem), Layout.of(problem.params), []
    flat = flat_params(problem) if starts is None else starts
    for example in (None, *examples):
        weight = np.array(problem.batches.weight)
        if example is not None:
            weight[example] = 0
        own = flat
        for _ in range(12):
            own, gradient = step(own, weight)
        assert np.linalg.norm(gradient) < 1e-13
        flat = own if example is None else flat
        found.append(layout.unravel(own))
    return found


def near_minimum(problem: Problem) -> Any:
    """Weights [D] from which Newton's method converges; a network's Hessian has negative eigenvalues further off."""
    value_and_grad = jax.jit(jax.value_and_grad(dense_objective(problem)))
    found = scipy.optimize.minimize(
        lambda w: tuple(np.asarray(one) for one in value_and_grad(w)), flat_params(problem), jac=True,
        options={"gtol": 1e-6},
    )  # fmt: skip
    return jnp.asarray(found.x)


def removals(*examples: int) -> list[Change]:
    return [Change(n, "remove") for n in examples]


# --- ridge regression: closed forms --------------------------------------------------------------------------

A_INVERSE = np.linalg.inv(X.T @ X / N + L2 * np.eye(4))
FITTED = X @ A_INVERSE @ X.T @ T / N


def test_removal_is_exact_leave_one_out() -> None:
    """Sherman and Morrison: influence over 1 − h_nn."""
    examples = [0, 3, 4, 7, 11]
    leverage = np.diag(X @ A_INVERSE @ X.T) / N
    influence = (AT @ A_INVERSE @ X.T / N * (FITTED - T)[:, 0]).T
    found = run(regression(), removals(*examples), influence[examples])
    expected = (influence / (1 - leverage[:, None]))[examples]
    np.testing.assert_allclose(found.actual, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())
    assert found.examples == examples
    assert found.converged == found.asked == 5
    # The prediction leaves the leverage out: it orders the examples nearly right, and falls short of them all.
    assert found.pearson.value > 0.9
    assert found.slope.value > 1


def test_label_moves_are_the_hat_matrix() -> None:
    moves = [0.3, -2.0, 1.0, 0.01]
    changes = [Change(n, "label-perturb", np.array([move])) for n, move in enumerate(moves)]
    expected = (AT @ A_INVERSE @ X.T / N).T[:4] * np.array(moves)[:, None]
    found = run(regression(), changes, expected)
    np.testing.assert_allclose(found.actual, expected, rtol=1e-8, atol=1e-10)
    assert found.slope.value == pytest.approx(1, rel=1e-8)
    assert found.pearson.value == pytest.approx(1, rel=1e-8)
    assert found.spearman.value == pytest.approx(1, rel=1e-8)
    assert found.slope.samples == 4


def test_input_moves() -> None:
    changes = [Change(n, "input-perturb", 0.5 * RNG.normal(size=4)) for n in range(3)]
    found = run(regression(), changes)
    for change, actual in zip(changes, found.actual, strict=True):
        x = X.copy()
        x[change.example] += change.by
        after = np.linalg.solve(x.T @ x / N + L2 * np.eye(4), x.T @ T / N)
        np.testing.assert_allclose(actual, (AT @ (after - A_INVERSE @ X.T @ T / N)).ravel(), rtol=1e-8, atol=1e-10)


def test_the_control_says_how_far_the_checkpoint_was_from_a_minimum() -> None:
    problem = regression()
    minimum = A_INVERSE @ X.T @ T / N
    found = run(problem, removals(0, 1, 2))
    moved = (AT @ (minimum - problem.params["w"])).ravel()
    assert found.control.converged
    assert found.control.rms_change == pytest.approx(np.sqrt(np.mean(moved**2)), rel=1e-8)
    assert found.control.largest_change == pytest.approx(np.abs(moved).max(), rel=1e-8)
    assert found.control.distance == pytest.approx(np.linalg.norm(minimum - problem.params["w"]), rel=1e-8)
    objective = dense_objective(problem)
    drop = objective(jnp.asarray(minimum.ravel())) - objective(flat_params(problem))
    assert found.control.loss_change == pytest.approx(float(drop), rel=1e-8)
    assert found.control.gradient_after <= found.control.gradient_tolerance < found.control.gradient_before
    assert all(one.gradient_after <= one.gradient_tolerance < one.gradient_before for one in found.refits)
    assert found.evaluations >= found.control.evaluations + sum(one.evaluations for one in found.refits)


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_batches_do_not_matter(batch_size: int) -> None:
    changes = [*removals(2, 8), Change(5, "label-perturb", np.array([1.0]))]
    whole, cut = (run(regression(batch_size=size), changes) for size in (7, batch_size))
    np.testing.assert_allclose(cut.actual, whole.actual, rtol=1e-8, atol=1e-10)


def test_a_float32_analysis_is_refitted_in_float64() -> None:
    with jax.enable_x64(False):
        problem = regression(dtype="float32")
        found = run(problem, removals(*range(5)))
        assert next(iter(problem.params.values())).dtype == "float32"
    np.testing.assert_allclose(found.actual, run(regression(), removals(*range(5))).actual, rtol=1e-8, atol=1e-10)


# --- other losses ------------------------------------------------------------------------------------------


MEASURES: tuple[queries.Measure, ...] = ("loss", "output", "margin")


@pytest.mark.first_tier("sigmoid_cross_entropy")
@pytest.mark.parametrize("loss", ["sigmoid_cross_entropy", "softmax_cross_entropy"])
def test_removal_from_logistic_regressions(loss: str) -> None:
    targets = RNG.integers(0, 2, (N, 1)).astype(float) if loss.startswith("sigmoid") else np.arange(N) % 3
    problem, examples = regression(loss, targets), (0, 5, 9)
    asked = asking(problem, targets=targets[:5])
    base, *without = refits(problem, examples)
    for measure in MEASURES:
        before = queries.values(problem, asked, measure, base)
        expected = [(queries.values(problem, asked, measure, one) - before).ravel() for one in without]
        found = run(problem, removals(*examples), asked=asked, measure=measure)
        np.testing.assert_allclose(found.actual, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_class_numbers_move_as_soft_labels_do() -> None:
    """Central differences of refits are the derivative (1/M) H⁻¹ ∇_w z_c."""
    problem = regression("softmax_cross_entropy", np.arange(N) % 3)
    problem = replace(problem, params=refits(problem, ())[0])
    move, step = np.array([1.0, -1.0, 0.0]), 1e-3
    both = [Change(n, "label-perturb", sign * step * move) for n in (1, 6) for sign in (1, -1)]
    actual = np.array(run(problem, both).actual).reshape(2, 2, -1)
    inverse = np.linalg.inv(dense_hessian(problem))
    for n, (ahead, behind) in zip((1, 6), actual, strict=True):
        response = (inverse @ np.kron(X[n], move) / N).reshape(4, 3)
        np.testing.assert_allclose((ahead - behind) / (2 * step), (AT @ response).ravel(), rtol=1e-4, atol=1e-6)


@pytest.mark.nightly
def test_a_network_follows_its_response() -> None:
    """Small moves of labels, so that the linear response holds."""
    problem = mlp_problem(count=40, l2=0.02, batch_size=16)
    problem = replace(problem, params=refits(problem, (), near_minimum(problem))[0])
    asked, examples, move = asking(problem), list(range(0, 40, 4)), np.array([0.001, -0.001, 0.0])
    own = replace(problem.batches, inputs=problem.batches.inputs[examples], targets=problem.batches.targets[examples])
    own = replace(own, weight=np.ones(10))
    outputs = [np.asarray(queries.gradients(problem, one, "output")) for one in (own, asked)]
    towards = np.einsum("nod,o->nd", outputs[0].reshape(10, 3, -1), move)
    predicted = towards @ np.linalg.inv(dense_hessian(problem)) @ outputs[1].T / 40
    found = run(problem, [Change(n, "label-perturb", move) for n in examples], predicted, asked=asked, rtol=1e-6)
    assert found.control.largest_change < 1e-8
    assert found.converged == 10
    assert found.pearson.value > 0.999
    assert found.spearman.value > 0.99
    assert found.slope.interval[0] <= found.slope.value <= found.slope.interval[1]
    assert found.slope.value == pytest.approx(1, abs=0.005)


def tokens() -> Problem:
    problem = token_problem(l2=0.1, batch_size=4)
    return replace(problem, params=Layout.of(problem.params).unravel(near_minimum(problem)))


def test_a_sequence_goes_with_all_its_tokens() -> None:
    problem, examples = tokens(), (0, 4, 8)
    before, *without = (queries.values(problem, problem.batches, "loss", one) for one in refits(problem, examples))
    found = run(problem, removals(*examples), asked=problem.batches, measure="loss")
    np.testing.assert_allclose(found.actual, np.array(without) - before, rtol=1e-6, atol=1e-9)


def test_what_is_masked_moves_nothing() -> None:
    problem = tokens()
    move = np.where(problem.batches.weight[3][:, None] == 0, 1.0, 0.0) * np.array([1.0, -1, 0, 0, 0])
    assert move.any()
    changes = [Change(3, "label-perturb", move), Change(4, "label-perturb", 0.1 * np.eye(5)[:4])]
    found = run(problem, changes, asked=problem.batches, measure="loss")
    assert not np.any(found.actual[0])
    assert np.abs(found.actual[1]).max() > 1e-4
    assert found.converged == 2


# --- what ends it, what it costs ---------------------------------------------------------------------------


def test_no_program_is_compiled_for_later_refits() -> None:
    problem = regression("softmax_cross_entropy", np.arange(N) % 3, batch_size=5)
    asked, compiled = asking(problem), []
    for kind in ([Change(n, "label-perturb", np.array([1.0, -1, 0])) for n in range(6)], removals(*range(6))):
        run(problem, kind[:3], asked=asked, rtol=1e-3)
        with jax.log_compiles(), collected_compilations(compiled):
            run(problem, kind[3:], asked=asked, rtol=1e-3)
    assert compiled == []


def test_a_stopped_run_answers_with_what_it_has() -> None:
    problem, changes = regression(), removals(*range(8))
    whole = run(problem, changes)
    cost = whole.evaluations - sum(one.evaluations for one in whole.refits[4:])
    part = run(problem, changes, monitor=StopAfter(cost + 1))
    assert part.examples == whole.examples[:4]
    assert part.actual == whole.actual[:4]
    assert part.asked == 8
    assert part.pearson is None  # nothing was predicted to vary
    assert part.slope is None


@pytest.mark.parametrize("questions", [0, 1, 15])
def test_a_run_stopped_at_once_has_no_control(questions: int) -> None:
    found = run(regression(), removals(*range(8)), monitor=StopAfter(questions))
    assert found.control is None
    assert found.examples == found.actual == []
    assert found.pearson is None
    assert found.evaluations == questions + 1


def test_refits_that_do_not_converge_are_counted() -> None:
    problem = regression("softmax_cross_entropy", np.arange(N) % 3)
    found = run(problem, removals(0, 1, 2), budget=3)
    assert not found.control.converged
    assert found.converged == 0
    assert len(found.refits) == 3
    assert all(one.gradient_after > one.gradient_tolerance for one in found.refits)


def test_choice_of_examples() -> None:
    scores = np.zeros((2, 3, 50))
    scores[0, 1, [7, 31, 40]] = [-5.0, 4.0, 3.0]
    chosen = choose_examples(scores, 6, seed=0)
    assert chosen[:3] == [7, 31, 40]
    assert len(set(chosen)) == 6
    assert chosen == choose_examples(scores, 6, seed=0)
    assert chosen[3:] != choose_examples(scores, 6, seed=1)[3:]
    assert sorted(choose_examples(scores, 80, seed=0)) == list(range(50))
    assert choose_examples(scores, 1, seed=0) == [7]


def test_the_drawn_half_is_drawn_evenly() -> None:
    scores = np.r_[np.full(2, 9.0), np.zeros(8)]
    drawn = np.concatenate([choose_examples(scores, 4, seed)[2:] for seed in range(200)])
    assert np.bincount(drawn, minlength=10)[2:].min() > 25  # 50 each are expected
