"""What several devices compute together equals what one does, for any number of examples and parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from curvcli.analyses import diag, eigs, spectrum, trace
from curvcli.analyses.common.context import Context
from curvcli.analyses.common.planning import plan_lanczos
from curvcli.analyses.common.tuning import planned
from curvcli.analyses.compare import analysis as compare
from curvcli.analyses.influence import analysis as influence
from curvcli.analyses.influence.context import Inputs as Queries
from curvcli.analyses.lines import direction, landscape
from curvcli.analyses.lines.directions import Inputs as LineInputs
from curvcli.analyses.saddle import analysis as saddle
from curvcli.analyses.step import analysis as step
from curvcli.curvature import build
from curvcli.curvature.kronecker.kfac import Recipe, kfac
from curvcli.curvature.matrices import MATRICES, has
from curvcli.curvature.operators import example_forms
from curvcli.devices import cut_along, mesh_of, on_every, on_host, parameter_sharding, rounded_up
from curvcli.errors import UsageError
from curvcli.linalg.cutting import cut, whole, width
from curvcli.linalg.iterate import Silent
from curvcli.linalg.krylov import basis as bases
from curvcli.linalg.krylov.lanczos import Lanczos
from curvcli.linalg.operator import dense_operator, to_dense
from curvcli.linalg.probes import sphere
from curvcli.linalg.solvers import cg
from curvcli.loading.checkpoints.reading import load_checkpoint
from curvcli.problem import Problem, spread
from curvcli.schema.compare import CompareSettings
from curvcli.schema.diag import DiagSettings
from curvcli.schema.direction import DirectionSettings
from curvcli.schema.eigs import EigsSettings
from curvcli.schema.influence import InfluenceSettings
from curvcli.schema.landscape import LandscapeSettings
from curvcli.schema.saddle import SaddleSettings
from curvcli.schema.settings import AnalysisSettings
from curvcli.schema.spectrum import SpectrumSettings
from curvcli.schema.step import StepSettings
from curvcli.schema.trace import TraceSettings
from tests.problems import dense_hessian, mlp_problem

KEY = jax.random.key(3)
EPS = float(np.finfo(float).eps)
COUNTS = pytest.mark.parametrize("count", [2, 4, 8])
MORE = pytest.mark.parametrize(
    "count", [pytest.param(2, marks=pytest.mark.nightly), 4, pytest.param(8, marks=pytest.mark.nightly)]
)


def problem_of(**rest: Any) -> Problem:
    """83 parameters and 45 examples: neither is divided by 2, 4 or 8."""
    return mlp_problem(**{"sizes": (5, 8, 3), "count": 45, "l2": 1e-2, "batch_size": 11, **rest})


def shared(problem: Problem, count: int, **rest: bool) -> Problem:
    mesh = mesh_of(count)
    assert mesh is not None
    assert mesh.size == count
    return spread(problem, mesh, **rest)


def test_the_mesh() -> None:
    assert mesh_of(None) is None
    assert mesh_of(1) is None
    everyone = mesh_of("all")
    assert everyone is not None
    assert everyone.size == 8
    with pytest.raises(UsageError, match="--devices 9: JAX has 8 cpu devices") as caught:
        mesh_of(9)
    assert caught.value.hint.startswith("set JAX_NUM_CPU_DEVICES=9 ")


@COUNTS
def test_every_device_holds_its_own_examples_and_nobody_the_padding_s_weight(count: int) -> None:
    problem = shared(problem_of(), count)
    size = problem.batches.batch_size
    assert size == rounded_up(problem.batches.mesh, 11)
    rows = []
    for batch in problem.batches:
        shards = batch.inputs.addressable_shards
        assert {shard.data.shape for shard in shards} == {(size // count, 5)}
        assert len({shard.device for shard in shards}) == count
        rows.append(np.asarray(batch.inputs)[np.asarray(batch.weight) > 0])
        np.testing.assert_array_equal(batch.index, np.arange(size) + size * (len(rows) - 1))
    np.testing.assert_array_equal(np.concatenate(rows), problem.batches.inputs)


def test_a_batch_smaller_than_the_devices_is_whole_on_each() -> None:
    batches = shared(problem_of(), 8).batches.resized(3)
    first = next(iter(batches))
    assert first.inputs.sharding.is_fully_replicated
    np.testing.assert_array_equal(first.inputs, batches.inputs[:3])


@pytest.mark.first_tier("hessian-4", "ggn-4", "gradient-covariance-4", "kfac-4")
@MORE
@pytest.mark.parametrize("name", MATRICES)
def test_products(name: str, count: int) -> None:
    problem, vectors = problem_of(), None
    alone = build(problem, name, damping=0.1)
    together = build(shared(problem, count), name, damping=0.1)
    vectors = sphere(KEY, 0, 3, alone.dim, "float64")
    wanted = np.asarray(alone.matmat(vectors))
    np.testing.assert_allclose(on_host(together.matmat(vectors)), wanted, atol=50 * EPS * np.abs(wanted).max(), rtol=0)


@pytest.mark.first_tier("4")
@COUNTS
def test_products_of_a_dense_hessian(count: int) -> None:
    problem = problem_of()
    exact = dense_hessian(problem)
    found = to_dense(build(shared(problem, count), "hessian"))
    np.testing.assert_allclose(found, exact, atol=50 * EPS * np.linalg.norm(exact, 2), rtol=0)


@pytest.mark.parametrize("name", ["hessian", "fisher-mc", "gradient-covariance"])
def test_shares_of_examples(name: str) -> None:
    assert has(name, "forms")
    problem = problem_of()
    vectors = sphere(KEY, 0, 2, problem.dim, "float64")
    wanted = example_forms(problem, name, vectors)
    found = example_forms(shared(problem, 4), name, vectors)
    assert found.shape == (2, 45)
    np.testing.assert_allclose(found, wanted, atol=50 * EPS * np.abs(wanted).max(), rtol=0)


@MORE
def test_parameters_that_are_cut(count: int) -> None:
    problem = problem_of()
    cut_up = shared(problem, count, shard_params=True)
    kernel = cut_up.params["a/kernel"]
    assert kernel.sharding == parameter_sharding(kernel.sharding.mesh, (5, 8)) == cut_along(kernel.sharding.mesh, 1)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(5, 8 // count)}
    assert cut_up.params["b/bias"].sharding == on_every(kernel.sharding.mesh)
    exact = dense_hessian(problem)
    np.testing.assert_allclose(to_dense(build(cut_up, "hessian")), exact, atol=50 * EPS * np.linalg.norm(exact, 2))


@pytest.mark.first_tier("4")
@COUNTS
def test_bases_lie_cut_along_dim(count: int) -> None:
    mesh, rng = mesh_of(count), np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(83, 20)))[0].T
    basis = bases.empty(83, mesh)
    for row in q:
        basis = bases.append(basis, jnp.asarray(row)[None])
    assert mesh is not None
    wide = width(mesh, 83)
    for chunk in basis.chunks:
        assert {shard.data.shape for shard in chunk.addressable_shards} == {(1, bases.CHUNK, wide // count)}
    vector = rng.normal(size=(1, 83))
    rest, removed = bases.orthogonalise(basis, jnp.asarray(vector))
    np.testing.assert_allclose(np.asarray(rest), vector - vector @ q.T @ q, atol=1e-14)
    np.testing.assert_allclose(bases.coefficients(basis, removed), vector @ q.T, atol=1e-14)
    weights = np.linalg.qr(rng.normal(size=(20, 3)))[0].T[None]
    np.testing.assert_allclose(bases.combine(basis, weights)[0], weights[0] @ q, atol=1e-14)
    turned = bases.rotate(basis, weights)
    assert {shard.data.shape[-1] for shard in turned.chunks[0].addressable_shards} == {wide // count}
    np.testing.assert_allclose(np.asarray(turned.chunks[0])[0, :3, :83], weights[0] @ q, atol=1e-14)


def test_cut_and_whole_again() -> None:
    mesh = mesh_of(8)
    assert mesh is not None
    rows = np.arange(22.0).reshape(2, 11)
    wide = cut(mesh, jnp.asarray(rows))
    np.testing.assert_array_equal(wide, np.pad(rows, ((0, 0), (0, 53))))
    assert wide.sharding.spec == cut_along(mesh, 1).spec
    np.testing.assert_array_equal(whole(mesh, 11, wide), rows)


@pytest.mark.first_tier("4")
@COUNTS
def test_lanczos_and_conjugate_gradients(count: int) -> None:
    problem = problem_of()
    exact = dense_hessian(problem)
    size = np.linalg.norm(exact, 2)
    start = sphere(KEY, 0, 2, problem.dim, "float64")
    found = []
    for one in (problem, shared(problem, count)):
        operator, algorithm = build(one, "hessian"), Lanczos(start, 12)
        state = algorithm.init(operator)
        while not algorithm.done(state):
            state = algorithm.step(operator, state)
        found.append(algorithm.result(state))
    for alone, together in zip(*found, strict=True):
        # Extremes are well conditioned in T; its entries need not be.
        np.testing.assert_allclose(together.eigh()[0][[0, -1]], alone.eigh()[0][[0, -1]], atol=50 * EPS * size)
    system = build(shared(problem, count), "ggn", damping=0.5)
    solved = cg.solve(system, start, tol=1e-12, max_steps=100, monitor=Silent())
    assert solved.status == ["converged"] * 2
    assert solved.x.shape == (2, problem.dim)
    dense = to_dense(build(problem, "ggn", damping=0.5))
    np.testing.assert_allclose(np.asarray(solved.x), np.linalg.solve(dense, np.asarray(start).T).T, atol=1e-10)


def test_a_dense_operator_has_no_devices_to_share() -> None:
    assert dense_operator(np.eye(3)).mesh is None


@MORE
def test_kronecker_factors_lie_cut(count: int) -> None:
    problem = problem_of()
    vectors = sphere(KEY, 0, 2, problem.dim, "float64")
    for corrected in (False, True):
        alone = kfac(problem, Recipe("exact"), corrected=corrected).damped(0.3)
        together = kfac(shared(problem, count), Recipe("exact"), corrected=corrected).damped(0.3)
        for found, wanted in ((one.function(np.sqrt)(vectors) for one in (together, alone)),):
            np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), atol=1e-13)


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """All numbers in a result, with where they stand."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers(inner, f"{path}[{index}]")
    elif isinstance(value, float | int) and not isinstance(value, bool):
        yield path, float(value)


COMMON: dict[str, Any] = {"dtype": "float64", "skip_checks": True}
ANALYSES: dict[str, Callable[[Problem], Any]] = {
    "spectrum": lambda p: spectrum.run(
        Context(p, Silent()), SpectrumSettings(method="hutchinson", probes=3, steps=10, tol=1e-9, **COMMON)
    ),
    "trace": lambda p: trace.run(Context(p, Silent()), TraceSettings(method="xtrace", probes=4, **COMMON)),
    "diag": lambda p: diag.run(Context(p, Silent()), DiagSettings(method="hutchinson", probes=4, **COMMON)),
    "eigs": lambda p: eigs.run(Context(p, Silent()), EigsSettings(method="lanczos", k=3, tol=1e-9, **COMMON)),
    "saddle": lambda p: saddle.run(Context(p, Silent()), SaddleSettings(tol=1e-9, **COMMON)),
    "direction": lambda p: direction.run(
        Context(p, Silent(), LineInputs({})), DirectionSettings(along=["gradient"], **COMMON)
    ),
    "landscape": lambda p: landscape.run(
        Context(p, Silent(), LineInputs({})), LandscapeSettings(along=["random"], points=5, **COMMON)
    ),
    "influence": lambda p: influence.run(
        Context(p, Silent(), Queries(queries=p.batches.resized(1).chosen(np.arange(3)))),
        InfluenceSettings(label_perturb=True, solver="cg", tol=1e-10, damping=0.1, **COMMON),
    ),
    "step": lambda p: step.run(Context(p, Silent(), step.Inputs()), StepSettings(**COMMON)),
    "compare": lambda p: compare.run(Context(p, Silent()), CompareSettings(matrices="ggn,kfac", **COMMON)),
}


PATH_DEPENDENT = ("residual", "data_passes", "lowest_curvature")
"""What rounding decides: how far iterations came, not what they came to."""


def assert_same(alone: Any, together: Any) -> None:
    """All numbers of two answers are equal but for rounding."""
    wanted, found = (dict(numbers(one.result.model_dump(mode="json"))) for one in (alone, together))
    assert wanted.keys() == found.keys()
    for path, value in wanted.items():
        if not path.endswith(PATH_DEPENDENT) and ".residuals" not in path:
            assert found[path] == pytest.approx(value, rel=1e-6, abs=1e-9), path


@pytest.mark.first_tier("trace", "eigs")
@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis(name: str) -> None:
    problem = problem_of(sizes=(4, 5, 3), count=21)
    settings = SpectrumSettings(**COMMON, batch_size=9)
    assert_same(*(ANALYSES[name](planned(one, settings)) for one in (problem, shared(problem, 4))))


def test_gram_schmidt_has_the_same_bits_for_any_number_of_devices() -> None:
    rng = np.random.default_rng(4)
    rows, vector = rng.normal(size=(19, 501)).astype(np.float32), jnp.asarray(rng.normal(size=(1, 501)), "float32")
    found = []
    for count in (2, 4, 8):
        basis = bases.empty(501, mesh_of(count))
        for row in rows:
            basis = bases.append(basis, jnp.asarray(row)[None])
        found.append(np.asarray(bases.project_out(basis, vector)[0]).tobytes())
    assert len(set(found)) == 1


def test_orbax_restores_each_parameter_straight_into_its_place(tmp_path: Path) -> None:
    tree = {"params": {"a": np.arange(48.0).reshape(6, 8), "b": np.arange(3.0), "n": np.float64(2)}}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "ckpt", tree)
    mesh = mesh_of(4)
    assert mesh is not None
    whole_on_host = load_checkpoint(tmp_path / "ckpt")
    placed = load_checkpoint(tmp_path / "ckpt", placing=partial(parameter_sharding, mesh))
    assert placed.sha256 == whole_on_host.sha256
    kernel = placed.tree["params"]["a"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(6, 2)}
    assert placed.tree["params"]["b"].sharding.is_fully_replicated
    np.testing.assert_array_equal(kernel, tree["params"]["a"])


def test_the_plan_counts_a_shared_basis_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On accelerators, which have a memory each; the devices of a CPU share theirs."""
    problem = mlp_problem(sizes=(40, 64, 3), count=16)
    asked, settings = {"probes": 1, "steps": 160, "full": True}, AnalysisSettings(max_memory=1 << 30)
    alone = plan_lanczos(problem, settings, **asked).bytes
    assert alone <= plan_lanczos(shared(problem, 8), settings, **asked).bytes <= 1.2 * alone  # vectors on each
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    rows = 8 * problem.dim * 160
    assert alone - plan_lanczos(shared(problem, 8), settings, **asked).bytes >= rows * 7 // 8
