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
from curvcli.curvature.outputs import OutputMap, active, example_losses, weighted_loss
from curvcli.losses import Loss
from curvcli.problem import Batch, Params, batch_loss

Array = Any
Functions = tuple[Callable, Loss]
"""`(predict, loss)`: what is static in a problem."""
Middle = Callable[..., OutputMap]
"""One of the functions of `outputs.py`."""


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
    """Σ_n J_nᵀ C_n J_n of one batch times vectors [k, dim]; `middle` is C, `extra` what it takes beside the batch."""
    predict, loss = functions
    outputs, jvp = jax.linearize(lambda p: predict(p, frozen, batch.inputs), params)
    vjp = jax.linear_transpose(jvp, params)
    across = middle(loss, outputs, batch, *extra)
    return layout.ravel(jax.vmap(lambda vector: vjp(across(jvp(vector)))[0])(layout.unravel(vectors)))


@partial(jax.jit, static_argnums=(0, 1))
def residual(functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch, vectors: Array) -> Array:
    """H − G of one batch times vectors [k, dim]: the Hessian of ⟨∂L/∂z, f(w)⟩ with ∂L/∂z held fixed.

    Nothing is subtracted: where every example is fitted the answer is as small as ∂L/∂z, not as H's rounding.
    """
    predict, loss = functions
    slope = jax.grad(lambda z: weighted_loss(loss, z, batch))(predict(params, frozen, batch.inputs))
    gradient = jax.grad(lambda p: jnp.sum(slope * predict(p, frozen, batch.inputs)))
    _, tangent_map = jax.linearize(gradient, params)
    return layout.ravel(jax.vmap(tangent_map)(layout.unravel(vectors)))


@partial(jax.jit, static_argnums=(0, 1))
def covariance(
    functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch, vectors: Array, mean: Array
) -> Array:
    """Σ_n (g_n − ḡ)(g_n − ḡ)ᵀ of one batch times vectors [k, dim], over examples with any weight; ḡ = `mean` [dim].

    Both sides are centred, not the matrix: ḡ may be far larger than the spread, and ḡḡᵀ then all digits of Σ g_n g_nᵀ.
    """
    predict, loss = functions
    _, jvp = jax.linearize(lambda p: example_losses(loss, predict(p, frozen, batch.inputs), batch), params)
    vjp = jax.linear_transpose(jvp, params)
    centred = jnp.where(active(batch)[None], jax.vmap(jvp)(layout.unravel(vectors)) - (vectors @ mean)[:, None], 0)
    return layout.ravel(jax.vmap(lambda row: vjp(row)[0])(centred)) - centred.sum(axis=1)[:, None] * mean[None]
