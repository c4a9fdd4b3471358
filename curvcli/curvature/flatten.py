"""Parameters by path <-> one flat vector: the border between trees and linear algebra."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.compiling import jit
from curvcli.problem import Params


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in the flat vector. Hashable: a static argument, never an array.

    Parameters
    ----------
    names, shapes
        Path and shape of each parameter, in the order of the vector.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, params: Params) -> Layout:
        """The layout of these parameters, in the order of their paths."""
        names = tuple(sorted(params))
        return cls(names, tuple(tuple(params[name].shape) for name in names))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each parameter."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def dim(self) -> int:
        """D."""
        return sum(self.sizes)

    @property
    def layers(self) -> dict[str, list[int]]:
        """The leaves of each layer, as indices: a layer is the node above a leaf.

        >>> Layout(("a/bias", "a/b/kernel", "a/kernel", "scale"), ((2,), (3,), (4,), ())).layers
        {'a': [0, 2], 'a/b': [1], 'scale': [3]}
        """
        found: dict[str, list[int]] = {}
        for index, name in enumerate(self.names):
            found.setdefault(name.rpartition("/")[0] or name, []).append(index)
        return found

    @property
    def segments(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Where each layer lies in the vector: the ranges `(start, stop)` of its leaves, in the order of `layers`."""
        ends = np.cumsum(self.sizes).tolist()
        ranges = [(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]
        return tuple(tuple(ranges[leaf] for leaf in leaves) for leaves in self.layers.values())

    @jit(static_argnums=0)
    def leaf_sums(self, vectors: Array) -> Array:
        """The sum over each parameter's segment: [..., dim] -> [..., leaves]."""
        ends = np.cumsum(self.sizes).tolist()
        parts = [vectors[..., end - size : end].sum(-1) for end, size in zip(ends, self.sizes, strict=True)]
        return jnp.stack(parts, axis=-1)

    @jit(static_argnums=0)
    def ravel(self, params: Params) -> Array:
        """Parameters, each with the same extra leading axes, as [..., dim]."""
        leaves = [params[name] for name in self.names]
        lead = leaves[0].shape[: leaves[0].ndim - len(self.shapes[0])]
        return jnp.concatenate([jnp.reshape(leaf, (*lead, -1)) for leaf in leaves], axis=-1)

    @jit(static_argnums=0)
    def unravel(self, vectors: Array) -> Params:
        """[..., dim] as parameters with the same leading axes."""
        lead, start, params = vectors.shape[:-1], 0, {}
        for name, shape, size in zip(self.names, self.shapes, self.sizes, strict=True):
            params[name] = jnp.reshape(vectors[..., start : start + size], (*lead, *shape))
            start += size
        return params


@jit
def moved(params: Params, directions: Params, step: Array) -> Params:
    """w + Σ_i s_i v_i, for directions by path [d, ...] and step [d]."""
    return {name: w + jnp.tensordot(step, directions[name], 1) for name, w in params.items()}
