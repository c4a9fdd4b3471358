"""Does the loss fall beside a point that gradient and Hessian call a minimum?

At a kink, or a jump, automatic differentiation returns the derivatives of one side. The loss itself is evaluated along
both senses of some directions, at lengths that become shorter by factors of 4. A fall that gradient and curvature do
not allow counts if it shrinks no faster than the length, as that of a slope or of a jump does: what a smooth loss has
beyond gradient and Hessian shrinks with the cube of it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from curvcli.analyses.common.precision import in_float64
from curvcli.curvature import along, build
from curvcli.curvature.flatten import Layout
from curvcli.curvature.products import sums
from curvcli.linalg.probes import sphere
from curvcli.problem import Problem
from curvcli.schema.saddle import Probes, Steepest
from curvcli.streams import Stream

LONGEST = 1e-2
"""Of the size of the weights: the longest step."""

LENGTHS = 9
SHRINKS = 1 / 8
"""Of a fall, where the length is a quarter: a slope's shrinks to 1/4, a jump's not, the square's to 1/16."""

IN_ROW = 3
"""Lengths one after the other that must show the fall."""

RANDOM, PIECES, COORDINATES = 4, 3, 24
"""Random directions; gradients at points beside this one; the most parameters whose coordinates are tried."""

NOISE = 16
"""Rounding of a difference of losses in units of eps·|J|."""


def probed(
    problem: Problem, gradient: np.ndarray, ends: np.ndarray, allowed: float, weight_size: float, eps: float,
    *, kinked: bool, seed: int,
) -> Probes:  # fmt: skip
    """The steepest fall found that gradient and Hessian do not allow, in float64.

    Parameters
    ----------
    gradient
        ∇J, [dim].
    ends
        Unit eigenvectors of both ends of the spectrum, [2, dim].
    allowed
        Negative curvature that the verdict leaves room for.
    weight_size
        The length of step that counts as large.
    eps
        Of the coarsest type that J is computed in.
    kinked
        Whether the equations of J have kinks: coordinates and the gradients of the pieces around are tried too.

    Notes
    -----
    Cost: 18 forward passes a direction, of which there are some 7; where there are kinks 3 gradients, and up to 27
    directions more. One product a direction.
    """
    with jax.enable_x64(True):
        precise = in_float64(problem)
        named = _directions(precise, gradient, np.asarray(ends, np.float64), weight_size, kinked=kinked, seed=seed)
        units = np.array([unit for _, unit in named])
        lengths = LONGEST * weight_size * 0.25 ** np.arange(LENGTHS)
        points = np.zeros((1 + 2 * LENGTHS * len(units), len(units)))
        for i in range(len(units)):
            rows = slice(1 + 2 * LENGTHS * i, 1 + 2 * LENGTHS * (i + 1))
            points[rows, i] = np.concatenate([lengths, -lengths])
        losses = along.losses(precise, jnp.asarray(units), points)
        assert losses is not None
        forms = np.einsum("kd,kd->k", np.asarray(build(precise, "hessian").matmat(jnp.asarray(units))), units)
    start, falls = losses[0], losses[0] - losses[1:].reshape(len(units), 2, LENGTHS)
    slopes = np.abs(units @ gradient)
    expected = slopes[:, None] * lengths + 0.5 * (np.abs(forms) + allowed)[:, None] * lengths**2
    threshold = 2 * expected[:, None, :] + NOISE * eps * abs(start)
    best: Steepest | None = None
    for (i, side), fall in ((place, falls[place]) for place in np.ndindex(len(units), 2)):
        at = _sustained(fall, threshold[i, 0])
        if at is not None and (best is None or fall[at] / lengths[at] > -best.slope):
            best = Steepest(
                direction=named[i][0], sense=1 - 2 * side, slope=float(-fall[at] / lengths[at]),
                step=float(lengths[at]), loss_change=float(-fall[at]), allowed=float(-threshold[i, 0, at]),
            )  # fmt: skip
    return Probes(directions=len(units), steepest=best)


def _sustained(fall: np.ndarray, threshold: np.ndarray) -> int | None:
    """The shortest of `IN_ROW` lengths, which descend, with more than the threshold each, and slowly shrinking."""
    finite = np.isfinite(fall)
    over = finite & (np.where(finite, fall, 0) > threshold)
    with np.errstate(invalid="ignore"):
        slowly = fall[1:] >= SHRINKS * fall[:-1]
    for last in reversed(range(IN_ROW - 1, len(fall))):
        first = last - IN_ROW + 1
        if np.all(over[first : last + 1]) and np.all(slowly[first:last]):
            return last
    return None


def _directions(
    problem: Problem, gradient: np.ndarray, ends: np.ndarray, weight_size: float, *, kinked: bool, seed: int
) -> list[tuple[str, np.ndarray]]:
    """Unit vectors by name."""
    layout = Layout.of(problem.params)
    key = Stream.SADDLE_DIRECTIONS.key(seed)
    random = np.asarray(sphere(key, 0, RANDOM, layout.dim, "float64"))
    found = [("gradient", gradient), ("eigenvector:-1", ends[0]), ("eigenvector:1", ends[-1])]
    found += [(f"random {i + 1}", row) for i, row in enumerate(random)]
    if kinked:
        weights = layout.ravel(problem.params)
        for i, row in enumerate(random[:PIECES]):
            beside = layout.unravel(weights + LONGEST * 0.25**LENGTHS * weight_size * jnp.asarray(row))
            piece = np.asarray(sums.objective_and_gradient(problem, layout, beside)[1])
            found.append((f"gradient beside, at random {i + 1}", piece))
        if layout.dim <= COORDINATES:
            found += [(f"coordinate {i}", row) for i, row in enumerate(np.eye(layout.dim))]
    sized = [(name, row, float(np.linalg.norm(row))) for name, row in found]
    return [(name, row / size) for name, row, size in sized if np.isfinite(size) and size > 0]
