"""The table of matrices: a name, the products of one batch, and what is known of the matrix beforehand.

Adding a matrix means adding a row here and a per-batch product in `products.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from curvcli.curvature import products, sums
from curvcli.curvature.flatten import Layout
from curvcli.linalg.operator import LinearOperator
from curvcli.problem import Problem

Piece = Callable[..., Any]


@dataclass(frozen=True)
class Matrix:
    """One row of the table.

    Parameters
    ----------
    piece
        `(functions, layout) -> piece(params, frozen, batch, vectors)`, one batch's unnormalised products.
    psd
        Whether the data term is positive semi-definite for a convex loss.
    """

    piece: Callable[[products.Functions, Layout], Piece]
    psd: bool


MATRICES: dict[str, Matrix] = {
    "hessian": Matrix(lambda fns, layout: partial(products.hessian, fns, layout), psd=False),
    "ggn": Matrix(lambda fns, layout: partial(products.gauss_newton, fns, True, layout), psd=True),
    "gauss-newton": Matrix(lambda fns, layout: partial(products.gauss_newton, fns, False, layout), psd=True),
}


def build(problem: Problem, matrix: str, *, damping: float = 0.0, with_regulariser: bool = True) -> LinearOperator:
    """The matrix of this name as a linear operator on blocks of vectors [k, dim].

    Parameters
    ----------
    problem
        Network, loss, data and weights.
    matrix
        A name in `MATRICES`.
    damping
        λ; λI is added.
    with_regulariser
        Whether ∇²R is part of the matrix.

    Notes
    -----
    Cost of a product: one linearisation of each batch, shared by the block, and k applications of it.
    """
    layout, row = Layout.of(problem.params), MATRICES[matrix]
    data_term = sums.sum_products(row.piece(sums.functions(problem), layout), problem, sums.resident(problem.batches))
    regulariser = sums.regulariser_products(problem, layout) if with_regulariser else None

    def matmat(vectors: Any) -> Any:
        out = data_term(vectors)
        if regulariser is not None:
            out = out + regulariser(vectors)
        return out + damping * vectors if damping else out

    # A user's regulariser may curve downwards; the ½·l2·‖w‖² of curv's own does not.
    psd = row.psd and damping >= 0 and (regulariser is None or problem.regulariser.fn is None)
    return LinearOperator(matmat, layout.dim, problem.dtype, psd)
