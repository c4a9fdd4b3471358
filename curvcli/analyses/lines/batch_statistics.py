"""Batch statistics along lines: those of the checkpoint, those between two checkpoints, or those of the data there.

Between the weights of two runs the statistics of neither are right. With those of one end held fixed even the other
end has another loss than its own run, and a barrier is found where there is none.

Source: Jordan et al. (2023), *REPAIR: renormalizing permuted activations for interpolation repair*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.analyses.lines.directions import Direction
from curvcli.curvature.batch_norm import Statistics, recomputed, stored
from curvcli.errors import SpecError
from curvcli.problem import Problem
from curvcli.schema.lines import BATCH_STATS, BatchStats, LineSettings

LEAST_EXAMPLES = 16
"""From so many examples on statistics are recomputed where nothing is asked for."""

LEAST_VARIANCE = 0.1
"""Of the smallest of the ends' variances: none is extrapolated to less, which keeps all of them positive."""


@dataclass(frozen=True)
class LineStatistics:
    """How the statistics of one line, or of one plane, are come by.

    Parameters
    ----------
    kind
        None where the network has none that could move.
    problem
        At the weights that the lines go through.
    differences
        Of `interpolate`: by path [d, ...], the other checkpoints' statistics less the problem's.
    """

    kind: BatchStats | None
    problem: Problem
    differences: Statistics

    @property
    def moves(self) -> bool:
        """Whether they differ along the line."""
        return self.kind in ("interpolate", "recompute")

    def at(self, directions: Array, points: np.ndarray, stop: Callable[[], Any]) -> Statistics | None:
        """The statistics at w + points @ directions: [p, ...] by path; None where the work was given up.

        Parameters
        ----------
        directions, points
            [d, dim] and [p, d]; of `interpolate` the first directions are those of the checkpoints.
        """
        here = stored(self.problem)
        if self.kind == "recompute":
            return recomputed(self.problem, directions, points, stop=stop)
        if self.kind == "interpolate":
            return {name: between(name, here[name], part, points) for name, part in self.differences.items()}
        return {name: np.broadcast_to(leaf, (len(points), *leaf.shape)) for name, leaf in here.items()}


def between(name: str, here: np.ndarray, differences: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Statistics linear in the points [p, d]: [p, ...]. Variances, told by their name, stay positive.

    Parameters
    ----------
    here, differences
        [...] at the weights, and [k, ...] from there to the other ends; k ≤ d.
    """
    values = here + np.tensordot(points[:, : len(differences)], differences, 1)
    if not is_variance(name):
        return values
    ends = np.concatenate([here[None], here + differences])
    return np.maximum(values, LEAST_VARIANCE * np.maximum(ends.min(axis=0), 0))


def is_variance(name: str) -> bool:
    """Whether a statistic of this path is one.

    >>> is_variance("batch_stats/BatchNorm_0/var"), is_variance("batch_stats/variant/mean")
    (True, False)
    """
    return "var" in name.rpartition("/")[2].lower()


def chosen(
    problem: Problem,
    settings: LineSettings,
    along: Sequence[Direction],
    others: Mapping[str, Statistics],
    warnings: list[str],
) -> LineStatistics:
    """How the statistics along these directions are come by: as asked for, as far as checkpoints and model permit.

    Parameters
    ----------
    along
        Of one line, or of a plane.
    others
        The batch statistics of other checkpoints, by direction.
    """
    here = stored(problem)
    if not here:
        if settings.batch_stats not in (None, "fixed") and not problem.batches.coupled:
            warnings.append(f"--batch-stats {settings.batch_stats}: the model has no batch statistics")
        return LineStatistics(None, problem, {})
    names = ", ".join(one.name for one in along)
    known = [others[one.name] for one in along if one.name in others]
    differ = any(not np.allclose(other[name], here[name], rtol=1e-6, atol=0) for other in known for name in here)
    can_interpolate = len(known) == len(along)
    kind = settings.batch_stats
    if kind is None:
        enough = problem.batches.num_examples >= LEAST_EXAMPLES
        kind = "fixed" if not differ else "recompute" if enough or not can_interpolate else "interpolate"
    if kind == "recompute" and (reason := _cannot_recompute(problem)):
        kind = "interpolate" if can_interpolate else "fixed"
        warnings.append(f"{names}: batch statistics cannot be recomputed, and are {BATCH_STATS[kind]}: {reason}")
    if kind == "interpolate" and not can_interpolate:
        kind = "fixed"
        warnings.append(f"{names}: the other checkpoint lacks batch statistics: these are held at this checkpoint's")
    if kind == "fixed" and differ:
        warnings.append(
            f"{names}: the other checkpoint has other batch statistics, and these are held at this one's: the loss at "
            "s = 1 is not the one that it has by itself"
        )
    differences: Statistics = {}
    if kind == "interpolate":
        differences = {name: np.stack([other[name] - leaf for other in known]) for name, leaf in here.items()}
    return LineStatistics(kind, problem, differences)


def _cannot_recompute(problem: Problem) -> str:
    """Why there are no statistics at other weights; empty where there are. Cost: one batch."""
    first = problem.batches.chosen(np.arange(min(problem.batches.batch_size, problem.batches.num_examples)))
    nowhere = jnp.zeros((1, problem.dim), problem.dtype)
    try:
        recomputed(replace(problem, batches=first), nowhere, np.zeros((1, 1)))
    except SpecError as error:
        return error.message
    return ""
