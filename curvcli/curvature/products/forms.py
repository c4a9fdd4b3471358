"""Each example's contribution to a quadratic form vᵀAv, by forward-mode differentiation alone.

Without the transpose a form costs about half a product, and every example's share comes with it: the spread over the
examples is the error of having only some of them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.compiling import jit
from curvcli.curvature import matrices
from curvcli.curvature.flatten import Layout
from curvcli.curvature.jaxprs import heads
from curvcli.curvature.products import linear_map as products
from curvcli.curvature.products import outputs, sums
from curvcli.curvature.products.linear_map import Functions, Middle
from curvcli.devices import on_host
from curvcli.problem import Batch, Params, Problem


def example_forms(problem: Problem, name: str, vectors: Array, *, mc_samples: int = 1, seed: int = 0) -> np.ndarray:
    """Contributions of the examples to vᵀAv, scaled so that their mean is vᵀ(data term)v exactly.

    Parameters
    ----------
    problem
        Network, loss, data and weights.
    name
        In `FORMS`: every matrix but `ntk`, whose rows are the examples themselves.
    vectors
        [k, dim].
    mc_samples, seed
        As for `build`: the same draws.

    Returns
    -------
    Float64 [k, N] on the host; 0 for an example without weight. Regulariser and damping are no part of it.

    Raises
    ------
    ValueError
        The matrix has no contributions of examples.
    SpecError
        The matrix needs a likelihood that the loss does not have.

    Notes
    -----
    Cost: k forward-mode derivatives, about half of k products; for `hessian` and `residual` second ones, 0.4 to 1 of
    them. For `gradient-covariance` one gradient more, for the mean.
    """
    if name not in FORMS:
        raise ValueError(f"{name} has no contributions of examples")
    matrices.check_likelihood(problem.loss, name)
    layout, batches = Layout.of(problem.params), sums.resident(problem.batches)
    extra = matrices.extra_arguments(problem, name, batches, mc_samples=mc_samples, seed=seed)
    piece = partial(FORMS[name], sums.functions(problem), layout, problem.params, problem.frozen)
    parts = on_host([piece(batch, vectors, *extra) for batch in batches])
    count = problem.batches.num_examples
    shares = np.concatenate(parts, axis=1, dtype=np.float64)[:, :count]
    return shares * (count / matrices.normaliser(problem, name))


@jit(static_argnums=(0, 1, 2))
def sandwich(
    middle: Middle,
    functions: Functions,
    layout: Layout,
    params: Params,
    frozen: dict,
    batch: Batch,
    vectors: Array,
    *extra: Array,
) -> Array:
    """uᵀ C_n u of each example, u = J_n v: [k, b]. One forward derivative a vector."""
    network, _ = heads.in_two(middle, functions, params, frozen, batch)
    z, jvp = jax.linearize(network, params)
    tangents = jax.vmap(jvp)(layout.unravel(vectors))
    return heads.Forms(middle, functions, params, frozen, batch, extra).of_examples(z, tangents)


@jit(static_argnums=(0, 1))
def hessian(functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch, vectors: Array) -> Array:
    """Second derivative of each example's loss along v: [k, b]. Forward over forward."""

    def losses(p: Params) -> Array:
        return heads.example_losses(functions, p, frozen, batch)

    return jax.vmap(lambda vector: _second(losses, params, vector))(layout.unravel(vectors))


@jit(static_argnums=(0, 1))
def residual(functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch, vectors: Array) -> Array:
    """⟨∂L/∂z_n, second derivative of f(x_n) along v⟩ of each example: [k, b]."""
    predict, loss = functions

    def network(p: Params) -> Array:
        return predict(p, frozen, batch.inputs)

    slope = jax.grad(lambda z: outputs.weighted_loss(loss, z, batch))(network(params))

    def form(vector: Params) -> Array:
        return jnp.sum(slope * _second(network, params, vector), axis=tuple(range(1, slope.ndim)))

    return jax.vmap(form)(layout.unravel(vectors))


@jit(static_argnums=(0, 1))
def covariance(
    functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch, vectors: Array, mean: Array
) -> Array:
    """((g_n − ḡ)·v)² of each example with any weight: [k, b]."""
    return jnp.square(products.centred_slopes(functions, layout, params, frozen, batch, vectors, mean))


def _second(function: Any, params: Params, vector: Params) -> Array:
    """∂²/∂s² function(params + s·vector) at s = 0."""

    def slope(p: Params) -> Array:
        return jax.jvp(function, (p,), (vector,))[1]

    return jax.jvp(slope, (params,), (vector,))[1]


FORMS = {
    "hessian": hessian,
    **{name: partial(sandwich, middle) for name, middle in outputs.MIDDLES.items()},
    "gradient-covariance": covariance,
    "residual": residual,
}
"""The forms of one batch by matrix: `(functions, layout, params, frozen, batch, vectors, *extra) -> [k, b]`."""
