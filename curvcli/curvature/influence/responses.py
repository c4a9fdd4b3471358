"""How J depends on its data and hyperparameters: mixed second derivatives ∇²_{wθ} J, from both sides.

    θ        from the side of w: s ↦ (∇²_{wθ} J)ᵀ s                     from the side of θ: Δθ ↦ ∇²_{wθ} J Δθ
    a_n      (1/M) s·∇L_n                                             the gradient of Σ_n Δa_n a_n L_n / M
    t_n      (1/M) ∂/∂t ⟨∂L/∂z, J_n s⟩                                the gradient of Σ_n a_n ⟨∂L/∂t, Δt⟩ / M
    x_n      (1/M) ∂/∂x ⟨∂L/∂z, J_n s⟩                                the gradient of Σ_n a_n ⟨∂L/∂x, Δx⟩ / M
    l2       s·w                                                      w

From the side of w one forward pass gives every example's entry for each vector, and no gradient of an example is ever
held. From the side of θ the derivative along Δθ is itself an objective: `shifted` makes it a Problem, whose gradient is
what is asked for.

Source: Grosse, *Neural Net Training Dynamics*, chapter 2, section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.compiling import jit
from curvcli.curvature.flatten import Layout
from curvcli.curvature.jaxprs import heads
from curvcli.curvature.jaxprs.reverse import with_forward_mode
from curvcli.curvature.products import linear_map as products
from curvcli.curvature.products import sums
from curvcli.curvature.products.linear_map import Functions, LinearMap
from curvcli.curvature.products.outputs import weighted_loss
from curvcli.devices import on_host
from curvcli.losses import Likelihood, Loss, user_loss
from curvcli.problem import Batch, Params, Problem, PyTree, Regulariser, unit_weight

Parameter = Literal["remove", "label-perturb", "input-perturb"]
Piece = dict[str, np.ndarray]
"""One batch's entries, by the name of an input array; "" where there is only one."""


def entries(problem: Problem, parameter: Parameter, vectors: Array, at_once: int | None = None) -> Iterator[Piece]:
    """(∇²_{wθ} J)ᵀ s of every example's own θ, for vectors s [k, D], batch by batch, padding left out.

    Parameters
    ----------
    at_once
        Vectors whose tangents are held together; None: all.

    Returns
    -------
    Arrays [k, b] for `remove` (θ is the example's relative weight), [k, b, ..., C] for `label-perturb` (class numbers
    count as one-hot), [k, b, *input] for `input-perturb`.

    Notes
    -----
    Cost: k forward derivatives, the data read once; for `input-perturb` a backward one through each.
    """
    layout, functions = Layout.of(problem.params), sums.functions(problem)
    left, block = problem.batches.num_examples, at_once or len(vectors)
    of_batch = {"remove": _of_weights, "label-perturb": _of_labels, "input-perturb": _of_inputs}[parameter]
    for batch in sums.resident(problem.batches):
        slopes = of_batch(problem, functions, layout, batch)
        parts = [on_host(slopes(vectors[i : i + block])) for i in range(0, len(vectors), block)]
        rows = min(left, problem.batches.batch_size)
        yield {name: np.concatenate([part[name] for part in parts])[:, :rows] / problem.normaliser for name in parts[0]}
        left -= rows


Slopes = Callable[[Array], dict[str, Any]]
"""Vectors [k, D] to one batch's entries, not normalised."""


def _of_weights(problem: Problem, functions: Functions, layout: Layout, batch: Batch) -> Slopes:
    linear = loss_map(functions, problem.params, problem.frozen, batch)
    return lambda vectors: {"": products.apply(problem.way, layout, linear, vectors)}


def _of_labels(problem: Problem, functions: Functions, layout: Layout, batch: Batch) -> Slopes:
    z, jacobian = products.forward(functions, problem.params, problem.frozen, batch)
    tangents = partial(products.apply, problem.way, layout, jacobian)
    return lambda vectors: {"": _label_slopes(functions[1], z, batch, tangents(vectors))}


def _of_inputs(problem: Problem, functions: Functions, layout: Layout, batch: Batch) -> Slopes:
    single = partial(_input_slopes, functions, layout, problem.params, problem.frozen, batch)

    def slopes(vectors: Array) -> dict[str, Any]:
        # One vector after the other: what goes back through the network is as large as its inputs.
        parts = [single(vectors[i]) for i in range(len(vectors))]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
        return stacked if isinstance(stacked, dict) else {"": stacked}

    return slopes


@jit(static_argnums=0)
def loss_map(functions: Functions, params: Params, frozen: dict, batch: Batch) -> LinearMap:
    """Derivatives of the examples' weighted losses as a linear map: [b]."""
    return jax.linearize(lambda p: heads.example_losses(functions, p, frozen, batch), params)[1]


@jit(static_argnums=0)
def _label_slopes(loss: Loss, z: Array, batch: Batch, tangents: Array) -> Array:
    """a_n ∂/∂t ⟨∂L/∂z, dz⟩ for tangents dz [k, b, ...]."""
    if isinstance(loss, Likelihood):
        return unit_weight(batch.weight, z.ndim)[None] * jax.vmap(loss.label_product, (None, 0))(z, tangents)

    def along(targets: Array, tangent: Array) -> Array:
        return jax.jvp(lambda out: weighted_loss(loss, out, batch._replace(targets=targets)), (z,), (tangent,))[1]

    return jax.vmap(lambda tangent: jax.grad(along)(batch.targets, tangent))(tangents)


@jit(static_argnums=(0, 1))
def _input_slopes(
    functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch, vector: Array
) -> PyTree:
    """∂/∂x of the derivative of the batch's loss along one vector [D]."""
    direction = layout.unravel(vector)

    def along(inputs: PyTree) -> Array:
        objective = lambda p: heads.batch_loss(functions, p, frozen, batch._replace(inputs=inputs))  # noqa: E731
        return jax.jvp(objective, (params,), (direction,))[1]

    return jax.grad(along)(batch.inputs)


# --- the side of θ ----------------------------------------------------------------------------------------


def mixed(shifted: Problem) -> Array:
    """∇²_{wθ} J Δθ [D]: the gradient of what `shift_…` made. Cost: a gradient."""
    return sums.objective_and_gradient(shifted, Layout.of(shifted.params))[1]


def shift_weights(problem: Problem, change: np.ndarray) -> Problem:
    """∂J/∂a along Δa, relative changes of the weights [N], or [N, T] by token; −1 takes an example away."""
    weight = problem.batches.weight
    ndim = max(weight.ndim, change.ndim)
    changed = unit_weight(np.asarray(weight), ndim) * unit_weight(change.astype(weight.dtype), ndim)
    return replace(problem, batches=replace(problem.batches, weight=changed), regulariser=Regulariser())


def shift_labels(problem: Problem, change: np.ndarray) -> Problem:
    """∂J/∂t along Δt, of the outputs' shape for the losses of the table, else of the targets'."""
    loss = problem.loss
    # The derivative by t of the table's losses is linear in t: it is taken at 0, which class numbers cannot be.
    targets = (np.zeros_like(change) if loss.known else problem.batches.targets, change)
    response = user_loss(loss.name, lambda z, t: jax.jvp(lambda own: loss.value(z, own), t[:1], t[1:])[1])
    batches = replace(problem.batches, targets=targets)
    return replace(problem, batches=batches, loss=response, regulariser=Regulariser())


def shift_inputs(problem: Problem, change: PyTree) -> Problem:
    """∂J/∂x along Δx, of the inputs' shape."""
    predict, loss = with_forward_mode(problem.predict), problem.loss

    def with_tangent(params: Params, frozen: dict, inputs: Any) -> Any:
        return jax.jvp(lambda x: predict(params, frozen, x), inputs[:1], inputs[1:])

    response = user_loss(loss.name, lambda z, t: jax.jvp(lambda out: loss.value(out, t), z[:1], z[1:])[1])
    batches = replace(problem.batches, inputs=(problem.batches.inputs, change))
    return replace(problem, batches=batches, predict=with_tangent, loss=response, regulariser=Regulariser())


def shift_loss(problem: Problem, name: str, fn: Callable[[Array, Array, Array], Array]) -> Problem:
    """∂J/∂θ at θ = 0 of losses `fn(outputs, targets, θ)`."""
    response = user_loss(name, lambda z, t: _along_theta(lambda theta: fn(z, t, theta), problem.dtype))
    return replace(problem, loss=response, regulariser=Regulariser())


def shift_regulariser(problem: Problem, fn: Callable[[PyTree, Array], Array]) -> Problem:
    """∂J/∂θ at θ = 0 of a term `fn(params, θ)` of J."""
    term = Regulariser(fn=lambda params: _along_theta(lambda theta: fn(params, theta), problem.dtype))
    nothing = replace(problem.batches, weight=np.zeros_like(problem.batches.weight))
    return replace(problem, batches=nothing, regulariser=term)


def _along_theta(fn: Callable[[Array], Array], dtype: Any) -> Array:
    zero = jnp.zeros((), dtype)
    return jax.jvp(fn, (zero,), (jnp.ones_like(zero),))[1]
