"""Hutchinson's estimator of a trace, of its parts, and of the Frobenius norm, with the law of its error.

From v uniform on the unit sphere of a D-dimensional space, D·vᵀAv is an unbiased sample of tr A, D·Σ_d v_d (Av)_d
over a segment of its part of the trace (the parts sum to the whole exactly), and D·‖Av‖² of ‖A‖_F². Hutch++ is the
same in the orthogonal complement of a known space, where the outlying eigenvalues are no longer.

Cost: one product a sample. Source: Hutchinson (1990); Meyer, Musco, Musco and Woodruff (2021) for Hutch++.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.compiling import jit
from curvcli.linalg.krylov.lanczos import check_powers
from curvcli.linalg.reductions import largest, row_dots
from curvcli.linalg.statistics import Law, Pairs, SquareLaw, degrees_of_freedom, over_pairs, square_law
from curvcli.linalg.trace.quadratic import Block

Segments = tuple[tuple[tuple[int, int], ...], ...]
"""Parts of a vector: for each the ranges `(start, stop)` that belong to it; together they are the whole. Static."""


class Grams(NamedTuple):
    """Inner products of b probes v and their images y = Av − cv, by segment, in float64 on the host."""

    vv: np.ndarray  # [L, b, b]
    vy: np.ndarray  # [L, b, b], rows v
    yy: np.ndarray  # [L, b, b]
    inside: np.ndarray  # [b, b] of the images projected into the space of the probes


@jit(static_argnums=0)
def _grams(segments: Segments, known: Array, v: Array, y: Array) -> tuple[Array, Array, Array, Array]:
    def inner(left: Array, right: Array) -> Array:
        return jnp.stack([sum(left[:, a:b] @ right[:, a:b].T for a, b in part) for part in segments])

    inside = y - (y @ known.T) @ known
    return inner(v, v), inner(v, y), inner(y, y), inside @ inside.T


@dataclass
class Samples:
    """Probes of an operator inside a space, gathered block by block.

    Parameters
    ----------
    dim
        Dimensions of the space that the probes are drawn from: D, less those known.
    segments
        The parts that get an estimate of their own.
    sizes
        [L] dimensions of each part inside the space (with fractions, where known vectors are taken out).
    known
        Orthonormal rows [r, D] that the probes are orthogonal to; r may be 0.
    """

    dim: int
    segments: Segments
    sizes: np.ndarray
    known: Array
    center: float | None = None
    blocks: list[Grams] = field(default_factory=list)

    def add(self, v: Array, image: Array) -> None:
        """Unit vectors [b, D] of the space and their images A v."""
        check_powers(float(largest(image)), image.dtype)
        if self.center is None:
            # All sums are of A − cI: what a multiple of the identity adds to the samples is known, not sampled, and
            # nothing cancels. The c of the first block depends on its probes; the bias is a 1/D-th part of their error.
            self.center = float(np.mean(row_dots(v, image)))
        parts = _grams(self.segments, self.known, v, image - self.center * v)
        self.blocks.append(Grams(*(np.asarray(part, np.float64) for part in parts)))

    @property
    def count(self) -> int:
        """Probes so far."""
        return sum(len(block.inside) for block in self.blocks)

    def known_forms(self) -> list[Block]:
        """What the images say of the forms of all pairs in a block."""
        inner = [block.vv.sum(0) for block in self.blocks]
        cross = [0.5 * (block.vy.sum(0) + block.vy.sum(0).T) for block in self.blocks]
        return [Block(vv, vy + (self.center or 0.0) * vv) for vv, vy in zip(inner, cross, strict=True)]

    def trace(self) -> Law:
        """The trace inside the space."""
        shift, grams, _ = self._centred()
        stderr, dof = self._spread(grams)
        return Law(self.dim * (shift + (self.center or 0.0)), stderr, dof)

    def _centred(self) -> tuple[float, list[np.ndarray], list[np.ndarray]]:
        """With B = A − c'I, c' the mean of all probes: c' − c, and D'·(Bv_i)ᵀ(Bv_j) and D'·v_iᵀBv_j of every block."""
        vy = [0.5 * (block.vy.sum(0) + block.vy.sum(0).T) for block in self.blocks]
        vv = [block.vv.sum(0) for block in self.blocks]
        shift = float(np.mean(np.concatenate([np.diag(one) for one in vy])))
        grams = [b.inside - 2 * shift * y + shift**2 * v for b, y, v in zip(self.blocks, vy, vv, strict=True)]
        cross = [y - shift * v for y, v in zip(vy, vv, strict=True)]
        return shift, [self.dim * gram for gram in grams], [self.dim * one for one in cross]

    def _spread(self, grams: list[np.ndarray]) -> tuple[float, float]:
        """Standard error of the mean of D'·vᵀBv, and its degrees of freedom, from the Gram matrices of √D'·Bv."""
        squares = np.maximum(np.concatenate([np.diag(gram) for gram in grams]), 0)
        fourth, count = _pair_sum([np.square(gram) for gram in grams])
        product, _ = _pair_sum([np.outer(np.diag(gram), np.diag(gram)) for gram in grams])
        variance = 2 * self.dim / (self.dim + 2) * squares.mean() / len(squares)
        pairs = max(count, 1)
        return float(variance**0.5), degrees_of_freedom(len(squares), product / pairs, fourth / pairs, count)

    def square(self, known: float) -> SquareLaw:
        """‖A‖_F², of which `known` is not sampled."""
        shift, grams, cross = self._centred()
        body = float(np.maximum(np.concatenate([np.diag(gram) for gram in grams]), 0).mean())
        vv = [block.vv.sum(0) for block in self.blocks]
        centred = [gram - body * inner for gram, inner in zip(grams, vv, strict=True)]
        sums = [
            _pair_sum([np.outer(np.diag(gram), np.diag(gram)) for gram in grams]),
            _pair_sum([np.square(one) for one in cross]),
            _pair_sum([one * gram for one, gram in zip(cross, centred, strict=True)]),
            _pair_sum([np.square(gram) for gram in centred]),
        ]
        count = sums[0][1]
        pairs = Pairs(count, *(total / max(count, 1) for total, _ in sums))
        stderr, dof = self._spread(grams)
        center = shift + (self.center or 0.0)
        law = square_law(known, center, self.dim, body, pairs, Law(0.0, stderr, dof), self.count)
        if len(self.known):
            # What the known space leaves of an outlier is little, and few probes can all miss it.
            law = law._replace(body=law.body._replace(dof=min(law.body.dof, max(self.count - 1, 1))))
        return law

    def parts(self) -> list[Law]:
        """The trace of every segment inside the space; the values sum to that of `trace`."""
        laws = []
        for index, size in enumerate(self.sizes):
            vy = [self.dim * block.vy[index] for block in self.blocks]
            grams = [self.dim * block.yy[index] for block in self.blocks]
            samples = np.concatenate([np.diag(one) for one in vy])
            # With E the segment, the sample is vᵀMv for M = (EB + BE)/2, and ‖M‖_F² = (tr EBEB + tr EB²E)/2.
            outer = np.maximum(np.concatenate([np.diag(gram) for gram in grams]), 0).mean()
            total, count = _pair_sum([one * one.T for one in vy])
            inner = min(max(total / count, 0.0), outer) if count else outer
            product, _ = _pair_sum([np.outer(np.diag(gram), np.diag(gram)) for gram in grams])
            fourth, _ = _pair_sum([np.square(gram) for gram in grams])
            variance = self.dim / (self.dim + 2) * (inner + outer) / len(samples)
            pairs = max(count, 1)
            dof = degrees_of_freedom(len(samples), product / pairs, fourth / pairs, count)
            laws.append(Law(float(samples.mean() + (self.center or 0.0) * size), float(variance**0.5), dof))
        return laws


def _pair_sum(matrices: list[np.ndarray]) -> tuple[float, int]:
    sums = [over_pairs(one) for one in matrices]
    return sum(total for total, _ in sums), sum(count for _, count in sums)
