"""What influence is asked about: the loss, the outputs or the margin of query examples, and their gradients.

loss    Σ_u L(z_u, t_u) of an example, its tokens summed
output  every entry of z
margin  log-odds of the example's own class, z_y − log Σ_{c≠y} e^{z_c}; (2t − 1)·z where each output is a yes or no

The weights of the data are those of training: of a query they select the units u, and multiply nothing (`selected`).
The margin of what is certain whatever w (the only class that is not ruled out, a logit of ±∞) is infinite: it counts 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.compiling import jit
from curvcli.curvature.flatten import Layout
from curvcli.curvature.jaxprs import heads
from curvcli.curvature.products import linear_map as products
from curvcli.curvature.products import outputs, sums
from curvcli.curvature.products.linear_map import Functions, LinearMap
from curvcli.devices import on_host
from curvcli.errors import UsageError
from curvcli.losses import Likelihood, Loss, labelled
from curvcli.problem import Batch, Batches, Params, Problem, unit_weight

Measure = Literal["loss", "output", "margin"]


def values(problem: Problem, queries: Batches, measure: Measure, params: Params | None = None) -> np.ndarray:
    """The measure of every query at the problem's parameters, or at others: float64 [Q], or [Q, O] for `output`.

    Cost: a forward pass over the queries.
    """
    params = problem.params if params is None else params
    functions = sums.functions(problem)
    batches = selected(problem.loss, queries, measure)
    parts = [_values(measure, functions, params, problem.frozen, batch) for batch in batches]
    return np.concatenate(on_host(parts), dtype=np.float64)[: queries.num_examples]


def gradients(problem: Problem, queries: Batches, measure: Measure) -> Array:
    """∇_w of the measure of every query: [Q, D], or [Q·O, D] for `output`, the outputs of a query side by side.

    Example by example: a gradient of each, and not of each among the zeros of a batch. Cost: Q forward and Q (or Q·O)
    backward passes of a single example.
    """
    layout, functions = Layout.of(problem.params), sums.functions(problem)
    single = selected(problem.loss, queries, measure).resized(1)
    return jnp.concatenate([_gradient(measure, functions, layout, problem.params, problem.frozen, b) for b in single])


def slopes(problem: Problem, queries: Batches, measure: Measure, vectors: Array) -> np.ndarray:
    """Derivative of the measure of every query along vectors [k, D]: float64 [k, Q] or [k, Q, O].

    Cost: k forward derivatives over the queries.
    """
    return np.concatenate(list(batch_slopes(problem, queries, measure, vectors)), axis=1)


def batch_slopes(problem: Problem, queries: Batches, measure: Measure, vectors: Array) -> Iterator[np.ndarray]:
    """The same batch by batch, padding left out."""
    layout, functions, left = Layout.of(problem.params), sums.functions(problem), queries.num_examples
    for batch in selected(problem.loss, queries, measure):
        linear = _linear(measure, functions, problem.params, problem.frozen, batch)
        found = on_host(products.apply(problem.way, layout, linear, vectors)).astype(np.float64)
        yield found[:, : min(left, queries.batch_size)]
        left -= queries.batch_size


def selected(loss: Loss, queries: Batches, measure: Measure) -> Batches:
    """The same examples, each unit counted once or not at all.

    A unit of any positive weight counts. Of an example that training leaves out, every unit that has a label does.
    """
    if measure == "output":  # which has no units to add up
        return queries
    weight = np.asarray(queries.weight)
    counts = weight > 0
    left_out = np.flatnonzero(~counts.reshape(len(counts), -1).any(axis=1))
    if not len(left_out):
        return replace(queries, weight=counts.astype(weight.dtype))
    known = labelled(np.asarray(queries.targets[left_out])) if loss.classes else np.ones(len(left_out), bool)
    ndim = max(counts.ndim, known.ndim)
    counts, known = unit_weight(counts, ndim), unit_weight(known, ndim)
    units = np.broadcast_shapes(counts.shape[1:], known.shape[1:])
    counts = np.broadcast_to(counts, (len(counts), *units)).astype(weight.dtype)
    counts[left_out] = known
    return replace(queries, weight=counts)


def check_labels(loss: Loss, queries: Batches, measure: Measure, first: int) -> None:
    """A loss and a margin need a label.

    Parameters
    ----------
    first
        What the first row is called.

    Raises
    ------
    UsageError
        A query has none.
    """
    weight = selected(loss, queries, measure).weight
    counted = weight.reshape(len(weight), -1).any(axis=1)
    if measure != "output" and not counted.all():
        raise UsageError(
            f"--measure {measure} needs a label, and the query in row {first + int(np.argmin(counted))} has none",
            "ask other rows, or --measure output",
        )


def check_measure(loss: Loss, measure: Measure) -> None:
    """Refuse a measure that the loss does not have.

    Raises
    ------
    UsageError
        The margin is asked for, and the loss has none.
    """
    if measure == "margin":
        _margin(loss)


def _margin(loss: Loss) -> Callable[[Array, Array], Array]:
    if not isinstance(loss, Likelihood) or loss.margin is None:
        raise UsageError(
            f"--measure margin needs classes, and {loss.name} has none", "use --measure loss, or --measure output"
        )
    return loss.margin


def measured(measure: Measure, functions: Functions, params: Params, frozen: dict, batch: Batch) -> Array:
    """The measure of a batch's examples: [b], or [b, O] for `output`."""
    predict, loss = functions
    if measure == "loss":
        return heads.example_losses(functions, params, frozen, batch)
    z = predict(params, frozen, batch.inputs)
    if measure == "output":
        return z.reshape(len(z), -1)
    units = _margin(loss)(z, batch.targets)
    return jnp.sum(outputs.weighted(units, batch), axis=tuple(range(1, units.ndim)))


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
