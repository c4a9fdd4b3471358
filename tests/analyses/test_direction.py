"""The whole analysis against dense float64 truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.analyses.common.answer import Answer
from curvcli.analyses.common.context import Context
from curvcli.analyses.lines import direction
from curvcli.analyses.lines.direction import model_radius
from curvcli.analyses.lines.directions import Inputs as LineInputs
from curvcli.curvature.flatten import Layout
from curvcli.errors import MemoryLimitError, NumericsError, UsageError
from curvcli.linalg.iterate import Silent
from curvcli.problem import Problem
from curvcli.schema.direction import Directions, DirectionSettings
from tests.curvature.test_weights import module_problem
from tests.monitors import StopAfter
from tests.problems import (
    dense_ggn,
    dense_hessian,
    dense_jacobian,
    dense_objective,
    flat_params,
    make_problem,
    mlp_problem,
    token_problem,
)

KINDS = ["gradient", "newton", "random", "filter-normalized", "eigenvector:1", "eigenvector:-2", "array:given"]


def run(problem: Problem, *along: str, given: Any = None, monitor: Any = None, **settings: Any) -> Answer[Any]:
    settings = {"dtype": "float64", "skip_checks": True, "along": list(along), "arrays": "kept.npz", **settings}
    return direction.run(Context(problem, monitor or Silent(), LineInputs(given or {})), DirectionSettings(**settings))


def found(answer: Answer[Any]) -> list[Any]:
    return answer.result.directions if isinstance(answer.result, Directions) else [answer.result]


def vectors_of(problem: Problem, answer: Answer[Any]) -> np.ndarray:
    """The vectors of the file as rows."""
    count = len(found(answer))
    return np.concatenate(
        [answer.arrays[f"vectors/{name}"].reshape(count, -1) for name in Layout.of(problem.params).names], axis=1
    )


def cubes(params: Any) -> Any:
    """A regulariser with a third derivative."""
    return 0.01 * sum(jnp.sum(leaf**3) for leaf in params.values())


@pytest.fixture(scope="module")
def network() -> Problem:
    return mlp_problem(sizes=(3, 4, 3), l2=0.01, regulariser=cubes, batch_size=7)


@pytest.fixture(scope="module")
def truth(network: Problem) -> tuple[np.ndarray, np.ndarray]:
    """∇J and ∇²J."""
    return np.asarray(jax.grad(dense_objective(network))(flat_params(network))), dense_hessian(network)


@pytest.fixture(scope="module")
def everything(network: Problem) -> Answer[Any]:
    layout = Layout.of(network.params)
    given = layout.unravel(jnp.asarray(np.random.default_rng(7).normal(size=layout.dim)))
    return run(network, *KINDS, given={"array:given": given}, points=9)


@pytest.mark.slow
def test_derivatives(network: Problem, truth: Any, everything: Answer[Any]) -> None:
    gradient, hessian = truth
    curved = dense_hessian(replace(network, loss=replace(network.loss, value=lambda z, t: 0 * jnp.sum(z, -1))))
    ggn = dense_ggn(network) + curved
    objective, w = jax.jit(dense_objective(network)), flat_params(network)
    third = jax.jit(lambda v: jax.jvp(lambda p: jax.jvp(
        lambda q: jax.jvp(objective, (q,), (v,))[1], (p,), (v,))[1], (w,), (v,))[1])  # fmt: skip
    _, jacobian = dense_jacobian(network)
    for one, vector in zip(found(everything), vectors_of(network, everything), strict=True):
        unit = vector / np.linalg.norm(vector)
        np.testing.assert_allclose(one.norm, np.linalg.norm(vector), rtol=1e-12)
        np.testing.assert_allclose(one.slope, gradient @ unit, atol=1e-13)
        np.testing.assert_allclose(one.gradient_cosine, gradient @ unit / np.linalg.norm(gradient), atol=1e-12)
        np.testing.assert_allclose(one.rayleigh_quotient, unit @ hessian @ unit, rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(one.rayleigh_quotients.hessian, one.rayleigh_quotient, rtol=1e-14)
        np.testing.assert_allclose(one.rayleigh_quotients.ggn, unit @ ggn @ unit, rtol=1e-10)
        np.testing.assert_allclose(one.third_derivative, third(unit), rtol=1e-9, atol=1e-13)
        moved = (jacobian @ unit).reshape(network.batches.num_examples, -1)
        sizes = np.linalg.norm(moved, axis=1)
        np.testing.assert_allclose(one.output_change.rms, np.sqrt(np.mean(sizes**2)), rtol=1e-10)
        np.testing.assert_allclose(one.output_change.max, sizes.max(), rtol=1e-10)
        assert one.output_change.example == sizes.argmax()


def test_profiles(network: Problem, truth: Any, everything: Answer[Any]) -> None:
    gradient, hessian = truth
    objective, w = jax.jit(dense_objective(network)), np.asarray(flat_params(network))
    origin = float(objective(w))
    for one, vector in zip(found(everything), vectors_of(network, everything), strict=True):
        s = np.array(one.profile.s)
        assert len(s) == 9
        np.testing.assert_allclose(one.profile.loss, [objective(w + t * vector) for t in s], rtol=1e-13)
        model = origin + s * (gradient @ vector) + 0.5 * s**2 * (vector @ hessian @ vector)
        np.testing.assert_allclose(one.profile.quadratic, model, rtol=1e-11)
        assert one.model_radius is not None
        if not one.model_radius_censored:
            # Inside the radius the model holds, and a little further it does not.
            def excess(t: float, vector: np.ndarray = vector) -> float:
                steps = np.linspace(0, t, 200)
                change = steps * (gradient @ vector) + 0.5 * steps**2 * (vector @ hessian @ vector)
                return abs(float(objective(w + t * vector)) - origin - change[-1]) - 0.1 * np.abs(change).max()

            assert max(excess(0.4 * one.model_radius), excess(-0.4 * one.model_radius)) < 0
            assert max(excess(2.5 * one.model_radius), excess(-2.5 * one.model_radius)) > 0
    np.testing.assert_allclose([one.profile.s[0] for one in found(everything)][1], -0.5)
    # All profiles and J itself came from one pass, and at most one more looked nearer to 0.
    assert everything.meter.data_passes < everything.meter.products + 8


def test_vectors(network: Problem, truth: Any, everything: Answer[Any]) -> None:
    gradient, hessian = truth
    slope, newton, random, filters, first, second_lowest, given = vectors_of(network, everything)
    results = found(everything)
    np.testing.assert_allclose(slope, gradient, atol=1e-14)
    assert results[1].solve.status == "converged"
    np.testing.assert_allclose(hessian @ newton, -gradient, atol=2e-6 * np.linalg.norm(gradient))
    np.testing.assert_allclose(np.linalg.norm(random), 1, rtol=1e-12)
    np.testing.assert_allclose(given, np.random.default_rng(7).normal(size=len(given)))
    values, vectors = np.linalg.eigh(hessian)
    for vector, index, one in ((first, -1, results[4]), (second_lowest, 1, results[5])):
        np.testing.assert_allclose(abs(vector @ vectors[:, index]), 1, rtol=1e-9)
        np.testing.assert_allclose([one.eigenvalue.value, one.rayleigh_quotient], values[index], rtol=1e-7)
        assert one.slope <= 0
        assert one.eigenvalue.converged
    layout = Layout.of(network.params)
    for name, leaf in layout.unravel(jnp.asarray(filters)).items():
        weights = np.asarray(network.params[name])
        expected = np.linalg.norm(weights, axis=0) if weights.ndim == 2 else 0.0
        np.testing.assert_allclose(np.linalg.norm(leaf, axis=0) if weights.ndim == 2 else leaf, expected, rtol=1e-12)


def test_outputs_file(network: Problem, everything: Answer[Any]) -> None:
    _, jacobian = dense_jacobian(network)
    expected = np.einsum("od,kd->ko", jacobian, vectors_of(network, everything))
    outputs = everything.arrays["outputs"]
    assert outputs.shape == (len(KINDS), network.batches.num_examples, 3)
    np.testing.assert_allclose(outputs.reshape(len(KINDS), -1), expected, atol=1e-12)


def test_the_batch_size_does_not_matter(network: Problem, everything: Answer[Any]) -> None:
    whole = replace(network, batches=network.batches.resized(23))
    other = run(whole, *KINDS[:1], points=9, arrays=None).result
    one = found(everything)[0]
    for a, b in ((one, other),):
        for name in ("slope", "rayleigh_quotient", "third_derivative"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-10)
        np.testing.assert_allclose(a.profile.loss, b.profile.loss, rtol=1e-13)


@pytest.mark.slow
def test_tokens_and_masks() -> None:
    problem = token_problem()
    answer = run(problem, "random", points=5)
    (one,), (vector,) = found(answer), vectors_of(problem, answer)
    objective, w = dense_objective(problem), flat_params(problem)
    np.testing.assert_allclose(one.profile.loss, [float(objective(w + s * vector)) for s in one.profile.s], rtol=1e-12)
    np.testing.assert_allclose(one.rayleigh_quotients.ggn, vector @ dense_ggn(problem) @ vector, rtol=1e-10)
    z, jacobian = dense_jacobian(problem)
    squares = np.square(jacobian @ vector).reshape(z.shape) * problem.batches.weight[..., None]
    np.testing.assert_allclose(one.output_change.rms, np.sqrt(squares.sum((1, 2)).mean()), rtol=1e-10)


@pytest.mark.parametrize("make", [token_problem, mlp_problem])
def test_output_changes_are_in_units_of_the_outputs_whatever_the_weights(make: Any) -> None:
    problem = make()
    weight = np.asarray(problem.batches.weight) * np.random.default_rng(5).uniform(0.1, 4, problem.batches.weight.shape)
    weight[3] = 0
    problem = replace(problem, batches=replace(problem.batches, weight=weight))
    (one,), (vector,) = found(answer := run(problem, "random", points=3)), vectors_of(problem, answer)
    z, jacobian = dense_jacobian(problem)
    counted = (weight > 0).reshape(weight.shape + (1,) * (z.ndim - weight.ndim))
    rows = np.square(jacobian @ vector / np.linalg.norm(vector)).reshape(z.shape) * counted
    rows = rows.reshape(len(z), -1).sum(axis=1)
    tokens = weight.reshape(len(weight), -1)
    mean = np.array([token[token > 0].mean() if token.any() else 0 for token in tokens])
    np.testing.assert_allclose(one.output_change.rms, np.sqrt(mean @ rows / mean.sum()), rtol=1e-10)
    np.testing.assert_allclose(one.output_change.max, np.sqrt(rows.max()), rtol=1e-10)
    assert one.output_change.example == rows.argmax() != 3


@pytest.mark.parametrize(
    ("matrix", "options"),
    [
        ("ggn", {}),
        ("hessian", {"damping": 0.3}),
        ("hessian", {"regulariser": False}),
        ("empirical-fisher", {}),
    ],
)
def test_other_matrices(network: Problem, matrix: str, options: dict[str, Any]) -> None:
    from curvcli.curvature import build_for
    from curvcli.linalg.operator import to_dense

    settings = DirectionSettings(matrix=matrix, dtype="float64", **options)  # type: ignore[arg-type]
    dense = to_dense(build_for(network, settings), 8)
    answer = run(network, "random", "newton", matrix=matrix, points=3, **options)
    for one, vector in zip(found(answer), vectors_of(network, answer), strict=True):
        unit = vector / np.linalg.norm(vector)
        np.testing.assert_allclose(one.rayleigh_quotient, unit @ dense @ unit, rtol=1e-9, atol=1e-14)
        change = one.profile.quadratic[0] + one.profile.quadratic[-1] - 2 * one.profile.quadratic[1]
        if one.direction == "random":
            np.testing.assert_allclose(change, one.profile.s[0] ** 2 * (vector @ dense @ vector), rtol=1e-6)
    assert any("no model of it" in warning for warning in answer.warnings) == (matrix == "empirical-fisher")


def quadratic_problem(**options: Any) -> Problem:
    """One parameter: J = ½(3x − 2)² / 1, of one example."""
    return make_problem(
        lambda p, x: x * p["w"][None], {"w": np.array([options.pop("w", 0.0)])}, [[3.0]], [[2.0]], **options
    )


def test_one_parameter() -> None:
    one = run(quadratic_problem(), "newton", points=5).result
    assert (one.solve.status, one.solve.iterations) == ("converged", 1)
    np.testing.assert_allclose([one.norm, one.rayleigh_quotient, one.slope], [2 / 3, 9, -6], rtol=1e-14)
    np.testing.assert_allclose(one.profile.loss, one.profile.quadratic, atol=1e-14)
    assert (one.model_radius, one.model_radius_censored) == (1.5, True)
    np.testing.assert_allclose(one.quadratic_minimum, 1, rtol=1e-14)
    for along in ("gradient", "random", "eigenvector:1", "eigenvector:-1"):
        np.testing.assert_allclose(run(quadratic_problem(), along, points=3).result.rayleigh_quotient, 9, rtol=1e-14)
    with pytest.raises(NumericsError, match="filter-normalized: no parameter has filters"):
        run(quadratic_problem(), "filter-normalized")
    with pytest.raises(NumericsError, match="the matrix has 1 eigenvalues"):
        run(quadratic_problem(), "eigenvector:2")


def test_a_gradient_of_exactly_zero() -> None:
    stationary = make_problem(lambda p, x: x * p["w"][None] ** 2, {"w": np.zeros(1)}, [[3.0]], [[2.0]])
    for along in ("gradient", "newton"):
        with pytest.raises(NumericsError, match="exactly zero"):
            run(stationary, along)
    answer = run(stationary, "gradient", "random", points=3)
    assert [one.direction for one in answer.result.directions] == ["random"]
    assert [one.direction for one in answer.result.undefined] == ["gradient"]
    assert any("gradient is left out" in warning for warning in answer.warnings)
    (one,) = found(answer)
    assert (one.slope, one.gradient_cosine) == (0, None)
    np.testing.assert_allclose(one.rayleigh_quotient, -12, rtol=1e-14)
    assert one.quadratic_minimum is None


def test_singular_and_unconverged_newton_directions(network: Problem) -> None:
    # w2 does not reach the outputs, but the regulariser pushes it: H is zero there and ∇J is not.
    flat = make_problem(
        lambda p, x: x * p["w"][None], {"w": np.zeros(1), "idle": np.ones(1)}, [[3.0]], [[2.0]],
        regulariser=lambda p: jnp.sum(p["idle"]),
    )  # fmt: skip
    answer = run(flat, "newton", points=3)
    assert answer.result.solve.status == "least-squares"
    np.testing.assert_allclose(answer.result.solve.residual, 1 / np.sqrt(37), rtol=1e-10)
    assert any("least-squares" in warning for warning in answer.warnings)
    answer = run(network, "newton", points=3, probes=3)
    assert answer.result.solve.status == "not-converged"
    assert answer.result.solve.residual > 1e-3
    assert any("has not converged after 3 products" in warning for warning in answer.warnings)


def test_a_straight_line() -> None:
    flat = make_problem(lambda p, x: x * p["w"][None], {"w": np.ones(1)}, [[0.0]], [[2.0]])
    one = run(flat, "random", points=3).result
    assert (one.rayleigh_quotient, one.slope, one.third_derivative, one.output_change.rms) == (0, 0, 0, 0)
    assert one.profile.s == [-1, 0, 1]
    assert one.profile.loss == [2, 2, 2]
    assert (one.model_radius, one.model_radius_censored) == (1, True)


def test_losses_that_are_not_finite() -> None:
    steep = make_problem(lambda p, x: jnp.exp(jnp.exp(x * p["w"][None])), {"w": np.ones(1)}, [[1.0]], [[0.0]])
    answer = run(steep, "random", points=5, range=["-20:20"])
    assert answer.result.profile.loss.count(None) >= 1
    assert answer.result.model_radius is not None
    assert any("not finite" in warning for warning in answer.warnings)


def test_a_run_that_is_stopped(network: Problem) -> None:
    answer = run(network, "random", points=3, monitor=StopAfter(0))
    assert answer.result.profile.loss == [None] * 3
    assert answer.result.model_radius is None
    assert answer.result.rayleigh_quotient != 0
    assert any("not reached" in warning for warning in answer.warnings)


def test_float32_says_where_it_is_rounding(network: Problem) -> None:
    single = mlp_problem(sizes=(3, 4, 3), dtype="float32")
    answer = run(single, "random", points=5, range=["-1e-6:1e-6"], dtype="float32")
    one = answer.result
    assert one.noise > np.max(np.abs(np.array(one.profile.loss) - one.profile.loss[2]))
    assert any("no more than rounding" in warning for warning in answer.warnings)


def test_refusals(network: Problem) -> None:
    with pytest.raises(UsageError, match="ntk"):
        run(network, "random", matrix="ntk")
    with pytest.raises(MemoryLimitError):
        run(network, "newton", max_memory=100)
    plan, cost = direction.forecast(
        Context(network), DirectionSettings(along=["newton", "eigenvector:2"], dtype="float64")
    )
    assert cost.products > 31
    assert plan.batches == 4


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda s: s**2, (2.0, True)),
        # ½·2s² + s³: the cubic is a tenth of the square at s = 0.1.
        (lambda s: s**2 + s**3, (0.1, False)),
        (lambda s: s**2 + np.where(np.abs(s) > 1.45, 9.0, 0), None),
        (lambda s: np.where(s > 0.25, np.nan, s**2), (0.2, False)),
    ],
)
def test_model_radius(loss: Any, expected: tuple[float, bool] | None) -> None:
    s = np.linspace(-2, 2, 41)
    radius, censored = model_radius(s, loss(s), s**2, 0.0, 1e-15)
    if expected is None:
        assert not censored
        assert 1.4 <= radius <= 1.5
        return
    np.testing.assert_allclose(radius, expected[0], atol=1e-9)
    assert censored == expected[1]


def test_model_radius_where_the_parabola_comes_back() -> None:
    s = np.linspace(-1, 3, 41)
    loss = s**2 - 2 * s + 0.01 * s**3
    # At s = 2 the parabola is back at J, where a tenth of its change would be nothing.
    radius, censored = model_radius(s, loss, s**2 - 2 * s, 0.0, 0.0)
    assert censored or radius > 2.0
    assert model_radius(np.array([0.5, 1.0]), np.array([0.25, 9.0]), np.array([0.25, 1.0]), 0.0, 0.0)[0] > 0.5
    assert model_radius(np.array([0.5]), np.array([9.0]), np.array([0.25]), 0.0, 0.0) == (None, False)


class Filters(nn.Module):
    """Attention behind a grouped convolution and a weight-normalised layer; matrices by head; a scale of two axes."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        options: dict[str, Any] = {"param_dtype": "float64"}
        h = nn.LayerNorm(**options)(nn.Conv(4, (2,), feature_group_count=2, **options)(x))
        normed = self.param("normed", filled, (4, 4))
        h = h @ (normed / jnp.linalg.norm(normed, axis=0, keepdims=True))
        h = h + nn.MultiHeadDotProductAttention(2, qkv_features=6, **options)(h)
        mixed = jnp.einsum("bthd,hdf->bthf", h.reshape(*h.shape[:2], 2, 2), self.param("heads", filled, (2, 2, 3)))
        scale = self.param("scale", filled, (2, 3))
        return nn.DenseGeneral(2, axis=(-2, -1), **options)(jnp.tanh(mixed) * scale[None, None])


def filled(key: Any, shape: tuple[int, ...]) -> Any:
    return jax.random.normal(key, shape, "float64")


@pytest.mark.slow
def test_filters_are_what_reaches_one_output_unit() -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(6, 5, 4)), rng.integers(0, 2, (6, 5))
    problem = module_problem(Filters(), x, labels, np.ones((6, 5)), loss="softmax_cross_entropy")
    direction = vectors_of(problem, run(problem, "filter-normalized", points=2, matrix="ggn"))[0]
    heads = "MultiHeadDotProductAttention_0"
    fan_in = {  # axes of each kernel that its output units do not have
        "Conv_0/kernel": (0, 1), "normed": (0,), "heads": (1,), "DenseGeneral_0/kernel": (0, 1),
        f"{heads}/out/kernel": (0, 1), **{f"{heads}/{name}/kernel": (0,) for name in ("query", "key", "value")},
    }  # fmt: skip
    assert problem.params[f"{heads}/query/bias"].shape == (2, 3)
    for name, leaf in Layout.of(problem.params).unravel(jnp.asarray(direction)).items():
        if name not in fan_in:
            assert name.endswith(("bias", "scale")), name
            assert not np.any(leaf), name
            continue
        lengths = [np.sqrt(np.sum(np.square(one), axis=fan_in[name])) for one in (leaf, problem.params[name])]
        np.testing.assert_allclose(*lengths, rtol=1e-12, err_msg=name)
