"""`batch_norm="batch"`: the objective that training minimises, on fixed batches, against dense derivatives of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from curvcli import Objective
from curvcli.analyses.common.checks import examined
from curvcli.curvature import build
from curvcli.curvature.products import sums
from curvcli.errors import CurvError, SpecError, UsageError
from curvcli.linalg.operator import to_dense
from curvcli.problem import Problem
from curvcli.schema.compare import CompareSettings
from curvcli.schema.influence import InfluenceSettings
from curvcli.schema.settings import AnalysisSettings
from curvcli.schema.step import StepSettings
from tests.analyses.batch_norm import (
    COUNT,
    Linen,
    Nnx,
    NnxTold,
    NoTraining,
    Own,
    X,
    Y,
    linen_variables,
    nnx_variables,
    objective,
    outputs,
    params_of,
)

KINDS = {
    Linen: (Linen(), linen_variables(Linen(), 0)),
    Nnx: (Nnx, nnx_variables(Nnx, 0)),
    NnxTold: (NnxTold, nnx_variables(NnxTold, 0)),
}


def asked(model: Any) -> Objective:
    return Objective(model, (X, Y), "softmax_cross_entropy")


def problem_of(cls: Any, batch: int | None, mode: str = "batch") -> Problem:
    model, variables = KINDS[cls]
    settings = AnalysisSettings(dtype="float64", batch_norm=mode, batch_size=batch)  # type: ignore[arg-type]
    return asked(model)._held.at(variables, None, settings).problem


@pytest.mark.first_tier("Linen-20")
@pytest.mark.parametrize(("cls", "batch"), [(Linen, 20), (Nnx, 12), (NnxTold, 16)])
def test_the_hessian_is_that_of_the_loss_in_training_mode(cls: Any, batch: int) -> None:
    variables = KINDS[cls][1]
    value, w = objective(cls, params_of(cls, variables)[0], batch)
    truth = np.asarray(jax.jit(jax.hessian(value))(w))
    problem = problem_of(cls, batch)
    np.testing.assert_allclose(to_dense(build(problem, "hessian")), truth, atol=1e-12 * np.abs(truth).max())
    np.testing.assert_allclose(sums.objective(problem), value(w), rtol=1e-13)


@pytest.mark.first_tier("20")
@pytest.mark.parametrize("batch", [12, 20])
def test_reports_say_what_the_answer_depends_on(batch: int) -> None:
    cls, (model, variables) = Linen, KINDS[Linen]
    value, w = objective(cls, params_of(cls, variables)[0], batch)
    truth = np.linalg.eigvalsh(np.asarray(jax.jit(jax.hessian(value))(w)))
    found = asked(model).eigs(variables, k=3, which="largest", dtype="float64", batch_norm="batch", batch_size=batch)
    np.testing.assert_allclose([one.value for one in found.result.eigenvalues], truth[::-1][:3], rtol=1e-9)
    problem = found.report.problem
    np.testing.assert_allclose(problem.loss_value, value(w), rtol=1e-13)
    assert (problem.mode, problem.batch_size, problem.batches) == ("batch", batch, COUNT // batch)
    assert not found.report.untrusted
    assert "per_example" not in found.report.checks
    assert any("batch size is part of the answer" in warning for warning in found.report.warnings)
    assert any("left out" in warning for warning in found.report.warnings) == (COUNT % batch > 0)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [Linen, Nnx])
def test_the_sandwiches_have_the_jacobian_of_whole_batches(cls: Any) -> None:
    batch, (_, variables) = 16, KINDS[cls]
    params = params_of(cls, variables)[0]
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def logits(w: Any) -> Any:
        return jnp.concatenate(
            [outputs(cls, unravel(w), jnp.asarray(X[i : i + batch]))[0] for i in range(0, COUNT, batch)]
        )

    jacobian, z = np.asarray(jax.jit(jax.jacobian(logits))(flat)), logits(flat)
    p = np.asarray(jax.nn.softmax(z))
    blocks = np.einsum("nc,cd->ncd", p, np.eye(3)) - np.einsum("nc,nd->ncd", p, p)
    ggn = np.einsum("nci,ncd,ndj->ij", jacobian, blocks, jacobian) / COUNT
    problem = problem_of(cls, batch)
    for name in ("ggn", "fisher"):
        np.testing.assert_allclose(to_dense(build(problem, name)), ggn, atol=1e-12 * np.abs(ggn).max())
    kernel = np.einsum("nci,mdi->ncmd", jacobian, jacobian).reshape(COUNT * 3, -1)
    np.testing.assert_allclose(to_dense(build(problem, "ntk")), kernel, atol=1e-12 * np.abs(kernel).max())
    # Labels drawn for each example from its outputs: the mean over many draws is the exact matrix.
    sampled = to_dense(build(problem, "fisher-mc", mc_samples=4000))
    assert np.linalg.norm(sampled - ggn) < 0.05 * np.linalg.norm(ggn)
    found = asked(KINDS[cls][0]).trace(
        variables, matrix="ggn", method="dense", dtype="float64", batch_norm="batch", batch_size=batch
    )
    np.testing.assert_allclose(found.result.trace.value, np.trace(ggn), rtol=1e-11)


def test_without_a_batch_size_all_examples_are_one_batch_and_no_plan_changes_it() -> None:
    problem = problem_of(Linen, None)
    assert (problem.batches.batch_size, len(problem.batches)) == (COUNT, 1)
    assert problem.batches.resized(5) is problem.batches
    assert sums.objective(problem) != pytest.approx(sums.objective(problem_of(Linen, 12)), rel=1e-3)
    # Held fixed, the batch size is none of the answer.
    fixed = [sums.objective(problem_of(Linen, size, "fixed")) for size in (7, COUNT)]
    assert fixed[0] == pytest.approx(fixed[1], rel=1e-13)


@pytest.mark.slow
def test_other_analyses_of_the_same_objective() -> None:
    model, variables = KINDS[Linen]
    value, w = objective(Linen, params_of(Linen, variables)[0], 12)
    gradient = np.asarray(jax.grad(value)(w))
    batches: dict[str, Any] = {"dtype": "float64", "batch_norm": "batch", "batch_size": 12}
    line = asked(model).direction(variables, along=["gradient"], points=3, range=["-0.1:0.1"], **batches).result
    np.testing.assert_allclose(line.slope, np.linalg.norm(gradient), rtol=1e-10)
    for s, loss in zip(line.profile.s, line.profile.loss, strict=True):
        np.testing.assert_allclose(loss, value(w + s * gradient), rtol=1e-12)
    assert line.batch_stats is None
    step = asked(model).step(variables, method="gauss-newton", damping=0.1, **batches).result
    np.testing.assert_allclose(step.reduction_ratio, step.actual_decrease / step.predicted_decrease, rtol=1e-9)
    compared = asked(model).compare(variables, skip_checks=True, **batches).result
    assert "kfac" in compared.left_out
    assert "hessian" in compared.matrices


@pytest.mark.parametrize(
    "settings",
    [
        lambda: AnalysisSettings(batch_norm="batch", matrix="empirical-fisher"),
        lambda: AnalysisSettings(batch_norm="batch", matrix="kfac"),
        lambda: InfluenceSettings(batch_norm="batch", remove=True),
        lambda: StepSettings(batch_norm="batch", method="ekfac"),
        lambda: StepSettings(batch_norm="batch", method="covariance"),
        lambda: StepSettings(batch_norm="batch", precondition="kfac"),
        lambda: CompareSettings(batch_norm="batch", matrices=["ggn", "diagonal"]),
        lambda: CompareSettings(batch_norm="batch", laplace="ggn"),
    ],
)
def test_what_rests_on_single_examples_is_refused(settings: Any) -> None:
    with pytest.raises(ValidationError, match="an example has no loss of its own"):
        settings()


def test_an_own_normalisation_is_switched_by_the_calls_argument() -> None:
    model = Own()
    variables = linen_variables(model, 0)
    problem = asked(model)._held.at(variables, None, AnalysisSettings(dtype="float64", batch_norm="batch")).problem
    p = variables["params"]
    x = X @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    hidden = np.tanh((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3))
    z = problem.predict(problem.params, problem.frozen, jnp.asarray(X))
    np.testing.assert_allclose(z, hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"], rtol=1e-12)


def test_models_without_a_training_mode_or_without_statistics() -> None:
    model = NoTraining()
    with pytest.raises(SpecError, match="no call in training mode"):
        asked(model).eigs(model.init(jax.random.key(0), X), k=1, batch_norm="batch")
    with pytest.raises(UsageError, match="no batch statistics"):
        asked(lambda params, x: x @ params["w"]).eigs({"w": np.ones((4, 3))}, k=1, batch_norm="batch")
    assert issubclass(SpecError, CurvError)


def test_examples_that_mix_are_still_told_where_statistics_are_meant_to_be_fixed() -> None:
    problem = problem_of(Linen, None, "fixed")
    settings = AnalysisSettings(dtype="float64")
    checks, _ = examined(problem, build(problem, "hessian"), settings, 2)
    assert checks["per_example"].passed
