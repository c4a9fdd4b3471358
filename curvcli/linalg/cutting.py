"""Blocks of vectors cut along dim across devices, padded with zeros, which all that is linear keeps."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from curvcli.compiling import jit
from curvcli.devices import cut_along, on_every
from curvcli.linalg.operator import LinearOperator

BLOCKS = 64
"""Sums over dim are taken in so many parts, wherever these lie: any number of devices that divides it gives the same
bits, so that a run can go on with another."""


def width(mesh: Mesh, dim: int) -> int:
    """Entries of a row of length dim that is cut."""
    parts = math.lcm(BLOCKS, mesh.size)
    return -(-dim // parts) * parts


@jit(static_argnums=0)
def cut(mesh: Mesh, rows: Array) -> Array:
    """Rows [..., dim] cut along dim, padded."""
    missing = width(mesh, rows.shape[-1]) - rows.shape[-1]
    padded = jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, missing)])
    return jax.lax.with_sharding_constraint(padded, cut_along(mesh, rows.ndim - 1))


@jit(static_argnums=(0, 1))
def whole(mesh: Mesh, dim: int, rows: Array) -> Array:
    """Rows as `cut` leaves them, [..., dim] again and whole on every device."""
    return jax.lax.with_sharding_constraint(rows[..., :dim], on_every(mesh))


def in_parts(mesh: Mesh, rows: Array) -> Array:
    """Rows [..., width] that are cut, as [..., parts, width / parts]: each part lies on one device."""
    parts = math.lcm(BLOCKS, mesh.size)
    split = rows.reshape(*rows.shape[:-1], parts, -1)
    return jax.lax.with_sharding_constraint(split, cut_along(mesh, split.ndim - 2))


def sum_of_parts(mesh: Mesh, terms: Array) -> Array:
    """The sum over the first axis, [parts, ...], in the same order whatever the devices."""
    return jnp.sum(jax.lax.with_sharding_constraint(terms, on_every(mesh)), axis=0)


def through(mesh: Mesh, dim: int, function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A map of rows [k, dim] as one of rows that are cut."""
    return lambda rows: cut(mesh, function(whole(mesh, dim, rows)))


def cut_operator(operator: LinearOperator) -> LinearOperator:
    """The matrix on rows that are cut; `dim` stays what it is, and the rows may be longer."""
    assert operator.mesh is not None
    return operator.with_products(through(operator.mesh, operator.dim, operator.matmat), mesh=None)
