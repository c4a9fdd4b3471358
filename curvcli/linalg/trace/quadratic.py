"""The trace and the Frobenius norm from quadratic forms alone: V A Vᵀ [b, b] of blocks of test vectors, no image A v.

Where A is Jᵀ C J, forward derivatives give it at half the cost of products. From v uniform on the unit sphere, D·vᵀAv
samples tr A as in `hutchinson.py`. What the images told of the law of its error comes from pairs: with B = A − cI,

    ‖B‖_F² = D²·E (v_iᵀBv_j)²,   tr B⁴ = D⁴·E (v_iᵀBv_j)(v_jᵀBv_k)(v_kᵀBv_l)(v_lᵀBv_i),

all indices distinct, within blocks. Pairs say less of ‖B‖_F² than images do: with r = (tr B²)²/tr B⁴, the variance of
the mean over the P pairs of blocks of b vectors, p each, is relative to its square

    V = (8/r) Σ p²/b / P² + 2(1 + 1/r)/P

(Hoeffding's decomposition, normal approximation). By Satterthwaite's rule both intervals have 2/V degrees of
freedom: n(b − 1)/2 on a flat spectrum, n/4 and not n where one eigenvalue is all.

Cost: a form a sample. Source: Hutchinson (1990); Kong and Valiant (2017) for the 4-cycles; coverage is measured in
`benchmarks/coverage_trace.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.compiling import jit
from curvcli.linalg.iterate import Monitor
from curvcli.linalg.krylov.lanczos import check_powers
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.probes import sphere
from curvcli.linalg.sampling import block_sizes
from curvcli.linalg.statistics import Law, SquareLaw

FIRST = 1 << 21
"""Index of the first vector, beyond all that products are spent on."""

LEAST = 4
"""Vectors in a block for 4-cycles."""

PRIOR = 0.5
"""Weight, in vectors by four, of the guess r = 1 (a single eigenvalue): few vectors can miss it by chance."""


class Block(NamedTuple):
    """V Vᵀ and V A Vᵀ of b vectors, [b, b] each, in float64 on the host."""

    inner: np.ndarray
    forms: np.ndarray


class Moments(NamedTuple):
    """Sums over the pairs, triples and fours of a block's vectors, of which all are distinct."""

    pairs: float
    square: float  # over pairs: D²(v_iᵀBv_j)²
    triples: float
    cube: float  # over ordered triples: D³ of the 3-cycle
    fours: float
    product: float  # over ordered fours: D⁴(v_iᵀBv_j)²(v_kᵀBv_l)²
    fourth: float  # over ordered fours: D⁴ of the 4-cycle


class Forms:
    """Samples of vᵀAv, and pairs of vectors, gathered block by block.

    Parameters
    ----------
    operator
        With `forms`.
    key
        The randomness of all vectors.
    at_once
        Vectors in a block, at least `LEAST`.
    monitor
        Asked between blocks whether to stop, and told of progress.
    """

    def __init__(
        self, operator: LinearOperator, key: Array, *, at_once: int, monitor: Monitor, planned: int | None = None
    ) -> None:
        assert operator.forms is not None
        self.operator, self.forms, self.key, self.at_once = operator, operator.forms, key, at_once
        self.monitor, self.planned = monitor, planned
        self.blocks: list[Block] = []
        self.padding = 0

    @property
    def drawn(self) -> int:
        """Vectors so far."""
        return sum(len(block.inner) for block in self.blocks)

    def stopped(self) -> bool:
        """Whether to stop here with what there is."""
        return bool(self.blocks) and self.monitor.stop() is not None

    def draw(self, total: int) -> None:
        """Forms until there are `total`, or a stop is asked for. Cost: half a product each."""
        for count in block_sizes(total, self.at_once, lambda: self.drawn, self.stopped):
            vectors = sphere(self.key, FIRST + self.drawn, count, self.operator.dim, self.operator.dtype)
            missing = self.at_once - count if self.blocks else 0  # one compiled shape
            forms = self.forms(jnp.pad(vectors, ((0, missing), (0, 0))))[:count, :count]
            block = Block(*(np.asarray(part, np.float64) for part in (_inner(vectors), forms)))
            check_powers(float(np.abs(block.forms).max()), np.float64)
            self.blocks.append(block)
            self.padding += missing
            self.monitor.progress("trace", self.drawn, self.planned)


@jit
def _inner(vectors: Array) -> Array:
    return vectors @ vectors.T


def estimates(dim: int, blocks: list[Block]) -> tuple[Law, SquareLaw]:
    """The trace and ‖A‖_F² from all blocks; one of them has two vectors at least."""
    samples = np.concatenate([np.diag(block.forms) for block in blocks])
    squared = np.concatenate([np.diag(block.inner) for block in blocks])
    center, count = float(samples.sum() / squared.sum()), len(samples)
    grams = [dim * (block.forms - center * block.inner) for block in blocks]
    found = [moments(gram) for gram in grams]
    total = Moments(*np.sum(found, axis=0).tolist())
    body = total.square / total.pairs
    inverse = _inverse_rank(total, sum(len(gram) // 4 for gram in grams))
    sharing = sum(one.pairs**2 / len(gram) for one, gram in zip(found, grams, strict=True)) / total.pairs**2
    spread, widest = (8 * x * sharing + 2 * (1 + x) / total.pairs for x in (inverse, 1.0))
    trace = Law(dim * center, float((2 * dim / (dim + 2) * body / count) ** 0.5), 2 / spread)
    correlation = _correlation(total, center, inverse, count, spread)
    square = SquareLaw(
        center**2 * dim, Law(body, body * spread**0.5, trace.dof),
        Law(0.0, 2 * abs(center) * trace.stderr, trace.dof), correlation, 2 / widest,
    )  # fmt: skip
    return trace, square


def moments(gram: np.ndarray) -> Moments:
    """From D·v_iᵀBv_j of one block: closed walks without repeated vertices, counted through powers of the matrix."""
    count = len(gram)
    edges = gram - np.diag(np.diag(gram))
    squares, walks = np.square(edges), edges @ edges
    degrees, whole = squares.sum(axis=1), float(squares.sum())
    fourths = float(np.square(squares).sum())
    cycles = float(np.square(walks).sum()) - 2 * float(np.square(np.diag(walks)).sum()) + fourths
    # (Σ_ij G_ij²)² without the terms in which the two pairs share one vector (four ways) or both (two).
    products = whole**2 - 4 * (float(np.square(degrees).sum()) - fourths) - 2 * fourths
    triples, fours = count * (count - 1) * (count - 2), count * (count - 1) * (count - 2) * (count - 3)
    return Moments(count * (count - 1) / 2, whole / 2, triples, float((walks * edges).sum()), fours, products, cycles)


def _inverse_rank(total: Moments, quadruples: int) -> float:
    """1/r = tr B⁴/(tr B²)², between 0 and 1, drawn towards 1 where few vectors tell."""
    if total.fours == 0 or total.product <= 0:
        return 1.0
    return (quadruples * float(np.clip(total.fourth / total.product, 0, 1)) + PRIOR) / (quadruples + PRIOR)


def _correlation(total: Moments, center: float, inverse: float, count: int, spread: float) -> float:
    """Of the errors of ‖B‖_F² and of 2c·tr B, for the positive ones: errors that cancel are not counted on."""
    if not total.triples or total.square <= 0:
        return 1.0
    second, third = total.square / total.pairs, total.cube / total.triples
    # Cov(mean of pairs, mean of samples) = 4 tr B³/n.
    sizes = second * spread**0.5 * (2 * second / count) ** 0.5
    return float(np.clip(np.sign(center) * 4 * third / count / sizes, 0, 1))
