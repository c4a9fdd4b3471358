"""How far are numbers from a part of the examples from those of the whole set?

A is a mean over examples, A = (1/n) Σ A_j. With the examples used taken for a random part of the N there are, a linear
functional φ of A has the standard error √((1/n − 1/N) Var_j φ(A_j)).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from curvcli.curvature.forms import example_forms
from curvcli.linalg.hutchinson import Segments
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.probes import sphere
from curvcli.problem import Problem
from curvcli.schema.settings import FACTORED, AnalysisSettings

PROBES = 32
PRODUCTS = 8
"""Probes for the trace, which takes quadratic forms alone, and for the norm, which takes products too."""


def data_stderr(
    problem: Problem, settings: AnalysisSettings, operator: LinearOperator, frobenius: float
) -> tuple[float, float]:
    """Standard errors of the trace and of the Frobenius norm that come from the examples left out.

    tr A_j is sampled as D·vᵀA_j v. The covariance over examples between two probes has no share of the probes' own
    error, which their variance has. With dA the error of A, that of the norm is tr(A dA)/‖A‖_F + ‖dA‖_F²/2‖A‖_F:
    tr(A A_j) is sampled as D·(Av)ᵀA_j v, and the second term, a bias upwards, from ‖A_j‖_F² = E (D·vᵀA_j w)². The
    root of the mean square of both is given.

    Cost: 8 products, and 80 quadratic forms of every example (forward passes).
    """
    dim = operator.dim
    v = sphere(jax.random.fold_in(jax.random.key(settings.seed), 2), 0, PROBES, dim, operator.dtype)
    factor = sampling_factor(problem)
    trace = factor * shared_spread(dim * in_blocks(problem, settings, v))
    if frobenius <= 0:
        return trace, 0.0
    image = operator.matmat(v[:PRODUCTS])
    size = jnp.linalg.norm(image, axis=1, keepdims=True)
    u = image / jnp.where(size > 0, size, 1)
    linear = shared_spread(dim * np.asarray(size, np.float64) * bilinear(problem, settings, v[:PRODUCTS], u))
    half = PROBES // 2
    entries = dim * bilinear(problem, settings, v[:half], v[half:])
    bias = 0.5 * factor**2 * float(np.mean(np.var(entries, axis=1, ddof=1))) if entries.shape[1] > 1 else 0.0
    return trace, float(np.hypot(factor * linear, bias)) / frobenius


def layer_stderr(problem: Problem, settings: AnalysisSettings, segments: Segments) -> np.ndarray:
    """Standard errors [L] of the layers' traces that come from the examples left out.

    As for the whole, from probes that are zero outside the layer. Cost: 16 quadratic forms of every example a layer.
    """
    dim = max(stop for part in segments for _, stop in part)
    signs = jax.random.rademacher(jax.random.fold_in(jax.random.key(settings.seed), 3), (2 * PRODUCTS, dim))
    signs = signs.astype(settings.dtype)
    errors = []
    for part in segments:
        mask = np.zeros(dim, settings.dtype)
        for start, stop in part:
            mask[start:stop] = 1
        errors.append(shared_spread(in_blocks(problem, settings, signs * jnp.asarray(mask)[None])))
    return sampling_factor(problem) * np.array(errors)


def eigenvalue_stderr(problem: Problem, settings: AnalysisSettings, vectors: Any) -> np.ndarray | None:
    """Standard errors [r] of the eigenvalues of unit eigenvectors [r, D] that come from the examples left out.

    To first order an eigenvalue moves by yᵀ dA y, whose summands are the examples' quadratic forms. None where nothing
    is left out, and for the kernel, whose rows are the examples. Cost: r quadratic forms of every example.
    """
    if not subsampled(problem, settings):
        return None
    rows = jnp.asarray(vectors)
    padded = jnp.pad(rows, ((0, -len(rows) % PRODUCTS), (0, 0)))
    return sampling_factor(problem) * in_blocks(problem, settings, padded)[: len(rows)].std(axis=1, ddof=1)


def subsampled(problem: Problem, settings: AnalysisSettings) -> bool:
    """Whether there is an error to state: the matrix is a mean over some of the examples, each by itself."""
    apart = settings.matrix not in ("ntk", *FACTORED) and not problem.batches.coupled
    return problem.subsampled and apart and problem.batches.num_examples > 1


def bilinear(problem: Problem, settings: AnalysisSettings, left: Any, right: Any) -> np.ndarray:
    """vᵀA_j w of every example, for rows v, w: [k, n]."""
    return 0.25 * (in_blocks(problem, settings, left + right) - in_blocks(problem, settings, left - right))


def in_blocks(problem: Problem, settings: AnalysisSettings, vectors: Any) -> np.ndarray:
    """`forms` in blocks of one shape."""
    blocks = [forms(problem, settings, vectors[i : i + PRODUCTS]) for i in range(0, len(vectors), PRODUCTS)]
    return np.concatenate(blocks)


def forms(problem: Problem, settings: AnalysisSettings, vectors: jax.Array) -> np.ndarray:
    """vᵀA_j v of every example: [k, n]."""
    return example_forms(problem, settings.matrix, vectors, mc_samples=settings.mc_samples, seed=settings.seed)


def sampling_factor(problem: Problem) -> float:
    """√(1/n − 1/N); without 1/N where the whole set was not counted."""
    used, whole = problem.batches.num_examples, problem.population
    return float(np.sqrt(1 / used - (1 / whole if whole else 0.0)))


def shared_spread(samples: np.ndarray) -> float:
    """Standard deviation over examples of what k independent samples [k, n] of it share: from covariances."""
    if samples.shape[1] < 2:
        return 0.0
    covariance = np.atleast_2d(np.cov(samples))
    if len(covariance) == 1:
        return float(np.sqrt(covariance[0, 0]))
    off = covariance.sum() - np.trace(covariance)
    return float(np.sqrt(max(off / (len(covariance) * (len(covariance) - 1)), 0.0)))
