"""A matrix in units of its own size: a loss in tiny units has products whose squares float32 does not hold.

Estimators square images and take fourth powers of them. They are given the matrix divided by a power of two, which
costs no digit, and what they find is multiplied by it on the host, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from curvcli.compiling import jit
from curvcli.linalg.krylov.lanczos import not_finite
from curvcli.linalg.operator import LinearOperator


@dataclass
class Unit:
    """The power of two, from the first images on; 1 for those that are all zero."""

    value: float = 1.0
    known: bool = False

    def divides(self, function: Callable[[Array], Array]) -> Callable[[Array], Array]:
        """A linear map in this unit, which its first images set."""

        def divided(vectors: Array) -> Array:
            images = function(vectors)
            if not self.known:
                self.value, self.known = power_of_two(float(_peak(images)), images.dtype), True
            return images * jnp.asarray(1 / self.value, images.dtype)

        return divided


def normalised(operator: LinearOperator) -> tuple[LinearOperator, Unit]:
    """The matrix divided by a unit, and the unit: A = unit · matrix. No product."""
    unit = Unit()
    forms = None if operator.forms is None else unit.divides(operator.forms)
    return replace(operator, matmat=unit.divides(operator.matmat), forms=forms, known=None, precise=None), unit


def power_of_two(size: float, dtype: DTypeLike) -> float:
    """The power of two above a magnitude, as a unit; 1 for 0.

    Raises
    ------
    NumericsError
        It is no number.
    """
    if not np.isfinite(size):
        raise not_finite(dtype)
    return float(np.exp2(np.frexp(size)[1])) if size else 1.0


@jit
def _peak(images: Array) -> Array:
    return jnp.max(jnp.abs(images))
