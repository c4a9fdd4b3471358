"""Problems whose curvature is known: in closed form, or by dense float64 automatic differentiation."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from curvcli.curvature import MATRICES
from curvcli.curvature.flatten import Layout
from curvcli.curvature.products.outputs import draw_keys
from curvcli.losses import LOSSES, Loss
from curvcli.problem import Batches, Problem, Regulariser
from curvcli.schema.matrices import Refusal

SUMMED = [name for name, row in MATRICES.items() if isinstance(row.factors, Refusal)]
"""The matrices that are computed by products, not in closed form."""


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
    if loss == "squared_error" or loss not in LOSSES:
        return rng.normal(size=(count, classes))
    row, even = LOSSES[loss], jnp.zeros((count, classes))
    return np.round(row.mean(even) - row.pseudo_gradient(jax.random.key(seed), even))


def mlp_problem(
    loss: str = "softmax_cross_entropy", *, sizes: tuple[int, ...] = (4, 5, 3), count: int = 23, **rest: Any
) -> Problem:
    """A tanh MLP on random data; `rest` goes to `make_problem`."""
    inputs = np.random.default_rng(2).normal(size=(count, sizes[0]))
    return make_problem(mlp, mlp_params(sizes), inputs, targets_for(loss, count, sizes[-1]), loss, **rest)


def token_problem(loss: str | Loss = "softmax_cross_entropy", *, mask: bool = True, **rest: Any) -> Problem:
    """A network over sequences, outputs [N, 4, 5], normalised by tokens; about a third of them masked."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(9, 4, 3))
    targets = targets_for(loss if isinstance(loss, str) else loss.name, 36, 5)
    targets = targets.reshape(9, 4, *targets.shape[1:])
    weight = (rng.random((9, 4)) < 0.7).astype(float) if mask else np.ones((9, 4))
    params = {"w": rng.normal(size=(3, 6)), "u": 0.5 * rng.normal(size=(6, 5))}

    def predict(p: dict, x: Any) -> Any:
        return jnp.tanh(jnp.cumsum(x, axis=1) @ p["w"]) @ p["u"]  # tokens see those before them

    return make_problem(predict, params, inputs, targets, loss, weight=weight, normaliser=weight.sum(), **rest)


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


def dense_jacobian(problem: Problem) -> tuple[Any, np.ndarray]:
    """Outputs z [N, ..., C] and ∂z/∂w [z.size, D]."""
    layout = Layout.of(problem.params)

    def outputs(flat: Any) -> Any:
        return problem.predict(layout.unravel(flat), problem.frozen, jnp.asarray(problem.batches.inputs))

    flat = flat_params(problem)
    z = outputs(flat)
    return z, np.asarray(jax.jacobian(outputs)(flat)).reshape(z.size, -1)


def dense_unit_gradients(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of all units' losses [N, units, D], and their weights [N, units]."""
    layout, batches = Layout.of(problem.params), problem.batches

    def losses(flat: Any) -> Any:
        z = problem.predict(layout.unravel(flat), problem.frozen, jnp.asarray(batches.inputs))
        return problem.loss.value(z, jnp.asarray(batches.targets)).reshape(len(batches.weight), -1)

    gradients = np.asarray(jax.jacobian(losses)(flat_params(problem)))
    weight = batches.weight.reshape(len(gradients), -1)
    return gradients, np.broadcast_to(weight, gradients.shape[:2])


def fisher_by_enumeration(loss: str, z: np.ndarray) -> np.ndarray:
    """E[∂L/∂z ∂L/∂zᵀ] of units with outputs z [U, C] over the labels of their own law, label by label: [U, C, C]."""
    count, classes = z.shape
    slopes = jax.jit(jax.vmap(jax.grad(lambda rows, t: jnp.sum(LOSSES[loss].value(rows, t))), (None, 0)))
    if loss == "softmax_cross_entropy":
        chances = np.exp(z - z.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        g = np.asarray(slopes(z, np.repeat(np.arange(classes)[:, None], count, axis=1)))
        return np.einsum("uy,yuc,yue->uce", chances, g, g)
    # In the other three each output has a law of its own: labels [Y] or [Y, U, C], and their chances [Y, U, C].
    if loss == "sigmoid_cross_entropy":
        labels, chances = np.array([0.0, 1.0]), np.stack([1 / (1 + np.exp(z)), 1 / (1 + np.exp(-z))])
    elif loss == "poisson":
        labels = np.arange(80.0)
        chances = scipy.stats.poisson.pmf(labels[:, None, None], np.exp(z))
    elif loss != "squared_error":
        row = LOSSES[loss]
        assert row.log_normaliser is not None
        labels = np.arange(row.target_range[0], row.target_range[1] + 1.0)
        values = row.value(jnp.asarray(z)[None, ..., None], jnp.asarray(labels)[:, None, None, None])
        chances = np.exp(-np.asarray(values) - np.asarray(row.log_normaliser(labels))[:, None, None])
    else:
        labels, weights = np.polynomial.hermite_e.hermegauss(8)
        labels, chances = z + labels[:, None, None], (weights / weights.sum())[:, None, None]
    g = np.asarray(
        slopes(z, np.broadcast_to(labels.reshape(len(labels), *labels.shape[1:] or (1, 1)), (len(labels), *z.shape)))
    )
    return np.einsum("uc,ce->uce", np.sum(chances * g**2, axis=0), np.eye(classes))


def dense_matrix(problem: Problem, name: str, *, mc_samples: int = 1, seed: int = 0) -> np.ndarray:
    """The data term of a matrix, from explicit Jacobians and gradients of single units; no regulariser."""
    plain = replace(problem, regulariser=Regulariser())
    if name == "hessian":
        return dense_hessian(plain)
    if name in ("ggn", "gauss-newton"):
        return dense_ggn(plain, output_hessian=name == "ggn")
    if name == "residual":
        return dense_hessian(plain) - dense_ggn(plain)
    if name == "empirical-fisher":
        gradients, weight = dense_unit_gradients(problem)
        return np.einsum("nud,nu,nue->de", gradients, weight, gradients) / problem.normaliser
    if name == "gradient-covariance":
        gradients, weight = dense_unit_gradients(problem)
        summed = np.einsum("nud,nu->nd", gradients, weight)[(weight > 0).any(axis=1)]
        return np.cov(summed, rowvar=False, ddof=0)
    z, jacobian = dense_jacobian(problem)
    weight = problem.batches.weight.reshape(
        problem.batches.weight.shape + (1,) * (z.ndim - problem.batches.weight.ndim)
    )
    weight = np.broadcast_to(weight, z.shape)
    if name == "ntk":
        rows = np.sqrt(weight.reshape(-1, 1)) * jacobian
        return rows @ rows.T
    classes, family = z.shape[-1], problem.loss.family
    assert family is not None
    assert family.pseudo_gradient is not None
    units, of_unit = np.asarray(z).reshape(-1, classes), jacobian.reshape(-1, classes, jacobian.shape[-1])
    if name == "fisher":
        middles = fisher_by_enumeration(family.name, units)
    else:
        draw = jax.jit(family.pseudo_gradient)
        drawn = np.asarray(
            [[draw(jax.random.fold_in(key, n), row) for n, row in enumerate(z)] for key in draw_keys(seed, mc_samples)]
        ).reshape(mc_samples, -1, classes)
        middles = np.einsum("suc,sue->uce", drawn, drawn) / mc_samples
    of_weight = weight.reshape(-1, classes)[:, 0]
    return np.einsum("ucd,uce,u,uef->df", of_unit, middles, of_weight, of_unit) / problem.normaliser


def flat_params(problem: Problem) -> Any:
    """w as a vector."""
    return Layout.of(problem.params).ravel(problem.params)
