"""How much do the products of this run round? Measured against the same products in float64, not reckoned from eps.

Large logits, inputs with an offset, shared weights: what rounds is inside the network, and may be tens of times
eps·‖A‖. Residuals are measured by products in float64 and contain it (`linalg.eigen.true_residuals`,
`linalg.solution.residual`). What many probes tell is widened by what a few random vectors show here.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from curvcli.devices import on_host
from curvcli.errors import NumericsError
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.probes import sphere
from curvcli.schema.estimate import Estimate
from curvcli.streams import Stream

PROBES = 2
"""Random vectors that the rounding is measured along."""

MARGIN = 2.0
"""Times what so few vectors show of ‖E‖_F: of an E of rank one they show less than its half in one run of eight."""


OWN = 256
"""Times eps: what products may round by in the widest arithmetic, where nothing is left to measure them against. With
logits of ±100 entries were seen to be 70 eps off."""


LOST = 0.5
"""Of the size of products: a rounding error above this leaves nothing of them."""


class Rounding(NamedTuple):
    """E = A₃₂ − A₆₄ of the products that a run makes; zero where there are no more precise ones.

    Parameters
    ----------
    each
        ‖E v‖ for a unit vector v at random: root mean square.
    dim
        D.
    """

    each: float
    dim: int

    @property
    def norm(self) -> float:
        """‖E‖_F, and hence no less than what it changes ‖A‖_F by."""
        return MARGIN * math.sqrt(self.dim) * self.each

    def trace(self, dim: int | None = None) -> float:
        """What E changes the trace by, or the sum of `dim` diagonal entries, at most: |tr E| ≤ √D ‖E‖_F."""
        return math.sqrt(self.dim if dim is None else dim) * self.norm


def along(operator: LinearOperator, vectors: Array, images: Array | None = None) -> np.ndarray:
    """‖E v‖ of vectors [k, dim]: [k], zeros where there are no more precise products. Cost: k products of each kind.

    Parameters
    ----------
    images
        The products, where they are known.
    """
    if operator.precise is None:
        return np.zeros(len(vectors))
    images = operator.matmat(vectors) if images is None else images
    return np.linalg.norm(on_host(images).astype(np.float64) - operator.precise(vectors), axis=1)


def measured(operator: LinearOperator, seed: int) -> Rounding:
    """From `PROBES` random vectors, or what is known: so many products, and as many in float64, which are none where
    those are the run's own.

    Raises
    ------
    NumericsError
        The products have no digit left: they are beyond the numbers of their type.
    """
    return Rounding(max(_root_mean_squares(operator, seed)[0], operator.floor), operator.dim)


def relative(operator: LinearOperator, seed: int) -> float:
    """‖E‖_F/‖A‖_F, from the same products. Raises as `measured`."""
    error, size = _root_mean_squares(operator, seed)
    return MARGIN * error / size if size else 0.0


def _root_mean_squares(operator: LinearOperator, seed: int) -> tuple[float, float]:
    """Of ‖E v‖ and ‖A v‖ over the random vectors."""
    if operator.precise is None:
        return 0.0, 0.0
    key = Stream.PRODUCT_ROUNDING.key(seed)
    probes = sphere(key, 0, min(PROBES, operator.dim), operator.dim, operator.dtype)
    exact, images = operator.precise(probes), on_host(operator.matmat(probes)).astype(np.float64)
    error, size, own = (
        float(np.sqrt(np.mean(np.square(np.linalg.norm(one, axis=1))))) for one in (images - exact, exact, images)
    )
    # A matrix that is zero but for rounding has products of that size; one that is too small for the type has none.
    smallest = float(np.finfo(operator.dtype).tiny / np.finfo(operator.dtype).eps)
    if not error <= LOST * size and not smallest <= own < np.inf:
        raise NumericsError(
            f"products of the matrix lose all digits in {operator.dtype}: of size {size:.1g}, they are {error:.1g} off",
            "use --dtype float64",
        )
    return error, size


def least_residual(operator: LinearOperator, noise: float, norm: float) -> float:
    """The residual below which an eigenvalue is not known: `noise` is relative to ‖A‖ = `norm`."""
    return max(0.5 * noise * norm, operator.floor)


def widened(estimate: Estimate, margin: float) -> Estimate:
    """An estimate, its interval longer by `margin` at both ends."""
    low, high = estimate.interval
    return estimate.model_copy(update={"interval": (low - margin, high + margin)})


def exact(value: float, confidence: float, size: float, dim: int = 1, dtype: Any = "float64") -> Estimate:
    """A number without sampling error: its interval is that of its rounding.

    Parameters
    ----------
    size
        ‖A‖_F, or the size of what the number is a sum or difference of.
    dim
        How many numbers are summed.
    dtype
        That they were computed in: matrices are written out by products in float64.
    """
    margin = OWN * float(np.finfo(dtype).eps) * size * math.sqrt(dim)
    return widened(Estimate.exact(value, confidence), margin)
