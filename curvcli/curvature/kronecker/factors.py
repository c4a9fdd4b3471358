"""Kronecker-factored matrices: blocks A ⊗ S and a diagonal, with all eigenvalues in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from curvcli.compiling import jit
from curvcli.curvature.flatten import Layout
from curvcli.devices import cut_along, placed, rounded_up
from curvcli.linalg.operator import LinearOperator


class Block(NamedTuple):
    """One layer: its place in the flat vector, and the eigendecompositions of its factors.

    Parameters
    ----------
    place
        [fan_in (+ 1), fan_out], the flat index of each entry of W.
    inputs, gradients
        Eigenvalues of A and S, ascending.
    input_basis, gradient_basis
        Their eigenvectors in columns; None: A is diagonal as it stands (an embedding's).
    corrected
        E-KFAC's eigenvalues, of the shape of `place`; None: the products.
    """

    name: str
    place: np.ndarray
    inputs: np.ndarray
    input_basis: Array | None
    gradients: np.ndarray
    gradient_basis: Array
    corrected: np.ndarray | None = None

    @property
    def values(self) -> np.ndarray:
        """All eigenvalues, of the shape of `place`."""
        return np.outer(self.inputs, self.gradients) if self.corrected is None else self.corrected


@dataclass(frozen=True)
class Kronecker:
    """Block-diagonal curvature with known eigenvectors.

    Parameters
    ----------
    diagonal
        By parameter: the diagonal of those without a layer, flat.
    fallback
        Why each of those has none.
    shift
        l2 and damping.
    mesh
        Devices that share the factors of `function`.
    """

    layout: Layout
    dtype: np.dtype
    blocks: list[Block]
    diagonal: dict[str, np.ndarray]
    fallback: dict[str, str] = field(default_factory=dict)
    shift: float = 0.0
    mesh: Mesh | None = None

    def function(self, f: Callable[[np.ndarray], np.ndarray]) -> Callable[[Array | np.ndarray], Array]:
        """Products with f(C), f of the eigenvalues with the shift: [k, D] -> [k, D]."""
        pieces = [
            _piece(self.mesh, self.layout.dim, block, np.asarray(f(block.values + self.shift), self.dtype))
            for block in self.blocks
        ]
        scale = np.zeros(self.layout.dim)
        for name, entries in self.diagonal.items():
            start = start_of(self.layout, name)
            scale[start : start + entries.size] = f(entries + self.shift)
        rest = jnp.asarray(scale, self.dtype)
        return lambda vectors: _applied(pieces, rest, vectors)

    def operator(self) -> LinearOperator:
        """The matrix by its products, with what is known of it."""
        return LinearOperator(self.function(lambda x: x), self.layout.dim, self.dtype, True, known=self, mesh=self.mesh)

    def eigenvalues(self) -> np.ndarray:
        """All of them, ascending: [D]."""
        parts = [block.values.reshape(-1) for block in self.blocks] + list(self.diagonal.values())
        return np.sort(np.concatenate(parts)) + self.shift

    def eigenvectors(self, places: np.ndarray) -> np.ndarray:
        """Unit vectors [k, D] of the eigenvalues at these places of their ascending order."""
        parts = [block.values.reshape(-1) for block in self.blocks] + list(self.diagonal.values())
        ends = np.cumsum([len(part) for part in parts])
        chosen = np.argsort(np.concatenate(parts), kind="stable")[places]
        vectors = np.zeros((len(chosen), self.layout.dim))
        for row, place in enumerate(chosen.tolist()):
            part = int(np.searchsorted(ends, place, side="right"))
            within = place - (int(ends[part - 1]) if part else 0)
            if part >= len(self.blocks):
                name = list(self.diagonal)[part - len(self.blocks)]
                vectors[row, start_of(self.layout, name) + within] = 1.0
                continue
            block = self.blocks[part]
            i, j = divmod(within, block.place.shape[1])
            left = np.eye(len(block.inputs))[i] if block.input_basis is None else np.asarray(block.input_basis)[:, i]
            vectors[row, block.place] = np.outer(left, np.asarray(block.gradient_basis)[:, j])
        return vectors

    def diagonal_entries(self) -> np.ndarray:
        """The diagonal: [D]."""
        found = np.empty(self.layout.dim)
        for block in self.blocks:
            left = np.eye(len(block.inputs)) if block.input_basis is None else np.square(np.asarray(block.input_basis))
            right = np.square(np.asarray(block.gradient_basis, np.float64))
            found[block.place] = left @ block.values @ right.T
        for name, entries in self.diagonal.items():
            start = start_of(self.layout, name)
            found[start : start + entries.size] = entries
        return found + self.shift

    def damped(self, damping: float) -> Kronecker:
        """C + λI."""
        return replace(self, shift=self.shift + damping)

    def pi_inverse(self, damping: float) -> Callable[[Array], Array]:
        """Products with ((A + π√λ I) ⊗ (S + √λ/π I))⁻¹, factored damping with π² = (tr A/dim A)/(tr S/dim S)."""
        factored = []
        for block in self.blocks:
            means = max(float(block.inputs.mean()), 0.0), max(float(block.gradients.mean()), 0.0)
            pi = np.sqrt(means[0] / means[1]) if all(means) else 1.0
            values = np.outer(block.inputs + pi * damping**0.5, block.gradients + damping**0.5 / pi)
            factored.append(block._replace(corrected=values))
        diagonal = {name: entries + damping for name, entries in self.diagonal.items()}
        return replace(self, blocks=factored, diagonal=diagonal).function(lambda values: 1 / values)


def _piece(mesh: Mesh | None, dim: int, block: Block, values: np.ndarray) -> tuple[Array, Array | None, Array, Array]:
    """Place, bases and eigenvalues of a block; those of size dim and more cut along it where devices share them.

    What is added to make them divisible lies outside the vector, and is neither read nor written.
    """
    if mesh is None:
        return jnp.asarray(block.place), block.input_basis, block.gradient_basis, jnp.asarray(values)
    wide, high = (rounded_up(mesh, size) - size for size in values.shape)
    place = np.pad(block.place, ((0, wide), (0, high)), constant_values=dim)
    left = None if block.input_basis is None else np.pad(np.asarray(block.input_basis), (0, wide))
    rows = (place, left, np.pad(np.asarray(block.gradient_basis), (0, high)), np.pad(values, ((0, wide), (0, high))))
    placed_rows = (None if one is None else placed(one, cut_along(mesh, 0)) for one in rows)
    return tuple(placed_rows)  # type: ignore[return-value]


@jit
def _applied(pieces: Any, rest: Array, vectors: Array) -> Array:
    result = vectors * rest[None]
    for index, left, right, values in pieces:
        w = vectors.at[:, index].get(mode="fill", fill_value=0)
        turned = jnp.einsum("kas,st->kat", w, right)
        turned = turned if left is None else jnp.einsum("kas,ab->kbs", turned, left)
        turned = turned * values[None]
        turned = turned if left is None else jnp.einsum("kbs,ab->kas", turned, left)
        result = result.at[:, index].set(jnp.einsum("kat,st->kas", turned, right), mode="drop")
    return result


def start_of(layout: Layout, name: str) -> int:
    """The flat index of a parameter's first entry."""
    place = layout.names.index(name)
    return sum(layout.sizes[:place])
