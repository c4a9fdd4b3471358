"""Every algorithm on matrices that are hard for it: right to what the arithmetic permits, or an honest refusal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from curvcli.errors import NumericsError
from curvcli.linalg.diagonal.estimators import Sampler
from curvcli.linalg.iterate import Silent, iterate
from curvcli.linalg.krylov import eigen, slq
from curvcli.linalg.krylov import spaces as krylov
from curvcli.linalg.krylov.lanczos import Lanczos
from curvcli.linalg.operator import LinearOperator, dense_operator
from curvcli.linalg.probes import sphere
from curvcli.linalg.solvers import cg, minres, neumann
from curvcli.linalg.solvers.truncated_cg import truncated_cg
from curvcli.linalg.solvers.trust_region import Point, minimise
from curvcli.linalg.statistics import student_interval
from curvcli.linalg.trace import quadratic
from curvcli.linalg.trace.estimators import Tracer
from tests.linalg.hard import DIM, cases

CASES = cases()
KEY = jax.random.key(1)
WHOLE = (((0, DIM),),)
SURE = 1e-6
"""Probability with which an interval may miss: one run of each is made."""


class Case:
    """A matrix in an arithmetic, and what is known of it."""

    def __init__(self, name: str) -> None:
        self.dtype, self.matrix = CASES[name]
        self.eps = float(np.finfo(self.dtype).eps)
        self.values = np.linalg.eigvalsh(self.matrix)
        self.norm = float(np.abs(self.values).max())
        self.clustered = name.startswith("clustered")
        self.extreme = name.split(" float")[0].endswith(("tiny", "huge"))

    @property
    def operator(self) -> LinearOperator:
        matrix = jnp.asarray(self.matrix, self.dtype)
        return replace(dense_operator(matrix), forms=lambda v: v @ matrix @ v.T)

    def rounding(self, factor: float) -> float:
        """As a difference of eigenvalues."""
        return factor * self.eps * self.norm


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.mark.first_tier("*float64*")
def test_lanczos(case: Case) -> None:
    start = sphere(KEY, 0, 2, DIM, case.dtype)
    lanczos = Lanczos(start, DIM)
    state = iterate(lanczos, case.operator, None, monitor=Silent(), stage="")
    for process, found in enumerate(lanczos.result(state)):
        values, vectors = found.eigh()
        first = np.asarray(start[process], float)
        assert np.all(np.isfinite(values))
        assert case.values[0] - case.rounding(50) <= values[0]
        assert values[-1] <= case.values[-1] + case.rounding(50)
        # The moments that a Gauss quadrature has exactly.
        moment = float(first @ case.matrix @ first)
        assert values @ np.square(vectors[0]) == pytest.approx(moment, abs=case.rounding(50))
        # Each Ritz value has a true eigenvalue as near as its residual says.
        residuals = found.beta[-1] * np.abs(vectors[-1])
        gaps = np.abs(values[:, None] - case.values).min(axis=1)
        assert np.all(gaps <= residuals + case.rounding(100))


@pytest.mark.first_tier("*float64*")
def test_extreme_eigenpairs(case: Case) -> None:
    start = krylov.from_random(KEY, 2, DIM, case.dtype)
    tol = 64 * case.eps if case.dtype == "float32" else 1e-9
    algorithm = eigen.ThickRestart(2, 2, tol, 16, 600, start, key=jax.random.key(9), widest=2)
    state = iterate(algorithm, case.operator, KEY, monitor=Silent(), stage="")
    found = algorithm.result(state)
    vectors = np.asarray(found.vectors, float)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=200 * case.eps)
    quotients, residuals = eigen.true_residuals(case.operator, found.vectors, 2)
    np.testing.assert_allclose(quotients, found.values, rtol=0, atol=case.rounding(200))
    np.testing.assert_allclose(residuals, found.residuals, rtol=0.01, atol=case.rounding(400))
    gaps = np.abs(found.values[:, None] - case.values).min(axis=1)
    assert np.all(gaps <= residuals + case.rounding(200))
    if state.products < 600:  # else it has not converged, as the residuals say
        assert np.all(residuals <= 2 * tol * case.norm + case.rounding(400))
        wanted = np.r_[case.values[:2], case.values[-2:]]
        np.testing.assert_allclose(found.values, wanted, rtol=0, atol=tol * case.norm + case.rounding(200))


def within(law: Any, truth: float, slack: float) -> bool:
    low, high = student_interval(law, SURE)
    return bool(low - slack <= truth <= high + slack)


def refused_at_extremes(case: Case, estimate: Callable[[], bool]) -> None:
    """Right; or refused, where squares of the numbers are beyond the arithmetic."""
    with contextlib.suppress(NumericsError) if case.extreme else contextlib.nullcontext():
        assert estimate()


@pytest.mark.first_tier("*float64*")
@pytest.mark.parametrize("method", ["hutchinson", "xtrace", "hutch++"])
def test_trace(case: Case, method: str) -> None:
    def estimate() -> bool:
        tracer = Tracer(case.operator, KEY, WHOLE, at_once=8, keep=True, monitor=Silent())
        tracer.draw(8)
        if method != "hutchinson":
            assert tracer.project()
        if method == "hutch++":
            tracer.refine(8)
        found = {"hutchinson": tracer.hutchinson, "xtrace": tracer.xtrace, "hutch++": tracer.hutchpp}[method]()
        assert np.all(np.isfinite(found.trace))
        assert within(found.trace, case.values.sum(), case.rounding(50 * DIM))
        low, high = found.square.interval(SURE)
        square = float(np.square(case.values).sum())
        return low - case.rounding(50 * DIM) * case.norm <= square <= high + case.rounding(50 * DIM) * case.norm

    refused_at_extremes(case, estimate)


def test_forms(case: Case) -> None:
    def estimate() -> bool:
        forms = quadratic.Forms(case.operator, KEY, at_once=8, monitor=Silent())
        forms.draw(16)
        trace, _ = quadratic.estimates(DIM, forms.blocks)
        assert np.all(np.isfinite(trace))
        return within(trace, case.values.sum(), case.rounding(50 * DIM))

    refused_at_extremes(case, estimate)


@pytest.mark.first_tier("*float64*")
@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_diagonal(case: Case, method: str) -> None:
    def estimate() -> bool:
        sampler = Sampler(case.operator, KEY, WHOLE, at_once=8, keep=True, monitor=Silent())
        sampler.draw(8)
        if method == "xdiag":
            assert sampler.project()
        found = sampler.hutchinson() if method == "hutchinson" else sampler.xdiag()
        assert np.all(np.isfinite(found.value))
        assert np.all(np.isfinite(found.stderr))
        off = np.abs(found.value - np.diag(case.matrix))
        # Eight samples of an entry: Student's law with 7 degrees of freedom exceeds 15 once in a million.
        return bool(np.all(off <= 20 * found.stderr + case.rounding(100)))

    refused_at_extremes(case, estimate)


@pytest.mark.first_tier("*float32*")
def test_density(case: Case) -> None:
    def estimate() -> bool:
        collected = slq.Collected()
        slq.Slq(12, "full", deflate=True).round(case.operator, KEY, 4, collected, Silent(), 0)
        quadrature = slq.quadrature(collected, KEY, case.operator)
        trace = quadrature.estimate(lambda x: x, SURE, DIM)
        square = quadrature.estimate(np.square, SURE, DIM)
        # Values that several probes confirm within 1e-3 of each other count as one: here ten within 1e-8.
        slack = case.rounding(50 * DIM) + 1e-8 * case.norm * case.clustered
        assert trace.interval[0] - slack <= case.values.sum() <= trace.interval[1] + slack
        truth = float(np.square(case.values).sum())
        return square.interval[0] - slack * case.norm <= truth <= square.interval[1] + slack * case.norm

    refused_at_extremes(case, estimate)


SOLVERS: dict[str, Callable[..., Any]] = {
    "cg": cg.solve,
    "minres": minres.solve,
    "neumann": lambda operator, rhs, **rest: neumann.solve(
        operator, rhs, scale=neumann.safe_scale(operator, KEY, Silent()) or 1.0, **rest
    ),
}


@pytest.mark.first_tier("*float64*")
@pytest.mark.parametrize("name", SOLVERS)
def test_solvers(case: Case, name: str) -> None:
    rhs = np.random.default_rng(3).normal(size=(3, DIM))
    rhs[1] = rhs[1] @ case.matrix / (case.norm or 1)  # in the range of a singular matrix
    rhs[2] = 0
    tol = 1e-3 if case.dtype == "float32" else 1e-8
    given = jnp.asarray(rhs, case.dtype)
    found = SOLVERS[name](case.operator, given, tol=tol, max_steps=200, monitor=Silent())
    x, b = np.asarray(found.x, float), np.asarray(given, float)
    assert np.all(np.isfinite(x))
    assert np.all(np.isfinite(found.residuals))
    lengths = np.linalg.norm(b, axis=1)
    true = np.linalg.norm(b - x @ case.matrix, axis=1)[:2] / np.where(lengths > 0, lengths, 1)[:2]
    reachable = case.eps * case.norm * np.linalg.norm(x, axis=1)[:2] / np.where(lengths > 0, lengths, 1)[:2]
    np.testing.assert_allclose(found.residuals[:2], true, rtol=0.01, atol=20 * float(reachable.max()) + 10 * case.eps)
    for status, size, slack in zip(found.status, true, reachable, strict=False):
        assert status != "converged" or size <= 2 * tol + 20 * slack
    assert found.status[2] == "converged"
    assert not x[2].any()
    # A status that is no excuse: well-conditioned positive definite systems are solved.
    if case.values[0] > 0.01 * case.norm:
        assert list(found.status) == ["converged"] * 3
    if name == "cg" and case.values[0] < -0.01 * case.norm:
        assert "converged" not in found.status[:2]


ENDINGS = {"converged", "boundary", "negative-curvature", "flat", "not-converged"}


@pytest.mark.parametrize("radius", [np.inf, 1.0])
def test_truncated_cg(case: Case, radius: float) -> None:
    gradient = np.random.default_rng(3).normal(size=DIM)
    product = lambda v: v @ case.matrix  # noqa: E731
    found = truncated_cg(
        product, gradient, tolerance=1e-6 * np.linalg.norm(gradient), most=200, eps=case.eps, radius=radius
    )
    assert found.ending in ENDINGS
    assert np.all(np.isfinite(found.p))
    assert np.linalg.norm(found.p) <= radius * (1 + 1e-6)
    if found.ending == "converged":
        assert np.linalg.norm(gradient + product(found.p)) <= 2e-6 * np.linalg.norm(gradient)
    # The model has not gone up.
    assert gradient @ found.p + 0.5 * found.p @ product(found.p) <= 1e-9 * abs(gradient @ found.p)
    if case.values[0] < -0.01 * case.norm and radius == 1.0 and case.norm > 1e-3:
        assert found.ending in ("negative-curvature", "boundary")


def test_trust_region(case: Case) -> None:
    slope = np.random.default_rng(3).normal(size=DIM) * (case.norm or 1.0)

    def function(w: np.ndarray) -> Point:
        image = w @ case.matrix
        return Point(float(slope @ w + 0.5 * w @ image), slope + image, lambda v: v @ case.matrix)

    here = function(np.zeros(DIM))
    size = float(np.linalg.norm(slope))
    found = minimise(function, np.zeros(DIM), here, gtol=1e-6 * size, radius=1.0, budget=300, eps=case.eps)
    assert np.all(np.isfinite(found.w))
    assert found.point.value <= here.value
    # Downhill without end the gradient's square leaves the range; BLAS scales it.
    assert found.converged == (scipy.linalg.norm(found.point.gradient) <= 1e-6 * size)
    if case.values[0] > 0.01 * case.norm:
        assert found.converged
    if case.values[0] < 0:
        assert not found.converged


@pytest.mark.parametrize("value", [0.0, -2.0, 3.0])
def test_one_by_one(value: float) -> None:
    operator = dense_operator(np.array([[value]]))
    found = Lanczos(jnp.ones((1, 1)), 5)
    (one,) = found.result(iterate(found, operator, None, monitor=Silent(), stage=""))
    assert one.eigh()[0].tolist() == [value]
    tracer = Tracer(operator, KEY, (((0, 1),),), at_once=2, keep=True, monitor=Silent())
    tracer.draw(2)
    assert tracer.project()
    for law in (tracer.hutchinson().trace, tracer.xtrace().trace):
        assert law.value == pytest.approx(value)
        assert law.stderr == pytest.approx(0, abs=1e-15)
    solution = minres.solve(operator, jnp.ones((1, 1)), tol=1e-10, max_steps=5, monitor=Silent())
    assert solution.status == ["converged" if value else "least-squares"]
    assert np.isfinite(np.asarray(solution.x)).all()
