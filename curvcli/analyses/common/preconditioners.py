"""Preconditioners of C + λI, for any λ from the same passes over the data: a diagonal, and Kronecker factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.curvature.flatten import Layout
from curvcli.curvature.kronecker.kfac import Recipe, Sampling, squared_gradients
from curvcli.curvature.kronecker.running import Running
from curvcli.curvature.likelihood import check_output_hessian
from curvcli.curvature.matrices import check_likelihood, facet
from curvcli.curvature.products.ntk import outputs_per_example
from curvcli.problem import Problem
from curvcli.schema.settings import AnalysisSettings

EXACT_OUTPUTS = 32
"""Outputs of an example up to which each takes a gradient of its own."""

SHARE = 0.1
"""Of the mean entry: what stands for λ + l2 where these are 0, so that no entry is divided by that is nearly zero."""


def ggn_diagonal(problem: Problem, settings: AnalysisSettings) -> np.ndarray:
    """[D], the diagonal of the GGN without l2: squares of gradients, at drawn labels where there are many outputs.

    Cost: a forward pass and a backward one an output (or a draw, of 4) over the data.
    """
    squares = squared_gradients(problem, problem.params, diagonal_recipe(problem, settings))
    return np.concatenate([squares[name] for name in Layout.of(problem.params).names])


def diagonal_recipe(problem: Problem, settings: AnalysisSettings) -> Recipe:
    """Which cotangents the diagonal is made from."""
    family = problem.loss.family
    sampling = "empirical" if family is None else affordable_sampling(problem)
    return Recipe(sampling, samples=4, seed=settings.seed)


def affordable_sampling(problem: Problem) -> Sampling:
    """`exact` where an example's outputs are few enough for a gradient of each, else `sampled`."""
    return "exact" if outputs_per_example(problem) <= EXACT_OUTPUTS else "sampled"


def inverse_diagonal(problem: Problem, settings: AnalysisSettings, diagonal: np.ndarray, damping: float) -> np.ndarray:
    """1/(d + l2 + λ): [D]."""
    shift = damping + (problem.regulariser.l2 if settings.regulariser_included else 0.0)
    least = SHARE * float(diagonal.mean()) if shift == 0 else 0.0
    return 1 / (np.maximum(diagonal, least) + shift)


def recipe_of(settings: AnalysisSettings) -> Recipe:
    """Which factors the settings ask for."""
    return Recipe(settings.factors, settings.sharing, settings.mc_samples, settings.seed)


def running_factors(
    problem: Problem,
    settings: AnalysisSettings,
    name: str,
    saved: dict[str, np.ndarray] | None = None,
    *,
    every: int = 1,
    stale: bool = False,
    stands_for_ggn: bool = True,
) -> Running:
    """`kfac` or `ekfac` of the GGN, l2 included, without λ; nothing is computed yet.

    Parameters
    ----------
    saved
        What `--save-factors` wrote, to be taken at the first step.
    every, stale
        See `Running`, and its `read`.
    stands_for_ggn
        Whether the numbers depend on the factors, and not only how soon an iteration converges.

    Raises
    ------
    SpecError
        The loss declares no likelihood, or one that has another output Hessian.
    UsageError, DataError
        The saved factors are of other weights, examples or another recipe; of another network.
    """
    check_likelihood(problem.loss, name)
    if stands_for_ggn and settings.factors != "empirical":
        check_output_hessian(problem, name)
    running = Running(recipe_of(settings), facet(name, "factors").corrected, every, settings.regulariser)
    if saved is not None:
        running.read(problem, saved, stale=stale)
    return running


def root_of_diagonal(inverse: np.ndarray, dtype: Any) -> Callable[[Array], Array]:
    """v ↦ D^(−1/2) v of rows [k, D], from 1/d [D]."""
    root = jnp.asarray(np.sqrt(inverse), dtype)
    return lambda vectors: vectors * root[None]
