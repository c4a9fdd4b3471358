"""The trace of an operator, of its segments, and its Frobenius norm: three estimators over one stock of test vectors.

* `hutchinson`: every product is a sample.
* `xtrace`: half of the products find the dominant space, the other half its image; then all test vectors are samples of
  what is left.
* `hutch++`: a third, a third, and a third for fresh samples of what is left.

Test vectors and their images are common to all three, so that the choice can be made after half of the products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from curvcli.linalg import exchange
from curvcli.linalg.hutchinson import Samples, Segments
from curvcli.linalg.iterate import Monitor
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.probes import sphere
from curvcli.linalg.statistics import Law, SquareLaw

Array = Any

FRESH = 1 << 20
"""Index of the first probe that Hutch++ draws in the complement, beyond all test vectors."""


class Found(NamedTuple):
    """Estimates with their laws."""

    method: str
    trace: Law
    square: SquareLaw  # of ‖A‖_F²
    parts: list[Law]
    probes: int
    products: int


class Tracer:
    """Draws test vectors, finds the space that their images span, and reads estimates from what there is.

    Parameters
    ----------
    operator, key
        The matrix, and the randomness of all probes.
    segments
        Parts of the trace that are wanted; together they are the whole.
    at_once
        Vectors in a block.
    keep
        Whether images are kept, which `project` needs: memory `drawn`·D.
    monitor
        Asked between blocks whether to stop.
    """

    def __init__(
        self, operator: LinearOperator, key: Array, segments: Segments, *, at_once: int, keep: bool, monitor: Monitor
    ) -> None:
        self.operator, self.key, self.segments, self.at_once = operator, key, segments, at_once
        self.monitor, self.keep, self.planned = monitor, keep, 0
        sizes = np.array([sum(b - a for a, b in part) for part in segments], float)
        self.sizes, empty = sizes, jnp.zeros((0, operator.dim), operator.dtype)
        self.plain = Samples(operator.dim, segments, sizes, empty)
        self.images: list[Array] = []
        self.products = self.padding = 0
        self.range: exchange.Range | None = None
        self.range_images: Array | None = None  # A Q
        self.fresh: Samples | None = None

    @property
    def drawn(self) -> int:
        """Test vectors so far."""
        return self.plain.count

    def draw(self, total: int) -> None:
        """Test vectors until there are `total`, each one product."""
        while self.drawn < total and not self._stopped():
            count = min(self.at_once, total - self.drawn)
            tests = sphere(self.key, self.drawn, count, self.operator.dim, self.operator.dtype)
            images = self._apply(tests)
            self.plain.add(tests, images)
            if self.keep:
                self.images.append(images)

    def hutchinson(self) -> Found:
        """The plain mean over all test vectors."""
        plain = self.plain
        return Found("hutchinson", plain.trace(), plain.square(0.0), plain.parts(), plain.count, self.products)

    def captured(self) -> tuple[float, float]:
        """‖B‖_F² and what the images of the other test vectors leave of it, B = A − cI: (whole, rest). No product."""
        space = self._find_range()
        tests, images = self._tests(), jnp.concatenate(self.images)
        center = self.plain.trace().value / self.operator.dim
        whole = self.operator.dim * float(jnp.mean(jnp.sum(jnp.square(images - center * tests), axis=1)))
        w = np.asarray(tests @ space.basis.T, np.float64)
        along = np.sum((space.images - center * w) * space.own, axis=1)
        outside = center**2 * np.maximum(1 - np.square(w).sum(1), 0)
        return whole, self.operator.dim * float(np.mean(along**2 + outside))

    def project(self) -> bool:
        """The images of the space that the test vectors' images span: as many products. Whether it was not stopped."""
        space = self._find_range()
        done = 0 if self.range_images is None else len(self.range_images)
        blocks = [] if self.range_images is None else [self.range_images]
        for start in range(done, len(space.basis), self.at_once):
            if self._stopped():
                return False
            blocks.append(self._apply(space.basis[start : start + self.at_once]))
        empty = jnp.zeros((0, self.operator.dim), self.operator.dtype)
        self.range_images = jnp.concatenate([*blocks, empty])
        return True

    def xtrace(self) -> Found:
        """From all test vectors; after `project`."""
        assert self.range is not None
        assert self.range_images is not None
        sketch = exchange.sketch(self.segments, self._tests(), self.range, self.range_images)
        found = exchange.xtrace(sketch, self.sizes)
        return Found("xtrace", found.trace, found.square, found.parts, self.drawn, self.products)

    def refine(self, total: int) -> None:
        """Fresh probes in the complement of the known space until there are `total`; after `project`."""
        assert self.range is not None
        basis = self.range.basis
        if self.fresh is None:
            inside = np.asarray(exchange.segment_norms(self.segments, basis), np.float64)
            self.fresh = Samples(self.operator.dim - len(basis), self.segments, self.sizes - inside, basis)
        while self.fresh.dim > 0 and self.fresh.count < total and not self._stopped():
            count = min(self.at_once, total - self.fresh.count)
            probes = sphere(self.key, FRESH + self.fresh.count, count, self.operator.dim, self.operator.dtype)
            probes = _away(probes, basis)
            self.fresh.add(probes, self._apply(probes))

    def hutchpp(self) -> Found:
        """The known space exactly, and fresh probes of the rest; after `refine`."""
        assert self.range is not None
        assert self.range_images is not None
        h, rest = exchange.split(self.range.basis, self.range_images)
        exact = np.asarray(exchange.segment_traces(self.segments, self.range.basis, self.range_images), np.float64)
        known = float(np.square(np.asarray(h, np.float64)).sum() + 2 * np.square(np.asarray(rest, np.float64)).sum())
        fresh = self.fresh
        if fresh is None or not fresh.count:  # the images span everything
            nothing = Law(0.0, 0.0, 1.0)
            laws, trace, square = [nothing] * len(exact), nothing, SquareLaw(known, nothing, nothing, 0.0, 1)
        else:
            laws, trace, square = fresh.parts(), fresh.trace(), fresh.square(known)
        parts = [law._replace(value=law.value + float(value)) for law, value in zip(laws, exact, strict=True)]
        trace = trace._replace(value=trace.value + float(exact.sum()))
        return Found("hutch++", trace, square, parts, fresh.count if fresh else 0, self.products)

    def _tests(self) -> Array:
        """All test vectors, drawn again: they cost less than the memory."""
        return sphere(self.key, 0, self.drawn, self.operator.dim, self.operator.dtype)

    def _find_range(self) -> exchange.Range:
        if self.range is None or len(self.range.images) < self.drawn:
            before = None if self.range is None else self.range.basis
            self.range = exchange.range_of(jnp.concatenate(self.images), before)
        return self.range

    def _apply(self, vectors: Array) -> Array:
        """A times a block, padded to the shape that is compiled already."""
        missing = self.at_once - len(vectors) if self.products else 0
        padded = (
            jnp.concatenate([vectors, jnp.zeros((missing, vectors.shape[1]), vectors.dtype)]) if missing else vectors
        )
        images = self.operator.matmat(padded)[: len(vectors)]
        self.products += len(vectors)
        self.padding += missing
        self.monitor.progress("trace", self.products, self.planned or None)
        return images

    def _stopped(self) -> bool:
        return self.products > 0 and self.monitor.stop() is not None


@jax.jit
def _away(probes: Array, basis: Array) -> Array:
    for _ in range(2):
        probes = probes - (probes @ basis.T) @ basis
    return probes / jnp.linalg.norm(probes, axis=1, keepdims=True)
