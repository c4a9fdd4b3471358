"""What the products cost: counted where they are made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

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

        def matmat(vectors: Any) -> Any:
            self.products += len(vectors)
            self.data_passes += 1
            return timed("products", operator.matmat, vectors)

        another, exactly, of_pairs = operator.by_another, operator.precise, operator.forms

        def precise(vectors: Any) -> Any:
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

        def forms(vectors: Any) -> Any:
            self.forms += len(vectors)
            self.data_passes += 1
            return timed("products", of_pairs, vectors)

        return replace(counted, forms=forms)
