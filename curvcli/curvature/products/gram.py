"""The output side of Jᵀ C J: a matrix with a row for each output of each example, and the same nonzero eigenvalues.

With a symmetric root S of C, block by block of the units, and P = JᵀS/√M (M the normaliser),

    A = P Pᵀ + shift·I  [D, D],        K = Pᵀ P  [rows, rows].

Where there are fewer outputs than parameters, A has the eigenvalues of K plus the shift, and the shift itself D − rows
times. A row of K is P e_i pushed back; the squares of the P e_i add up to the diagonal of A, exactly. J is never held:
memory O(k·D + k·rows + rows·C).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.compiling import jit
from curvcli.curvature import matrices
from curvcli.curvature.flatten import Layout
from curvcli.curvature.products import sums
from curvcli.curvature.products.linear_map import Functions, Middle
from curvcli.curvature.products.ntk import Jacobian, example_outputs, outputs_per_example
from curvcli.devices import on_host
from curvcli.problem import Batch, Params, Problem
from curvcli.schema.settings import AnalysisSettings
from curvcli.stopwatch import timed


@dataclass(frozen=True)
class Gram:
    """A = P Pᵀ + shift·I through P.

    Parameters
    ----------
    rows
        Outputs of all examples.
    shift
        l2 and damping.
    pull
        Rows v [k, rows] to P v [k, D].
    push
        Rows w [k, D] to Pᵀ w [k, rows].
    """

    rows: int
    shift: float
    pull: Callable[[Array | np.ndarray], Array]
    push: Callable[[Array], Array]
    dtype: np.dtype

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Rows of K in blocks, `(first row, rows [b, rows], Σ (P e_i)² over them [D])`, in float64.

        Cost: a product a row: a backward derivative of the batch that it belongs to, and a forward one of all.
        """
        for start in range(0, self.rows, size):
            # Made by numpy, with zero rows past the end: one shape, and no compilation for each offset.
            pulled = self.pull(np.eye(size, self.rows, start, dtype=self.dtype))
            squares = np.asarray(_sum_of_squares(pulled), np.float64)
            yield start, on_host(self.push(pulled)).astype(np.float64)[: self.rows - start], squares


def output_rows(problem: Problem, settings: AnalysisSettings) -> int | None:
    """Rows of the output side; None for a matrix that has none.

    It has one if it is Jᵀ C J with a positive C that has a block a unit, and nothing beside it but a multiple of I.
    """
    name = settings.matrix
    curved = settings.regulariser_included and problem.regulariser.fn is not None
    if curved or not matrices.has(name, "output_side"):
        return None
    matrices.check_likelihood(problem.loss, name)
    shape = example_outputs(problem).shape[1:]
    by_unit = matrices.facet(name, "output_side").by_unit(problem.loss, len(shape))
    return problem.batches.num_examples * math.prod(shape) if by_unit else None


def build_gram(problem: Problem, settings: AnalysisSettings) -> Gram:
    """The output side of the matrix that an analysis was asked for; only where `output_rows` says that there is one.

    Cost: one forward pass, and an eigendecomposition [C, C] a unit.
    """
    name, batches = settings.matrix, sums.resident(problem.batches)
    extra = matrices.extra_arguments(problem, name, batches, mc_samples=settings.mc_samples, seed=settings.seed)
    middle = matrices.facet(name, "output_side").middle
    root = partial(_roots, middle, sums.functions(problem), problem.params, problem.frozen)
    roots = jnp.concatenate([root(batch, *extra) for batch in batches])
    jacobian = Jacobian(problem, Layout.of(problem.params), batches)
    rows = problem.batches.num_examples * outputs_per_example(problem)
    missing, scale = jacobian.padded - rows, problem.normaliser**-0.5

    def pull(vectors: Array | np.ndarray) -> Array:
        held = np.flatnonzero(np.any(np.asarray(vectors) != 0, axis=0))
        block = _through(roots, jnp.pad(vectors, ((0, 0), (0, missing))))
        return scale * jacobian.pull(block, (held[0], held[-1]) if len(held) else (0, 0))

    def push(pulled: Array) -> Array:
        block = jnp.zeros((len(pulled), jacobian.padded), problem.dtype)
        return scale * _through(roots, jacobian.push(pulled, block))[:, :rows]

    shift = settings.damping + (problem.regulariser.l2 if settings.regulariser_included else 0.0)
    return Gram(rows, shift, partial(timed, "products", pull), partial(timed, "products", push), problem.dtype)


@jit(static_argnums=(0, 1))
def _roots(middle: Middle, functions: Functions, params: Params, frozen: dict, batch: Batch, *extra: Array) -> Array:
    """Symmetric roots of one batch's C, weights left out: [units, C, C]."""
    predict, loss = functions
    z = predict(params, frozen, batch.inputs)
    across = middle(loss, z, batch._replace(weight=jnp.ones_like(batch.weight)), *extra)
    classes = z.shape[-1] if z.ndim > 1 else 1  # outputs [b] have one number a unit, and no axis of their own for it
    basis = jnp.eye(classes, dtype=z.dtype).reshape(classes, *(1,) * (z.ndim - 1), *(classes,) * (z.ndim > 1))
    columns = jax.vmap(lambda row: across(jnp.broadcast_to(row, z.shape)))(basis)
    blocks = jnp.moveaxis(columns.reshape(classes, -1, classes), 0, -1)
    values, vectors = jnp.linalg.eigh(blocks)
    return (vectors * jnp.sqrt(jnp.maximum(values, 0))[:, None, :]) @ jnp.swapaxes(vectors, 1, 2)


@jit
def _through(roots: Array, block: Array) -> Array:
    """S times rows [k, units·C]."""
    units, classes = roots.shape[:2]
    return jnp.einsum("kuc,ucd->kud", block.reshape(-1, units, classes), roots).reshape(block.shape)


@jit
def _sum_of_squares(pulled: Array) -> Array:
    return jnp.sum(jnp.square(pulled), axis=0)
