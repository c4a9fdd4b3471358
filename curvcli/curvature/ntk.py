"""The neural tangent kernel J Jᵀ, a row for each output of each example.

A product takes two passes over the data: Jᵀ v is summed over the batches, then J is applied to it batch by batch. Rows
are ordered as the outputs [N, ..., C]; padding has none. A unit of weight a has its rows scaled by √a, so that those of
masked units are zero, and the nonzero eigenvalues are M times those of the Gauss–Newton matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from curvcli.curvature import sums
from curvcli.curvature.flatten import Layout
from curvcli.curvature.products import Functions
from curvcli.problem import Batch, Params, Problem, unit_weight

Array = Any


def outputs_per_example(problem: Problem) -> int:
    """Outputs of one example: tokens × classes."""
    batch = next(iter(problem.batches))
    return math.prod(jax.eval_shape(problem.predict, problem.params, problem.frozen, batch.inputs).shape[1:])


def kernel_products(problem: Problem, layout: Layout, batches: Iterable[Batch]) -> Callable[[Array], Array]:
    """`vectors -> J Jᵀ vectors`, for vectors [k, N·...·C]. Memory O(k·N·C + k·D)."""
    functions, arrays = sums.functions(problem), (problem.params, problem.frozen)
    rows = problem.batches.batch_size * outputs_per_example(problem)
    padded = rows * len(problem.batches)

    def matmat(vectors: Array) -> Array:
        dim = vectors.shape[1]
        # A new array also where there is no padding: it is overwritten below.
        block = jnp.pad(vectors, ((0, 0), (0, padded - dim))) if padded > dim else jnp.copy(vectors)
        pulled = sums.total(_pull(functions, layout, *arrays, b, block, i * rows) for i, b in enumerate(batches))
        for i, batch in enumerate(batches):
            block = _push(functions, layout, *arrays, batch, pulled, block, i * rows)
        return block[:, :dim]

    return matmat


@partial(jax.jit, static_argnums=(0, 1))
def _pull(
    functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch, block: Array, start: int
) -> Array:
    """One batch's part of Jᵀ block: [k, dim], from its rows of block [k, rows of all batches]."""
    outputs, vjp = jax.vjp(lambda p: _scaled_outputs(functions, p, frozen, batch), params)
    own = jax.lax.dynamic_slice_in_dim(block, start, outputs.size, axis=1)
    return layout.ravel(jax.vmap(lambda row: vjp(row.reshape(outputs.shape))[0])(own))


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=6)
def _push(
    functions: Functions,
    layout: Layout,
    params: Params,
    frozen: dict,
    batch: Batch,
    vectors: Array,
    block: Array,
    start: int,
) -> Array:
    """The block with one batch's rows replaced by those of J vectors, vectors [k, dim]."""
    _, jvp = jax.linearize(lambda p: _scaled_outputs(functions, p, frozen, batch), params)
    rows = jax.vmap(lambda vector: jvp(vector).reshape(-1))(layout.unravel(vectors))
    return jax.lax.dynamic_update_slice_in_dim(block, rows, start, axis=1)


def _scaled_outputs(functions: Functions, params: Params, frozen: dict, batch: Batch) -> Array:
    outputs = functions[0](params, frozen, batch.inputs)
    return jnp.sqrt(unit_weight(batch.weight, outputs.ndim)) * outputs
