"""Implicit against explicit: every product against dense float64 matrices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvcli.curvature import build, dimension
from curvcli.curvature.flatten import Layout
from curvcli.curvature.matrices import extra_arguments, facet
from curvcli.curvature.operators import linear_map_bytes
from curvcli.curvature.products import linear_map as products
from curvcli.curvature.products.sums import functions, objective, objective_and_gradient, resident
from curvcli.linalg.operator import to_dense
from curvcli.losses import LOSSES, user_loss
from curvcli.problem import Way
from curvcli.schema.matrices import having
from tests.problems import (
    SUMMED,
    dense_hessian,
    dense_matrix,
    dense_objective,
    flat_params,
    make_problem,
    mlp,
    mlp_params,
    mlp_problem,
    token_problem,
)

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
UNREGULARISED = having("regularised", False)
ALL = (1, 5, 64)
"""Batch sizes: single examples, a ragged last batch, more than the whole set."""


def explicit(problem: Any, matrix: str) -> np.ndarray:
    """The matrix written out, with its regulariser."""
    data = dense_matrix(problem, matrix)
    if matrix in UNREGULARISED:
        return data
    zero = make_problem(
        lambda p, x: 0.0 * x[:, :1], problem.params, np.ones((1, 1)), np.zeros((1, 1)),
        l2=problem.regulariser.l2, regulariser=problem.regulariser.fn,
    )  # fmt: skip
    return data + dense_hessian(zero)


@pytest.mark.first_tier("*-5")
@pytest.mark.parametrize("batch_size", ALL)
@pytest.mark.parametrize("matrix", SUMMED)
@pytest.mark.parametrize("loss", LOSSES)
def test_product_equals_dense_matrix(loss: str, matrix: str, batch_size: int) -> None:
    problem = mlp_problem(loss, l2=0.01, batch_size=batch_size)
    np.testing.assert_allclose(to_dense(build(problem, matrix), block=16), explicit(problem, matrix), **CLOSE)


WAYS_PROBLEM = mlp_problem(l2=0.01, batch_size=5)
"""One problem for all ways: what is compiled for one serves the next."""


@pytest.mark.first_tier("*-map-0", "*-vmap-1")
@pytest.mark.parametrize("kept_bytes", [0, 1])
@pytest.mark.parametrize("application", ["vmap", "map"])
@pytest.mark.parametrize("matrix", SUMMED)
def test_every_way_of_computing_gives_the_matrix(matrix: str, application: Any, kept_bytes: int) -> None:
    problem = replace(WAYS_PROBLEM, way=Way(application, kept_bytes))
    operator = build(problem, matrix)
    first, second = (to_dense(operator, block=16) for _ in range(2))  # linear maps are kept from the second product on
    np.testing.assert_allclose(first, second, **CLOSE)
    np.testing.assert_allclose(first, explicit(problem, matrix), **CLOSE)


def test_one_by_one_is_one_program_whatever_the_size_of_a_block() -> None:
    problem = replace(mlp_problem(), way=Way("map"))
    operator, rng = build(problem, "hessian"), np.random.default_rng(0)
    operator.matmat(jnp.asarray(rng.normal(size=(3, problem.dim))))
    programs = products.single._cache_size()
    operator.matmat(jnp.asarray(rng.normal(size=(1, problem.dim))))
    assert products.single._cache_size() == programs


@pytest.mark.parametrize("kept_bytes", [0, 1])
@pytest.mark.parametrize("width", [1, 4, 7])
def test_a_wide_block_in_pieces_gives_the_same(width: int, kept_bytes: int) -> None:
    whole, pieced = (
        build(replace(WAYS_PROBLEM, way=Way("vmap", kept_bytes, width)), "ggn") for width in (128, width)
    )  # fmt: skip
    vectors = jax.random.normal(jax.random.key(0), (10, WAYS_PROBLEM.dim))
    for _ in range(2):  # the second with linear maps that are there
        found = pieced.matmat(vectors)
        assert found.shape == vectors.shape
        np.testing.assert_allclose(found, whole.matmat(vectors), **CLOSE)


def test_kept_linear_maps_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice in all: an operator that is used once keeps nothing."""
    made = []
    linearise = products.linearise
    monkeypatch.setattr(products, "linearise", lambda *args: made.append(1) or linearise(*args))
    problem = mlp_problem(batch_size=5)
    vectors = jnp.ones((2, problem.dim))
    for kept_bytes, expected in ((1, 2), (0, 4)):
        made.clear()
        operator = build(replace(problem, way=Way("vmap", kept_bytes)), "ggn")
        for _ in range(4):
            operator.matmat(vectors)
        assert len(made) == expected * len(problem.batches)


@pytest.mark.parametrize("matrix", SUMMED)
def test_bytes_of_a_linear_map(matrix: str) -> None:
    """What is forecast is what the arrays take that are not weights and inputs themselves."""
    problem = mlp_problem(batch_size=7)
    forecast = linear_map_bytes(problem, matrix, mc_samples=2)
    if matrix == "ntk":
        assert forecast == 0
        return
    batches = tuple(resident(problem.batches))
    extra = extra_arguments(problem, matrix, batches, mc_samples=2, seed=0)
    layout, field = Layout.of(problem.params), facet(matrix, "field")
    given = problem.params, problem.frozen, batches[0], *extra
    leaves = jax.tree.leaves(products.linearise(field, functions(problem), layout, *given))
    lent = {id(leaf) for leaf in jax.tree.leaves(given)}
    own = [leaf for leaf in leaves if id(leaf) not in lent]
    assert len(own) < len(leaves)
    assert forecast == sum(leaf.nbytes for leaf in own) > 0


@pytest.mark.parametrize("matrix", SUMMED)
def test_regulariser_in_or_out(matrix: str) -> None:
    def fn(params: dict) -> Any:
        return 0.1 * jnp.sum(params["a/kernel"] ** 4) - jnp.sum(jnp.cos(params["b/bias"]))

    problem = mlp_problem(l2=0.3, regulariser=fn)
    np.testing.assert_allclose(to_dense(build(problem, matrix)), explicit(problem, matrix), **CLOSE)
    without = to_dense(build(problem, matrix, with_regulariser=False))
    np.testing.assert_allclose(without, explicit(mlp_problem(), matrix), **CLOSE)
    assert build(problem, matrix).psd == (matrix in UNREGULARISED and matrix != "residual")


def test_damping_adds_a_multiple_of_the_identity() -> None:
    problem = mlp_problem()
    difference = to_dense(build(problem, "ggn", damping=0.7)) - to_dense(build(problem, "ggn"))
    np.testing.assert_allclose(difference, 0.7 * np.eye(problem.dim), atol=1e-14)


@pytest.mark.parametrize("matrix", SUMMED)
def test_rows_of_a_block_do_not_depend_on_each_other(matrix: str) -> None:
    """Large enough that a fault of XLA's CPU backend (jaxlib 0.10.2) would show in the later rows."""
    problem = mlp_problem(sizes=(20, 30, 10), count=700, batch_size=700, dtype="float32")
    operator = build(problem, matrix)
    vectors = jax.random.normal(jax.random.key(0), (16, operator.dim), "float32")
    block = np.asarray(operator.matmat(vectors))
    for i in (0, 7, 15):
        alone = np.asarray(operator.matmat(vectors[i : i + 1])[0])
        np.testing.assert_allclose(block[i], alone, rtol=1e-3, atol=1e-5 * np.abs(alone).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_are_in_the_dtype_asked_for(dtype: str) -> None:
    problem = mlp_problem(dtype=dtype, l2=0.1)
    for matrix in SUMMED:
        operator = build(problem, matrix)
        assert operator.dtype == operator.matmat(jnp.ones((2, operator.dim), dtype)).dtype == dtype


def test_weights_leave_examples_out() -> None:
    weight = (np.arange(23) % 3 > 0).astype(float)
    masked = mlp_problem(weight=weight, normaliser=weight.sum())
    kept = np.flatnonzero(weight)
    rest = make_problem(
        mlp, mlp_params((4, 5, 3)), masked.batches.inputs[kept], masked.batches.targets[kept], "softmax_cross_entropy"
    )
    for matrix in set(SUMMED) - {"fisher-mc"}:  # whose draws belong to the places of the examples
        found, expected = to_dense(build(masked, matrix)), to_dense(build(rest, matrix))
        if matrix == "ntk":  # has the rows of the examples left out, as zeros
            rows = np.repeat(weight > 0, 3)
            assert not found[~rows].any()
            found = found[np.ix_(rows, rows)]
        np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.first_tier("4-*")
@pytest.mark.parametrize("matrix", SUMMED)
@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_masked_tokens(matrix: str, batch_size: int) -> None:
    problem = token_problem(batch_size=batch_size)
    np.testing.assert_allclose(to_dense(build(problem, matrix)), explicit(problem, matrix), **CLOSE)


def test_a_users_loss_that_couples_tokens() -> None:
    def smoothness(outputs: Any, targets: Any) -> Any:
        steps = outputs[:, 1:] - outputs[:, :-1]
        return (
            jnp.sum(steps**2, axis=(1, 2))
            + jnp.sum(jnp.logaddexp(outputs, 0.0), axis=(1, 2))
            - jnp.mean(targets, axis=1)
        )

    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(8, 4, 3)), rng.normal(size=(8, 4))
    params = {"w": rng.normal(size=(3, 2))}
    problem = make_problem(
        lambda p, x: jnp.tanh(x @ p["w"]), params, inputs, targets, user_loss("mine", smoothness), batch_size=3
    )
    for matrix in ("hessian", "ggn"):
        np.testing.assert_allclose(to_dense(build(problem, matrix)), explicit(problem, matrix), **CLOSE)


def test_frozen_parameters_give_the_principal_block() -> None:
    problem = mlp_problem(l2=0.02)
    layout = Layout.of(problem.params)
    chosen = {name: leaf for name, leaf in problem.params.items() if name.startswith("b/")}
    frozen = {"params": {n: leaf for n, leaf in problem.params.items() if n not in chosen}, "collections": {}}
    from dataclasses import replace

    block = replace(problem, params=chosen, frozen=frozen)
    index = np.concatenate(
        [np.full(size, name in chosen) for name, size in zip(layout.names, layout.sizes, strict=True)]
    )
    assert dimension(block, "ntk") == dimension(problem, "ntk")
    for matrix in set(SUMMED) - {"ntk"}:
        whole = to_dense(build(problem, matrix))
        np.testing.assert_allclose(to_dense(build(block, matrix)), whole[np.ix_(index, index)], **CLOSE)
    assert objective(block) == pytest.approx(objective(problem), rel=1e-14)


@pytest.mark.parametrize("batch_size", ALL)
def test_objective_and_gradient(batch_size: int) -> None:
    problem = mlp_problem(l2=0.05, batch_size=batch_size)
    value, gradient = objective_and_gradient(problem, Layout.of(problem.params))
    expected, slope = jax.value_and_grad(dense_objective(problem))(flat_params(problem))
    assert value == pytest.approx(float(expected), rel=1e-13)
    assert objective(problem) == pytest.approx(float(expected), rel=1e-13)
    np.testing.assert_allclose(gradient, slope, rtol=1e-11, atol=1e-14)


def test_linear_regression_in_closed_form() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(31, 4)), rng.normal(size=(31, 1))
    problem = make_problem(lambda p, inputs: inputs @ p["w"], {"w": rng.normal(size=(4, 1))}, x, y, batch_size=10)
    for matrix in ("hessian", "ggn", "gauss-newton", "fisher"):
        np.testing.assert_allclose(to_dense(build(problem, matrix)), x.T @ x / 31, **CLOSE)
    assert not to_dense(build(problem, "residual")).any()


def test_logistic_regression_in_closed_form() -> None:
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(31, 4)), rng.integers(0, 2, (31, 1)).astype(float), rng.normal(size=(4, 1))
    problem = make_problem(lambda p, inputs: inputs @ p["w"], {"w": w}, x, y, "sigmoid_cross_entropy")
    sigma = 1 / (1 + np.exp(-x @ w))
    for matrix in ("hessian", "ggn"):
        np.testing.assert_allclose(to_dense(build(problem, matrix)), x.T @ (sigma * (1 - sigma) * x) / 31, **CLOSE)


def test_softmax_regression_at_zero_in_closed_form() -> None:
    """Eigenvalues of XᵀX/N over C, each C − 1 times, and as many zeros as there are features."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.integers(0, 4, 40).astype(np.int32)
    problem = make_problem(lambda p, inputs: inputs @ p["w"], {"w": np.zeros((3, 4))}, x, y, "softmax_cross_entropy")
    scatter = np.linalg.eigvalsh(x.T @ x / 40)
    expected = np.sort(np.concatenate([np.zeros(3), np.repeat(scatter / 4, 3)]))
    for matrix in ("hessian", "ggn"):
        np.testing.assert_allclose(np.linalg.eigvalsh(to_dense(build(problem, matrix))), expected, atol=1e-14)


def test_rosenbrock_as_residuals() -> None:
    """(1 − x)² + 100 (y − x²)² as half squared residuals √2 (1 − x), √200 (y − x²); known eigenvalues."""

    def predict(p: dict, _: Any) -> Any:
        x, y = p["x"], p["y"]
        return jnp.stack([jnp.sqrt(2.0) * (1 - x), jnp.sqrt(200.0) * (y - x**2)])[None]

    def eigenvalues(x: float, y: float, matrix: str) -> np.ndarray:
        problem = make_problem(predict, {"x": x, "y": y}, np.zeros((1, 1)), np.zeros((1, 2)), batch_size=1)
        return np.linalg.eigvalsh(to_dense(build(problem, matrix)))

    np.testing.assert_allclose(eigenvalues(1.0, 1.0, "hessian"), [0.399361, 1001.60064], rtol=1e-6)
    np.testing.assert_allclose(eigenvalues(2.5, 0.8, "hessian"), [59.5979, 7322.4021], rtol=1e-6)
    np.testing.assert_allclose(eigenvalues(2.5, 0.8, "ggn"), [0.0768946, 5201.9231], rtol=1e-6)


def test_relu_network_has_equal_diagonals_and_another_hessian() -> None:
    def predict(p: dict, x: Any) -> Any:
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(4, 6)), "b": rng.normal(size=(6, 3))}
    problem = make_problem(predict, params, rng.normal(size=(20, 4)), rng.integers(0, 3, 20).astype(np.int32),
                           "softmax_cross_entropy")  # fmt: skip
    hessian, ggn = (to_dense(build(problem, matrix)) for matrix in ("hessian", "ggn"))
    np.testing.assert_allclose(np.diag(hessian), np.diag(ggn), **CLOSE)
    assert np.abs(hessian - ggn).max() > 0.01


def test_scale_invariant_loss() -> None:
    """L(cw) = L(w) gives H w = −∇J and wᵀHw = 0."""

    def predict(p: dict, x: Any) -> Any:
        return x @ p["w"] / jnp.sqrt(jnp.sum(p["w"] ** 2))

    rng = np.random.default_rng(0)
    problem = make_problem(predict, {"w": rng.normal(size=(5, 1))}, rng.normal(size=(12, 5)), rng.normal(size=(12, 1)))
    weights = flat_params(problem)
    product = build(problem, "hessian").matmat(weights[None])[0]
    _, gradient = objective_and_gradient(problem, Layout.of(problem.params))
    np.testing.assert_allclose(product, -gradient, atol=1e-13)
    assert float(weights @ product) == pytest.approx(0, abs=1e-13)


def test_hessian_product_against_complex_step() -> None:
    """∇J(w + ihv) has the imaginary part h H v up to O(h²), without cancellation: h = 1e-30 is exact."""
    problem = mlp_problem("squared_error")
    objective_of = dense_objective(problem)
    vector = np.random.default_rng(0).normal(size=problem.dim)

    def gradient(flat: Any) -> Any:
        return jax.grad(objective_of, holomorphic=True)(flat)

    shifted = gradient(flat_params(problem).astype(complex) + 1e-30j * vector)
    product = build(problem, "hessian").matmat(jnp.asarray(vector)[None])[0]
    np.testing.assert_allclose(product, np.imag(shifted) / 1e-30, rtol=1e-11, atol=1e-13)


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 12), batch_size=st.integers(1, 15), k=st.integers(1, 3), loss=st.sampled_from(sorted(LOSSES)),
    matrix=st.sampled_from(sorted(SUMMED)),
)  # fmt: skip
def test_answer_does_not_depend_on_the_batch_size(count: int, batch_size: int, k: int, loss: str, matrix: str) -> None:
    problems = [mlp_problem(loss, count=count, batch_size=size) for size in (min(batch_size, count), count)]
    vectors = jnp.asarray(np.random.default_rng(0).normal(size=(k, dimension(problems[0], matrix))))
    one, other = (build(problem, matrix).matmat(vectors) for problem in problems)
    np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
