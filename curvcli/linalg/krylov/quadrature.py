"""Spectral functions from Lanczos quadrature, with intervals that follow from the spectrum itself.

A probe v_i, uniform on the unit sphere, and m Lanczos steps give Ritz values θ_il with weights τ_il², a Gauss
quadrature of the spectral measure seen from v_i; D Σ_l τ_il² f(θ_il) is an unbiased sample of tr f(A).

*Deflation.* Outlying eigenvalues carry most of the variance. Ritz vectors that have converged for the *other* probes
span a space U that does not depend on v_i; within U the trace is taken exactly, and only the remainder is sampled:

    X_i(f) = Σ_j f(e_j) + (D − r) [Σ_l τ_il² f(θ_il) − Σ_j (u_jᵀv_i)² f(e_j)] / (1 − Σ_j (u_jᵀv_i)²)

with (e_j, u_j) the r Ritz pairs of U. Leaving v_i's own Ritz vectors out keeps X_i unbiased; no product is spent, since
A u_j is known. Only eigenspaces that every subset of K − 1 probes spans are taken (`confirmed`): the X_i then share one
U and are independent. An eigenvalue of higher multiplicity than that stays with the remainder.

*Standard error.* The law of vᵀf(A)v depends on the eigenvalues alone, and its variance is known:
2 D/(D+2) (tr f² − (tr f)²/D) for D·vᵀf(A)v. The quadrature estimates both traces. A sample variance over few probes is
useless where one eigenvalue dominates (its samples are χ² with one degree of freedom, and Student's interval then
covers 0.88 instead of 0.95); the variance from the spectrum is not, because the *place* of an outlier is known from the
first probe on, whatever its weight: a Ritz value that stands alone counts as at least one eigenvalue.

*Short processes.* m steps know the moments of the measure up to degree 2m, and a standard error needs those of f², its
own error those of f⁴. Processes that were cut off before `ENOUGH_STEPS` therefore have their scatter as a lower limit
of the standard error, and Student's quantile of few degrees of freedom: such a run is wide, not wrong.

Source: Golub and Meurant (2010); Ubaru, Chen and Saad (2017) for quadrature; Epperly, Tropp and Webber (2024) for
leaving one out; the variance from the spectrum is curv's own, its coverage measured in `benchmarks/coverage.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.special

from curvcli.linalg.statistics import Sampled

Function = Callable[[np.ndarray], np.ndarray]

ENOUGH_STEPS = 5
"""From here on the quadrature knows f⁴ for f(x) = x², and spectra with outliers have shown them."""

_CLUSTER = 1e-3
"""Ritz values of different probes closer than this, relatively, may belong to one eigenspace."""

_RANK = 1e-2
"""Eigenvalue of a Gram matrix of unit vectors below which a direction is a copy's error, not a direction."""


class Outliers(NamedTuple):
    """Exact eigenvalues for one probe, found by the other probes."""

    values: np.ndarray  # [r]
    overlaps: np.ndarray  # [r], (u_jᵀv_i)²


NO_OUTLIERS = Outliers(np.zeros(0), np.zeros(0))


@dataclass(frozen=True)
class Quadrature:
    """The spectral measures of several probes.

    Parameters
    ----------
    dim
        D.
    nodes, weights
        For each probe the Ritz values, ascending, and their weights, which sum to 1.
    outliers
        For each probe what is known exactly; empty sequences without deflation.
    same
        Ritz values closer than this, relative to ‖A‖, count as one eigenvalue: the ghosts of a run without
        reorthogonalisation.
    eps
        Rounding of the products, relative.
    short
        Whether a process was cut off before `ENOUGH_STEPS`.
    """

    dim: int
    nodes: Sequence[np.ndarray]
    weights: Sequence[np.ndarray]
    outliers: Sequence[Outliers]
    same: float = 0.0
    eps: float = 0.0
    short: bool = False

    def sample(self, f: Function) -> np.ndarray:
        """X_i(f)/D for every probe: [K, ...] unbiased samples of (1/D) tr f(A); f maps [m] to [..., m]."""
        return np.stack([self._one(f, i) for i in range(len(self.nodes))])

    def mean(self, f: Function) -> tuple[np.ndarray, np.ndarray]:
        """(1/D) tr f(A) and its standard error, of the shape that f adds."""
        samples = self.sample(f)
        variance = np.stack([self._variance(f, i) for i in range(len(self.nodes))]).mean(axis=0)
        if self.short and len(samples) > 1:
            variance = np.maximum(variance, samples.var(axis=0, ddof=1))
        return samples.mean(axis=0), np.sqrt(variance / len(samples))

    def quantile(self, alpha: float) -> float:
        """Standard errors in a margin: of a normal law, or of Student's with half the probes' degrees of freedom."""
        if not self.short:
            return normal_quantile(alpha)
        return float(-scipy.special.stdtrit(max((len(self.nodes) - 1) / 2, 1.0), alpha / 2))

    def estimate(self, f: Function, alpha: float, scale: float = 1.0) -> Sampled:
        """`scale`/D · tr f(A), with the interval that holds it with probability 1 − α."""
        mean, stderr = (scale * float(part) for part in self.mean(f))
        # Where sampling leaves no error (a multiple of the identity), rounding still does.
        rounding = 4 * self.eps * scale * float(self.mean(lambda x: np.abs(f(x)))[0])
        margin = self.quantile(alpha) * stderr + rounding
        return Sampled(mean, stderr, (mean - margin, mean + margin), len(self.nodes))

    def _one(self, f: Function, i: int) -> np.ndarray:
        values, overlaps = self.outliers[i]
        whole = f(self.nodes[i]) @ self.weights[i]
        rest, left = 1 - overlaps.sum(), self.dim - len(values)
        known = f(values).sum(axis=-1) if len(values) else 0.0
        if left <= 0 or rest <= 1e-6:  # the probe lies in the space that is known exactly
            return (known + np.zeros_like(whole)) / self.dim
        return (known + left * (whole - f(values) @ overlaps) / rest) / self.dim

    def _variance(self, f: Function, i: int) -> np.ndarray:
        """Var X_i(f)/D² from the spectrum that probe i sees, less what is known exactly."""
        nodes, weights, alone = self._remainder(i)
        dim = self.dim - len(self.outliers[i].values)
        if dim <= 1 or not len(nodes):
            return np.zeros(f(self.nodes[i]).shape[:-1])
        floored = np.where(alone, np.maximum(weights, 1 / dim), weights)
        values = f(nodes)
        second, first = np.square(values) @ floored, values @ (floored / floored.sum())
        spread = np.maximum(second - floored.sum() * np.square(first), 0)
        return 2 * dim**2 / (dim + 2) * spread / self.dim**2

    def _remainder(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Nodes and weights of probe i without its outliers, and which nodes stand for an eigenvalue of their own."""
        values, overlaps = self.outliers[i]
        nodes, weights = _merge(self.nodes[i], self.weights[i], self.same)
        alone = np.ones(len(nodes), bool)
        for value, overlap in zip(values, overlaps, strict=True):
            nearest = int(np.argmin(np.abs(nodes - value)))
            weights[nearest] = max(weights[nearest] - overlap, 0.0)
            alone[nearest] = False
        total = weights.sum()
        return nodes, weights / total if total > 0 else weights, alone


class Exact(Quadrature):
    """The measure of a matrix whose eigenvalues are all known: nothing is sampled."""

    def mean(self, f: Function) -> tuple[np.ndarray, np.ndarray]:
        """(1/D) tr f(A), and zeros."""
        value = f(self.nodes[0]) @ self.weights[0]
        return value, np.zeros_like(value)


def _merge(nodes: np.ndarray, weights: np.ndarray, same: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes that differ by no more than `same` ‖A‖ as one, at their weighted mean."""
    groups = np.concatenate([[0], np.cumsum(np.diff(nodes) > same * np.abs(nodes).max())])
    total = np.bincount(groups, weights)
    safe = np.where(total > 0, total, 1)
    plain = np.bincount(groups, nodes) / np.bincount(groups)
    return np.where(total > 0, np.bincount(groups, weights * nodes) / safe, plain), total


def leave_one_out(owners: np.ndarray, values: np.ndarray, gram: np.ndarray, overlaps: np.ndarray) -> list[Outliers]:
    """For every probe the Ritz pairs of the space that the converged Ritz vectors of the other probes span.

    Parameters
    ----------
    owners
        [R] the probe that each Ritz vector y_r came from.
    values
        [R] its Ritz value.
    gram
        [R, R] y_rᵀ y_s.
    overlaps
        [K, R] y_rᵀ v_i with the start vectors v_i.
    """
    usable = confirmed(owners, values, gram)
    found = []
    for probe, overlap in enumerate(overlaps):
        others = usable & (owners != probe)
        if not others.any():
            found.append(NO_OUTLIERS)
            continue
        inner = gram[np.ix_(others, others)]
        scale, rotation = np.linalg.eigh(inner)
        solid = scale > _RANK
        whiten = rotation[:, solid] / np.sqrt(scale[solid])
        # A y_s = θ_s y_s up to the residual, so yᵀ A y comes from the Gram matrix.
        projected = 0.5 * (inner * values[others] + inner * values[others][:, None])
        ritz, turn = np.linalg.eigh(whiten.T @ projected @ whiten)
        found.append(Outliers(ritz, np.square(overlap[others] @ whiten @ turn)))
    return found


def confirmed(owners: np.ndarray, values: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Which Ritz vectors [R] lie in an eigenspace whose span does not shrink when any one probe is left out."""
    order = np.argsort(values)
    gaps = np.diff(values[order]) > _CLUSTER * np.abs(values[order][1:])
    clusters = np.split(order, np.flatnonzero(gaps) + 1)

    def rank(members: np.ndarray) -> int:
        return int(np.sum(np.linalg.eigvalsh(gram[np.ix_(members, members)]) > _RANK)) if len(members) else 0

    usable = np.zeros(len(values), bool)
    for members in clusters:
        whole = rank(members)
        usable[members] = all(rank(members[owners[members] != one]) == whole for one in set(owners[members]))
    return usable


def normal_quantile(alpha: float) -> float:
    """z with P(|Z| > z) = α."""
    # scipy.special, not scipy.stats: importing the latter takes longer than many an analysis.
    return float(-scipy.special.ndtri(alpha / 2))
