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

        another, of_pairs = operator.by_another, operator.forms
        by_another = None if another is None else lambda: self.count(another())
        if of_pairs is None:
            return replace(operator, matmat=matmat, by_another=by_another)

        def forms(vectors: Any) -> Any:
            self.forms += len(vectors)
            self.data_passes += 1
            return timed("products", of_pairs, vectors)

        return replace(operator, matmat=matmat, forms=forms, by_another=by_another)
