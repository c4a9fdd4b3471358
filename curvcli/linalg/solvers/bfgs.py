"""A BFGS approximation of a Hessian from steps s and changes of the gradient y, in limited memory.

    B₊ = B − (B s)(B s)ᵀ / sᵀBs + y yᵀ / yᵀs,   B₀ = scale·I

Where yᵀs < sᵀBs/5 (negative curvature was met, or nearly) Powell's damping moves y towards B s until it is equal, so
that B stays positive definite.

Source: Nocedal and Wright, *Numerical Optimization*, algorithm 7.4 (two loops) and procedure 18.2 (damping).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

DAMPED = 0.2
"""Of sᵀBs: yᵀs is at least this."""


class Pair(NamedTuple):
    """An update of B: the step, the (damped) change of the gradient, and B s before; [dim] each."""

    s: np.ndarray
    y: np.ndarray
    image: np.ndarray


@dataclass(frozen=True)
class Bfgs:
    """B, positive definite.

    Parameters
    ----------
    scale
        B₀ = scale·I, > 0.
    """

    scale: float
    pairs: tuple[Pair, ...] = ()

    def updated(self, s: np.ndarray, y: np.ndarray) -> Bfgs:
        """B after one more pair. Cost: 2m dot products with m pairs."""
        image = self.product(s)
        along, wanted = float(s @ image), float(s @ y)
        if along <= 0:  # s = 0
            return self
        if wanted < DAMPED * along:
            share = (1 - DAMPED) * along / (along - wanted)
            y = share * y + (1 - share) * image
        return Bfgs(self.scale, (*self.pairs, Pair(s, y, image)))

    def product(self, v: np.ndarray) -> np.ndarray:
        """B v [dim]."""
        result = self.scale * v
        for s, y, image in self.pairs:
            result = result + y * (float(y @ v) / float(y @ s)) - image * (float(image @ v) / float(s @ image))
        return result

    def solve(self, v: np.ndarray) -> np.ndarray:
        """B⁻¹ v [dim], by the two loops."""
        result, weights = v, []
        for s, y, _ in reversed(self.pairs):
            weights.append(float(s @ result) / float(y @ s))
            result = result - weights[-1] * y
        result = result / self.scale
        for (s, y, _), weight in zip(self.pairs, reversed(weights), strict=True):
            result = result + s * (weight - float(y @ result) / float(y @ s))
        return result


def from_pairs(pairs: Iterable[tuple[np.ndarray, np.ndarray]], scale: float, shift: float = 0.0) -> Bfgs:
    """B + shift·I from pairs (s, y) in their order: that of gradients of J(w) + ½·shift·‖w‖²."""
    found = Bfgs(scale + shift)
    for s, y in pairs:
        found = found.updated(s, y + shift * s)
    return found
