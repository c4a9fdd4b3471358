"""Matrices side by side, against the same written down densely."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.analyses.common.context import Context
from curvcli.analyses.compare import analysis as compare
from curvcli.analyses.compare.candidates import candidates
from curvcli.curvature import build
from curvcli.curvature.flatten import Layout
from curvcli.curvature.products import sums
from curvcli.errors import SpecError, UsageError
from curvcli.linalg.iterate import Silent
from curvcli.linalg.meter import Meter
from curvcli.linalg.operator import to_dense
from curvcli.losses import user_loss
from curvcli.problem import Problem
from curvcli.schema.compare import CompareSettings
from tests.problems import dense_matrix, make_problem, mlp_problem

EPS = float(np.finfo("float64").eps)
L2 = 0.01
PROBLEM = mlp_problem(l2=L2)
NAMES = ["hessian", "ggn", "empirical-fisher", "kfac", "ekfac", "diagonal"]


def compared(problem: Problem = PROBLEM, **asked: Any) -> Any:
    settings = CompareSettings(**{"dtype": "float64", "skip_checks": True, **asked})
    return compare.run(Context(problem, Silent()), settings)


def dense(problem: Problem = PROBLEM, l2: float = L2) -> dict[str, np.ndarray]:
    """The matrices from explicit Jacobians; of K-FAC, which has tests of its own, the products."""
    eye = l2 * np.eye(problem.dim)
    ggn = dense_matrix(problem, "ggn")
    return {
        "hessian": dense_matrix(problem, "hessian") + eye,
        "ggn": ggn + eye,
        "empirical-fisher": dense_matrix(problem, "empirical-fisher"),
        **{name: to_dense(build(problem, name, factors="exact")) for name in ("kfac", "ekfac")},
        "diagonal": np.diag(np.diag(ggn)) + eye,
    }


def test_everything_follows_from_the_matrices_written_down() -> None:
    answer, full = compared(damping=0.1, k=3), dense()
    result = answer.result
    assert (result.method, result.matrices) == ("dense", NAMES)
    for name, matrix in full.items():
        values = np.linalg.eigvalsh(matrix)
        assert result.traces[name].value == pytest.approx(np.trace(matrix), rel=1e5 * EPS)
        assert result.frobenius_norms[name].value == pytest.approx(np.linalg.norm(matrix), rel=1e5 * EPS)
        assert result.traces[name].method == "exact"
        found = [one.value for one in result.top_eigenvalues[name]]
        np.testing.assert_allclose(found, values[::-1][:3], rtol=1e-9)
    for one in result.distances:
        a, b = full[one.a], full[one.b]
        apart = np.linalg.norm(a - b)
        assert one.absolute.value == pytest.approx(apart, rel=1e-9)
        assert one.relative_to_a.value == pytest.approx(apart / np.linalg.norm(a), rel=1e-9)
        assert one.relative_to_b.value == pytest.approx(apart / np.linalg.norm(b), rel=1e-9)
        cosine = np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
        assert one.alignment.value == pytest.approx(cosine, rel=1e-9)
    for one in result.overlaps:
        a, b = (np.linalg.eigh(full[name])[1][:, ::-1] for name in (one.a, one.b))
        for size, share in enumerate(one.subspaces, 1):
            assert share == pytest.approx(np.sum((a[:, :size].T @ b[:, :size]) ** 2) / size, rel=1e-6)


def gradient_of(problem: Problem) -> np.ndarray:
    return np.asarray(sums.objective_and_gradient(problem, Layout.of(problem.params))[1])


@pytest.mark.first_tier("dense")
@pytest.mark.parametrize("method", ["dense", "sampled"])
def test_steps_have_the_regulariser_in_every_matrix(method: str) -> None:
    full = dense()
    full["empirical-fisher"] = full["empirical-fisher"] + L2 * np.eye(PROBLEM.dim)
    gradient, damping = gradient_of(PROBLEM), 1.0  # more than the Hessian's lowest eigenvalue
    found = compared(damping=damping, method=method, probes=8, tol=1e-10).result.step_angles
    steps = {name: -np.linalg.solve(full[name] + damping * np.eye(PROBLEM.dim), gradient) for name in NAMES}
    assert found.gradient_norm == pytest.approx(np.linalg.norm(gradient))
    for one in found.steps:
        step = steps[one.name]
        assert one.norm == pytest.approx(np.linalg.norm(step), rel=1e-6)
        assert one.gradient_cosine == pytest.approx(-step @ gradient / one.norm / found.gradient_norm, rel=1e-6)
        assert one.solve.status == "converged"
        assert one.solve.residual <= 2e-10
    for pair in found.pairs:
        a, b = steps[pair.a], steps[pair.b]
        assert pair.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-6)
        assert pair.norm_ratio == pytest.approx(np.linalg.norm(a) / np.linalg.norm(b), rel=1e-6)


def test_sampled_answers_are_within_their_errors_of_the_exact_ones() -> None:
    """Six standard errors; how often the intervals hold is tested where they are made."""
    exact = compared(k=2).result
    answer = compared(k=2, method="sampled", probes=16, tol=1e-9)
    found = answer.result
    assert found.method == "sampled"
    assert 0 < found.known_vectors <= 6 * 3
    for name in NAMES:
        for field in ("traces", "frobenius_norms"):
            one, true = getattr(found, field)[name], getattr(exact, field)[name].value
            assert abs(one.value - true) <= 6 * one.stderr + 1e-9 * true
        assert (found.traces[name].method == "exact") == (name in ("kfac", "ekfac", "diagonal"))
    widths = []
    for one, true in zip(found.distances, exact.distances, strict=True):
        for field in ("absolute", "relative_to_a", "relative_to_b", "alignment"):
            estimate, value = getattr(one, field), getattr(true, field).value
            assert abs(estimate.value - value) <= 6 * estimate.stderr + 1e-9, (one.a, one.b, field)
        widths.append(one.relative_to_a.interval[1] - one.relative_to_a.interval[0])
    assert max(widths) > 0
    for one, true in zip(found.overlaps, exact.overlaps, strict=True):
        assert one.subspaces == pytest.approx(true.subspaces, abs=1e-5)


@pytest.mark.nightly
def test_rtol_draws_until_the_distances_are_known() -> None:
    few = compared(method="sampled", probes=4, k=1).result
    answer = compared(method="sampled", rtol=0.05, k=1)
    widths = [0.5 * (d.relative_to_a.interval[1] - d.relative_to_a.interval[0]) for d in answer.result.distances]
    assert max(widths) <= 0.05
    assert max(0.5 * (d.relative_to_a.interval[1] - d.relative_to_a.interval[0]) for d in few.distances) > 0.05
    stopped = compared(method="sampled", rtol=1e-6, probes=20, k=1)
    assert any("--rtol 1e-06 was not reached with 20 probes" in one for one in stopped.warnings)


def linear_problem(loss: str = "squared_error", **rest: Any) -> Problem:
    """One linear layer with a bias, where K-FAC's independence is no assumption for squared error."""
    return mlp_problem(loss, sizes=(4, 3), **rest)


@pytest.mark.first_tier("dense")
@pytest.mark.parametrize("method", ["dense", "sampled"])
def test_a_linear_layer_has_one_matrix(method: str) -> None:
    problem = linear_problem(l2=0.1)
    found = compared(problem, matrices="hessian,ggn,kfac,ekfac", method=method, probes=8, k=1).result
    assert found.matrices == ["hessian", "ggn", "kfac", "ekfac"]
    for one in found.distances:
        assert one.relative_to_a.value < 1e-12
        assert one.alignment.value == pytest.approx(1)
    assert all(pair.cosine == pytest.approx(1) for pair in found.step_angles.pairs)


def test_one_datum_of_one_layer_is_a_kronecker_product() -> None:
    problem = linear_problem("softmax_cross_entropy", count=1)
    found = compared(problem, matrices="ggn,kfac,ekfac", damping=0.1).result
    assert max(one.relative_to_a.value for one in found.distances) < 1e-12


def test_ekfac_has_the_trace_of_the_ggn() -> None:
    found = compared(method="sampled", probes=4).result.traces
    assert found["ekfac"].value == pytest.approx(np.trace(dense()["ggn"]), rel=1e-10)
    assert found["diagonal"].value == pytest.approx(found["ekfac"].value, rel=1e-10)


def test_another_normaliser_changes_scales_alone() -> None:
    plain = mlp_problem()
    mean, total = compared(plain).result, compared(replace(plain, normaliser=1.0)).result
    for name in NAMES:
        assert total.traces[name].value == pytest.approx(plain.normaliser * mean.traces[name].value)
    for one, other in zip(mean.distances, total.distances, strict=True):
        assert one.relative_to_a.value == pytest.approx(other.relative_to_a.value)
        assert one.alignment.value == pytest.approx(other.alignment.value)
    for one, other in zip(mean.step_angles.steps, total.step_angles.steps, strict=True):
        assert one.norm == pytest.approx(other.norm)  # the damping scales with the GGN


def test_the_fisher_of_a_known_loss_is_not_computed_twice() -> None:
    found = compared(matrices="ggn,fisher,kfac").result
    assert found.matrices == ["ggn", "kfac"]
    assert [(one.name, one.to) for one in found.equal] == [("fisher", "ggn")]
    found = compared(linear_problem(), matrices="gauss-newton,ggn,kfac").result
    assert [(one.name, one.to) for one in found.equal] == [("ggn", "gauss-newton")]
    with pytest.raises(UsageError, match="one matrix"):
        compared(matrices="ggn,fisher")


def test_a_loss_without_a_likelihood_has_fewer_matrices() -> None:
    loss = user_loss("fourth", lambda z, t: jnp.sum((z - t) ** 4, axis=-1))
    problem = replace(linear_problem(), loss=loss)
    found = compared(problem).result
    assert found.matrices == ["hessian", "ggn", "empirical-fisher"]
    assert set(found.left_out) == {"fisher", "kfac", "ekfac", "diagonal"}
    for name in ("kfac", "diagonal", "fisher"):
        with pytest.raises(SpecError, match=f"{name}.* needs"):
            compared(problem, matrices=f"hessian,{name}")
    with pytest.raises(SpecError, match="normalising constants"):
        compared(problem, laplace="ggn", prior_precision=1.0)


@pytest.mark.parametrize("method", ["dense", "sampled"])
def test_an_indefinite_matrix_is_said_to_be(method: str) -> None:
    answer = compared(damping=1e-3, method=method, probes=4, matrices="hessian,ggn", tol=1e-8)
    hessian = answer.result.step_angles.steps[0]
    lowest = np.linalg.eigvalsh(dense()["hessian"])[0] + 1e-3
    assert lowest < 0
    assert hessian.solve.lowest_curvature == pytest.approx(lowest, rel=0.1)
    assert any("hessian + λI is indefinite" in one for one in answer.warnings)
    assert not any("ggn" in one for one in answer.warnings)


def test_an_unsolved_step_is_said_to_be() -> None:
    answer = compared(damping=1e-6, method="sampled", probes=4, matrices="ggn,empirical-fisher", cg_steps=2)
    assert answer.result.step_angles.steps[0].solve.status == "not-converged"
    assert any("the step of ggn is not solved for (not-converged" in one for one in answer.warnings)


def test_equal_top_eigenvalues_have_no_subspace() -> None:
    """Orthogonal inputs: every eigenvalue of the GGN occurs three times, once an output."""
    inputs = np.diag([3.0, 2.0, 1.0])
    problem = make_problem(lambda p, x: x @ p["a"], {"a": np.ones((3, 3))}, inputs, np.zeros((3, 3)))
    found = compared(problem, matrices="ggn,empirical-fisher", damping=0.1, k=3).result.overlaps[0]
    assert found.subspaces[:2] == [None, None]
    answer = compared(problem, matrices="ggn,kfac", damping=0.1, k=3).result.overlaps[0]
    assert answer.subspaces == [None, None, pytest.approx(1)]


def test_no_gradient_no_step() -> None:
    problem = make_problem(lambda p, x: x @ p["a"], {"a": np.zeros((3, 2))}, np.ones((4, 3)), np.zeros((4, 2)))
    assert compared(problem, matrices="ggn,kfac").result.step_angles is None


def test_a_regulariser_of_the_users_own_is_in_every_step() -> None:
    """That of the empirical Fisher matrix, which has no ∇²R of its own, too."""
    problem = mlp_problem(regulariser=lambda params: jnp.sum(params["a/kernel"] ** 4))
    gradient = gradient_of(problem)
    curvature = dense_matrix(problem, "empirical-fisher") + np.asarray(
        sums.regulariser_products(problem, Layout.of(problem.params))(jnp.eye(problem.dim))  # type: ignore[misc]
    )
    step = -np.linalg.solve(curvature + np.eye(problem.dim), gradient)
    answer = compared(problem, matrices="ggn,empirical-fisher,kfac", damping=1.0, tol=1e-10)
    assert answer.result.step_angles.steps[1].norm == pytest.approx(np.linalg.norm(step), rel=1e-8)
    assert any("no part of kfac, ekfac and diagonal" in one for one in answer.warnings)


@pytest.mark.slow
def test_products_are_counted_and_forecast() -> None:
    answer = compared(skip_checks=False)
    settings = CompareSettings(dtype="float64")
    planned, forecast = compare.forecast(Context(PROBLEM), settings)
    assert planned.probes_at_once == PROBLEM.dim
    assert forecast.products == 3 * PROBLEM.dim
    assert forecast.products <= answer.meter.products
    assert answer.checks["symmetric"].passed
    meter = Meter()
    kfac, ggn = candidates(PROBLEM, settings, ["kfac", "ggn"], meter)
    kfac.operator.matmat(jnp.ones((2, PROBLEM.dim)))
    assert meter.products == 0
    ggn.operator.matmat(jnp.ones((2, PROBLEM.dim)))
    assert meter.products == 2
