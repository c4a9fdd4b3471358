"""What samples of a diagonal say of its entries and of their sums: values, standard errors, degrees of freedom.

Entry d of ω ⊙ Aω, ω of random signs, has the mean A_dd and the variance Σ_{j≠d} A_dj² (Hutchinson's estimator). A
sample variance of few samples is poor. The entries of a range (a parameter) lend each other theirs as far as they are
alike (`moderated`), and no further than the images behind them are independent (`Shared.dof`): Student's interval then
covers, pooled over entries, and is hardly wider than one that knows the variances.

Source: Bekas, Kokiopoulou and Saad (2007), *An estimator for the diagonal of a matrix*; Smyth (2004) for the variances.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import Array

from curvcli.compiling import jit
from curvcli.linalg.krylov.lanczos import check_powers, not_finite
from curvcli.linalg.reductions import largest
from curvcli.linalg.statistics import Law, degrees_of_freedom
from curvcli.linalg.trace.hutchinson import Segments

FEWEST_ALIKE = 3
MOST_ALIKE = 1e6
"""Entries that lend each other their variances, at least; degrees of freedom that they add, at most."""


PRIOR_PAIRS = 3
"""Weight, in pairs of samples, of the guess that a sum's variance is as large as that of its entries allows."""


class Found(NamedTuple):
    """The diagonal with what is known of its error."""

    method: str
    value: np.ndarray  # [D]
    stderr: np.ndarray  # [D]
    dof: np.ndarray  # [G], of the standard errors of each range's entries
    sums: list[Law]  # of each segment's entries
    samples: int

    def scaled(self, unit: float) -> Found:
        """Of the matrix times a unit."""
        sums = [law.scaled(unit) for law in self.sums]
        return self._replace(value=unit * self.value, stderr=unit * self.stderr, sums=sums)


class Ranges(NamedTuple):
    """Ranges of the vector, in order, and the segment that each belongs to."""

    ends: tuple[int, ...]
    owner: tuple[int, ...]

    @classmethod
    def of(cls, segments: Segments) -> Ranges:
        """The ranges of these segments, which must cover the vector."""
        found = sorted((stop, index) for index, part in enumerate(segments) for start, stop in part if stop > start)
        return cls(tuple(stop for stop, _ in found), tuple(index for _, index in found))

    def sums(self, vectors: np.ndarray, start: int = 0) -> np.ndarray:
        """Entries start, start + 1, … [..., m] -> their sums by range [..., G]."""
        cuts = np.clip(np.array((0, *self.ends)) - start, 0, vectors.shape[-1])
        return np.stack([vectors[..., a:b].sum(-1) for a, b in itertools.pairwise(cuts.tolist())], axis=-1)

    def gathered(self, values: np.ndarray) -> np.ndarray:
        """Sums by range [..., G] -> by segment [..., L]."""
        total = np.zeros((max(self.owner) + 1, *values.shape[:-1]))
        np.add.at(total, np.array(self.owner), np.moveaxis(values, -1, 0))
        return np.moveaxis(total, 0, -1)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """A value a range [G] for every entry [D]."""
        return np.repeat(values, np.diff((0, *self.ends)))


class Shared(NamedTuple):
    """Sums over pairs i ≠ j of images y of independent signs, [G + L]: over ranges, then over segments."""

    pairs: int
    product: np.ndarray  # of ‖y_i‖²‖y_j‖²
    square: np.ndarray  # of (y_iᵀy_j)²
    inner: np.ndarray  # of ω_iᵀy_j · ω_jᵀy_i
    own: np.ndarray  # of ‖y‖²

    @classmethod
    def of(cls, layout: Ranges, own: np.ndarray, shared: np.ndarray, cross: np.ndarray) -> Shared:
        """From ‖y‖² and ω_iᵀy_j of either side [2, p, G], and y_iᵀy_j [p, G]."""
        own, shared, cross = (np.concatenate([a, layout.gathered(a)], axis=-1) for a in (own, shared, cross))
        found = own.prod(0), np.square(shared), cross.prod(0), own.mean(0)
        return cls(shared.shape[0], *(a.sum(0) for a in found))

    def plus(self, other: Shared) -> Shared:
        """Both."""
        sums = (a + b for a, b in zip(self[1:], other[1:], strict=True))
        return Shared(self.pairs + other.pairs, *sums)

    def dof(self, count: int) -> np.ndarray:
        """Degrees of freedom [G + L] of what `count` samples say of a variance that all entries of a part share."""
        each = zip(self.product, self.square, strict=True)
        return np.array([degrees_of_freedom(count, product, square, self.pairs) for product, square in each])


class Moments:
    """Mean and variance of ω ⊙ Aω, gathered block by block."""

    def __init__(self, layout: Ranges, dim: int) -> None:
        self.layout, self.count = layout, 0
        self.mean, self.squares = np.zeros(dim), np.zeros(dim)  # the latter summed about the mean
        nothing = np.zeros(len(layout.ends) + max(layout.owner) + 1)
        self.shared = Shared(0, nothing, nothing, nothing, nothing)

    def add(self, tests: Array, images: Array) -> None:
        """Signs [b, D] and their images."""
        check_powers(float(largest(images)) / images.shape[1] ** 0.5, images.dtype)
        found = _block(self.layout.ends, tests, images)
        mean, squares, gram, cross = (np.asarray(one, np.float64) for one in found)
        if not np.all(np.isfinite(squares)):
            raise not_finite(images.dtype)
        b, n = len(tests), self.count
        delta = mean - self.mean
        self.mean += delta * (b / (n + b))
        self.squares += squares + delta**2 * (n * b / (n + b))
        self.count += b
        i, j = np.triu_indices(b, 1)
        if len(i):
            own = gram[:, np.arange(b), np.arange(b)].T
            both = np.stack([cross[:, i, j].T, cross[:, j, i].T])
            new = Shared.of(self.layout, np.stack([own[i], own[j]]), gram[:, i, j].T, both)
            self.shared = self.shared.plus(new)

    @property
    def variance(self) -> np.ndarray:
        """[D] of one sample: Σ_{j≠d} A_dj²."""
        return self.squares / (self.count - 1)

    def found(self) -> Found:
        """The estimate."""
        layout, variance = self.layout, self.variance
        # The sum over a segment E has the variance tr EBEB + tr EB²E, B being A without its diagonal. The second is
        # that of the entries, the first comes from pairs, less the part of the diagonal.
        outer = layout.gathered(layout.sums(variance))
        center = layout.sums(self.mean) / np.diff((0, *layout.ends))
        diagonal = layout.gathered(layout.sums((self.mean - layout.spread(center)) ** 2 - variance / self.count))
        inner = self.shared.inner[len(layout.ends) :] / self.shared.pairs - diagonal if self.shared.pairs else outer
        # Few pairs may miss it: it is no more than the first, of which it is all where the segment is the whole.
        known = self.shared.pairs / (self.shared.pairs + PRIOR_PAIRS)
        sums = outer + known * np.clip(inner, 0, outer) + (1 - known) * outer
        found = assemble("hutchinson", layout, self.mean, variance, self.count, self.shared, sums / self.count)
        least = 0.75 * (self.count - 1)
        return found._replace(sums=[law._replace(dof=max(known * law.dof, least)) for law in found.sums])


@jit(static_argnums=0)
def _block(ends: tuple[int, ...], tests: Array, images: Array) -> tuple[Array, Array, Array, Array]:
    """Mean and summed squares [D] of ω ⊙ Aω; y_iᵀy_j and ω_iᵀy_j [G, b, b], y = (A − cI)ω, c the mean of a range."""
    samples = tests * images
    mean = samples.mean(0)
    grams, crosses, start = [], [], 0
    for end in ends:
        sign, image = tests[:, start:end], images[:, start:end]
        image = image - mean[start:end].mean() * sign
        grams.append(image @ image.T)
        crosses.append(sign @ image.T)
        start = end
    return mean, jnp.square(samples - mean[None]).sum(0), jnp.stack(grams), jnp.stack(crosses)


def assemble(
    method: str, layout: Ranges, value: np.ndarray, variance: np.ndarray, count: int, shared: Shared,
    sums: np.ndarray, common: np.ndarray | None = None, rounding: np.ndarray | float = 0.0,
) -> Found:  # fmt: skip
    """What is found from the variances [D] of a sample's entries and those [L] of the estimates of the sums.

    `common` is the covariance of the entries of two samples, added up over each range [G].
    """
    ranges = len(layout.ends)
    dof, moderate = shared.dof(count - 1), np.empty_like(variance)
    freedom, start = np.empty(ranges), 0
    for index, end in enumerate(layout.ends):
        part = slice(start, end)
        moderate[part], prior = moderated(variance[part], count - 1)
        # What the entries lend each other rests on the same few images: no more is known of it than they tell.
        together = 1 / (1 / (count - 1 + prior) + 1 / dof[index])
        freedom[index] = max(together, count - 1)
        start = end
    if common is not None:
        moderate *= 1 + count * layout.spread(ratio(common, layout.sums(variance)))
    laws = [
        Law(float(total), float(stderr), float(known))
        for total, stderr, known in zip(
            layout.gathered(layout.sums(value)), np.sqrt(sums), dof[ranges:], strict=True
        )
    ]  # fmt: skip
    return Found(method, value, np.sqrt(moderate / count) + rounding, freedom, laws, count)


def moderated(variance: np.ndarray, dof: float) -> tuple[np.ndarray, float]:
    """Sample variances of similar entries, drawn towards each other, and the degrees of freedom that this adds.

    True variances are taken for scaled-inverse-χ² with d₀ degrees of freedom about s₀²; log s² then has the variance
    ψ'(dof/2) + ψ'(d₀/2), which gives d₀. With (d₀s₀² + dof·s²)/(d₀ + dof), Student's law with d₀ + dof is right.
    Source: Smyth (2004), *Linear models and empirical Bayes methods*, section 6.2.

    >>> moderated(np.array([2.0, 2.0, 2.0, 2.0]), 3.0)[0].round(3)
    array([2.892, 2.892, 2.892, 2.892])
    """
    positive = variance[variance > 0]
    if len(positive) < FEWEST_ALIKE:
        return variance, 0.0
    shifted = np.log(positive) - scipy.special.digamma(dof / 2) + np.log(dof / 2)
    excess = shifted.var(ddof=1) - scipy.special.polygamma(1, dof / 2)
    prior = min(2 * _inverse_trigamma(excess), MOST_ALIKE) if excess > 0 else MOST_ALIKE
    center = np.exp(shifted.mean() + scipy.special.digamma(prior / 2) - np.log(prior / 2))
    return (prior * center + dof * variance) / (prior + dof), prior


def _inverse_trigamma(value: float) -> float:
    """x with ψ'(x) = value > 0, by Newton's method on 1/ψ', which is convex and nearly linear."""
    x = 0.5 + 1 / value
    for _ in range(50):
        slope = float(scipy.special.polygamma(1, x))
        step = slope * (1 - slope / value) / float(scipy.special.polygamma(2, x))
        x += step
        if abs(step) <= 1e-8 * x:
            break
    return x


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below; 0 where there is nothing below."""
    return np.where(below > 0, above / np.where(below > 0, below, 1), 0.0)
