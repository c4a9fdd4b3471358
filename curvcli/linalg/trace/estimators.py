"""The trace of an operator, of its segments, and its Frobenius norm: three estimators over one stock of test vectors.

* `hutchinson`: every product is a sample.
* `xtrace`: half of the products find the dominant space, the other half its image; then all test vectors are samples of
  what is left.
* `hutch++`: a third, a third, and a third for fresh samples of what is left.

Test vectors and their images are common to all three, so that the choice can be made after half of the products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.compiling import jit
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.probes import sphere
from curvcli.linalg.reductions import inner_products, row_norms
from curvcli.linalg.sampling import block_sizes
from curvcli.linalg.statistics import Law, SquareLaw
from curvcli.linalg.trace import exchange
from curvcli.linalg.trace.hutchinson import Samples, Segments
from curvcli.linalg.trace.stock import Stock

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

    def scaled(self, unit: float) -> Found:
        """Of the matrix times a unit."""
        return self._replace(
            trace=self.trace.scaled(unit), square=self.square.scaled(unit**2),
            parts=[law.scaled(unit) for law in self.parts],
        )  # fmt: skip


class Tracer(Stock):
    """A stock of vectors on the sphere, and the estimates that can be read from it.

    Parameters
    ----------
    segments
        Parts of the trace that are wanted; together they are the whole.
    rest
        As of `Stock`.
    """

    def __init__(self, operator: LinearOperator, key: Array, segments: Segments, **rest: Any) -> None:
        self.segments = segments
        self.sizes = np.array([sum(b - a for a, b in part) for part in segments], float)
        self.plain = Samples(operator.dim, segments, self.sizes, jnp.zeros((0, operator.dim), operator.dtype))
        self.fresh: Samples | None = None
        super().__init__(operator, key, sphere, self.plain, least=1, stage="trace", **rest)

    def hutchinson(self) -> Found:
        """The plain mean over all test vectors."""
        plain = self.plain
        return Found("hutchinson", plain.trace(), plain.square(0.0), plain.parts(), plain.count, self.products)

    def captured(self) -> tuple[float, float]:
        """‖B‖_F² and what the images of the other test vectors leave of it, B = A − cI: (whole, rest). No product."""
        space = self.find_range()
        tests, images = self.tests(), jnp.concatenate(self.images)
        center = self.plain.trace().value / self.operator.dim
        whole = self.operator.dim * float(np.mean(np.square(row_norms(images - center * tests))))
        w = np.asarray(inner_products(tests, space.basis), np.float64)
        along = np.sum((space.images - center * w) * space.own, axis=1)
        outside = center**2 * np.maximum(1 - np.square(w).sum(1), 0)
        return whole, self.operator.dim * float(np.mean(along**2 + outside))

    def xtrace(self) -> Found:
        """From all test vectors; after `project`."""
        sketch = exchange.sketch(self.segments, self.tests(), *self.projected())
        found = exchange.xtrace(sketch, self.sizes)
        return Found("xtrace", found.trace, found.square, found.parts, self.drawn, self.products)

    def refine(self, more: int) -> Samples:
        """`more` fresh probes in the complement of the known space, beside those there are; after `project`."""
        basis = self.projected()[0].basis
        if self.fresh is None:
            inside = np.asarray(exchange.segment_norms(self.segments, basis), np.float64)
            self.fresh = Samples(self.operator.dim - len(basis), self.segments, self.sizes - inside, basis)
        fresh = self.fresh
        total = fresh.count + more if fresh.dim > 0 else 0
        for count in block_sizes(total, self.at_once, lambda: fresh.count, self.stopped):
            probes = _away(self.rows(FRESH + fresh.count, count), basis)
            fresh.add(probes, self.apply(probes))
        return fresh

    def hutchpp(self) -> Found:
        """The known space exactly, and fresh probes of the rest; after `refine`."""
        space, images = self.projected()
        h, rest = exchange.split(space.basis, images)
        exact = np.asarray(exchange.segment_traces(self.segments, space.basis, images), np.float64)
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


@jit
def _away(probes: Array, basis: Array) -> Array:
    for _ in range(2):
        probes = probes - (probes @ basis.T) @ basis
    return probes / jnp.linalg.norm(probes, axis=1, keepdims=True)
