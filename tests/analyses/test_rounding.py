"""Float32 runs against dense float64 truth, where products round by tens of eps·‖A‖: every interval holds the truth."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.analyses import diag, eigs, spectrum, trace
from curvcli.analyses.common import rounding
from curvcli.analyses.common.context import Context
from curvcli.analyses.compare import analysis as compare
from curvcli.analyses.influence import analysis as influence
from curvcli.analyses.influence.context import Inputs
from curvcli.analyses.saddle import analysis as saddle
from curvcli.analyses.step import analysis as step
from curvcli.analyses.step.analysis import Inputs as StepInputs
from curvcli.curvature import build
from curvcli.linalg.iterate import Silent
from curvcli.linalg.krylov import eigen
from curvcli.linalg.solvers import cg, minres
from curvcli.problem import Problem, in_float64
from curvcli.schema.compare import CompareSettings
from curvcli.schema.diag import DiagSettings
from curvcli.schema.eigs import EigsSettings
from curvcli.schema.influence import InfluenceSettings
from curvcli.schema.saddle import SaddleSettings
from curvcli.schema.spectrum import SpectrumSettings
from curvcli.schema.step import StepSettings
from curvcli.schema.trace import TraceSettings
from tests.problems import dense_hessian, make_problem

COMMON: dict[str, Any] = {"dtype": "float32", "skip_checks": True}


def network(params: dict, x: Any) -> Any:
    return jnp.tanh(x @ params["a"] + params["b"][None]) @ params["c"]


def tied(params: dict, x: Any) -> Any:
    """The embedding is the last layer too."""
    hidden = jnp.tanh(x @ params["a"] + params["b"][None])
    return jnp.tanh(hidden @ params["c"]) @ params["c"].T


def rounding_problem(kind: str) -> Problem:
    """Weighted examples, some of weight 0; logits of ±30 or ±100, inputs with an offset, tied weights; in float32."""
    random = np.random.default_rng(0)
    offset, scale = (2000, 1) if kind == "offset" else (0, {"logits30": 30, "logits100": 100, "tied": 3}[kind])
    spread = 10 if offset else 1
    z, y = random.normal(size=(60, 6)), random.integers(0, 3, 60)
    x = (offset + spread * z).astype(np.float32)
    a = (random.normal(size=(6, 8)) / spread * (0.5 if offset else 1)).astype(np.float32)
    b = (-offset * a.astype(float).sum(0)).astype(np.float32)
    c = (scale * random.normal(size=(8, 3))).astype(np.float32)
    weight = np.where(np.arange(60) % 7 == 0, 0.0, random.integers(1, 3, 60))
    return make_problem(
        tied if kind == "tied" else network, {"a": a, "b": b, "c": c}, x, y % 8, "softmax_cross_entropy",
        weight=weight, normaliser=weight.sum(), batch_size=25, dtype="float32",
    )  # fmt: skip


KINDS = ("logits30", "logits100", "offset", "tied")


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest) -> tuple[Problem, np.ndarray]:
    problem = rounding_problem(request.param)
    return problem, dense_hessian(in_float64(problem))


def holds(estimate: Any, truth: float) -> bool:
    low, high = estimate.interval
    return low <= truth <= high


@pytest.mark.first_tier("logits100", "tied")
def test_precise_products_are_those_of_the_matrix(case: tuple[Problem, np.ndarray]) -> None:
    problem, matrix = case
    operator = build(problem, "hessian")
    vectors = np.random.default_rng(1).normal(size=(3, len(matrix)))
    assert operator.precise is not None
    norm = np.linalg.norm(matrix, 2)
    np.testing.assert_allclose(operator.precise(vectors), vectors @ matrix, atol=1e-12 * norm)
    shifted = operator.shifted(0.5)
    assert shifted.precise is not None
    np.testing.assert_allclose(shifted.precise(vectors), vectors @ matrix + 0.5 * vectors, atol=1e-12 * norm)
    assert build(in_float64(problem), "hessian").precise is None


@pytest.mark.first_tier("fisher-mc", "ntk")
@pytest.mark.parametrize("name", ["fisher-mc", "gradient-covariance", "empirical-fisher", "ggn", "ntk"])
def test_precise_products_of_other_matrices_are_not_of_another_matrix(name: str) -> None:
    """Label draws do not depend on the arithmetic."""
    problem = rounding_problem("logits30")
    operator = build(problem, name, mc_samples=2)
    vectors = np.random.default_rng(1).normal(size=(2, operator.dim)).astype(np.float32)
    images = np.asarray(operator.matmat(jnp.asarray(vectors)), np.float64)
    errors = rounding.along(operator, vectors)
    assert np.all(errors < 1e-3 * np.linalg.norm(images, axis=1))
    assert np.any(errors > 0)


def test_residuals_are_those_of_the_matrix(case: tuple[Problem, np.ndarray]) -> None:
    problem, matrix = case
    operator = build(problem, "hessian")
    exact, vectors = np.linalg.eigh(matrix)
    values, residuals = eigen.true_residuals(operator, jnp.asarray(vectors[:, -3:].T, "float32"))
    assert np.all(np.abs(values - exact[-3:]) <= residuals)
    # What narrow products tell of the same vectors is another matrix's.
    narrow, _ = eigen.true_residuals(operator.with_products(operator.matmat), jnp.asarray(vectors[:, -3:].T, "float32"))
    assert np.abs(values - exact[-3:]).max() < 0.01 * np.abs(narrow - exact[-3:]).max()


@pytest.mark.first_tier("logits30-lanczos", "offset-dense")
@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_eigenvalues(case: tuple[Problem, np.ndarray], method: str) -> None:
    problem, matrix = case
    answer = eigs.run(Context(problem, Silent()), EigsSettings(**COMMON, k=3, method=method))  # type: ignore[arg-type]
    exact = np.linalg.eigvalsh(matrix)[::-1][:3]
    assert all(holds(pair, truth) for pair, truth in zip(answer.result.eigenvalues, exact, strict=True))


@pytest.mark.first_tier("logits30-xtrace", "offset-hutchinson", "tied-dense")
@pytest.mark.parametrize("method", ["dense", "hutchinson", "xtrace"])
def test_spectrum(case: tuple[Problem, np.ndarray], method: str) -> None:
    problem, matrix = case
    settings = SpectrumSettings(**COMMON, method=method, probes=6, steps=40)  # type: ignore[arg-type]
    result = spectrum.run(Context(problem, Silent()), settings).result
    exact = np.linalg.eigvalsh(matrix)
    assert holds(result.lambda_min, exact[0])
    assert holds(result.lambda_max, exact[-1])
    assert holds(result.trace, exact.sum())
    assert holds(result.frobenius_norm, np.linalg.norm(exact))
    assert result.trace.interval[0] < result.trace.value < result.trace.interval[1]


@pytest.mark.first_tier("logits30-dense", "tied-xtrace")
@pytest.mark.parametrize("method", ["dense", "xtrace"])
def test_trace_and_diagonal(case: tuple[Problem, np.ndarray], method: str) -> None:
    problem, matrix = case
    dim = len(matrix)
    settings = TraceSettings(**COMMON, method=method, probes=2 * dim)  # type: ignore[arg-type]
    result = trace.run(Context(problem, Silent()), settings).result
    assert holds(result.trace, np.trace(matrix))
    assert holds(result.frobenius_norm, np.linalg.norm(matrix))
    asked = DiagSettings(**COMMON, method="dense" if method == "dense" else "xdiag", probes=2 * dim)
    diagonal = diag.run(Context(problem, Silent()), asked).result
    layers = {"a": 48, "b": 8, "c": len(matrix) - 56}
    ends = np.cumsum([0, *layers.values()])
    truths = {name: np.diag(matrix)[a:b] for name, a, b in zip(layers, ends, ends[1:], strict=False)}
    for layer in diagonal.layers:
        assert holds(layer.mean, truths[layer.name].mean())
    for layer in result.layers:
        assert holds(layer.trace, truths[layer.name].sum())


@pytest.mark.first_tier("tied")
def test_both_ends_of_a_saddle(case: tuple[Problem, np.ndarray]) -> None:
    problem, matrix = case
    exact = np.linalg.eigvalsh(matrix)
    for method in ("dense", "lanczos"):
        result = saddle.run(Context(problem, Silent()), SaddleSettings(**COMMON, method=method)).result  # type: ignore[arg-type]
        assert holds(result.lambda_min, exact[0])
        assert holds(result.lambda_max, exact[-1])
        # The index, where the eigenvalues are counted that are beyond what counts as zero.
        low, high = result.index.interval
        assert low <= np.sum(exact < -2 * result.tolerance) or np.sum(exact < -0.5 * result.tolerance) >= low
        assert high >= np.sum(exact < -2 * result.tolerance)


@pytest.mark.first_tier("tied")
def test_solves_tell_their_true_residuals(case: tuple[Problem, np.ndarray]) -> None:
    problem, _ = case
    matrix = np.asarray(build(in_float64(problem), "ggn").matmat(jnp.eye(problem.dim)), np.float64)
    shift = 1e-3 * float(np.trace(matrix)) / problem.dim
    operator = build(problem, "ggn").shifted(shift, psd=True)
    rhs = np.random.default_rng(0).normal(size=(2, problem.dim)).astype(np.float32)
    for solver in (cg, minres):
        found = solver.solve(operator, jnp.asarray(rhs), tol=1e-4, max_steps=400, monitor=Silent())
        x = np.asarray(found.x, np.float64)
        true = np.linalg.norm(rhs - x @ matrix - shift * x, axis=1) / np.linalg.norm(rhs, axis=1)
        np.testing.assert_allclose(found.residuals, true, rtol=1e-6, atol=1e-10)
        assert [one == "converged" for one in found.status] == [bool(one <= 2e-4) for one in true]


@pytest.mark.first_tier("cg")
@pytest.mark.parametrize("solver", ["dense", "cg"])
def test_influence_measures_its_solves(solver: str) -> None:
    problem = rounding_problem("logits30")
    matrix = np.asarray(build(in_float64(problem), "ggn").matmat(jnp.eye(problem.dim)), np.float64)
    settings = InfluenceSettings(**COMMON, remove=True, matrix="ggn", solver=solver, damping=1e-2)  # type: ignore[arg-type]
    answer = influence.run(
        Context(problem, Silent(), Inputs(queries=problem.batches.chosen(np.arange(1, 4)))), settings
    )
    # The best that float32 solutions can have: their own rounding.
    attainable = np.finfo(np.float32).eps * np.linalg.norm(matrix, 2) / 1e-2
    for one in answer.result.solves[:-1]:  # the last is that of the gradient, whose tolerance is wider
        assert 0 < one.residual < max(2e-4, attainable)


def test_steps_are_judged_by_the_matrix_itself() -> None:
    problem = rounding_problem("logits30")
    for steps in (None, 400):
        settings = StepSettings(**COMMON, method="gauss-newton", damping=1e-2, cg_steps=steps)
        result = step.run(Context(problem, Silent(), StepInputs()), settings).result
        assert result.solve.residual is not None
        assert 0 < result.solve.residual < 1e-3


@pytest.mark.first_tier("tied")
def test_distances_of_matrices(case: tuple[Problem, np.ndarray]) -> None:
    problem, matrix = case
    ggn = np.asarray(build(in_float64(problem), "ggn").matmat(jnp.eye(problem.dim)), np.float64)
    for method in ("dense", "sampled"):
        settings = CompareSettings(
            **COMMON, matrices=("hessian", "ggn"), method=method, k=2, probes=64, confidence=0.999  # type: ignore[arg-type]
        )  # fmt: skip
        result = compare.run(Context(problem, Silent()), settings).result
        for name, truth in (("hessian", matrix), ("ggn", ggn)):
            assert holds(result.traces[name], np.trace(truth))  # type: ignore[index]
            assert holds(result.frobenius_norms[name], np.linalg.norm(truth))  # type: ignore[index]
        one = next(one for one in result.distances if one.a == "hessian")
        assert holds(one.absolute, np.linalg.norm(matrix - ggn))


def test_what_is_written_out_is_exact_to_float64_and_says_its_rounding() -> None:
    problem = rounding_problem("logits100")
    truth = np.trace(dense_hessian(in_float64(problem)))
    for dtype in ("float32", "float64"):
        asked = problem if dtype == "float32" else in_float64(problem)
        settings = TraceSettings(**{**COMMON, "dtype": dtype}, method="dense")
        found = trace.run(Context(asked, Silent()), settings).result.trace
        assert found.method == "exact"
        assert 0 < found.interval[1] - found.interval[0] < 1e-11 * abs(truth)
        assert holds(found, truth)


def test_the_meter_counts_products_in_float64() -> None:
    problem = rounding_problem("logits30")
    answer = trace.run(Context(problem, Silent()), TraceSettings(**COMMON, method="hutchinson", probes=8))
    assert answer.meter.products == 8 + 2 * rounding.PROBES
