"""Intervals for means of few, skewed samples whose law follows from the matrix.

A sample D·vᵀBv, v uniform on the unit sphere, is a sum over eigenvalues of λ·χ²₁ but for its normalisation. Its
variance 2D/(D+2) (tr B² − (tr B)²/D) can be estimated from ‖Bv‖², which the same product gives; the number of
eigenvalues that carry it,

    r = (tr B²)² / tr B⁴,        from ‖Bv_i‖²‖Bv_j‖² and (Bv_iᵀBv_j)², i ≠ j,

says how far the law is from normal and how well the variance itself is known: by Satterthwaite's rule the mean of n
samples has n·r degrees of freedom. Student's interval from the samples alone, with n − 1, covers 0.82 where one
eigenvalue dominates; with n·r it covers as it says there, and is not wider than the normal one on a flat spectrum.

Source: Satterthwaite (1946) for the rule; its degrees of freedom from products of pairs are curv's own, after the
moment estimator of Kong and Valiant (2017); coverage is measured in `benchmarks/coverage.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.special

PRIOR_PAIRS = 0.5
"""Weight, in pairs of probes, of the guess r = 1 (a single eigenvalue): few pairs can miss it by chance."""


class Law(NamedTuple):
    """What is known of the law of an estimate: its value, its standard error, and how well that is known."""

    value: float
    stderr: float
    dof: float

    def scaled(self, unit: float) -> Law:
        """Of the estimate times a unit."""
        return self._replace(value=unit * self.value, stderr=abs(unit) * self.stderr)


class Sampled(NamedTuple):
    """A number estimated from samples, and the interval in which the true one lies."""

    value: float
    stderr: float
    interval: tuple[float, float]
    samples: int


def degrees_of_freedom(count: int, products: float, squares: float, pairs: float) -> float:
    """n·r for n samples, with r = mean ‖Bv_i‖²‖Bv_j‖² / mean (Bv_iᵀBv_j)² over `pairs` pairs, at least n.

    >>> degrees_of_freedom(4, 1.0, 1.0, 6), degrees_of_freedom(4, 0.0, 0.0, 6)
    (4.0, 4.0)
    """
    inverse = min(squares / products, 1.0) if products > 0 else 1.0
    return count * (pairs + PRIOR_PAIRS) / (pairs * inverse + PRIOR_PAIRS)


def student_interval(law: Law, alpha: float) -> tuple[float, float]:
    """Where the mean lies with probability 1 − α: value ± t·stderr."""
    margin = float(-scipy.special.stdtrit(law.dof, alpha / 2)) * law.stderr
    return law.value - margin, law.value + margin


def student(law: Law, alpha: float, samples: int) -> Sampled:
    """The estimate that a law describes, with Student's interval of probability 1 − α."""
    return Sampled(law.value, law.stderr, student_interval(law, alpha), samples)


class SquareLaw(NamedTuple):
    """What is known of the law of an estimate of ‖A‖_F² = known + c²D + 2c tr B + ‖B‖_F², where B = A − cI and tr B ≈
    0."""

    known: float  # what is not sampled, c²D included
    body: Law  # of ‖B‖_F²; its degrees of freedom are the pairs of probes that its variance rests on
    trace: Law  # of 2c tr B
    correlation: float  # of the two
    probes: float  # n, or as many degrees of freedom as the body would have if one eigenvalue were all

    def scaled(self, unit: float) -> SquareLaw:
        """Of the estimate times a unit."""
        return self._replace(known=unit * self.known, body=self.body.scaled(unit), trace=self.trace.scaled(unit))

    @property
    def value(self) -> float:
        """The estimate."""
        return self.known + self.body.value

    @property
    def stderr(self) -> float:
        """Its standard error."""
        return _joint(self.body.stderr, self.trace.stderr, self.correlation)

    def interval(self, alpha: float) -> tuple[float, float]:
        """Where ‖A‖_F² lies with probability 1 − α."""
        low, high = positive_interval(self.body, self.probes, alpha)
        bottom, top = student_interval(self.trace, alpha)
        middle = 0.5 * (top - bottom)
        below = _joint(self.body.value - low, middle, self.correlation)
        above = _joint(high - self.body.value, middle, self.correlation)
        return max(self.value - below, 0.0), self.value + above


def _joint(first: float, second: float, correlation: float) -> float:
    """√(a² + b² + 2ρab)."""
    return max(first**2 + second**2 + 2 * correlation * first * second, 0.0) ** 0.5


def square_law(known: float, center: float, dim: float, body: float, pairs: Pairs, trace: Law, count: int) -> SquareLaw:
    """The law of ‖A‖_F² from the mean of D‖Bv‖² (`body`) and the pairs of probes behind it.

    The variance of D‖Bv‖², 2D/(D+2) (tr B⁴ − (tr B²)²/D)/n, is taken relative to the products of the pairs' own
    squares: where one eigenvalue is all, it is 2/n exactly. A single probe is taken for that case.
    """
    relative, correlation = 1.0, 1.0
    if pairs.number and pairs.product > 0:
        relative = min(pairs.fourth / pairs.product, 1.0) * dim / (dim + 2)
        bound = (pairs.second * pairs.fourth) ** 0.5
        # Errors that cancel are not counted on: few pairs know the correlation badly.
        correlation = float(np.clip(np.sign(center) * pairs.third / bound, 0, 1)) if bound > 0 else 0.0
    law = Law(body, body * (2 * relative / count) ** 0.5, pairs.number)
    linear = Law(0.0, 2 * abs(center) * trace.stderr, trace.dof)
    return SquareLaw(known + center**2 * dim, law, linear, correlation, count)


class Pairs(NamedTuple):
    """Means over pairs i ≠ j of probes: unbiased for traces of powers of B."""

    number: int
    product: float  # of D‖Bv_i‖²·D‖Bv_j‖²: (tr B²)²
    second: float  # of (D v_iᵀBv_j)²: tr B²
    third: float  # of D v_iᵀBv_j · D (Bv_i)ᵀ(Bv_j), centred: tr B³
    fourth: float  # of (D (Bv_i)ᵀ(Bv_j) − …)², centred: tr B⁴ − (tr B²)²/D


def positive_interval(law: Law, count: float, alpha: float) -> tuple[float, float]:
    """Where a positive mean lies whose samples are sums of χ²: between quantiles of χ² with ν = 2 (value/stderr)².

    Parameters
    ----------
    law
        With as many degrees of freedom as pairs of probes have estimated the variance: few of them make the interval
        wider, as Student's t is wider than the normal law.
    count
        n; it is never wider than one eigenvalue alone would make it, whose law needs no estimate: χ²_n.
    """
    if law.value <= 0 or law.stderr <= 0:
        return law.value, law.value
    nu = max(2 * (law.value / law.stderr) ** 2, 1.0)
    widest = [_chi_square_factor(min(nu, count), p) for p in (alpha / 2, 1 - alpha / 2)]
    if law.dof <= 0:
        return law.value * widest[0], law.value * widest[1]
    stretch = float(scipy.special.stdtrit(law.dof, alpha / 2) / scipy.special.ndtri(alpha / 2))
    with np.errstate(over="ignore"):  # what is too large for a float is cut off by the widest
        low, high = np.power([_chi_square_factor(nu, p) for p in (alpha / 2, 1 - alpha / 2)], stretch).tolist()
    return law.value * max(low, widest[0]), law.value * min(high, widest[1])


def _chi_square_factor(nu: float, upper: float) -> float:
    """ν over the quantile of χ²_ν that is exceeded with probability `upper`; exact or, for large ν, Wilson–Hilferty."""
    if nu > 1e5:
        shift = 2 / (9 * nu)
        return float((1 - shift - scipy.special.ndtri(upper) * shift**0.5) ** -3)
    return float(nu / scipy.special.chdtri(nu, upper))


def spent(alpha: float, look: int) -> float:
    """The error probability of the look'th look (1, 2, …) at an interval whose width decides whether to go on.

    The shares 0.1, 0.6, 0.15, 0.075, 0.0375, … sum to α over any number of looks, so that all the intervals hold
    together with probability 1 − α, and stopping by any rule keeps the coverage. The first look is a pilot, which says
    how many probes the second needs; that one gets most, since it should be the last.

    >>> round(spent(0.05, 1), 4), round(spent(0.05, 2), 4), round(spent(0.05, 3), 4)
    (0.005, 0.03, 0.0075)
    """
    return alpha * {1: 0.1, 2: 0.6}.get(look, 0.3 * 0.5 ** (look - 2))


def over_pairs(square: np.ndarray) -> tuple[float, int]:
    """Sum over pairs i < j of a symmetric matrix, and their number."""
    upper = np.triu_indices(len(square), 1)
    return float(square[upper].sum()), len(upper[0])
