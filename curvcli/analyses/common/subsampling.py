"""How far are numbers from a part of the examples from those of the whole set?

A is a mean over examples, A = (1/n) Σ A_j. With the examples used taken for a random part of the N there are, a linear
functional φ of A has the standard error √((1/n − 1/N) Var_j φ(A_j)).

Three things make the normal interval of that standard error miss: examples are skewed, the variance of few of them is
badly known, and an extreme eigenvalue of a part is biased outwards, since its vector fits the part. `margins` mends the
first two, `_repulsion` measures the third. Coverage is measured in `benchmarks/coverage_examples.py`.

Source: Johnson (1978), *Modified t tests and confidence intervals for asymmetrical populations*, for the skewness.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import Array

from curvcli.compiling import jit
from curvcli.curvature import matrices
from curvcli.curvature.operators import example_forms
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.probes import sphere
from curvcli.linalg.reductions import inner_products, row_norms
from curvcli.linalg.trace.hutchinson import Segments
from curvcli.problem import Problem
from curvcli.schema.estimate import Eigenvalue, Interval
from curvcli.schema.settings import AnalysisSettings
from curvcli.streams import Stream

Number = TypeVar("Number", bound=Interval)

PROBES = 32
PRODUCTS = 8
"""Probes for the trace, which takes quadratic forms alone, and for the norm, which takes products too."""

NEAREST = 0.25
"""An eigenvalue is repelled from no nearer than this share of its size: what seems nearer is noise of the probes."""


TAILS = 2.0
"""The skewness of a sample is about this much too small, where tails are long."""


class DataError(NamedTuple):
    """What the examples left out may change of a number: standard error, and how far below and above it may lie."""

    stderr: float
    below: float
    above: float


def widened(number: Number, error: DataError, *, positive: bool) -> Number:
    """A number whose interval holds that of all examples, and beside it the interval for those used.

    Errors of sampling are independent of those of the examples, and their margins add in quadrature (Zou and Donner
    2008); what a residual bounds adds as it is.

    Parameters
    ----------
    positive
        Whether such a number is never negative: the lower margin is then one of its logarithm.
    """
    low, high = number.given_data
    below, above = number.value - low, high - number.value
    if isinstance(number, Eigenvalue):
        below, above = below + error.below, above + error.above
    else:
        below, above = math.hypot(below, error.below), math.hypot(above, error.above)
    end = number.value - below
    if positive:
        end = number.value * math.exp(-below / number.value) if number.value > 0 else low
    interval = (min(end, low), number.value + above)
    return number.model_copy(
        update={"interval": interval, "interval_given_data": (low, high), "data_stderr": error.stderr}
    )


def margins(
    shares: np.ndarray,
    stderr: float,
    confidence: float,
    *,
    reach: float | None = None,
    outwards: tuple[float, float] = (0, 0),
) -> DataError:
    """The margins of a mean over examples with this standard error, from each example's share [n].

    Student's, with as many degrees of freedom as a variance of examples of this kurtosis has by Satterthwaite's rule;
    where the shares are skewed, Johnson's shift of the interval is added on the side of the long tail.

    Parameters
    ----------
    reach
        The standard error that the margins rest on, where the other one is itself an estimate from few probes.
    outwards
        Biases of the number downwards and upwards; each is taken twice, as leaving every example out in turn would.
    """
    count, centred, reach = len(shares), shares - shares.mean(), stderr if reach is None else reach
    second = float(np.mean(np.square(centred)))
    if second <= 0 or count < 2:
        return DataError(stderr, 2 * outwards[1], 2 * outwards[0])
    kurtosis, skewness = (float(np.mean(centred**power)) / second ** (power / 2) for power in (4, 3))
    dof = min(max(2 * count / max(kurtosis - 1, 1e-9), 1.0), count - 1)
    quantile = float(-scipy.special.stdtrit(dof, (1 - confidence) / 2))
    normal = float(-scipy.special.ndtri((1 - confidence) / 2))
    shift = TAILS * skewness * (1 + 2 * normal**2) / (6 * count**0.5)
    below, above = (reach * (quantile + max(sign * shift, 0.0)) for sign in (-1, 1))
    return DataError(stderr, below + 2 * outwards[1], above + 2 * outwards[0])


class Images(NamedTuple):
    """Probes v on the unit sphere and their images Av: [k, D]."""

    probes: Array
    images: Array


def images(settings: AnalysisSettings, operator: LinearOperator, count: int = PRODUCTS) -> Images:
    """The first of the probes that all errors of examples are read from. Cost: `count` products."""
    probes = _probes(settings, operator, count)
    return Images(probes, operator.matmat(probes))


def _probes(settings: AnalysisSettings, operator: LinearOperator, count: int) -> Array:
    key = Stream.EXAMPLE_ERRORS.key(settings.seed)
    return sphere(key, 0, count, operator.dim, operator.dtype)


def trace_errors(
    problem: Problem, settings: AnalysisSettings, operator: LinearOperator, frobenius: float, known: Images
) -> tuple[DataError, DataError]:
    """Errors of the trace and of the Frobenius norm that come from the examples left out.

    tr A_j is sampled as D·vᵀA_j v. The covariance over examples between two probes has no share of the probes' own
    error, which their variance has. With dA the error of A, that of the norm is tr(A dA)/‖A‖_F + ‖dA‖_F²/2‖A‖_F:
    tr(A A_j) is sampled as D·(Av)ᵀA_j v, and the second term, a bias upwards, from ‖A_j‖_F² = E (D·vᵀA_j w)². The
    standard error is the root of the mean square of both.

    Cost: 80 quadratic forms of every example (forward passes).
    """
    dim, factor = operator.dim, sampling_factor(problem)
    v = _probes(settings, operator, PROBES)
    shares = dim * in_blocks(problem, settings, v)
    trace = _sampled(shares, factor, settings.confidence)
    if frobenius <= 0:
        return trace, DataError(0.0, 0.0, 0.0)
    size, units = _normalised(known.images)
    shares = dim * np.asarray(size, np.float64)[:, None] * bilinear(problem, settings, known.probes, units)
    half = PROBES // 2
    entries = dim * bilinear(problem, settings, v[:half], v[half:])
    bias = 0.5 * factor**2 * float(np.mean(np.var(entries, axis=1, ddof=1))) / frobenius
    error = _sampled(shares, factor / frobenius, settings.confidence, bias)
    return trace, error._replace(stderr=math.hypot(error.stderr, bias))


def layer_errors(problem: Problem, settings: AnalysisSettings, segments: Segments) -> list[DataError]:
    """Errors of the layers' traces that come from the examples left out.

    As for the whole, from probes that are zero outside the layer. Cost: 16 quadratic forms of every example a layer.
    """
    dim = max(stop for part in segments for _, stop in part)
    signs = jax.random.rademacher(Stream.LAYER_ERRORS.key(settings.seed), (2 * PRODUCTS, dim))
    signs = signs.astype(settings.dtype)
    factor, errors = sampling_factor(problem), []
    for part in segments:
        mask = np.zeros(dim, settings.dtype)
        for start, stop in part:
            mask[start:stop] = 1
        shares = in_blocks(problem, settings, signs * jnp.asarray(mask)[None])
        errors.append(_sampled(shares, factor, settings.confidence))
    return errors


def _sampled(shares: np.ndarray, scale: float, confidence: float, upwards: float = 0.0) -> DataError:
    """The error of a number whose shares are sampled by probes, [k, n]; `upwards` is its bias."""
    spread, upper = (scale * one for one in shared_spread(shares))
    return margins(shares.mean(axis=0), spread, confidence, reach=upper, outwards=(0.0, upwards))


Side = Literal["top", "bottom", "inside"]
"""Where an eigenvalue stands in its spectrum: which way its bias goes."""


def eigenvalue_errors(
    problem: Problem,
    settings: AnalysisSettings,
    values: np.ndarray,
    vectors: Array | np.ndarray,
    sides: Sequence[Side],
    known: Images,
) -> list[DataError]:
    """Errors of the eigenvalues [r] of unit eigenvectors [r, D] that come from the examples left out.

    To first order an eigenvalue moves by yᵀ dA y, whose summands are the examples' quadratic forms; to second order the
    rest of the spectrum repels it, which makes the largest of a part too large and the smallest too small.

    Cost: 17 r quadratic forms of every example.
    """
    rows, factor = jnp.asarray(vectors), sampling_factor(problem)
    shares = in_blocks(problem, settings, rows)
    repelled = factor**2 * _repulsion(problem, settings, values, rows, shares, known)
    return [
        margins(
            share, factor * float(share.std(ddof=1)), settings.confidence,
            outwards=(0.0 if side == "top" else bias, 0.0 if side == "bottom" else bias),
        )
        for share, bias, side in zip(shares, repelled.tolist(), sides, strict=True)
    ]  # fmt: skip


def _repulsion(
    problem: Problem, settings: AnalysisSettings, values: np.ndarray, vectors: Array, shares: np.ndarray, known: Images
) -> np.ndarray:
    """Σ_k E_j (y_kᵀA_j y)²/|λ − λ_k| of each eigenpair, k over the others: [r].

    With u_j = A_j y less its part along y it is E_j u_jᵀ|λ − A|⁻¹u_j, taken at one distance, λ − E u_jᵀAu_j/E ‖u_j‖²;
    both means come from D·(vᵀu_j)² and D·(vᵀu_j)(vᵀAu_j) over the probes v.
    """
    size, units = _normalised(known.images)
    left = jnp.concatenate([known.probes, units])
    alone, count, dim = in_blocks(problem, settings, left), len(known.probes), left.shape[1]
    along = np.asarray(inner_products(known.probes, vectors), np.float64)
    found = []
    for index, (value, share) in enumerate(zip(values.tolist(), shares, strict=True)):
        both = in_blocks(problem, settings, _plus(left, vectors[index]))
        crossed = 0.5 * (both - alone - share)  # vᵀA_j y and, below, (Av)ᵀA_j y / ‖Av‖
        off = crossed[:count] - along[:, index, None] * share
        image = np.asarray(size, np.float64)[:, None] * crossed[count:] - value * along[:, index, None] * share
        mass, energy = dim * float(np.mean(np.square(off))), dim * float(np.mean(off * image))
        distance = max(abs(value - energy / mass), NEAREST * abs(value)) if mass > 0 else 0.0
        found.append(mass / distance if distance > 0 else 0.0)
    return np.array(found)


@jit
def _normalised(rows: Array) -> tuple[Array, Array]:
    """Norms [k], and the rows divided by them."""
    size = row_norms(rows)
    return size, rows / jnp.where(size > 0, size, 1)[:, None]


@jit
def _plus(rows: Array, vector: Array) -> Array:
    return rows + vector[None]


def subsampled(problem: Problem, settings: AnalysisSettings) -> bool:
    """Whether there is an error to state: the matrix is a mean over some of the examples, each by itself."""
    apart = matrices.has(settings.matrix, "forms") and not problem.batches.coupled
    known = problem.subsampled and apart and problem.batches.num_examples > 1
    return known and _counts(problem, settings) is not None


def _counts(problem: Problem, settings: AnalysisSettings) -> np.ndarray | None:
    """What each example adds to the normaliser M: [n]; None where M does not grow with the examples, as of a sum."""
    weight, total = np.asarray(problem.batches.weight), matrices.normaliser(problem, settings.matrix)
    weight = weight.reshape(len(weight), -1)
    active = np.any(weight > 0, axis=1).astype(float)
    if total == active.sum():
        return active
    tokens = weight.sum(axis=1, dtype=np.float64)
    units = total / tokens.sum()  # of a token whose weight is one number
    return units * tokens if units >= 1 and abs(units - round(units)) < 1e-6 * units else None


def bilinear(problem: Problem, settings: AnalysisSettings, left: Any, right: Any) -> np.ndarray:
    """vᵀA_j w of every example, for rows v, w: [k, n]."""
    return 0.25 * (in_blocks(problem, settings, left + right) - in_blocks(problem, settings, left - right))


def in_blocks(problem: Problem, settings: AnalysisSettings, vectors: Any) -> np.ndarray:
    """`forms` in blocks of one shape."""
    rows = jnp.pad(vectors, ((0, -len(vectors) % PRODUCTS), (0, 0)))
    blocks = [forms(problem, settings, rows[i : i + PRODUCTS]) for i in range(0, len(rows), PRODUCTS)]
    return np.concatenate(blocks)[: len(vectors)]


def forms(problem: Problem, settings: AnalysisSettings, vectors: jax.Array) -> np.ndarray:
    """vᵀ(A_j − A)v of every example: [k, n]; where examples weigh differently, the linear error of the ratio."""
    shares = example_forms(problem, settings.matrix, vectors, mc_samples=settings.mc_samples, seed=settings.seed)
    counts = _counts(problem, settings)
    assert counts is not None
    return shares - shares.mean(axis=1, keepdims=True) * (counts / counts.mean())


def sampling_factor(problem: Problem) -> float:
    """√(1/n − 1/N); without 1/N where the whole set was not counted."""
    used, whole = problem.batches.num_examples, problem.population
    return float(np.sqrt(1 / used - (1 / whole if whole else 0.0)))


def shared_spread(samples: np.ndarray) -> tuple[float, float]:
    """Standard deviation over examples of what k independent samples [k, n] of it share, and a standard error more.

    From covariances over examples, which the samples' own errors have no part in; their mean over pairs of samples has
    the jackknife's standard error.
    """
    count = len(samples)
    if samples.shape[1] < 2:
        return 0.0, 0.0
    covariance = np.atleast_2d(np.cov(samples))
    if count == 1:
        return float(covariance[0, 0] ** 0.5), float(covariance[0, 0] ** 0.5)
    means = (covariance.sum(axis=1) - np.diag(covariance)) / (count - 1)
    mean, stderr = float(means.mean()), 2 * float(means.std(ddof=1)) / count**0.5
    return max(mean, 0.0) ** 0.5, max(mean + stderr, 0.0) ** 0.5
