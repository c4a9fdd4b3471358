"""What the products cost: counted where they are made."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jax import Array

from curvcli.linalg.operator import LinearOperator
from curvcli.stopwatch import timed


@dataclass
class Meter:
    """Matrix-vector products, quadratic forms, and passes over the data (a block of either is one pass)."""

    products: int = 0
    forms: int = 0
    data_passes: int = 0

    def count(self, operator: LinearOperator) -> LinearOperator:
        """The same operator, its products and forms counted here."""

        def matmat(vectors: Array) -> Array:
            self.products += len(vectors)
            self.data_passes += 1
            return timed("products", operator.matmat, vectors)

        another, exactly, of_pairs = operator.by_another, operator.precise, operator.forms

        def precise(vectors: Array | np.ndarray) -> np.ndarray:
            assert exactly is not None
            self.products += len(vectors)
            self.data_passes += 1
            return timed("products", exactly, vectors)

        counted = replace(
            operator, matmat=matmat, precise=None if exactly is None else precise,
            by_another=None if another is None else lambda: self.count(another()),
        )  # fmt: skip
        if of_pairs is None:
            return counted

        def forms(vectors: Array) -> Array:
            self.forms += len(vectors)
            self.data_passes += 1
            return timed("products", of_pairs, vectors)

        return replace(counted, forms=forms)
