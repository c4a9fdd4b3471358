"""Each example's contribution to a quadratic form vᵀAv, by forward-mode differentiation alone.

Without the transpose a form costs about half a product, and every example's share comes with it: the spread over the
examples is the error of having only some of them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from curvcli.compiling import jit
from curvcli.curvature.flatten import Layout
from curvcli.curvature.jaxprs import heads
from curvcli.curvature.products import linear_map as products
from curvcli.curvature.products import outputs
from curvcli.curvature.products.linear_map import Functions, Middle
from curvcli.problem import Batch, Params


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
