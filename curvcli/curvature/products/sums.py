"""Sums over batches: the objective, its gradient and its curvature from per-batch pieces.

    total = (1/M) Σ_batches piece + the regulariser's own term

The loop over batches runs in the host: XLA's CPU backend runs convolutions inside compiled loops through a slow path,
and a host loop is what lets data stream from disk. Dispatch is asynchronous, so the host is ahead of the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.compiling import jit
from curvcli.curvature.flatten import Layout
from curvcli.curvature.jaxprs.pooling import SLICES
from curvcli.curvature.jaxprs.reverse import TANGENTS
from curvcli.curvature.jaxprs.rewriting import rewritten
from curvcli.curvature.products import linear_map as products
from curvcli.curvature.products.prefetch import AHEAD, Prefetched
from curvcli.problem import Batch, Batches, Params, Problem

RESIDENT_BYTES = 2 << 30
"""Data up to this size are put on the device once; larger data stream from the host at every pass."""


def streams(batches: Batches) -> bool:
    """Whether the data are read anew at every pass."""
    return batches.streamed or batches.nbytes > RESIDENT_BYTES


def held_bytes(batches: Batches) -> int:
    """Bytes of the data that are in the device's memory at once, on a CPU that of those which were read for it."""
    nbytes = batches.nbytes
    return min(nbytes, (AHEAD + 2) * nbytes // len(batches)) if streams(batches) else nbytes


def resident(batches: Batches) -> Iterable[Batch]:
    """The batches on the device if they are small enough to stay there, else read ahead at every pass."""
    if streams(batches):
        return Prefetched(batches)
    return tuple(batches if batches.mesh is not None else map(jax.device_put, batches))


def sum_products(
    field: products.Field,
    problem: Problem,
    layout: Layout,
    batches: Iterable[Batch],
    normaliser: float,
    *extra: Array,
) -> Callable[[Array], Array]:
    """`vectors -> Σ_batches (derivative of field) vectors / normaliser`, for vectors [k, dim]; see `Problem.way`."""
    way = problem.way
    kept: list[products.LinearMap] = []
    calls = 0

    def linear_maps() -> Iterable[products.LinearMap]:
        nonlocal calls
        calls += 1
        if not kept:
            made = (
                products.linearise(field, functions(problem), layout, problem.params, problem.frozen, batch, *extra)
                for batch in batches
            )
            if not way.kept_bytes or calls == 1:  # an operator that is used once has nothing to keep
                return made
            kept.extend(made)
        return kept

    def matmat(vectors: Array) -> Array:
        maps = linear_maps()

        def summed(piece: Array) -> Array:
            return total(products.apply(way, layout, linear, piece) for linear in maps) / normaliser

        # Maps that are there serve one piece after the other, whose sums fit the caches; others are made once for all.
        pieced = maps is kept and way.application == "vmap"
        return products.by_pieces(way, summed, vectors) if pieced else summed(vectors)

    return matmat


def total(terms: Iterable[Array]) -> Array:
    """The sum of arrays of one shape, compensated.

    The host waits for the sum before last: it would otherwise run ahead and hold every batch's intermediate values.
    """
    remaining = iter(terms)
    summed = next(remaining)
    lost = jnp.zeros_like(summed)
    for term in remaining:
        before, (summed, lost) = summed, _add(summed, lost, term)
        jax.block_until_ready(before)
    return summed


@jit
def _add(total: Array, lost: Array, term: Array) -> tuple[Array, Array]:
    """Kahan's compensated sum: its error does not grow with the number of batches."""
    term = term - lost
    following = total + term
    return following, (following - total) - term


def functions(problem: Problem) -> products.Functions:
    """What is static in the problem: `(predict, loss)`, the network with fast pooling and a forward mode."""
    return rewritten(problem.predict, SLICES, TANGENTS), problem.loss


def mean_gradient(problem: Problem, layout: Layout, batches: Iterable[Batch]) -> Array:
    """ḡ [dim]: the mean over examples with any weight of their losses' gradients, R left out. One gradient pass."""
    gradients = (
        products.loss_and_gradient(functions(problem), layout, problem.params, problem.frozen, batch)[1]
        for batch in batches
    )
    return total(gradients) / active_examples(problem)


def active_examples(problem: Problem) -> int:
    """Examples with any weight."""
    weight = problem.batches.weight
    return int(np.any(weight.reshape(len(weight), -1) > 0, axis=1).sum())


def regulariser_value(problem: Problem, params: Params) -> Array:
    """R at these parameters; floating ones outside the chosen block count too, so that J does not depend on it."""
    return _regulariser_and_slope(*regulariser_arguments(problem, params))[0]


def regulariser_arguments(problem: Problem, params: Params) -> tuple[Any, ...]:
    """What `regulariser_function` takes, for a jitted function: the first three are static."""
    regulariser = problem.regulariser
    return regulariser.fn, problem.nest, bool(regulariser.l2), regulariser.l2, params, problem.frozen["params"]


@jit(static_argnums=(0, 1, 2))
def _regulariser_and_slope(
    fn: Callable | None, nest: Callable, squared: bool, l2: float, params: Params, frozen: Params
) -> tuple[Array, Params]:
    """R and ∇R."""
    return jax.value_and_grad(regulariser_function(fn, nest, squared, l2, params, frozen))(params)


def regulariser_function(
    fn: Callable | None, nest: Callable, squared: bool, l2: float, params: Params, frozen: Params
) -> Callable[[Params], Array]:
    """R as a function of the differentiated parameters, of the form of `params`."""
    dtype = next(iter(params.values())).dtype

    def value(chosen: Params) -> Array:
        everything = {**frozen, **chosen}
        found = jnp.zeros((), dtype)
        if squared:
            squares = [jnp.sum(jnp.square(w)) for w in everything.values() if jnp.issubdtype(w.dtype, jnp.floating)]
            found += jnp.asarray(0.5 * l2 * sum(squares), dtype)
        if fn is not None:
            found += jnp.asarray(fn(nest(everything)), dtype)
        return found

    return value


def regulariser_products(problem: Problem, layout: Layout) -> Callable[[Array], Array] | None:
    """`vectors -> ∇²R vectors`, for vectors [k, dim]; None where R = 0."""
    l2, fn = problem.regulariser.l2, problem.regulariser.fn
    if fn is None:
        return (lambda vectors: l2 * vectors) if l2 else None
    user_part = partial(_user_regulariser, fn, problem.nest, layout, problem.params, problem.frozen["params"])
    return lambda vectors: l2 * vectors + user_part(vectors)


@jit(static_argnums=(0, 1, 2))
def _user_regulariser(
    fn: Callable, nest: Callable, layout: Layout, params: Params, frozen: Params, vectors: Array
) -> Array:
    dtype = next(iter(params.values())).dtype
    gradient = jax.grad(lambda p: jnp.asarray(fn(nest({**frozen, **p})), dtype))
    _, tangent_map = jax.linearize(gradient, params)
    return layout.ravel(jax.vmap(tangent_map)(layout.unravel(vectors)))


def objective(problem: Problem, params: Params | None = None) -> float:
    """J at the problem's parameters, or at others of the same form. One forward pass over the data."""
    params = problem.params if params is None else params
    values = [
        products.loss_value(functions(problem), params, problem.frozen, batch) for batch in resident(problem.batches)
    ]
    # Batch values are added in float64 on the host: a float32 sum over many batches would lose digits of the loss.
    total = float(np.sum(np.asarray(jax.device_get(values), dtype=np.float64)))
    return total / problem.normaliser + float(regulariser_value(problem, params))


def objective_and_gradient(problem: Problem, layout: Layout, params: Params | None = None) -> tuple[float, Array]:
    """J and ∇J [dim] at the problem's parameters, or at others of the same form. One gradient pass over the data."""
    params = problem.params if params is None else params
    values, total = [], jnp.zeros(layout.dim, problem.dtype)
    lost = total
    for batch in resident(problem.batches):
        value, gradient = products.loss_and_gradient(functions(problem), layout, params, problem.frozen, batch)
        values.append(value)
        total, lost = _add(total, lost, gradient)
    value = float(np.sum(np.asarray(jax.device_get(values), dtype=np.float64))) / problem.normaliser
    regulariser, slope = _regulariser_and_slope(*regulariser_arguments(problem, params))
    return value + float(regulariser), total / problem.normaliser + layout.ravel(slope)
