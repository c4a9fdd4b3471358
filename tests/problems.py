"""Problems whose curvature is known: in closed form, or by dense float64 automatic differentiation."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from curvcli.curvature.flatten import Layout
from curvcli.losses import LOSSES, Loss
from curvcli.problem import Batches, Problem, Regulariser


def make_problem(
    predict: Callable[[dict, Any], Any],
    params: dict[str, Any],
    inputs: Any,
    targets: Any,
    loss: str | Loss = "squared_error",
    *,
    l2: float = 0.0,
    regulariser: Callable[[Any], Any] | None = None,
    weight: Any = None,
    normaliser: float | None = None,
    batch_size: int = 7,
    dtype: str = "float64",
) -> Problem:
    """A problem of a function `predict(params, inputs)` of parameters by path."""
    count = len(targets)
    weight = np.ones(count, dtype) if weight is None else np.asarray(weight, dtype)
    return Problem(
        params={name: jnp.asarray(leaf, dtype) for name, leaf in params.items()},
        frozen={"params": {}, "collections": {}},
        predict=lambda p, frozen, x: predict({**frozen["params"], **p}, x),
        nest=lambda flat: flat,
        loss=LOSSES[loss] if isinstance(loss, str) else loss,
        batches=Batches(np.asarray(inputs), np.asarray(targets), weight, batch_size, np.dtype(dtype)),
        normaliser=float(count if normaliser is None else normaliser),
        regulariser=Regulariser(l2, regulariser),
        population=count,
    )


def mlp(params: dict[str, Any], x: Any) -> Any:
    """tanh MLP whose layers are `a`, `b`, …."""
    layers = sorted({name.split("/")[0] for name in params})
    for layer in layers[:-1]:
        x = jnp.tanh(x @ params[f"{layer}/kernel"] + params[f"{layer}/bias"][None])
    return x @ params[f"{layers[-1]}/kernel"] + params[f"{layers[-1]}/bias"][None]


def mlp_params(sizes: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights and biases for `mlp`."""
    rng, params = np.random.default_rng(seed), {}
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        name = "abcdef"[index]
        params[f"{name}/kernel"] = rng.normal(size=(fan_in, fan_out)) / np.sqrt(fan_in)
        params[f"{name}/bias"] = 0.1 * rng.normal(size=fan_out)
    return params


def targets_for(loss: str, count: int, classes: int, seed: int = 1) -> np.ndarray:
    """Targets that the loss allows."""
    rng = np.random.default_rng(seed)
    if loss == "softmax_cross_entropy":
        return rng.integers(0, classes, count).astype(np.int32)
    if loss == "sigmoid_cross_entropy":
        return rng.integers(0, 2, (count, classes)).astype(float)
    if loss == "poisson":
        return rng.poisson(1.0, (count, classes)).astype(float)
    return rng.normal(size=(count, classes))


def mlp_problem(
    loss: str = "softmax_cross_entropy", *, sizes: tuple[int, ...] = (4, 5, 3), count: int = 23, **rest: Any
) -> Problem:
    """A tanh MLP on random data; `rest` goes to `make_problem`."""
    inputs = np.random.default_rng(2).normal(size=(count, sizes[0]))
    return make_problem(mlp, mlp_params(sizes), inputs, targets_for(loss, count, sizes[-1]), loss, **rest)


def dense_objective(problem: Problem) -> Callable[[Any], Any]:
    """J of the flat parameters, written without batches, padding or curv's sums."""
    layout, batches = Layout.of(problem.params), problem.batches

    def objective(flat: Any) -> Any:
        params = layout.unravel(flat)
        outputs = problem.predict(params, problem.frozen, jnp.asarray(batches.inputs))
        units = problem.loss.value(outputs, jnp.asarray(batches.targets))
        weight = batches.weight.reshape(batches.weight.shape + (1,) * (units.ndim - batches.weight.ndim))
        value = jnp.sum(units * weight) / problem.normaliser + 0.5 * problem.regulariser.l2 * jnp.sum(flat**2)
        return value + (problem.regulariser.fn(problem.nest(params)) if problem.regulariser.fn else 0.0)

    return objective


def dense_hessian(problem: Problem) -> np.ndarray:
    """∇²J by jax.hessian."""
    return np.asarray(jax.hessian(dense_objective(problem))(flat_params(problem)))


def dense_ggn(problem: Problem, *, output_hessian: bool = True) -> np.ndarray:
    """(1/M) Jᵀ H_z J from explicit Jacobians, without the regulariser."""
    layout, batches = Layout.of(problem.params), problem.batches
    inputs, targets = jnp.asarray(batches.inputs), jnp.asarray(batches.targets)

    def outputs(flat: Any) -> Any:
        return problem.predict(layout.unravel(flat), problem.frozen, inputs)

    flat = flat_params(problem)
    z = outputs(flat)
    jacobian = np.asarray(jax.jacobian(outputs)(flat)).reshape(z.size, -1)

    def data_loss(values: Any) -> Any:
        units = problem.loss.value(values.reshape(z.shape), targets)
        return jnp.sum(units * batches.weight.reshape(batches.weight.shape + (1,) * (units.ndim - batches.weight.ndim)))

    if output_hessian:
        middle = np.asarray(jax.hessian(data_loss)(z.reshape(-1)))
    else:
        weight = batches.weight.reshape(batches.weight.shape + (1,) * (z.ndim - batches.weight.ndim))
        middle = np.diag(np.broadcast_to(weight, z.shape).reshape(-1))
    return jacobian.T @ middle @ jacobian / problem.normaliser


def flat_params(problem: Problem) -> Any:
    """w as a vector."""
    return Layout.of(problem.params).ravel(problem.params)
