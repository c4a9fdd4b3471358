"""Arguments among the results of a jitted function: handed back themselves, where JAX would hand back copies.

A linear map keeps weights and inputs of its batch. Copies of the weights for each batch would be what it keeps most of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

PyTree = Any


@jax.tree_util.register_static
@dataclass(frozen=True)
class Borrowed:
    """In the place of an array: which leaf of the arguments it is."""

    index: int


def borrowed(result: PyTree, arguments: PyTree) -> PyTree:
    """While a function is traced: its result without the arrays that are its arguments'."""
    places = {id(leaf): Borrowed(index) for index, leaf in enumerate(jax.tree.leaves(arguments))}
    return jax.tree.map(lambda leaf: places.get(id(leaf), leaf), result)


def returned(result: PyTree, arguments: PyTree) -> PyTree:
    """Afterwards: the result with them."""
    given = jax.tree.leaves(arguments)

    def found(leaf: Any) -> Any:
        return given[leaf.index] if isinstance(leaf, Borrowed) else leaf

    return jax.tree.map(found, result, is_leaf=lambda leaf: isinstance(leaf, Borrowed))
