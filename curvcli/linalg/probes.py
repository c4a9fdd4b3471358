"""Random vectors, each from its own key: a probe does not depend on how many are drawn or how they are grouped."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from curvcli.compiling import jit


def sphere(key: Array, first: int, count: int, dim: int, dtype: DTypeLike) -> Array:
    """Vectors first, first + 1, … uniform on the unit sphere: [count, dim].

    Uniform on the sphere, not random signs: the law of every estimate then depends on the spectrum alone, and the
    theorem of Kuczyński and Woźniakowski (1992) on missed eigenvalues holds.
    """
    return _sphere(key, jnp.arange(first, first + count), dim, jnp.dtype(dtype).name)


@jit(static_argnums=(2, 3))
def _sphere(key: Array, indices: Array, dim: int, dtype: str) -> Array:
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
    vectors = jax.vmap(lambda one: jax.random.normal(one, (dim,), dtype))(keys)
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
