"""The problem along lines w + s v: true losses, the derivatives of J in s, the derivative of the outputs.

Forward-mode differentiation alone. The loop over points is the host's, inside that over batches: the data are read once
for all points, and no convolution runs in a compiled loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli import journal
from curvcli.compiling import jit
from curvcli.curvature.batch_norm import with_statistics
from curvcli.curvature.flatten import Layout, moved
from curvcli.curvature.jaxprs import heads
from curvcli.curvature.products import linear_map as products
from curvcli.curvature.products import sums
from curvcli.curvature.products.linear_map import Functions
from curvcli.devices import on_host
from curvcli.losses import Likelihood
from curvcli.problem import Batch, Params, Problem, Regulariser, unit_weight


def losses(
    problem: Problem,
    directions: Array,
    points: np.ndarray,
    *,
    statistics: dict[str, np.ndarray] | None = None,
    stop: Callable[[], Any] = lambda: None,
) -> np.ndarray | None:
    """J(w + Σ_i points[:, i] · directions[i]), the regulariser included.

    Parameters
    ----------
    directions
        [d, dim].
    points
        [p, d].
    statistics
        Batch statistics of every point by path, [p, ...]; None: those of the problem at all of them.
    stop
        Asked before every batch; anything but None gives the work up.

    Returns
    -------
    Float64 [p], not finite where the loss is not; None where the work was given up.

    Notes
    -----
    Every example's loss is added in float64 on the host, so that in float32 the difference of two losses carries the
    rounding of single examples and not that of their sum.

    Cost: p forward passes, the data read once; one set of parameters and one batch in flight.
    """
    names = tuple(sorted(statistics or ()))
    evaluated = journal.whole(partial(_losses, problem, names, stop), problem, "losses", *names)
    return evaluated(directions, *((statistics or {})[name] for name in names), points)


def _losses(
    problem: Problem, names: tuple[str, ...], stop: Callable[[], Any], directions: Array, *rows: np.ndarray
) -> np.ndarray | None:
    """`losses` with the statistics of these names and the points, in this order, as `rows`."""
    points, fixed = rows[-1], problem.frozen
    frozen = [
        with_statistics(fixed, {name: leaf[i] for name, leaf in zip(names, rows, strict=False)}) if names else fixed
        for i in range(len(points))
    ]
    layout, functions = Layout.of(problem.params), sums.functions(problem)
    # Every point is an argument of one program, which does not depend on how many there are.
    along, steps = layout.unravel(directions), list(np.asarray(points, problem.dtype))
    totals = np.zeros(len(points))
    for batch in sums.resident(problem.batches):
        if stop() is not None:
            return None
        before = None
        for index in range(len(points)):
            now = _losses_at(functions, problem.params, frozen[index], batch, along, steps[index])
            # The host stays one point ahead: any further, and every point's intermediate values would be held.
            if before is not None:
                totals[index - 1] += on_host(before).sum(dtype=np.float64)
            before = now
        totals[-1] += on_host(before).sum(dtype=np.float64)
    return totals / problem.normaliser + _regulariser(problem, along, steps, directions, points)


def _regulariser(
    problem: Problem, along: Params, steps: list[np.ndarray], directions: Array, points: np.ndarray
) -> np.ndarray:
    """R at the points: ½·l2·‖w‖² as the parabola that it is, in float64, and the user's function where there is one.

    In float32 the sum of all squares would round every loss by more than the examples do.
    """
    values, l2, fn = np.zeros(len(points)), problem.regulariser.l2, problem.regulariser.fn
    if l2:
        weights = {**problem.frozen["params"], **problem.params}
        floating = [on_host(w).astype(np.float64) for w in weights.values() if jnp.issubdtype(w.dtype, jnp.floating)]
        w = on_host(Layout.of(problem.params).ravel(problem.params)).astype(np.float64)
        v = np.asarray(directions, np.float64)
        squares = sum(float(np.sum(np.square(leaf))) for leaf in floating) + 2 * points @ (v @ w)
        values += 0.5 * l2 * (squares + np.einsum("pi,ij,pj->p", points, v @ v.T, points))
    if fn is not None:
        users = replace(problem, regulariser=Regulariser(0.0, fn))
        places = (moved(problem.params, along, step) for step in steps)
        values += [float(sums.regulariser_value(users, one)) for one in places]
    return values


def derivatives(problem: Problem, vectors: Array) -> tuple[np.ndarray, np.ndarray]:
    """The first three derivatives of J(w + s v) in s at 0, those of the data term and those of the regulariser.

    Parameters
    ----------
    vectors
        [k, dim].

    Returns
    -------
    Two float64 arrays [k, 3]: slope, curvature, and the coefficient of s³/6.

    Notes
    -----
    Exact derivatives by three nested forward differentiations; kinks have none.

    Cost: about eight forward passes a vector, the data read once.
    """
    layout, functions = Layout.of(problem.params), sums.functions(problem)
    along = [layout.unravel(vector) for vector in vectors]
    data = np.zeros((len(vectors), 3))
    for batch in sums.resident(problem.batches):
        for index, vector in enumerate(along):
            one = _loss_derivatives(functions, problem.params, problem.frozen, batch, vector)
            data[index] += np.asarray(one, np.float64)
    arguments = sums.regulariser_arguments(problem, problem.params)
    regulariser = [np.asarray(_regulariser_derivatives(*arguments, vector), np.float64) for vector in along]
    return data / problem.normaliser, np.array(regulariser)


def output_tangents(problem: Problem, vectors: Array) -> np.ndarray:
    """J_n v of every example, for vectors [k, dim]: [k, N, ...]. Cost: k forward derivatives, k N outputs kept."""
    layout, parts = Layout.of(problem.params), []
    for batch in sums.resident(problem.batches):
        _, jacobian = products.forward(sums.functions(problem), problem.params, problem.frozen, batch)
        parts.append(on_host(products.apply(problem.way, layout, jacobian, vectors)))
    return np.concatenate(parts, axis=1)[:, : problem.batches.num_examples]


def function_change(problem: Problem, vector: Array) -> tuple[float, float | None]:
    """How far the outputs move from w to w + v [dim]: the rms of ‖z′ − z‖ over units, and the mean of KL(z ‖ z′).

    The divergence is that of the family's log-partition A, KL = A(z′) − A(z) − ∇A(z)·(z′ − z): the mean is over the
    distributions that the model itself has at w, whatever the targets. Both means weight units as the loss does. An
    output that is infinite before and after has not moved. In float64, so that small changes do not cancel; None where
    the loss declares no likelihood of the table.

    Cost: two forward passes.
    """
    layout, functions = Layout.of(problem.params), sums.functions(problem)
    end = moved(problem.params, layout.unravel(vector[None]), np.ones(1, problem.dtype))
    totals, family = np.zeros(3), problem.loss.family
    for batch in sums.resident(problem.batches):
        z, after = (
            on_host(_outputs(functions, params, problem.frozen, batch)).astype(np.float64)
            for params in (problem.params, end)
        )
        weight = np.broadcast_to(unit_weight(on_host(batch.weight).astype(np.float64), z.ndim - 1), z.shape[:-1])
        with jax.enable_x64(True):
            each = np.zeros(weight.shape) if family is None else np.asarray(_divergence(family, z, after))
        with np.errstate(over="ignore", invalid="ignore"):  # outputs that overflow give what is not finite
            squares = np.sum(np.where(after == z, 0, after - z) ** 2, axis=-1)
            squares, each = np.where(weight > 0, squares, 0), np.where(weight > 0, each, 0)
            totals += [np.sum(weight), np.sum(weight * squares), np.sum(weight * each)]
    count, squares, divergence = (float(one) for one in totals)
    kl = None if family is None or not np.isfinite(divergence) else max(divergence / count, 0.0)
    return float(np.sqrt(squares / count)), kl


@jit(static_argnums=0)
def _outputs(functions: Functions, params: Params, frozen: dict, batch: Batch) -> Array:
    return functions[0](params, frozen, batch.inputs)


@jit(static_argnums=0)
def _divergence(family: Likelihood, z: Array, after: Array) -> Array:
    """A(z′) − A(z) − ∇A(z)·(z′ − z) of each unit: what z′ loses to z at the targets that z expects."""
    expected = family.mean(z)
    return family.value(after, expected) - family.value(z, expected)


@jit(static_argnums=0)
def _losses_at(
    functions: Functions, params: Params, frozen: dict, batch: Batch, directions: Params, step: Array
) -> Array:
    """Each example's weighted loss at one point: [b]."""
    return heads.example_losses(functions, moved(params, directions, step), frozen, batch)


@jit(static_argnums=0)
def _loss_derivatives(functions: Functions, params: Params, frozen: dict, batch: Batch, vector: Params) -> Array:
    return _three_derivatives(lambda p: heads.batch_loss(functions, p, frozen, batch), params, vector)


@jit(static_argnums=(0, 1, 2))
def _regulariser_derivatives(
    fn: Callable | None, nest: Callable, squared: bool, l2: float, params: Params, frozen: Params, vector: Params
) -> Array:  # fmt: skip
    return _three_derivatives(sums.regulariser_function(fn, nest, squared, l2, params, frozen), params, vector)


def _three_derivatives(function: Callable[[Params], Array], params: Params, vector: Params) -> Array:
    """First, second and third derivative of function(params + s v) in s at 0."""
    zero = jnp.zeros((), next(iter(params.values())).dtype)

    def value(s: Array) -> Array:
        return function({name: w + s * vector[name] for name, w in params.items()})

    def forward(inner: Callable[[Array], Any]) -> Callable[[Array], Any]:
        return lambda s: jax.jvp(inner, (s,), (jnp.ones_like(s),))[1]

    def first_and_second(s: Array) -> tuple[Array, Array]:
        return jax.jvp(forward(value), (s,), (jnp.ones_like(s),))

    (first, second), (_, third) = jax.jvp(first_and_second, (zero,), (jnp.ones_like(zero),))
    return jnp.stack([first, second, third])
