"""The diagonal of an operator: two estimators over one stock of random signs.

* `hutchinson`: every product is a sample (`entries.py`).
* `xdiag`: half of the products find the dominant space, the other half its image (`xdiag.py`).

Test vectors and their images are common to both, so that the choice can be made after half of the products.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from curvcli.linalg import exchange
from curvcli.linalg.entries import Found, Moments, Ranges, Segments
from curvcli.linalg.iterate import Monitor
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.xdiag import xdiag

Array = Any


def signs(key: Array, first: int, count: int, dim: int, dtype: Any) -> Array:
    """Vectors first, first + 1, … of random signs: [count, dim].

    Since ω_d² = 1, only off-diagonal entries are in the variance: one product gives a diagonal matrix exactly.
    """
    return _signs(key, jnp.arange(first, first + count), dim, jnp.dtype(dtype).name)


@partial(jax.jit, static_argnums=(2, 3))
def _signs(key: Array, indices: Array, dim: int, dtype: str) -> Array:
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
    return jax.vmap(lambda one: jax.random.rademacher(one, (dim,), dtype))(keys)


class Sampler:
    """Draws signs, finds the space that their images span, and reads the diagonal from what there is.

    Parameters
    ----------
    operator, key
        The matrix, and the randomness of all signs.
    segments
        Parts whose sums are wanted; together they are the whole.
    at_once
        Vectors in a block.
    keep
        Whether images are kept, which `captured` and `project` need.
    monitor
        Asked between blocks whether to stop.
    """

    def __init__(
        self, operator: LinearOperator, key: Array, segments: Segments, *, at_once: int, keep: bool, monitor: Monitor
    ) -> None:
        self.operator, self.key, self.at_once, self.keep, self.monitor = operator, key, at_once, keep, monitor
        self.layout = Ranges.of(segments)
        self.plain = Moments(self.layout, operator.dim)
        self.images: list[Array] = []
        self.planned: int | None = None
        self.products = self.padding = 0  # the latter: zero vectors that fill up blocks
        self.range: exchange.Range | None = None
        self.range_images: Array | None = None

    @property
    def drawn(self) -> int:
        """Test vectors so far."""
        return self.plain.count

    def draw(self, total: int) -> None:
        """Test vectors until there are `total`, or a stop is asked for after two. Cost: a product each."""
        while self.drawn < total and not (self.drawn > 1 and self.monitor.stop()):
            count = min(self.at_once, total - self.drawn)
            tests = signs(self.key, self.drawn, count, self.operator.dim, self.operator.dtype)
            images = self._apply(tests)
            self.plain.add(tests, images)
            if self.keep:
                self.images.append(images)

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
        space, tests = self._find_range(), self._tests()
        w = np.asarray(tests @ space.basis.T, np.float64)
        image = np.sum(space.images * space.own, axis=1)  # P Aω = image · own Q
        along = np.sum(w * space.own, axis=1)
        norm = self.operator.dim - np.square(w).sum(1) + along**2  # ‖Pω‖²
        center = np.sum(image * along) / max(norm.sum(), 1.0)
        rest = np.mean(image**2 - 2 * center * image * along + center**2 * norm)
        return float(self.plain.variance.sum()), float(max(rest, 0.0))

    def project(self) -> bool:
        """The images of the space that the test vectors' images span: as many products. Whether it was not stopped."""
        space = self._find_range()
        blocks = [] if self.range_images is None else [self.range_images]
        for start in range(sum(map(len, blocks)), len(space.basis), self.at_once):
            if self.monitor.stop():
                return False
            blocks.append(self._apply(space.basis[start : start + self.at_once]))
        self.range_images = jnp.concatenate([*blocks, jnp.zeros((0, self.operator.dim), self.operator.dtype)])
        return True

    def xdiag(self) -> Found:
        """From all test vectors, at least two; after `project`."""
        assert self.range_images is not None
        return xdiag(self.layout, self._tests(), self._find_range(), self.range_images)

    def _tests(self) -> Array:
        """All test vectors, drawn again: they cost less than the memory."""
        return signs(self.key, 0, self.drawn, self.operator.dim, self.operator.dtype)

    def _find_range(self) -> exchange.Range:
        if self.range is None or len(self.range.images) < self.drawn:
            before = None if self.range_images is None or self.range is None else self.range.basis
            self.range = exchange.range_of(jnp.concatenate(self.images), before)
        return self.range

    def _apply(self, vectors: Array) -> Array:
        """A times a block, padded to the shape that is compiled already."""
        missing = self.at_once - len(vectors) if self.products else 0
        images = self.operator.matmat(jnp.pad(vectors, ((0, missing), (0, 0))))[: len(vectors)]
        self.products += len(vectors)
        self.padding += missing
        self.monitor.progress("diagonal", self.products, self.planned)
        return images
