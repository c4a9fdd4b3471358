"""Analyses of K-FAC and E-KFAC, whose answers follow from the factors: against the matrix written out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.analyses import diag, eigs, spectrum, trace
from curvcli.analyses.common.checks import matrix_notes
from curvcli.analyses.common.context import Context
from curvcli.analyses.common.preconditioners import running_factors
from curvcli.analyses.influence import analysis as influence
from curvcli.analyses.influence.context import Inputs
from curvcli.analyses.influence.ranking import median_spearman
from curvcli.curvature import build
from curvcli.curvature.kronecker import running
from curvcli.errors import UsageError
from curvcli.linalg.iterate import Silent
from curvcli.linalg.operator import to_dense
from curvcli.schema.diag import DiagSettings
from curvcli.schema.eigs import EigsSettings
from curvcli.schema.influence import InfluenceSettings
from curvcli.schema.spectrum import SpectrumSettings
from curvcli.schema.step import StepSettings
from curvcli.schema.trace import TraceSettings
from tests.curvature.test_taps import linen_problem
from tests.problems import mlp_problem

PROBLEM = mlp_problem(l2=0.01)
ASKED: dict[str, Any] = {"factors": "exact", "dtype": "float64", "damping": 0.1, "skip_checks": True}


def dense(name: str) -> np.ndarray:
    return to_dense(build(PROBLEM, name, factors="exact", damping=0.1))


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_every_analysis_reads_the_factors(name: str) -> None:
    full = dense(name)
    values = np.linalg.eigvalsh(full)
    found = spectrum.run(Context(PROBLEM, Silent()), SpectrumSettings(matrix=name, **ASKED)).result
    np.testing.assert_allclose(found.nodes[0], values, rtol=1e-9)
    assert found.lambda_max.value == pytest.approx(values[-1])
    assert found.max_stable_learning_rate == pytest.approx(2 / values[-1])
    traced = trace.run(Context(PROBLEM, Silent()), TraceSettings(matrix=name, **ASKED))
    assert (traced.result.trace.value, traced.result.trace.stderr) == (pytest.approx(np.trace(full)), 0)
    assert traced.result.frobenius_norm.value == pytest.approx(np.linalg.norm(full))
    assert traced.result.written_out == "factors"
    assert traced.meter.products == 0
    kept = diag.run(Context(PROBLEM, Silent()), DiagSettings(matrix=name, arrays="d.npz", **ASKED)).arrays
    entries = np.concatenate([kept[path].reshape(-1) for path in sorted(PROBLEM.params)])
    np.testing.assert_allclose(entries, np.diag(full), rtol=1e-9)
    pairs = eigs.run(Context(PROBLEM, Silent()), EigsSettings(matrix=name, k=3, vectors="v.npz", **ASKED))
    np.testing.assert_allclose([one.value for one in pairs.result.eigenvalues], values[::-1][:3], rtol=1e-9)


def test_iterations_agree_with_the_factors() -> None:
    asked = {**ASKED, "matrix": "kfac", "method": "hutchinson", "probes": 400}
    found = trace.run(Context(PROBLEM, Silent()), TraceSettings(**asked)).result.trace
    assert found.interval[0] <= np.trace(dense("kfac")) <= found.interval[1]


def test_parameters_without_a_layer_are_listed() -> None:
    settings = TraceSettings(matrix="kfac", **ASKED)
    problem = linen_problem()
    notes = matrix_notes(problem, settings.matrix, settings.seed)
    assert len(notes) == 1
    assert notes[0].startswith("2 parameters fit no layer and have their diagonal in the kfac: LayerNorm_0/")
    assert matrix_notes(PROBLEM, settings.matrix, settings.seed) == []


def influenced(saved: Any = None, **asked: Any) -> Any:
    queries = PROBLEM.batches.chosen(np.arange(2))
    settings = {"remove": True, "queries": "0:2", "dtype": "float64", "factors": "exact", "skip_checks": True, **asked}
    return influence.run(
        Context(PROBLEM, Silent(), Inputs(queries=queries, factors=saved)), InfluenceSettings(**settings)
    )


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_influence_by_the_inverse_of_factors(name: str) -> None:
    from curvcli.curvature.influence.queries import gradients

    answer = influenced(solver=name, damping=0.1, scores="s.npz")
    right = gradients(PROBLEM, PROBLEM.batches.chosen(np.arange(2)), "loss")
    slopes = gradients(PROBLEM, PROBLEM.batches, "loss")
    expected = np.linalg.solve(dense(name), np.asarray(right).T).T @ np.asarray(slopes).T / PROBLEM.normaliser
    np.testing.assert_allclose(answer.arrays["scores"], expected, rtol=1e-8)
    assert {one.status for one in answer.result.solves} == {"approximate"}
    assert all(one.lowest_curvature is None for one in answer.result.solves)
    assert any("stands for the inverse" in one for one in answer.warnings)
    true = np.asarray(right) - np.linalg.solve(dense(name), np.asarray(right).T).T @ to_dense(
        build(PROBLEM, "ggn", damping=0.1)
    )
    sizes = np.linalg.norm(true, axis=1) / np.linalg.norm(right, axis=1)
    np.testing.assert_allclose([one.residual for one in answer.result.solves[:2]], sizes, rtol=1e-8)


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_self_influence_by_the_inverse_of_factors(name: str) -> None:
    from curvcli.curvature.influence.queries import gradients

    settings = InfluenceSettings(
        remove=True, dtype="float64", factors="exact", skip_checks=True, solver=name, damping=0.1, samples=512,
        scores="s.npz",
    )  # fmt: skip
    answer = influence.run(Context(PROBLEM, Silent(), Inputs()), settings)
    slopes = np.asarray(gradients(PROBLEM, PROBLEM.batches, "loss"))
    expected = np.einsum("nd,nd->n", slopes, np.linalg.solve(dense(name), slopes.T).T) / PROBLEM.normaliser
    off = (answer.arrays["scores"] - expected) / answer.arrays["self_stderr"]
    assert np.abs(off).max() < 5
    assert 0.5 < off.std(ddof=1) < 2  # examples share the draws
    assert np.median(answer.arrays["self_stderr"] / expected) < 0.1
    total = np.trace(np.linalg.solve(dense(name), to_dense(build(PROBLEM, "ggn")) - 0.01 * np.eye(PROBLEM.dim)))
    found = answer.result.self_influence.total_leverage
    assert abs(found.value - total) < 4 * found.stderr


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_a_sweep_damps_the_factors(name: str) -> None:
    base = influenced(solver=name, damping=0.1, scores="s.npz", damping_sweep=True)
    for point in base.result.sweep:
        alone = influenced(solver=name, damping=point.damping, scores="s.npz").arrays["scores"]
        expected = median_spearman(base.arrays["scores"], alone)
        assert point.spearman == pytest.approx(expected, abs=1e-12)
        assert point.spearman < 1


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_a_preconditioner_changes_no_score(name: str) -> None:
    plain = influenced(solver="cg", damping=0.01, tol=1e-10, scores="s.npz")
    found = influenced(solver="cg", damping=0.01, tol=1e-10, scores="s.npz", precondition=name)
    np.testing.assert_allclose(found.arrays["scores"], plain.arrays["scores"], rtol=1e-6, atol=1e-12)
    assert {one.status for one in found.result.solves} == {"converged"}


@pytest.mark.parametrize(("how", "name"), [("precondition", "kfac"), ("solver", "ekfac")])
def test_saved_factors_give_the_same_scores_for_fewer_passes(how: str, name: Any, monkeypatch: Any) -> None:
    asked = {"damping": 0.1, "scores": "s.npz", **{"solver": "cg", how: name}}
    own = influenced(**asked)
    settings = InfluenceSettings(remove=True, dtype="float64", factors="exact", solver=name)
    made = running_factors(PROBLEM, settings, name)
    made.at(PROBLEM, 0)
    monkeypatch.setattr(running, "measured", None)  # nothing is measured again
    taken = influenced(saved=made.arrays(PROBLEM), factors_from="k.npz", **asked)
    np.testing.assert_allclose(taken.arrays["scores"], own.arrays["scores"], rtol=1e-12)
    assert taken.meter.data_passes == own.meter.data_passes - 1
    assert taken.meter.products == own.meter.products


def test_stale_factors_stay_stale() -> None:
    settings: Any = {"dtype": "float64", "factors": "exact", "method": "kfac"}
    made = running_factors(PROBLEM, StepSettings(**settings), "kfac")
    made.at(PROBLEM, 0)
    other = replace(PROBLEM, params={name: 1.1 * leaf for name, leaf in PROBLEM.params.items()})
    again = running_factors(other, StepSettings(**settings), "kfac", made.arrays(PROBLEM), stale=True)
    again.at(other, 0)
    with pytest.raises(UsageError, match="other weights"):
        running_factors(other, StepSettings(**settings), "kfac", again.arrays(other))
    again.at(other, 1)  # averaged with those of these weights
    running_factors(other, StepSettings(**settings), "kfac", again.arrays(other))


def test_damped_factors_invert() -> None:
    known = build(PROBLEM, "ekfac", factors="exact", damping=0.1).known
    assert known is not None
    assert np.all(np.diff(known.eigenvalues()) >= 0)
    vectors = jnp.asarray(known.eigenvectors(np.array([-1])))
    image = build(PROBLEM, "ekfac", factors="exact", damping=0.1).matmat(vectors)
    np.testing.assert_allclose(image, known.eigenvalues()[-1] * vectors, rtol=1e-8, atol=1e-12)
