"""Traces, norms and distances of several symmetric matrices from the same test vectors.

With orthonormal rows U [r, D] that count exactly, and v uniform on the unit sphere of their complement,

    tr M = tr(U M Uᵀ) + (D − r)·E vᵀMv,        M = A_i, A_i², (A_i − A_j)²,

and the images A_i v of one set of vectors give all of these. U should hold the outlying eigenvectors of every matrix:
they carry nearly all of the variance.

A function of several of the numbers, such as ‖A − B‖_F/‖A‖_F, has to first order the error of the trace of one matrix
more, its gradient's combination of them. Numerator and denominator see the same vectors, and the error that they share
cancels. The law of that error is the one of `quadratic.py`, from forms vᵢᵀMvⱼ: inner products of images.

Cost: a product a vector and matrix. Source: Meyer, Musco, Musco and Woodruff (2021), *Hutch++*, for the split of the
trace; the common vectors' law is curv's own, its coverage measured in `benchmarks/coverage_compare.py`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from curvcli.compiling import jit
from curvcli.linalg.normalised import power_of_two
from curvcli.linalg.probes import sphere
from curvcli.linalg.reductions import row_norms
from curvcli.linalg.statistics import Law, degrees_of_freedom, over_pairs
from curvcli.linalg.trace.quadratic import Block, estimates


@dataclass
class Together:
    """What the images of common vectors tell of m matrices.

    Parameters
    ----------
    dim
        D.
    count
        m.
    basis
        Rows [r, D], orthonormal or zero, that count exactly.
    rest
        Dimensions that the test vectors are drawn from.
    exact
        Traces inside their span, of the m matrices, of their squares, and of the squares of the differences of `pairs`.
    blocks
        The same as forms between the test vectors of a block: inner products [b, b] and forms [.., b, b].
    """

    dim: int
    count: int
    basis: Array
    rest: int = field(init=False)
    exact: np.ndarray = field(init=False)
    blocks: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        lengths = np.square(row_norms(self.basis))
        self.rest = self.dim - int(np.sum(lengths > 0.5))
        self.exact = np.zeros(2 * self.count + len(self.pairs))

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """i < j, in the order of their numbers."""
        return list(itertools.combinations(range(self.count), 2))

    @property
    def drawn(self) -> int:
        """Test vectors so far."""
        return sum(len(inner) for inner, _ in self.blocks)

    def square(self, i: int) -> int:
        """The place of ‖A_i‖_F²."""
        return self.count + i

    def distance(self, i: int, j: int) -> int:
        """The place of ‖A_i − A_j‖_F²."""
        return 2 * self.count + self.pairs.index((min(i, j), max(i, j)))

    def tests(self, key: Array, count: int, dtype: DTypeLike) -> Array:
        """The next test vectors [count, D], of unit length, away from the basis."""
        vectors = sphere(key, self.drawn, count, self.dim, dtype)
        return _away(vectors, self.basis) if len(self.basis) else vectors

    def add_known(self, images: list[Array], rows: Array) -> None:
        """The images [b, D] of some rows of the basis under every matrix."""
        _, forms = self._told(images, rows)
        self.exact += np.trace(forms, axis1=1, axis2=2)

    def add(self, images: list[Array], tests: Array) -> None:
        """The images [b, D] of test vectors under every matrix."""
        self.blocks.append(self._told(images, tests))

    def _told(self, images: list[Array], rows: Array) -> tuple[np.ndarray, np.ndarray]:
        """V Vᵀ, and V M Vᵀ for every M, in float64; each matrix, and each pair, in a unit of its own on the device."""
        units = np.array([power_of_two(float(peak), rows.dtype) for peak in _peaks(images)])
        common = np.array([max(units[i], units[j]) for i, j in self.pairs])
        inner, forms = _forms(rows, images, *(jnp.asarray(1 / one, rows.dtype) for one in (units, common)))
        scale = np.concatenate([units, units**2, common**2])
        return np.asarray(inner, np.float64), np.asarray(forms, np.float64) * scale[:, None, None]

    def values(self) -> np.ndarray:
        """Estimates of all traces, of the length of `exact`; those of squares are not negative."""
        if not self.drawn or not self.rest:
            return self.exact
        samples = sum(np.trace(forms, axis1=1, axis2=2) for _, forms in self.blocks)
        return self.exact + self.rest * samples / sum(np.trace(inner) for inner, _ in self.blocks)

    def law(self, value: float, gradient: np.ndarray) -> Law:
        """The law of a function of the traces, from its value and its gradient in them."""
        if not self.drawn or not self.rest:
            return Law(value, 0.0, 1.0)
        combined = [Block(inner, np.tensordot(gradient, forms, 1)) for inner, forms in self.blocks]
        return estimates(self.rest, combined)[0]._replace(value=value)

    def trace(self, i: int) -> Law:
        """Of tr A_i, whose variance the images tell better than pairs do: see `hutchinson.py`."""
        value = float(self.values()[i])
        if not self.drawn or not self.rest:
            return Law(value, 0.0, 1.0)
        center = (value - self.exact[i]) / self.rest
        square = self.square(i)
        # (Bv_i)ᵀ(Bv_j), B = A − cI; what images have along the basis is counted too, and makes the error no smaller.
        grams = [self.rest * (f[square] - 2 * center * f[i] + center**2 * inner) for inner, f in self.blocks]
        squares = np.maximum(np.concatenate([np.diag(gram) for gram in grams]), 0)
        products, fourths = ([over_pairs(one) for one in found] for found in (
            [np.outer(np.diag(gram), np.diag(gram)) for gram in grams], [np.square(gram) for gram in grams]
        ))  # fmt: skip
        pairs = sum(count for _, count in products)
        product, fourth = (sum(total for total, _ in found) / max(pairs, 1) for found in (products, fourths))
        dof = degrees_of_freedom(len(squares), product, fourth, pairs)
        variance = 2 * self.rest / (self.rest + 2) * squares.mean() / len(squares)
        return Law(value, float(variance**0.5), dof)

    def norm(self, place: int) -> Law:
        """Of the root of one of the squares."""
        value = float(np.sqrt(self.values()[place]))
        return self.law(value, _unit(len(self.exact), (place, 0.5 / value if value else 0.0)))

    def relative(self, i: int, j: int) -> Law:
        """Of ‖A_i − A_j‖_F/‖A_i‖_F, infinite where A_i = 0."""
        values, top, bottom = self.values(), self.distance(i, j), self.square(i)
        if values[bottom] == 0:
            return Law(float("inf") if values[top] else 0.0, 0.0, 1.0)
        value = float(np.sqrt(values[top] / values[bottom]))
        slopes = (0.5 / (value * values[bottom]) if value else 0.0, -0.5 * value / values[bottom])
        return self.law(value, _unit(len(self.exact), (top, slopes[0]), (bottom, slopes[1])))

    def alignment(self, i: int, j: int) -> Law:
        """Of ⟨A_i, A_j⟩/(‖A_i‖_F ‖A_j‖_F), which no factor changes; 0 where one of them is 0."""
        values, places = self.values(), (self.square(i), self.square(j), self.distance(i, j))
        first, second, apart = (float(values[place]) for place in places)
        size = (first * second) ** 0.5
        if size == 0:
            return Law(0.0, 0.0, 1.0)
        value = 0.5 * (first + second - apart) / size
        slopes = (0.5 / size - 0.5 * value / first, 0.5 / size - 0.5 * value / second, -0.5 / size)
        return self.law(value, _unit(len(self.exact), *zip(places, slopes, strict=True)))


def _unit(size: int, *entries: tuple[int, float]) -> np.ndarray:
    """A vector that is zero but for some entries."""
    vector = np.zeros(size)
    for place, value in entries:
        vector[place] += value
    return vector


@jit
def _peaks(images: list[Array]) -> list[Array]:
    return [jnp.max(jnp.abs(image)) for image in images]


@jit
def _forms(vectors: Array, images: list[Array], alone: Array, together: Array) -> tuple[Array, Array]:
    """V Vᵀ, and V M Vᵀ for every M. Differences are taken before they are squared: near matrices do not cancel."""
    scaled = [weight * image for weight, image in zip(alone, images, strict=True)]
    forms = [0.5 * (cross + cross.T) for cross in (vectors @ image.T for image in scaled)]
    forms += [image @ image.T for image in scaled]
    for (one, other), weight in zip(itertools.combinations(images, 2), together, strict=True):
        apart = weight * one - weight * other
        forms.append(apart @ apart.T)
    return vectors @ vectors.T, jnp.stack(forms)


@jit
def _away(vectors: Array, basis: Array) -> Array:
    for _ in range(2):
        vectors = vectors - (vectors @ basis.T) @ basis
    return vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)
