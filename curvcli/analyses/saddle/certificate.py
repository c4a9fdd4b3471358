"""Is the curvature along this vector really negative, and does the loss really fall there?

Both are asked in float64, whatever the arithmetic of the analysis: of vᵀHv, with a bound on its rounding, and of the
loss itself, by second differences and a line search. A model whose derivatives are not those of its loss, or whose
kinks carry the curvature, does not pass both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from curvcli.curvature import along, build
from curvcli.curvature.flatten import Layout
from curvcli.devices import on_host
from curvcli.problem import Problem, in_float64
from curvcli.schema.saddle import Certificate, Witness

ROUNDING = 64
"""Rounding of vᵀHv in units of eps·‖H‖: a product's was measured at up to 14, sums over examples come on top."""

AGREEMENT = 0.1
"""Relative difference at which a second difference of the loss confirms a curvature: s is chosen among powers of 4, so
that the best of them still holds a few per cent of truncation."""

FARTHEST = 4.0
"""Longest step tried, in sizes of the weights."""

FINEST = 30
"""Powers of 4 below the longest step that are tried, at most: s from 1e-18 of it on."""


class Examined(NamedTuple):
    """What was found along a vector."""

    certificate: Certificate
    certified: bool
    witness: Witness | None


def examine(problem: Problem, vector: np.ndarray, norm: float, weight_size: float, eps: float) -> Examined:
    """The curvature and the loss along a unit vector [dim] of negative curvature.

    Parameters
    ----------
    norm
        ‖H‖, or a little more.
    weight_size
        The length of step that counts as large.
    eps
        Of the coarsest type that J is computed in, in float64: see `precision`.

    Notes
    -----
    Cost: one product and some 40 to 80 forward passes, the data read some 20 times, in float64; their compilation where
    the analysis is in float32.
    """
    with jax.enable_x64(True):
        precise = in_float64(problem)
        unit = np.asarray(vector, np.float64) / np.linalg.norm(np.asarray(vector, np.float64))
        product = np.asarray(build(precise, "hessian").matmat(jnp.asarray(unit[None]))[0])
        curvature, error = float(unit @ product), ROUNDING * eps * norm
        line = _Line(precise, unit)
        steps = _lengths(line.at([0.0])[0], curvature, eps, FARTHEST * weight_size)
        line.at([*steps, *(-s for s in steps)])
        second, agrees = _second_difference(line, steps, curvature, eps)
        witness = _witness(line, steps, curvature, eps)
        certified = curvature + error < 0 and agrees
        certificate = Certificate(curvature=curvature, error=error, second_difference=second)
        return Examined(certificate, certified, witness)


def moved(problem: Problem, vector: np.ndarray, step: float) -> dict[str, np.ndarray]:
    """w + step·v in float64, by path."""
    with jax.enable_x64(True):
        steps = Layout.of(problem.params).unravel(jnp.asarray(step * np.asarray(vector, np.float64)))
    return {name: leaf.astype(np.float64) + np.asarray(steps[name]) for name, leaf in on_host(problem.params).items()}


@dataclass
class _Line:
    """J(w + s v) in float64 along a unit vector, each s evaluated once."""

    problem: Problem
    unit: np.ndarray
    known: dict[float, float] = field(default_factory=dict)

    def at(self, steps: Iterable[float]) -> list[float]:
        """Losses at several s, from one pass over the data."""
        steps = [float(s) for s in steps]
        missing = [s for s in steps if s not in self.known]
        if missing:
            found = along.losses(self.problem, jnp.asarray(self.unit[None]), np.array(missing)[:, None])
            assert found is not None
            self.known.update(zip(missing, found.tolist(), strict=True))
        return [self.known[s] for s in steps]


def _lengths(loss: float, curvature: float, eps: float, farthest: float) -> list[float]:
    """Steps s, ascending by factors of 4, from where the curvature rises above the rounding of the loss."""
    smallest = np.sqrt(16 * eps * abs(loss) / (abs(curvature) or 1.0))
    count = int(np.clip(np.ceil(np.log(farthest / max(smallest, 1e-300)) / np.log(4)), 1, FINEST))
    return [farthest / 4.0**i for i in reversed(range(count + 1))]


def _second_difference(line: _Line, steps: list[float], curvature: float, eps: float) -> tuple[float | None, bool]:
    """The second difference that agrees best with the curvature, of those that rounding permits; whether it does.

    That takes two neighbouring steps: the second difference of a loss with another curvature may cross this one
    somewhere, but not twice within a factor of 4.
    """
    best, confirmed, agreed = None, False, False
    for s in steps:
        behind, middle, ahead = line.at([-s, 0.0, s])
        size = abs(ahead) + abs(behind) + 2 * abs(middle)
        resolved = np.isfinite(ahead + behind) and 4 * eps * size <= AGREEMENT * abs(curvature) * s**2
        off = abs((ahead - 2 * middle + behind) / s**2 - curvature) if resolved else np.inf
        agrees = off <= AGREEMENT * abs(curvature)
        confirmed, agreed = confirmed or (agrees and agreed), agrees
        if resolved and (best is None or off < abs(best - curvature)):
            best = float((ahead - 2 * middle + behind) / s**2)
    return best, confirmed


def _witness(line: _Line, steps: list[float], curvature: float, eps: float) -> Witness | None:
    """The step along ±v at which the loss is lowest: a scan by factors of 4, then a bounded search around its best."""
    both = [*steps, *(-s for s in steps)]
    (start,), tried = line.at([0.0]), dict(zip(both, line.at(both), strict=True))
    best = min(tried, key=lambda s: _or_infinite(tried[s]))
    lowest = tried[best]
    if not _or_infinite(lowest) < start - 8 * eps * abs(start):
        return None
    ends = sorted((best / 4, min(4 * abs(best), steps[-1]) * np.sign(best)))
    # With an infinite value the search's parabolas mean nothing, and it goes on by golden sections.
    with np.errstate(all="ignore"):
        found: Any = scipy.optimize.minimize_scalar(
            lambda s: _or_infinite(line.at([s])[0]), bounds=ends, method="bounded", options={"maxiter": 16}
        )
    if found.fun < lowest:
        best, lowest = float(found.x), float(found.fun)
    return Witness(curvature=curvature, step=best, loss_change=lowest - start)


def _or_infinite(loss: float) -> float:
    """A loss that is no number, or −∞, as one that nobody wants."""
    return loss if np.isfinite(loss) else np.inf
