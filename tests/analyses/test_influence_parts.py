"""The parts of `curv influence` beside the scores: samples, leverage, groups, sweeps, iterations, blocks, memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from curvcli.analyses.common.context import Context
from curvcli.analyses.influence import analysis as influence
from curvcli.analyses.influence import solving
from curvcli.analyses.influence.context import Inputs
from curvcli.errors import MemoryLimitError, NumericsError, UsageError
from curvcli.linalg.iterate import Silent
from curvcli.losses import LOSSES, user_loss
from curvcli.schema.influence import InfluenceSettings
from tests.analyses.test_influence import FREE, PROBLEM, QUERIES, run
from tests.problems import make_problem, mlp_problem, token_problem

OWN = replace(FREE, loss=user_loss("own", LOSSES["softmax_cross_entropy"].value))


# --- samples ----------------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.parametrize("mode", ["remove", "label_perturb", "input_perturb"])
def test_standard_errors_of_sampled_self_influence_cover(mode: str) -> None:
    asked: dict[str, Any] = {} if mode == "remove" else {mode: True}
    exact = run(PROBLEM, **asked).arrays["scores"].reshape(23, -1)
    covered, errors = [], []
    for seed in range(8):
        answer = run(PROBLEM, solver="cg", samples=32, tol=1e-8, seed=seed, **asked)
        found, stderr = answer.arrays["scores"].reshape(23, -1), answer.arrays["self_stderr"]
        if mode == "remove":
            covered.append(np.abs(found - exact)[:, 0] <= 2.04 * stderr)  # Student's t of 31 degrees
        errors.append(found - exact)
        assert answer.result.self_influence.method == "sampled"
        assert answer.result.top[0].highest[0].stderr > 0
        total = answer.result.self_influence.total_leverage
        assert total.interval[0] < total.value < total.interval[1]
    bias = np.mean(errors, axis=0) / np.maximum(np.std(errors, axis=0, ddof=1), 1e-12) * 8**0.5
    assert np.abs(np.median(bias)) < 1.5
    if covered:
        # Draws are shared by the examples, so that these are far fewer than 184 trials.
        assert np.mean(covered) > 0.8


@pytest.mark.slow
def test_the_move_that_an_error_belongs_to() -> None:
    exact = run(PROBLEM, label_perturb=True).arrays["scores"]
    answer = run(PROBLEM, label_perturb=True, solver="cg", samples=256, tol=1e-8)
    (ranking,) = answer.result.top
    for entry in (*ranking.highest, *ranking.lowest):
        truth = exact[entry.example, entry.towards] - exact[entry.example, entry.label]
        assert abs(entry.score - truth) < 5 * entry.stderr


def test_total_leverage_is_the_effective_number_of_parameters() -> None:
    exact = run(PROBLEM).result.self_influence
    values = np.linalg.eigvalsh(influence.solving.written_out(influence.solving.undamped(
        PROBLEM, InfluenceSettings(remove=True, dtype="float64", regulariser=False), "ggn"), 43, Silent()))  # fmt: skip
    assert exact.total_leverage.value == pytest.approx(np.sum(values / (values + 0.02)))
    found = run(PROBLEM, solver="cg", samples=64, tol=1e-8).result.self_influence.total_leverage
    assert found.interval[0] < exact.total_leverage.value < found.interval[1]
    assert run(PROBLEM, matrix="hessian", damping=1.0).result.self_influence.total_leverage is None


@pytest.mark.parametrize(
    ("problem", "asked"),
    [
        (PROBLEM, {"matrix": "hessian"}),
        (OWN, {}),
        (replace(PROBLEM, regulariser=replace(PROBLEM.regulariser, fn=lambda p: 0.0)), {}),
    ],
)
def test_what_cannot_be_drawn_from_is_refused_before_anything_is_spent(problem: Any, asked: Any) -> None:
    for more in ({}, {"queries": "0", "self_": True}, {"queries": "0", "leverage": True}):
        settings = InfluenceSettings(remove=True, solver="cg", **asked, **more)
        with pytest.raises(UsageError, match="draw from the matrix"):
            influence.forecast(Context(problem, inputs=Inputs(queries=problem.batches if more else None)), settings)
    queried = InfluenceSettings(remove=True, solver="cg", queries="0", **asked)
    assert influence.forecast(Context(problem, inputs=Inputs(queries=problem.batches.chosen(QUERIES))), queried)


# --- leverage ---------------------------------------------------------------------------------------------


def test_an_example_that_alone_decides_its_fit_has_no_removal() -> None:
    x = np.eye(4)  # as many examples as weights: each is fitted by itself
    problem = make_problem(lambda p, x: x @ p["w"], {"w": np.zeros((4, 1))}, x, np.ones((4, 1)))
    answer = run(problem, leverage=True, damping=0)
    assert answer.result.leverage.largest == pytest.approx(1)
    assert answer.result.leverage.capped == 4
    assert np.isfinite(answer.arrays["corrected"]).all()
    assert run(problem, leverage=True, damping=0.1).result.leverage.capped == 0


@pytest.mark.slow
def test_corrected_scores_have_the_shape_of_the_scores() -> None:
    for problem in (PROBLEM, token_problem(l2=0.02)):
        answer = run(problem, queries=QUERIES[:2], measure="output", leverage=True)
        assert answer.arrays["corrected"].shape == answer.arrays["scores"].shape == tuple(answer.result.shape)
        assert answer.axes == {"scores": ["query", "output", "example"], "corrected": ["query", "output", "example"]}
        # Each the nearer to the plain one, the more damping there is.
        more = run(problem, queries=QUERIES[:2], measure="output", leverage=True, damping=1e3)
        np.testing.assert_allclose(more.arrays["corrected"], more.arrays["scores"], rtol=1e-2, atol=1e-9)


# --- blocks -----------------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.parametrize("problem", [PROBLEM, token_problem(l2=0.02)])
def test_blocks_of_vectors_change_nothing(monkeypatch: pytest.MonkeyPatch, problem: Any) -> None:
    count = problem.batches.num_examples
    groups = np.array(["a", "b", "c", "d", "e"])[np.arange(count) % 5]
    asked: dict[str, Any] = {
        "queries": QUERIES % count, "measure": "output", "solver": "cg", "tol": 1e-11, "samples": 8, "leverage": True,
        "self_": True, "group": "g.txt", "given": {"groups": groups},
    }  # fmt: skip
    whole = run(problem, **asked)
    monkeypatch.setattr(solving, "BLOCK", 3)
    parts = run(replace(problem, batches=problem.batches.resized(4)), **asked)
    assert whole.arrays.keys() == parts.arrays.keys()
    for name, array in whole.arrays.items():
        np.testing.assert_allclose(parts.arrays[name], array, rtol=1e-6, atol=1e-9, err_msg=name)
    for one, other in zip(whole.result.groups, parts.result.groups, strict=True):
        assert (one.name, one.size, one.status) == (other.name, other.size, other.status)
        np.testing.assert_allclose(other.second_order, one.second_order, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(other.newton, one.newton, rtol=1e-6, atol=1e-9)
    rows = whole.arrays["scores"].reshape(-1, count)
    for one in whole.result.groups:
        np.testing.assert_allclose(one.first_order, rows[:, groups == one.name].sum(axis=1), rtol=1e-9)
        assert one.size == np.sum(groups == one.name)


# --- sweeps and iterations --------------------------------------------------------------------------------


@pytest.mark.first_tier("dense", "cg")
@pytest.mark.parametrize("solver", ["dense", "cg", "neumann"])
def test_a_sweep_around_the_damping(solver: str) -> None:
    asked: dict[str, Any] = {"queries": QUERIES, "damping": 0.1, "solver": solver, "tol": 1e-8}
    found = run(PROBLEM, damping_sweep=True, **asked).result.sweep
    assert [one.damping for one in found] == pytest.approx([0.001, 0.01, 1.0, 10.0])
    if solver != "neumann":
        assert {one.status for one in found} == {"converged"}
    else:  # a scale of its own for each: the damping of the run would let the series diverge
        assert [one.status for one in found[-2:]] == ["converged", "converged"]
    assert found[1].spearman > found[3].spearman
    for one in (found[0], found[2]):
        other = run(PROBLEM, **{**asked, "damping": one.damping, "solver": "dense"}).result
        base = run(PROBLEM, **{**asked, "solver": "dense"}).result
        pairs = zip(base.top, other.top, strict=True)
        shared = [len({e.example for e in a.highest} & {e.example for e in b.highest}) / 10 for a, b in pairs]
        assert one.top_overlap == pytest.approx(np.mean(shared))


def test_a_sweep_goes_where_the_run_itself_may_not() -> None:
    answer = run(PROBLEM, queries=QUERIES, matrix="hessian", damping=2.0, solver="cg", damping_sweep=True)
    assert answer.result.solver == "cg"
    assert {one.status for one in answer.result.solves} == {"converged"}
    assert [one.damping for one in answer.result.sweep] == pytest.approx([0.02, 0.2, 20.0, 200.0])
    assert not any("MINRES" in warning for warning in answer.warnings)


def test_iterations_lead_from_nothing_to_the_response() -> None:
    change = np.zeros((23, 3))
    change[5] = [1, 0, -1]
    asked: dict[str, Any] = {"label_perturb": True, "perturb": "x.npy", "measure": "output", "tol": 1e-9}
    for queries, shape in ((QUERIES, (3, 3)), (None, (23, 3))):
        answer = run(PROBLEM, queries=queries, given={"change": change}, per_iteration=True, **asked)
        (found,) = answer.result.responses
        trail, last = np.array(found.iterations), np.array(found.change)
        (solve,) = (one for one in answer.result.solves if one.of == "perturb")
        assert trail.shape[1:] == last.shape == shape
        assert len(trail) == solve.iterations + 1
        assert not trail[0].any()
        np.testing.assert_allclose(trail[-1], last, rtol=1e-12)
        exact = run(PROBLEM, queries=queries, given={"change": change}, solver="dense", **asked).result.responses[0]
        np.testing.assert_allclose(last, exact.change, rtol=1e-6, atol=1e-9)
        layers = np.sqrt(np.sum(np.square(list(found.layers.values()))))
        assert layers == pytest.approx(found.norm) == pytest.approx(exact.norm, rel=1e-6)


# --- memory, said before -----------------------------------------------------------------------------------


def test_scores_that_do_not_fit_are_refused_before_they_are_computed() -> None:
    def planned(**asked: Any) -> int:
        settings = InfluenceSettings(input_perturb=True, **asked)
        rows = None if settings.queries is None else PROBLEM.batches
        return influence.memory_plan(PROBLEM, settings, Inputs(queries=rows)).bytes

    few, all_of_them = planned(queries="0"), planned(queries="0", measure="output", scores="x.npz")
    assert all_of_them - few > 23 * 3 * 23 * 4 * 8  # Q · O · N · inputs
    assert planned(measure="output") > planned()
    with pytest.raises(MemoryLimitError, match="scores take"):
        planned(queries="0", measure="output", scores="x.npz", max_memory=few + 1000)


# --- what labels, inputs and outputs allow ----------------------------------------------------------------


def test_what_does_not_go_with_the_data_is_refused() -> None:
    whole = replace(PROBLEM, batches=replace(PROBLEM.batches, inputs=np.ones((23, 4), np.uint8)))
    with pytest.raises(UsageError, match="integers"):
        run(whole, input_perturb=True)
    assert run(whole).arrays["scores"].shape == (23,)
    with pytest.raises(UsageError, match="real numbers"):
        run(OWN, label_perturb=True)
    with pytest.raises(UsageError, match="margin"):
        run(mlp_problem("poisson"), measure="margin", queries=[0])
    with pytest.raises(UsageError, match="class-weights"):
        run(mlp_problem("poisson"), hyper=["class-weights"])
    wide = make_problem(lambda p, x: x @ p["w"], {"w": np.zeros((2, 300))}, np.ones((3, 2)), np.zeros((3, 300)))
    with pytest.raises(UsageError, match="inverts a matrix of the outputs"):
        run(wide, leverage=True)


def test_one_example() -> None:
    problem = mlp_problem(count=1, l2=0.1)
    for asked in ({}, {"label_perturb": True}, {"input_perturb": True}):
        alone = run(problem, **asked).result
        assert [one.example for one in alone.top[0].highest] == [0]
        assert all(one.spearman is None for one in alone.baselines)
        assert run(problem, queries=[0], **asked).result.shape[:2] == [1, 1]
    with pytest.raises(NumericsError):
        run(problem, damping=0, regulariser=False)
