"""Layers found in a network's equations: against gradients, for linen, nnx and plain functions."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvcli.curvature.jaxprs.taps import find_layers, tapped
from curvcli.curvature.kronecker.kfac import Recipe, kfac
from curvcli.problem import Problem
from tests.problems import dense_ggn, make_problem, mlp_problem, targets_for, token_problem

EPS = float(np.finfo("float64").eps)


class Linen(nn.Module):
    """Convolution, normalisation, attention-like heads, an embedding: what users write."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(3, (3, 2), strides=(2, 1), padding="SAME", param_dtype="float64")(x)
        x = nn.relu(nn.LayerNorm(param_dtype="float64")(x))
        x = nn.DenseGeneral((2, 3), axis=-1, param_dtype="float64")(x)
        x = nn.DenseGeneral(4, axis=(-2, -1), param_dtype="float64")(x)
        return nn.Dense(2, use_bias=False, param_dtype="float64")(x.reshape(len(x), -1))


def linen_problem() -> Problem:
    model, x = Linen(), np.random.default_rng(0).normal(size=(5, 4, 3, 2))
    params = model.init(jax.random.key(0), x)["params"]
    flat = {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}

    def predict(given: dict, inputs: Any) -> Any:
        tree: dict[str, Any] = {}
        for name, leaf in given.items():
            module, leaf_name = name.split("/")
            tree.setdefault(module, {})[leaf_name] = leaf
        return model.apply({"params": tree}, inputs)

    return make_problem(predict, flat, x, targets_for("softmax_cross_entropy", 5, 2), "softmax_cross_entropy")


def embedding_problem() -> Problem:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 6, (7, 4)).astype(np.int32)
    params = {"table": rng.normal(size=(6, 3)), "kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
    predict = lambda p, x: jnp.tanh(p["table"][x]).sum(axis=1) @ p["kernel"] + p["bias"][None]  # noqa: E731
    return make_problem(predict, params, ids, rng.normal(size=(7, 2)))


def nnx_problem() -> Problem:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first = nnx.Linear(4, 5, param_dtype="float64", rngs=rngs)
            self.second = nnx.Linear(5, 3, param_dtype="float64", rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.second(jax.nn.gelu(self.first(x)))

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    leaves, tree = jax.tree.flatten(state)
    params = {f"p{i}": leaf for i, leaf in enumerate(leaves)}

    def predict(given: dict, x: Any) -> Any:
        return nnx.merge(graph, jax.tree.unflatten(tree, [given[f"p{i}"] for i in range(len(leaves))]))(x)

    rng = np.random.default_rng(1)
    return make_problem(predict, params, rng.normal(size=(6, 4)), rng.normal(size=(6, 3)))


def convolution_problem() -> Problem:
    """Every freedom of a convolution: other orders of axes, strides, both dilations, uneven and negative padding."""
    rng = np.random.default_rng(2)
    params = {"kernel": rng.normal(size=(4, 2, 3, 2)), "bias": rng.normal(size=4)}

    def predict(given: dict, x: Any) -> Any:
        y = jax.lax.conv_general_dilated(
            x, given["kernel"], window_strides=(2, 1), padding=((2, 1), (-1, 3)), lhs_dilation=(1, 2),
            rhs_dilation=(2, 1), dimension_numbers=("NCHW", "OIHW", "CWHN"),
        )  # fmt: skip
        y = y + given["bias"][:, None, None, None]
        return jnp.tanh(y).transpose(3, 0, 1, 2).reshape(len(x), -1)

    x = rng.normal(size=(3, 2, 5, 4))
    outputs = jax.eval_shape(predict, params, x).shape[1]
    return make_problem(predict, params, x, rng.normal(size=(3, outputs)))


PROBLEMS = {
    "mlp": (mlp_problem, {("a/kernel", "a/bias"), ("b/kernel", "b/bias")}),
    "tokens": (token_problem, {("w", None), ("u", None)}),
    "embedding": (embedding_problem, {("table", None), ("kernel", "bias")}),
    "convolution": (convolution_problem, {("kernel", "bias")}),
    "nnx": (nnx_problem, {("p1", "p0"), ("p3", "p2")}),
    "linen": (
        linen_problem,
        {("Conv_0/kernel", "Conv_0/bias"), ("DenseGeneral_0/kernel", "DenseGeneral_0/bias"),
         ("DenseGeneral_1/kernel", "DenseGeneral_1/bias"), ("Dense_0/kernel", None)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_layers_are_found_and_give_the_gradient(name: str) -> None:
    make, expected = PROBLEMS[name]
    problem = make()
    found = find_layers(problem)
    assert {(layer.kernel, layer.bias) for layer in found.layers} == expected
    taken = {name for pair in expected for name in pair}
    assert set(found.others) == set(problem.params) - taken
    network, example = tapped(problem, found.layers), jax.tree.map(lambda leaf: leaf[1], problem.batches.inputs)
    zero = [jnp.zeros((layer.positions, layer.fan_out)) for layer in found.layers]
    z, acts = network(problem.params, problem.frozen, example, zero)
    single = jax.tree.map(lambda leaf: leaf[None], example)
    np.testing.assert_allclose(z, problem.predict(problem.params, problem.frozen, single)[0], rtol=1e3 * EPS)
    weight = jax.random.normal(jax.random.key(0), z.shape)
    true = jax.grad(lambda p: jnp.sum(weight * problem.predict(p, problem.frozen, single)[0]))(problem.params)
    slopes = jax.grad(
        lambda e: jnp.sum(weight * network(problem.params, problem.frozen, example, e)[0])
    )(zero)  # fmt: skip
    for layer, inputs, back in zip(found.layers, acts, slopes, strict=True):
        rows = jax.nn.one_hot(inputs, layer.fan_in) if layer.kind == "embed" else inputs
        kernel = np.asarray(true[layer.kernel]).reshape(-1)[layer.rows]
        np.testing.assert_allclose(rows.T @ back, kernel, atol=1e4 * EPS * np.abs(kernel).max())
        if layer.bias is not None:
            bias = np.asarray(true[layer.bias]).reshape(-1)[layer.bias_rows]
            np.testing.assert_allclose(back.sum(axis=0), bias, atol=1e4 * EPS * np.abs(bias).max())


def test_what_fits_no_layer_says_why() -> None:
    rng = np.random.default_rng(0)
    params = {"tied": rng.normal(size=(3, 3)), "scale": rng.normal(size=3), "idle": rng.normal(size=2)}
    predict = lambda p, x: (jnp.tanh(x @ p["tied"]) @ p["tied"]) * p["scale"][None]  # noqa: E731
    problem = make_problem(predict, params, rng.normal(size=(4, 3)), rng.normal(size=(4, 3)))
    found = find_layers(problem)
    assert found.layers == []
    assert found.others == {"tied": "used 2 times", "scale": "enters mul", "idle": "not used"}


def test_a_bias_of_an_embedding_stands_alone() -> None:
    """The factor of an embedding is its diagonal, which a constant input is no part of."""
    plain, ids = embedding_problem(), np.arange(12).reshape(4, 3) % 6
    params = {"table": plain.params["table"], "bias": np.ones(3)}
    problem = make_problem(lambda p, x: p["table"][x] + p["bias"][None, None], params, ids, np.ones((4, 3, 3)))
    found = find_layers(problem)
    assert [(layer.kernel, layer.bias) for layer in found.layers] == [("table", None)]
    assert list(found.others) == ["bias"]
    trace = kfac(problem, Recipe("exact"), corrected=True).eigenvalues().sum()
    assert trace == pytest.approx(np.trace(dense_ggn(problem)))


def test_a_bias_whose_layer_is_used_elsewhere_stands_alone() -> None:
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}

    def predict(p: dict, x: Any) -> Any:
        y = x @ p["kernel"]
        return (y + p["bias"][None]) * y

    problem = make_problem(predict, params, rng.normal(size=(4, 3)), rng.normal(size=(4, 2)))
    found = find_layers(problem)
    assert [(layer.kernel, layer.bias) for layer in found.layers] == [("kernel", None)]
    assert list(found.others) == ["bias"]
