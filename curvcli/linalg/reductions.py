"""Sums and products over whole vectors, compiled by the package's own `jit`.

Called eagerly, JAX would compile them without the options of `compiling.jit`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from curvcli.compiling import jit


@jit
def norm(array: Array) -> Array:
    """The root of the sum of squares of all entries."""
    return jnp.sqrt(jnp.sum(jnp.square(array)))


@jit
def row_norms(rows: Array) -> Array:
    """The norm of each row: [k, dim] -> [k]."""
    return jnp.linalg.norm(rows, axis=1)


@jit
def row_dots(left: Array, right: Array) -> Array:
    """The inner product of each pair of rows: [k, dim], [k, dim] -> [k]."""
    return jnp.sum(left * right, axis=1)


@jit
def inner_products(left: Array, right: Array) -> Array:
    """Left times the transpose of right: [j, dim], [k, dim] -> [j, k]."""
    return left @ right.T


@jit
def combinations(weights: Array, rows: Array) -> Array:
    """Sums of rows with weights: [j, k], [k, dim] -> [j, dim]."""
    return weights @ rows


@jit
def largest(array: Array) -> Array:
    """The largest magnitude of all entries."""
    return jnp.max(jnp.abs(array))


@jit
def all_finite(array: Array) -> Array:
    """Whether no entry is NaN or infinite."""
    return jnp.all(jnp.isfinite(array))


@jit
def nonzero_rows(rows: Array) -> Array:
    """Which rows have an entry other than zero: [k, dim] -> [k]."""
    return jnp.any(rows != 0, axis=1)
