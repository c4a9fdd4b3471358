"""What influence is asked about: the loss, the outputs or the margin of query examples, and their gradients.

loss    Σ_u a_u L(z_u, t_u) of an example, its tokens summed
output  every entry of z
margin  log-odds of the example's own class, z_y − log Σ_{c≠y} e^{z_c}; (2t − 1)·z where each output is a yes or no
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from curvcli.compiling import jit
from curvcli.curvature import heads, products, sums
from curvcli.curvature.flatten import Layout
from curvcli.curvature.products import Functions, LinearMap
from curvcli.devices import on_host
from curvcli.errors import UsageError
from curvcli.losses import Loss, one_hot
from curvcli.problem import Batch, Batches, Params, Problem, unit_weight

Array = Any
Measure = Literal["loss", "output", "margin"]


def values(problem: Problem, queries: Batches, measure: Measure, params: Params | None = None) -> np.ndarray:
    """The measure of every query at the problem's parameters, or at others: float64 [Q], or [Q, O] for `output`.

    Cost: a forward pass over the queries.
    """
    params = problem.params if params is None else params
    functions = sums.functions(problem)
    parts = [_values(measure, functions, params, problem.frozen, batch) for batch in queries]
    return np.concatenate(on_host(parts), dtype=np.float64)[: queries.num_examples]


def gradients(problem: Problem, queries: Batches, measure: Measure) -> Array:
    """∇_w of the measure of every query: [Q, D], or [Q·O, D] for `output`, the outputs of a query side by side.

    Example by example: a gradient of each, and not of each among the zeros of a batch. Cost: Q forward and Q (or Q·O)
    backward passes of a single example.
    """
    layout, functions = Layout.of(problem.params), sums.functions(problem)
    single = queries.resized(1)
    return jnp.concatenate([_gradient(measure, functions, layout, problem.params, problem.frozen, b) for b in single])


def slopes(problem: Problem, queries: Batches, measure: Measure, vectors: Array) -> np.ndarray:
    """Derivative of the measure of every query along vectors [k, D]: float64 [k, Q] or [k, Q, O].

    Cost: k forward derivatives over the queries.
    """
    return np.concatenate(list(batch_slopes(problem, queries, measure, vectors)), axis=1)


def batch_slopes(problem: Problem, queries: Batches, measure: Measure, vectors: Array) -> Iterator[np.ndarray]:
    """The same batch by batch, padding left out."""
    layout, functions, left = Layout.of(problem.params), sums.functions(problem), queries.num_examples
    for batch in queries:
        linear = _linear(measure, functions, problem.params, problem.frozen, batch)
        found = on_host(products.apply(problem.way, layout, linear, vectors)).astype(np.float64)
        yield found[:, : min(left, queries.batch_size)]
        left -= queries.batch_size


def check_measure(loss: Loss, measure: Measure) -> None:
    """A margin needs classes.

    Raises
    ------
    UsageError
        The loss has none.
    """
    if measure == "margin" and loss.name not in MARGINS:
        raise UsageError(
            f"--measure margin needs classes, and {loss.name} has none", "use --measure loss, or --measure output"
        )


def measured(measure: Measure, functions: Functions, params: Params, frozen: dict, batch: Batch) -> Array:
    """The measure of a batch's examples: [b], or [b, O] for `output`."""
    predict, loss = functions
    if measure == "loss":
        return heads.example_losses(functions, params, frozen, batch)
    z = predict(params, frozen, batch.inputs)
    if measure == "output":
        return z.reshape(len(z), -1)
    units = MARGINS[loss.name](z, batch.targets)
    return jnp.sum(units * unit_weight(batch.weight, units.ndim), axis=tuple(range(1, units.ndim)))


def _log_odds(z: Array, t: Array) -> Array:
    own = jax.nn.one_hot(jnp.argmax(one_hot(z, t), axis=-1), z.shape[-1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, z), axis=-1)
    return jnp.sum(jnp.where(own, z, 0), axis=-1) - others


def _signed(z: Array, t: Array) -> Array:
    return jnp.sum((2 * t - 1) * z, axis=-1)


MARGINS: dict[str, Callable[[Array, Array], Array]] = {
    "softmax_cross_entropy": _log_odds,
    "sigmoid_cross_entropy": _signed,
}
"""Margins of units by loss: `(z, t) -> [b, ...]`."""


@jit(static_argnums=(0, 1))
def _values(measure: Measure, functions: Functions, params: Params, frozen: dict, batch: Batch) -> Array:
    return measured(measure, functions, params, frozen, batch)


@jit(static_argnums=(0, 1, 2))
def _gradient(
    measure: Measure, functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch
) -> Array:
    """Of a batch of one example: [1, D] or [O, D]."""
    value, back = jax.vjp(lambda p: measured(measure, functions, p, frozen, batch).reshape(-1), params)
    return layout.ravel(jax.vmap(back)(jnp.eye(len(value), dtype=value.dtype))[0])


@jit(static_argnums=(0, 1))
def _linear(measure: Measure, functions: Functions, params: Params, frozen: dict, batch: Batch) -> LinearMap:
    return jax.linearize(lambda p: measured(measure, functions, p, frozen, batch), params)[1]
