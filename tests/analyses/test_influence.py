"""How `curv influence` chooses its damping and solver, what it says of each solve, and whether it says too much."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.analyses.common.context import Context
from curvcli.analyses.influence import analysis as influence
from curvcli.analyses.influence import solving
from curvcli.analyses.influence.context import Inputs
from curvcli.errors import NumericsError
from curvcli.linalg.iterate import Silent
from curvcli.problem import Problem
from curvcli.schema.estimate import Eigenvalue
from curvcli.schema.influence import InfluenceSettings
from tests.analyses.minima import at_minimum
from tests.analyses.points import quadratic
from tests.monitors import StopAfter
from tests.problems import dense_ggn, dense_hessian, make_problem, mlp_problem

QUERIES = np.array([4, 0, 9])


def run(problem: Problem, *, queries: Any = None, monitor: Any = None, given: Any = None, **asked: Any) -> Any:
    """The answer with all its arrays; queries are rows of the data."""
    options: dict[str, Any] = {
        "dtype": "float64", "skip_checks": True, "scores": "kept.npz", "queries": None if queries is None else "0",
        **asked,
    }  # fmt: skip
    modes = ("label_perturb", "input_perturb", "hyper")
    settings = InfluenceSettings(**options, remove=not any(options.get(mode) for mode in modes))
    rows = None if queries is None else problem.batches.chosen(np.asarray(queries))
    return influence.run(Context(problem, monitor or Silent(), Inputs(queries=rows, **(given or {}))), settings)


PROBLEM = mlp_problem(l2=0.02)
LARGE = mlp_problem(sizes=(40, 40, 3))
FREE = replace(PROBLEM, regulariser=replace(PROBLEM.regulariser, l2=0.0))


# --- damping ----------------------------------------------------------------------------------------------


def extent(low: float, high: float, mean: float) -> solving.Extent:
    return solving.Extent(Eigenvalue(value=low, residual=0.0, interval=(low, low), converged=True), high, mean)


@pytest.mark.parametrize(
    ("problem", "asked", "found", "damping", "reason"),
    [
        (PROBLEM, {"damping": 0.3}, (0.02, 4.0, 1.0), 0.3, "as asked for"),
        (PROBLEM, {"damping": 0.0}, (-1.0, 4.0, 1.0), 0.0, "as asked for"),
        (PROBLEM, {}, (0.02, 4.0, 1.0), 0.0, "l2 = 0.02"),
        (PROBLEM, {"solver": "cg"}, (0.0201, 4.0, 1.0), 0.0, "l2 = 0.02"),
        (PROBLEM, {"matrix": "hessian"}, (-0.5, 4.0, 1.0), 0.1 + 0.55, "over λ_min"),  # l2 is not enough
        (PROBLEM, {"matrix": "hessian"}, (0.005, 4.0, 1.0), 0.0, "regular"),
        (PROBLEM, {"matrix": "hessian", "solver": "cg"}, (0.005, 4.0, 1.0), 0.0, "regular"),  # whatever the solver
        (PROBLEM, {"regulariser": False, "solver": "cg"}, (0.02, 4.0, 1.0), 0.0, "regular"),
        (PROBLEM, {"matrix": "empirical-fisher"}, (0.0, 4.0, 1.0), 0.1, "of the mean"),  # which has no l2
        (FREE, {}, (1e-3, 4.0, 1.0), 0.0, "regular"),
        (FREE, {}, (1e-7, 4.0, 1.0), 0.0, "regular"),  # written out, λ_min is known to rounding
        (FREE, {}, (1e-16, 4.0, 1.0), 0.1, "of the mean"),
        (FREE, {"solver": "cg"}, (1e-3, 4.0, 1.0), 0.0, "regular"),
        (LARGE, {"solver": "cg"}, (1e-3, 4.0, 1.0), 0.1, "of the mean"),  # Lanczos' λ_min is an upper bound
        (LARGE, {"solver": "dense"}, (1e-3, 4.0, 1.0), 0.1, "of the mean"),
        (FREE, {"matrix": "hessian", "solver": "minres"}, (-2.0, 4.0, -0.1), 0.01 + 2.2, "over λ_min"),
        (FREE, {}, (0.0, 0.0, 0.0), 0.0, "of the mean"),
    ],
)
def test_the_choice_of_damping(problem: Any, asked: Any, found: Any, damping: float, reason: str) -> None:
    settings = InfluenceSettings(remove=True, dtype="float64", **asked)
    chosen, told = solving.choose_damping(problem, settings, extent(*found))
    assert chosen == pytest.approx(damping)
    assert reason in told.reason
    assert told.chosen == ("given" if "damping" in asked else "auto")
    assert (told.lambda_min, told.lambda_max, told.mean) == found


@pytest.mark.slow
def test_damping_added_is_the_damping_reported() -> None:
    for asked in ({"damping": 0.7}, {"damping": "auto"}, {"damping": 0.7, "solver": "cg", "tol": 1e-12}):
        answer = run(FREE, queries=QUERIES, measure="output", **asked)
        matrix = dense_ggn(FREE) + answer.result.damping * np.eye(FREE.dim)
        right = np.asarray(influence.scoring.asked.gradients(FREE, FREE.batches.chosen(QUERIES), "output"))
        losses = np.asarray(influence.scoring.asked.gradients(FREE, FREE.batches, "loss"))
        expected = (right @ np.linalg.solve(matrix, losses.T)).reshape(3, 3, -1) / FREE.normaliser
        np.testing.assert_allclose(answer.arrays["scores"], expected, rtol=1e-8, atol=1e-10)


# --- is this a minimum? -----------------------------------------------------------------------------------

BOWL, BENT = np.diag([3.0, 1.0, 0.5]), np.diag([3.0, 1.0, -0.2])


@pytest.mark.parametrize("solver", ["dense", "cg"])
@pytest.mark.parametrize(
    ("matrix", "slope", "verdict"),
    [
        (BOWL, 0.0, "minimum"),
        (BOWL, 0.3, "not-at-minimum"),
        (BENT, 0.0, "negative-curvature"),
        (BENT, 0.3, "not-at-minimum"),
        (np.diag([3.0, 1.0, 0.0]), 0.0, "minimum"),  # flat is not negative
    ],
)
def test_verdicts(matrix: np.ndarray, slope: float, verdict: str, solver: str) -> None:
    at = np.array([1.0, -2.0, 0.5])
    problem = quadratic(matrix, at, slope - matrix @ at)
    found = run(problem, queries=[0], matrix="hessian", damping=0.5, solver=solver).result.validity
    assert found.verdict == verdict
    assert found.gradient_norm == pytest.approx(3**0.5 * slope, abs=1e-12)
    assert found.lambda_min.value == pytest.approx(np.diag(matrix)[2], abs=1e-12)
    step = slope / (np.diag(matrix) + 0.5)
    assert found.decrement == pytest.approx(0.5 * slope * step.sum(), rel=1e-3)
    assert found.distance == pytest.approx(np.linalg.norm(step) / np.linalg.norm(at), rel=1e-3)


def test_the_hessian_is_looked_at_whatever_the_matrix() -> None:
    values = np.linalg.eigvalsh(dense_hessian(PROBLEM))
    assert values[0] < 0  # a random network
    for solver in ("dense", "cg"):
        found = run(PROBLEM, queries=[0], solver=solver).result
        assert found.validity.lambda_min.value == pytest.approx(values[0], rel=1e-6)
        assert found.damping_choice.lambda_min >= 0.02 - 1e-12


def test_nothing_is_said_of_a_minimum_where_its_solve_did_not_converge() -> None:
    found = run(PROBLEM, queries=[0], solver="cg", probes=1).result.validity
    assert (found.verdict, found.decrement, found.distance) == ("unknown", None, None)


# --- solves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["cg", "minres", "neumann"])
def test_iterative_solvers_end_where_the_exact_one_does(solver: str) -> None:
    exact = run(PROBLEM, queries=QUERIES, solver="dense", damping=0.5)
    found = run(PROBLEM, queries=QUERIES, solver=solver, damping=0.5, tol=1e-10)
    np.testing.assert_allclose(found.arrays["scores"], exact.arrays["scores"], rtol=1e-7, atol=1e-10)
    assert found.result.solver == solver
    assert [one.of for one in found.result.solves] == ["query 0", "query 1", "query 2", "gradient"]
    assert {one.status for one in found.result.solves} == {"converged"}
    *queries, newton = found.result.solves
    assert max(one.residual for one in queries) <= 2e-10
    assert newton.residual <= 2e-2  # of which the decrement alone is wanted
    assert min(one.iterations for one in found.result.solves) > 1
    assert found.warnings == [found.result.validity.words]  # these weights are at no minimum


@pytest.mark.parametrize("solver", ["cg", "minres", "neumann"])
def test_unconverged_solves_are_said_with_their_true_residuals(solver: str) -> None:
    answer = run(PROBLEM, queries=QUERIES, solver=solver, probes=2)
    assert all(one.status == "not-converged" for one in answer.result.solves)
    assert all(1e-4 < one.residual < 1 for one in answer.result.solves)
    assert any("4 of 4 solves have not converged" in warning for warning in answer.warnings)


def test_a_solve_that_says_nothing_is_said_to() -> None:
    at, matrix = np.linspace(1, 2, 20), np.diag(np.geomspace(1, 1e4, 20))
    problem = quadratic(matrix, at, np.ones(20) - matrix @ at)
    found = run(problem, queries=None, matrix="hessian", damping=0.0, solver="cg", probes=3, hyper=["l2"], tol=1e-5)
    of_l2, of_gradient = found.result.solves
    assert of_gradient.residual > of_l2.residual > 0.5
    assert any("for gradient, asked for 0.01)" in warning for warning in found.warnings)  # its own tolerance
    assert any(warning.startswith("1 of them have residuals above 0.5") for warning in found.warnings)


@pytest.mark.first_tier("dense-*")
@pytest.mark.parametrize("matrix", ["ggn", "hessian"])
@pytest.mark.parametrize("solver", ["dense", "cg"])
def test_at_a_minimum_another_matrix_than_the_hessian_is_measured_against_it(matrix: str, solver: str) -> None:
    t = np.array([[0.0, 3.0], [2.0, 0.0], [-1.0, 1.0], [0.5, -2.0]])
    problem = at_minimum(make_problem(bent, {"w": np.array([0.2, -0.1])}, np.eye(4, 2), t, l2=0.5))
    words = run(problem, queries=[0], matrix=matrix, solver=solver, damping=0.0, tol=1e-10).result.validity.words
    assert words.startswith("a minimum")
    assert ("% off the Hessian" in words) == (matrix == "ggn")


def bent(params: dict, x: Any) -> Any:
    """Outputs whose second derivatives the GGN leaves out."""
    return (x @ params["w"])[:, None] ** 2 * jnp.array([[0.3, 0.1]]) + jnp.sin(x @ params["w"])[:, None]


def test_few_queries_do_not_pay_for_long_looks() -> None:
    spent = {}
    for matrix in ("ggn", "hessian"):
        answer = run(PROBLEM, queries=[0], solver="cg", matrix=matrix, damping=1.0, tol=0.1)
        spent[matrix] = answer.meter.products - sum(one.iterations + 1 for one in answer.result.solves)
    assert spent["hessian"] <= solving.SCOUTS * solving.STEPS + 4
    assert spent["ggn"] <= solving.SCOUTS * solving.FEW_STEPS + solving.STEPS + 4


@pytest.mark.parametrize(("examples", "said"), [(4, True), (8, False)])
def test_intervals_from_few_refits_are_said_to_be_narrow(examples: int, said: bool) -> None:
    answer = run(PROBLEM, queries=QUERIES, verify=examples)
    assert any("too narrow" in warning for warning in answer.warnings) == said


@pytest.mark.parametrize("asked", [{}, {"self_": True, "leverage": True}, {"verify": 3}, {"damping_sweep": True}])
def test_a_run_that_is_stopped_answers_with_what_it_has(asked: Any) -> None:
    answer = run(PROBLEM, queries=QUERIES, solver="cg", samples=4, monitor=StopAfter(3), **asked)
    assert np.isfinite(answer.arrays["scores"]).all()
    assert any(one.status == "not-converged" for one in answer.result.solves)
    if "verify" in asked:
        assert answer.result.verification.pearson is None


def test_negative_curvature_is_an_error_for_conjugate_gradients_asked_for() -> None:
    with pytest.raises(NumericsError, match="negative curvature"):
        run(PROBLEM, queries=QUERIES, matrix="hessian", damping=0, solver="cg")
    with pytest.raises(NumericsError, match="negative curvature"):  # nor may its iterations be another method's
        run(PROBLEM, queries=QUERIES, matrix="hessian", damping=0, given={"change": np.eye(23)[0]}, perturb="x.npy",
            per_iteration=True)  # fmt: skip


@pytest.mark.parametrize("steps", [40, 1])
def test_negative_curvature_met_on_the_way_is_solved_otherwise_and_said(
    monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    exact = run(PROBLEM, queries=QUERIES, matrix="hessian", damping=0)
    monkeypatch.setattr(solving, "DENSE_DIM", 0)
    monkeypatch.setattr(solving, "STEPS", steps)  # a look of one step does not see it
    found = run(PROBLEM, queries=QUERIES, matrix="hessian", damping=0, tol=1e-9)
    assert found.result.solver == "minres"
    assert any("MINRES goes on" in warning for warning in found.warnings) == (steps == 1)
    for answer in (exact, found):
        assert any("indefinite" in warning for warning in answer.warnings)
        assert min(one.lowest_curvature for one in answer.result.solves) < 0
    np.testing.assert_allclose(found.arrays["scores"], exact.arrays["scores"], rtol=1e-4, atol=1e-6)


def test_a_preconditioner_changes_the_way_and_not_the_answer() -> None:
    scaled = {name: leaf * (30.0 if name == "a/kernel" else 1.0) for name, leaf in PROBLEM.params.items()}
    problem = replace(FREE, params=scaled)
    plain = run(problem, queries=QUERIES, solver="cg", damping=1e-3, tol=1e-10)
    better = run(problem, queries=QUERIES, solver="cg", damping=1e-3, tol=1e-10, precondition="diagonal")
    np.testing.assert_allclose(better.arrays["scores"], plain.arrays["scores"], rtol=1e-6, atol=1e-8)
    assert {one.status for one in better.result.solves} == {"converged"}


def test_a_singular_system_without_damping_is_said() -> None:
    wide = mlp_problem(count=3)  # 9 outputs, 43 parameters
    exact = run(wide, queries=[0], damping=0)
    assert exact.result.damping_choice.lambda_min == pytest.approx(0, abs=1e-12)
    assert np.isfinite(exact.arrays["scores"]).all()
    with pytest.raises(NumericsError, match="positive definite"):
        run(wide, damping=0)
    assert run(wide).result.damping > 0


@pytest.mark.slow
def test_one_damping_for_one_matrix_whatever_the_solver() -> None:
    for l2 in (0.0, 1e-2):
        problem = mlp_problem(sizes=(4, 5, 3), count=23, l2=l2)
        found = set()
        for solver in ("dense", "cg", "minres", "neumann"):
            settings = InfluenceSettings(
                dtype="float64", skip_checks=True, remove=True, matrix="ggn", solver=solver, probes=4000,  # type: ignore[arg-type]
            )  # fmt: skip
            given = Inputs(queries=problem.batches.chosen(np.arange(2)))
            found.add(influence.run(Context(problem, Silent(), given), settings).result.damping)
        assert len(found) == 1
        assert (found == {0.0}) == (l2 > 0)
