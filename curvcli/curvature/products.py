"""Products of one batch's curvature with a block of vectors.

Each function linearises the network once at the batch and applies that one linear map to all k vectors, so the forward
pass is shared by the block and small products become large matrix multiplications. None divides by the normaliser;
`sums.py` does. Parameters and batches are arguments; only functions and shapes are static.

Cost: one linearisation (forward, or forward and backward) and k applications of it, a product each.
Source: Pearlmutter (1994) for the Hessian; Schraudolph (2002) for the Gauss–Newton product; Dangel, *Large-scale linear
algebra with curvature matrices*.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from curvcli.curvature.flatten import Layout
from curvcli.losses import Loss
from curvcli.problem import Batch, Params, batch_loss, unit_weight

Array = Any
Functions = tuple[Callable, Loss]
"""`(predict, loss)`: what is static in a problem."""


@partial(jax.jit, static_argnums=(0, 1))
def loss_and_gradient(
    functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch
) -> tuple[Array, Array]:
    """One batch's summed loss and its gradient [dim]."""
    value, gradient = jax.value_and_grad(lambda p: batch_loss(functions, p, frozen, batch))(params)
    return value, layout.ravel(gradient)


@partial(jax.jit, static_argnums=0)
def loss_value(functions: Functions, params: Params, frozen: dict, batch: Batch) -> Array:
    """One batch's summed loss."""
    return batch_loss(functions, params, frozen, batch)


@partial(jax.jit, static_argnums=(0, 1))
def hessian(functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch, vectors: Array) -> Array:
    """∇² of one batch's summed loss, times vectors [k, dim]: the derivative of the gradient (forward over reverse)."""
    gradient = jax.grad(lambda p: batch_loss(functions, p, frozen, batch))
    _, tangent_map = jax.linearize(gradient, params)
    return layout.ravel(jax.vmap(tangent_map)(layout.unravel(vectors)))


@partial(jax.jit, static_argnums=(0, 1, 2))
def gauss_newton(
    functions: Functions,
    output_hessian: bool,
    layout: Layout,
    params: Params,
    frozen: dict,
    batch: Batch,
    vectors: Array,
) -> Array:
    """Σ_n a_n J_nᵀ H_z J_n of one batch times vectors [k, dim]; without `output_hessian`, Σ_n a_n J_nᵀ J_n."""
    predict, loss = functions
    outputs, jvp = jax.linearize(lambda p: predict(p, frozen, batch.inputs), params)
    vjp = jax.linear_transpose(jvp, params)
    weight = unit_weight(batch.weight, outputs.ndim)

    def product(vector: Params) -> Params:
        tangent = jvp(vector)
        if output_hessian:
            tangent = _weighted_output_hessian(loss, outputs, batch, tangent)
        else:
            tangent = weight * tangent
        return vjp(tangent)[0]

    return layout.ravel(jax.vmap(product)(layout.unravel(vectors)))


def _weighted_output_hessian(loss: Loss, outputs: Array, batch: Batch, tangent: Array) -> Array:
    """∇²_z Σ a_n L(z_n, t_n) times a tangent of the outputs."""
    if loss.hessian_product is not None:  # one unit's loss depends on its own outputs alone
        product = loss.hessian_product(outputs, batch.targets, tangent)
        return unit_weight(batch.weight, outputs.ndim) * product

    def weighted(
        z: Array,
    ) -> Array:  # a user's loss may couple the tokens of an example: the weights go inside
        units = loss.value(z, batch.targets)
        return jnp.sum(units * unit_weight(batch.weight, units.ndim))

    return jax.jvp(jax.grad(weighted), (outputs,), (tangent,))[1]
