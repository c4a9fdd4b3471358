"""What the products cost: counted where they are made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.stopwatch import timed


@dataclass
class Meter:
    """Matrix-vector products, and passes over the data (a block of products is one pass)."""

    products: int = 0
    data_passes: int = 0

    def count(self, operator: LinearOperator) -> LinearOperator:
        """The same operator, its products counted here."""

        def matmat(vectors: Any) -> Any:
            self.products += len(vectors)
            self.data_passes += 1
            return timed("products", operator.matmat, vectors)

        return replace(operator, matmat=matmat)
