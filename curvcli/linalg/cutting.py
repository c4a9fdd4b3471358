"""Blocks of vectors cut along dim across devices, padded with zeros, which all that is linear keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from curvcli.devices import cut_along, on_every, rounded_up
from curvcli.linalg.operator import LinearOperator

Array = Any


@partial(jax.jit, static_argnums=0)
def cut(mesh: Mesh, rows: Array) -> Array:
    """Rows [..., dim] cut along dim, padded."""
    missing = rounded_up(mesh, rows.shape[-1]) - rows.shape[-1]
    padded = jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, missing)])
    return jax.lax.with_sharding_constraint(padded, cut_along(mesh, rows.ndim - 1))


@partial(jax.jit, static_argnums=(0, 1))
def whole(mesh: Mesh, dim: int, rows: Array) -> Array:
    """Rows as `cut` leaves them, [..., dim] again and whole on every device."""
    return jax.lax.with_sharding_constraint(rows[..., :dim], on_every(mesh))


def through(mesh: Mesh, dim: int, function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A map of rows [k, dim] as one of rows that are cut."""
    return lambda rows: cut(mesh, function(whole(mesh, dim, rows)))


def cut_operator(operator: LinearOperator) -> LinearOperator:
    """The matrix on rows that are cut; `dim` stays what it is, and the rows may be longer."""
    assert operator.mesh is not None
    return replace(operator, matmat=through(operator.mesh, operator.dim, operator.matmat), forms=None, mesh=None)
