"""The neural tangent kernel J Jᵀ, a row for each output of each example.

A product takes two passes over the data: Jᵀ v is summed over the batches, then J is applied to it batch by batch. Rows
are ordered as the outputs [N, ..., C]; padding has none. A unit of weight a has its rows scaled by √a, so that those of
masked units are zero, and the nonzero eigenvalues are M times those of the Gauss–Newton matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
from jax import Array

from curvcli.compiling import jit
from curvcli.curvature.flatten import Layout
from curvcli.curvature.products import sums
from curvcli.curvature.products.linear_map import Functions
from curvcli.problem import Batch, Params, Problem, unit_weight


def example_outputs(problem: Problem) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a batch's outputs; nothing is computed."""
    batch = next(iter(problem.batches))
    return jax.eval_shape(problem.predict, problem.params, problem.frozen, batch.inputs)


def outputs_per_example(problem: Problem) -> int:
    """Outputs of one example: tokens × classes."""
    return math.prod(example_outputs(problem).shape[1:])


@dataclass(frozen=True)
class Jacobian:
    """J with its rows scaled by the roots of the weights, as products with blocks of vectors.

    Parameters
    ----------
    problem, layout, batches
        The network, its parameters, and the data: `batches` are the problem's, or their copies on the device.
    """

    problem: Problem
    layout: Layout
    batches: Iterable[Batch]

    @cached_property
    def batch_rows(self) -> int:
        """Outputs of a batch, those of padding included."""
        return self.problem.batches.batch_size * outputs_per_example(self.problem)

    @property
    def padded(self) -> int:
        """Outputs of all batches."""
        return self.batch_rows * len(self.problem.batches)

    def pull(self, block: Array, within: tuple[int, int] | None = None) -> Array:
        """Jᵀ block: [k, padded] -> [k, D]. With `within` only the rows from the first to the last have to be seen."""
        first, last = (0, self.padded - 1) if within is None else within
        held = range(first // self.batch_rows, last // self.batch_rows + 1)
        return sums.total(
            _pull(*self._fixed, batch, block, i * self.batch_rows) for i, batch in enumerate(self.batches) if i in held
        )

    def push(self, vectors: Array, block: Array) -> Array:
        """J vectors: [k, D] -> [k, padded]; `block`, of that shape, is overwritten."""
        for i, batch in enumerate(self.batches):
            block = _push(*self._fixed, batch, vectors, block, i * self.batch_rows)
        return block

    @property
    def _fixed(self) -> tuple[Functions, Layout, Params, dict]:
        return sums.functions(self.problem), self.layout, self.problem.params, self.problem.frozen


def kernel_products(problem: Problem, layout: Layout, batches: Iterable[Batch]) -> Callable[[Array], Array]:
    """`vectors -> J Jᵀ vectors`, for vectors [k, N·...·C]. Memory O(k·N·C + k·D)."""
    jacobian = Jacobian(problem, layout, batches)
    padded = jacobian.padded

    def matmat(vectors: Array) -> Array:
        dim = vectors.shape[1]
        # A new array also where there is no padding: it is overwritten below.
        block = jnp.pad(vectors, ((0, 0), (0, padded - dim))) if padded > dim else jnp.copy(vectors)
        return jacobian.push(jacobian.pull(block), block)[:, :dim]

    return matmat


@jit(static_argnums=(0, 1))
def _pull(
    functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch, block: Array, start: int
) -> Array:
    """One batch's part of Jᵀ block: [k, dim], from its rows of block [k, rows of all batches]."""
    outputs, vjp = jax.vjp(lambda p: _scaled_outputs(functions, p, frozen, batch), params)
    own = jax.lax.dynamic_slice_in_dim(block, start, outputs.size, axis=1)
    return layout.ravel(jax.vmap(lambda row: vjp(row.reshape(outputs.shape))[0])(own))


@jit(static_argnums=(0, 1), donate_argnums=6)
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
