"""A stock of test vectors, their images, and the space that these span: what every estimator draws on.

The images serve as samples (Hutchinson's) or as a sketch of the dominant space, so that the choice between the two can
be made after half of the products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax.numpy as jnp
from jax import Array

from curvcli.linalg.iterate import Monitor
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.sampling import block_sizes
from curvcli.linalg.trace import exchange


class Gathered(Protocol):
    """What is kept of test vectors and images that are themselves given up."""

    @property
    def count(self) -> int:
        """Test vectors so far."""
        ...

    def add(self, tests: Array, images: Array, /) -> None:
        """A block of them, [b, dim] each."""
        ...


class Stock:
    """Draws test vectors, and finds the space that their images span.

    Parameters
    ----------
    operator, key
        The matrix, and the randomness of all test vectors.
    draw_rows
        `(key, first, count, dim, dtype) -> [count, dim]`: the law of the test vectors.
    gathered
        Told of every block.
    least
        Test vectors before a stop is heeded.
    at_once
        Vectors in a block.
    keep
        Whether images are kept, which `project` needs: memory `drawn`·dim.
    monitor, stage, planned
        Asked between blocks whether to stop, and told of progress.
    """

    def __init__(
        self, operator: LinearOperator, key: Array, draw_rows: Callable[..., Array], gathered: Gathered, *,
        least: int, at_once: int, keep: bool, monitor: Monitor, stage: str, planned: int | None = None,
    ) -> None:  # fmt: skip
        self.operator, self.key, self.draw_rows, self.gathered, self.least = operator, key, draw_rows, gathered, least
        self.at_once, self.keep, self.monitor, self.stage, self.planned = at_once, keep, monitor, stage, planned
        self.images: list[Array] = []
        self.products = self.padding = 0  # the latter: zero vectors that fill up blocks
        self.range: exchange.Range | None = None
        self.range_images: Array | None = None  # A Q

    @property
    def drawn(self) -> int:
        """Test vectors so far."""
        return self.gathered.count

    def draw(self, total: int) -> None:
        """Test vectors until there are `total`, or a stop is asked for. Cost: a product each."""
        for count in block_sizes(total, self.at_once, lambda: self.drawn, self.stopped):
            tests = self.rows(self.drawn, count)
            images = self.apply(tests)
            self.gathered.add(tests, images)
            if self.keep:
                self.images.append(images)

    def project(self) -> bool:
        """The images of the space that the test vectors' images span: as many products. Whether it was not stopped."""
        space = self.find_range()
        blocks = [] if self.range_images is None else [self.range_images]
        for start in range(sum(map(len, blocks)), len(space.basis), self.at_once):
            if self.stopped():
                return False
            blocks.append(self.apply(space.basis[start : start + self.at_once]))
        self.range_images = jnp.concatenate([*blocks, jnp.zeros((0, self.operator.dim), self.operator.dtype)])
        return True

    def projected(self) -> tuple[exchange.Range, Array]:
        """The space and its images, after `project`."""
        assert self.range is not None
        assert self.range_images is not None
        return self.range, self.range_images

    def find_range(self) -> exchange.Range:
        """The space that the images of all test vectors span, beginning with what was found before. No product."""
        if self.range is None or len(self.range.images) < self.drawn:
            before = None if self.range is None else self.range.basis
            self.range = exchange.range_of(jnp.concatenate(self.images), before)
        return self.range

    def tests(self) -> Array:
        """All test vectors, drawn again: they cost less than the memory."""
        return self.rows(0, self.drawn)

    def rows(self, first: int, count: int) -> Array:
        """Vectors first, first + 1, … of the key's stream: [count, dim]."""
        return self.draw_rows(self.key, first, count, self.operator.dim, self.operator.dtype)

    def apply(self, vectors: Array) -> Array:
        """A times a block, padded to the shape that is compiled already."""
        missing = self.at_once - len(vectors) if self.products else 0
        images = self.operator.matmat(jnp.pad(vectors, ((0, missing), (0, 0))))[: len(vectors)]
        self.products += len(vectors)
        self.padding += missing
        self.monitor.progress(self.stage, self.products, self.planned)
        return images

    def stopped(self) -> bool:
        """Whether to stop here with what there is."""
        return self.drawn >= self.least and self.monitor.stop() is not None
