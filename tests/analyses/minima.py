"""Problems at their minima, found without curv's sums, products or solvers: what responses are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from curvcli.analyses.common.context import Context
from curvcli.analyses.influence import analysis as influence
from curvcli.analyses.influence.context import Inputs
from curvcli.curvature.flatten import Layout
from curvcli.linalg.iterate import Silent
from curvcli.problem import Batches, Problem
from curvcli.schema.influence import InfluenceSettings

ATTEMPTS = 200


def run(
    problem: Problem, queries: Batches | None = None, *, given: dict[str, Any] | None = None, **settings: Any
) -> Any:
    """The answer of `curv influence` with its arrays, exactly solved unless `settings` say otherwise."""
    settings = {
        "dtype": "float64",
        "skip_checks": True,
        "damping": 0.0,
        "solver": "dense",
        "scores": "x.npz",
        **settings,
    }
    settings["queries"] = None if queries is None else "0"  # which rows these are is the command's business
    return influence.run(
        Context(problem, Silent(), Inputs(queries=queries, **(given or {}))), InfluenceSettings(**settings)
    )


def scores(problem: Problem, queries: Batches | None = None, **settings: Any) -> np.ndarray:
    """All scores."""
    return run(problem, queries, **settings).arrays["scores"]


def at_minimum(problem: Problem) -> Problem:
    """The problem with the weights of the minimum next to its own: Newton's method with dense Hessians."""
    layout, batches = Layout.of(problem.params), problem.batches
    fixed = (problem.predict, problem.loss, problem.regulariser.fn, problem.nest, layout)
    arrays = (
        problem.frozen,
        batches.inputs,
        batches.targets,
        batches.weight,
        problem.normaliser,
        problem.regulariser.l2,
    )
    w, expand = np.asarray(layout.ravel(problem.params)), partial(_expansion, *fixed)
    value, slope, hessian = (np.asarray(one) for one in expand(w, *arrays))
    shrink = 1.0
    for _ in range(ATTEMPTS):
        curvatures, basis = np.linalg.eigh(hessian)
        size = np.linalg.norm(slope)
        if size < 1e-14 * np.abs(curvatures).max():
            break
        step = -basis @ ((basis.T @ slope) / np.maximum(np.abs(curvatures), 1e-3 * np.abs(curvatures).max() * shrink))
        there = [np.asarray(one) for one in expand(w + step, *arrays)]
        if there[0] < value or np.linalg.norm(there[1]) < 0.5 * size:
            w, (value, slope, hessian), shrink = w + step, there, 0.1 * shrink
        elif shrink < 1e-6 and size < 1e-11 * np.abs(curvatures).max():
            break  # rounding
        else:
            shrink = min(10 * shrink, 1e4)
    else:
        raise AssertionError(f"no minimum: gradient {np.linalg.norm(slope):.1g}")
    assert np.linalg.eigvalsh(hessian)[0] > 0
    return replace(problem, params=layout.unravel(jnp.asarray(w)))


@partial(jax.jit, static_argnums=range(5))
def _expansion(
    predict: Any, loss: Any, term: Any, nest: Any, layout: Layout, flat: Any,
    frozen: Any, inputs: Any, targets: Any, weight: Any, normaliser: Any, l2: Any,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """J, its gradient and its Hessian."""

    def objective(flat: Any) -> Any:
        params = layout.unravel(flat)
        units = loss.value(predict(params, frozen, inputs), targets)
        weighted = jnp.sum(units * weight.reshape(weight.shape + (1,) * (units.ndim - weight.ndim))) / normaliser
        return weighted + 0.5 * l2 * jnp.sum(flat**2) + (0.0 if term is None else term(nest(params)))

    return objective(flat), jax.grad(objective)(flat), jax.hessian(objective)(flat)


def measured(problem: Problem, queries: Batches, measure: str) -> np.ndarray:
    """The measure of each query by formula: [Q], or [Q, O]. Weights select tokens, and multiply nothing."""
    z = np.asarray(problem.predict(problem.params, problem.frozen, jnp.asarray(queries.inputs)))
    if measure == "output":
        return z.reshape(len(z), -1)
    if measure == "loss":
        units = np.asarray(problem.loss.value(jnp.asarray(z), jnp.asarray(queries.targets)))
    elif problem.loss.name == "softmax_cross_entropy":
        own = np.eye(z.shape[-1], dtype=bool)[np.asarray(queries.targets)]
        p = scipy.special.softmax(z, axis=-1)[own].reshape(z.shape[:-1])
        units = np.log(p) - np.log1p(-p)
    else:
        units = np.sum(np.where(np.asarray(queries.targets) > 0.5, z, -z), axis=-1)
    weight = queries.weight.reshape(queries.weight.shape + (1,) * (units.ndim - queries.weight.ndim))
    held_out = ~np.any(weight > 0, axis=tuple(range(1, weight.ndim)), keepdims=True)
    return np.sum(units * ((weight > 0) | held_out), axis=tuple(range(1, units.ndim)))


def difference(change: Callable[[float], Problem], queries: Batches, measure: str, step: float = 1e-5) -> np.ndarray:
    """d(measure)/dθ at θ = 0 of problems refitted with θ, by central differences: [Q], or [Q, O]."""
    up, down = (measured(at_minimum(change(theta)), queries, measure) for theta in (step, -step))
    return (up - down) / (2 * step)


def with_weight(problem: Problem, example: int, factor: float) -> Problem:
    """One example's weight times a factor; the normaliser stays."""
    weight = np.array(problem.batches.weight)
    weight[example] *= factor
    return replace(problem, batches=replace(problem.batches, weight=weight))


def with_shift(problem: Problem, name: str, place: tuple[int, ...], by: float) -> Problem:
    """One entry of the inputs or the targets moved."""
    leaf = np.array(getattr(problem.batches, name), float)
    leaf[place] += by
    return replace(problem, batches=replace(problem.batches, **{name: leaf}))


def soft(problem: Problem) -> Problem:
    """Class numbers as rows of zeros and a one."""
    classes = problem.predict(problem.params, problem.frozen, jnp.asarray(problem.batches.inputs)).shape[-1]
    return replace(problem, batches=replace(problem.batches, targets=np.eye(classes)[problem.batches.targets]))
