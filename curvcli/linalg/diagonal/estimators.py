"""The diagonal of an operator: two estimators over one stock of random signs.

* `hutchinson`: every product is a sample (`entries.py`).
* `xdiag`: half of the products find the dominant space, the other half its image (`xdiag.py`).

Test vectors and their images are common to both, so that the choice can be made after half of the products.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from curvcli.compiling import jit
from curvcli.linalg.diagonal.entries import Found, Moments, Ranges, Segments
from curvcli.linalg.diagonal.xdiag import xdiag
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.reductions import inner_products
from curvcli.linalg.trace.stock import Stock


def signs(key: Array, first: int, count: int, dim: int, dtype: DTypeLike) -> Array:
    """Vectors first, first + 1, … of random signs: [count, dim].

    Since ω_d² = 1, only off-diagonal entries are in the variance: one product gives a diagonal matrix exactly.
    """
    return _signs(key, jnp.arange(first, first + count), dim, jnp.dtype(dtype).name)


@jit(static_argnums=(2, 3))
def _signs(key: Array, indices: Array, dim: int, dtype: str) -> Array:
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
    return jax.vmap(lambda one: jax.random.rademacher(one, (dim,), dtype))(keys)


class Sampler(Stock):
    """A stock of random signs, and the estimates that can be read from it.

    Parameters
    ----------
    segments
        Parts whose sums are wanted; together they are the whole.
    rest
        As of `Stock`.
    """

    def __init__(self, operator: LinearOperator, key: Array, segments: Segments, **rest: Any) -> None:
        self.layout = Ranges.of(segments)
        self.plain = Moments(self.layout, operator.dim)
        super().__init__(operator, key, signs, self.plain, least=2, stage="diagonal", **rest)

    def hutchinson(self) -> Found:
        """The plain mean over all test vectors, at least two."""
        return self.plain.found()

    def forget(self) -> None:
        """Keep images no longer: only Hutchinson's estimate is wanted."""
        self.keep, self.images, self.range, self.range_images = False, [], None, None

    def captured(self) -> tuple[float, float]:
        """Summed variances of the entries of one sample: (Hutchinson's, XDiag's at most). No product.

        The first is Σ_{d≠j} A_dj², by the spread of the samples. The second is ‖P(A − cI)‖_F², by ‖P(A − cI)ω‖² with P
        from the images of the other test vectors; projecting from both sides leaves less.
        """
        space, tests = self.find_range(), self.tests()
        w = np.asarray(inner_products(tests, space.basis), np.float64)
        image = np.sum(space.images * space.own, axis=1)  # P Aω = image · own Q
        along = np.sum(w * space.own, axis=1)
        norm = self.operator.dim - np.square(w).sum(1) + along**2  # ‖Pω‖²
        center = np.sum(image * along) / max(norm.sum(), 1.0)
        rest = np.mean(image**2 - 2 * center * image * along + center**2 * norm)
        return float(self.plain.variance.sum()), float(max(rest, 0.0))

    def xdiag(self) -> Found:
        """From all test vectors, at least two; after `project`."""
        return xdiag(self.layout, self.tests(), *self.projected())
