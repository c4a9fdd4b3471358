"""The same targets told otherwise give the same: class numbers and rows, scaled rows and weights, −∞ and −10⁴."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvcli.analyses.common.checks import finite_objective
from curvcli.curvature import along, build
from curvcli.curvature.influence import leverage, queries
from curvcli.curvature.products import sums
from curvcli.errors import NumericsError
from curvcli.losses import LOSSES
from curvcli.problem import Problem
from tests.problems import dense_matrix, make_problem, mlp, mlp_params, mlp_problem

SOFTMAX = "softmax_cross_entropy"
COUNT, CLASSES = 23, 4
MATRICES = (
    "hessian",
    "ggn",
    "gauss-newton",
    "fisher",
    "fisher-mc",
    "empirical-fisher",
    "gradient-covariance",
    "residual",
)
RNG = np.random.default_rng(0)
ALLOWED = RNG.random((COUNT, CLASSES)) < 0.6
ALLOWED[np.arange(COUNT), RNG.integers(0, CLASSES, COUNT)] = True
ALLOWED[0] = [False, True, False, False]
ALLOWED[4] = [True, False, True, True]
LABELS = np.array([RNG.choice(np.flatnonzero(row)) for row in ALLOWED]).astype(np.int32)
CLOSE: Any = {"rtol": 1e-10, "atol": 1e-12}


def masking(targets: Any, low: float, loss: str = SOFTMAX, **rest: Any) -> Problem:
    """A network whose outputs are `low` where they are not allowed."""
    inputs = {"x": np.random.default_rng(2).normal(size=(COUNT, 3)), "allowed": ALLOWED}

    def predict(params: dict, inputs: Any) -> Any:
        return jnp.where(inputs["allowed"], mlp(params, inputs["x"]), low)

    problem = make_problem(predict, mlp_params((3, 4, CLASSES)), inputs["x"], targets, loss, **rest)
    return replace(problem, batches=replace(problem.batches, inputs=inputs))


def dense(problem: Problem, name: str) -> np.ndarray:
    return np.asarray(build(problem, name, mc_samples=3, seed=5).matmat(np.eye(problem.dim)))


# --- classes that are ruled out ---------------------------------------------------------------------------


@pytest.mark.first_tier("gauss-newton", "kfac")
@pytest.mark.parametrize("name", [*MATRICES, "kfac"])
def test_ruled_out_classes(name: str) -> None:
    """Class numbers and rows; the truth is that of finite logits, e^−10⁴ being 0."""
    rows = np.eye(CLASSES)[LABELS]
    expected = truth(masking(rows, -1e4), name)
    for targets in (LABELS, rows):
        np.testing.assert_allclose(dense(masking(targets, -np.inf), name), expected, **CLOSE)


@pytest.mark.parametrize("name", ["hessian", "empirical-fisher"])
def test_smooth_labels_of_the_classes_that_are_allowed(name: str) -> None:
    rows = 0.9 * np.eye(CLASSES)[LABELS] + 0.1 * ALLOWED / ALLOWED.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(dense(masking(rows, -np.inf), name), truth(masking(rows, -1e4), name), **CLOSE)


def truth(problem: Problem, name: str) -> np.ndarray:
    """By explicit Jacobians; of what is drawn, and of factors, the matrix itself at finite outputs."""
    if name in ("fisher", "fisher-mc", "kfac"):
        return dense(problem, name)
    x, allowed = problem.batches.inputs["x"], problem.batches.inputs["allowed"]

    def predict(params: dict, frozen: dict, inputs: Any) -> Any:
        return problem.predict(params, frozen, {"x": inputs[:, :3], "allowed": inputs[:, 3:] > 0.5})

    batches = replace(problem.batches, inputs=np.concatenate([x, allowed], axis=1))
    return dense_matrix(replace(problem, predict=predict, batches=batches), name)


def test_a_unit_without_weight_may_rule_out_every_class() -> None:
    weight = np.ones(COUNT)
    weight[3] = 0
    problem = masking(np.eye(CLASSES)[LABELS], -np.inf, weight=weight)
    nothing = np.array(ALLOWED)
    nothing[3] = False
    empty = replace(problem, batches=replace(problem.batches, inputs={**problem.batches.inputs, "allowed": nothing}))
    for name in MATRICES:
        np.testing.assert_allclose(dense(empty, name), dense(problem, name), **CLOSE)


@pytest.mark.parametrize(
    "targets", [np.where(np.arange(COUNT) == 4, ALLOWED[4].argmin(), LABELS), np.full((COUNT, CLASSES), 0.25)]
)
def test_mass_on_a_class_that_is_ruled_out_is_an_infinite_loss(targets: np.ndarray) -> None:
    problem = masking(targets, -np.inf)
    first = int(np.flatnonzero(~ALLOWED.all(axis=1))[0]) if targets.ndim > 1 else 4
    with pytest.raises(NumericsError, match=f"row {first} has mass on what the model rules out"):
        finite_objective(problem)
    weight = np.ones(COUNT)
    weight[4] = 0
    if targets.ndim == 1:
        finite_objective(replace(problem, batches=replace(problem.batches, weight=weight)))


@pytest.mark.first_tier("sigmoid_cross_entropy-ggn", "poisson-hessian", "poisson-fisher-mc")
@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher-mc", "empirical-fisher", "residual"])
@pytest.mark.parametrize("loss", ["sigmoid_cross_entropy", "poisson"])
def test_infinite_outputs_that_targets_agree_with(loss: str, name: str) -> None:
    """A logit of −∞ whose label is 0 (of +∞: 1), a log-rate of −∞ whose count is 0; truth: at large finite outputs."""
    targets = np.where(ALLOWED, np.random.default_rng(1).integers(0, 2, ALLOWED.shape), 0).astype(float)
    expected = truth(masking(targets, -1e4, loss), name)
    np.testing.assert_allclose(dense(masking(targets, -np.inf, loss), name), expected, **CLOSE)
    if loss == "sigmoid_cross_entropy":
        targets = np.where(ALLOWED, targets, 1)
        expected = truth(masking(targets, 1e4, loss), name)
        np.testing.assert_allclose(dense(masking(targets, np.inf, loss), name), expected, **CLOSE)
    with pytest.raises(NumericsError, match="rules out"):
        finite_objective(masking(np.full(ALLOWED.shape, 0.5), -np.inf, loss))


def test_outputs_that_stay_infinite_have_not_moved() -> None:
    vector = jnp.asarray(0.1 * np.random.default_rng(1).normal(size=masking(LABELS, -np.inf).dim))
    for low in (-1e4, -np.inf):
        rms, kl = along.function_change(masking(LABELS, low), vector)
        expected = along.function_change(masking(np.eye(CLASSES)[LABELS], -1e4), vector)
        np.testing.assert_allclose((rms, kl), expected, **CLOSE)


@pytest.mark.parametrize("measure", ["loss", "margin"])
def test_measures_and_margins(measure: Any) -> None:
    """The margin of the only class that is allowed, as in row 0, does not move."""
    numbers, rows, far = masking(LABELS, -np.inf), masking(np.eye(CLASSES)[LABELS], -np.inf), masking(LABELS, -1e4)
    found = np.asarray(queries.gradients(numbers, numbers.batches, measure))
    np.testing.assert_allclose(queries.gradients(rows, rows.batches, measure), found, **CLOSE)
    expected = np.asarray(queries.gradients(far, far.batches, measure))
    certain = ALLOWED.sum(axis=1) == 1
    np.testing.assert_allclose(found[~certain], expected[~certain], **CLOSE)
    assert certain[0]
    assert not found[certain].any()


# --- rows that do not sum to 1 ----------------------------------------------------------------------------


def scaled(**rest: Any) -> tuple[Problem, Problem]:
    """Rows that sum to s_n; and rows that sum to 1 with the weights s_n, M the same."""
    rng = np.random.default_rng(3)
    shares, sizes = rng.dirichlet(np.ones(CLASSES), COUNT), rng.choice([0.25, 1.0, 2.0, 5.0], COUNT)
    make = partial(mlp_problem, SOFTMAX, sizes=(3, 4, CLASSES), count=COUNT)
    rows, weights = make(**rest), make(weight=sizes, **rest)
    return (
        replace(rows, batches=replace(rows.batches, targets=shares * sizes[:, None])),
        replace(weights, batches=replace(weights.batches, targets=shares)),
    )


@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher", "fisher-mc", "residual", "gradient-covariance", "kfac"])
def test_a_row_of_sum_s_is_a_row_of_weight_s(name: str) -> None:
    rows, weights = scaled()
    found = dense(rows, name)
    np.testing.assert_allclose(found, dense(weights, name), **CLOSE)
    if name not in ("fisher", "fisher-mc", "kfac"):
        np.testing.assert_allclose(found, dense_matrix(rows, name), **CLOSE)


@pytest.mark.parametrize("name", ["empirical-fisher", "gauss-newton"])
def test_what_is_not_the_same_of_a_sum_and_a_weight(name: str) -> None:
    """Squares of gradients have s², the classical Gauss–Newton matrix has neither."""
    rows, weights = scaled()
    np.testing.assert_allclose(dense(rows, name), dense_matrix(rows, name), **CLOSE)
    assert np.abs(dense(rows, name) - dense(weights, name)).max() > 1e-3


def test_objective_and_draws_of_rows_and_weights() -> None:
    rows, weights = scaled()
    assert sums.objective(rows) == pytest.approx(sums.objective(weights), rel=1e-13)
    for name in ("ggn", "fisher"):
        drawn = [leverage.draw(one, name, 0.1, 0, 0, 5) for one in (rows, weights)]
        np.testing.assert_allclose(*drawn, **CLOSE)


# --- any rows ---------------------------------------------------------------------------------------------


@st.composite
def units(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits, some of them −∞, and rows of targets with mass on the others alone."""
    size = draw(st.sampled_from([2, 5]))
    number = st.floats(-30, 30)
    z = np.array(draw(st.lists(st.one_of(st.just(-np.inf), number), min_size=size, max_size=size)))
    if np.isinf(z).all():
        z[draw(st.integers(0, size - 1))] = draw(number)
    mass = np.array(draw(st.lists(st.floats(0, 3), min_size=size, max_size=size)))
    return z, np.where(np.isinf(z), 0, mass)


@settings(max_examples=60, deadline=None)
@given(units())
def test_softmax_of_any_rows(unit: tuple[np.ndarray, np.ndarray]) -> None:
    """Loss, gradient and Hessian by their formulas; of one class all three as of its number."""
    z, t = unit
    possible, s = np.isfinite(z), t.sum()
    shift = z[possible].max()
    log_p = np.where(possible, z - shift - np.log(np.sum(np.exp(z[possible] - shift))), -np.inf)
    p = np.exp(log_p)
    value, slope, hessian, product = expansion(SOFTMAX, jnp.asarray(z[None]), jnp.asarray(t[None]))
    scale = 1e-12 * max(1, s)
    np.testing.assert_allclose(value, -np.sum(t[possible] * log_p[possible]), rtol=1e-12, atol=30 * scale)
    np.testing.assert_allclose(slope, s * p - t, rtol=1e-11, atol=scale)
    np.testing.assert_allclose(hessian, s * (np.diag(p) - np.outer(p, p)), rtol=1e-10, atol=scale)
    np.testing.assert_allclose(product, s * (np.diag(p) - np.outer(p, p)), rtol=1e-10, atol=scale)
    label = int(np.flatnonzero(possible)[0])
    told = [jnp.asarray([label], jnp.int32), jnp.eye(len(z))[None, label]]
    for number, row in zip(*(expansion(SOFTMAX, jnp.asarray(z[None]), one) for one in told), strict=True):
        np.testing.assert_allclose(number, row, rtol=1e-13, atol=1e-15)


@partial(jax.jit, static_argnums=0)
def expansion(name: str, z: Any, t: Any) -> Any:
    """Loss, gradient and Hessian of one unit, [1, C], and the Hessian in closed form."""

    def value(z: Any) -> Any:
        return LOSSES[name].value(z, t)[0]

    product = jax.vmap(lambda dz: LOSSES[name].hessian_product(z, t, dz[None])[0])  # type: ignore[misc]
    return value(z), jax.grad(value)(z)[0], jax.hessian(value)(z)[0, :, 0], product(jnp.eye(z.shape[1]))


@settings(max_examples=60, deadline=None)
@given(st.floats(-40, 40) | st.sampled_from([-np.inf, np.inf]), st.floats(0, 1))
def test_sigmoid_and_poisson_of_any_unit(z: float, t: float) -> None:
    """Digits are kept where the label is fitted well; where both are certain the loss and its derivatives are 0."""
    if np.isinf(z):
        t = float(z > 0)
    with np.errstate(invalid="ignore"):
        parts = [(1 - t) * np.logaddexp(0, z) if t < 1 else 0.0, t * np.logaddexp(0, -z) if t > 0 else 0.0]
    sigma = [1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))]
    value, slope, *hessians = expansion("sigmoid_cross_entropy", jnp.asarray([[z]]), jnp.asarray([[t]]))
    np.testing.assert_allclose(value, sum(parts), rtol=1e-13)
    np.testing.assert_allclose(slope, [(1 - t) * sigma[0] - t * sigma[1]], rtol=1e-12, atol=1e-16)
    for hessian in hessians:
        np.testing.assert_allclose(hessian, [[sigma[0] * sigma[1]]], rtol=1e-12, atol=1e-300)
    if z < np.inf:
        expected = np.exp(z) - (t * z if t else 0), np.exp(z) - t, np.exp(z)
        for found, number in zip(expansion("poisson", jnp.asarray([[z]]), jnp.asarray([[t]])), expected, strict=False):
            np.testing.assert_allclose(np.ravel(found)[0], number, rtol=1e-12)
