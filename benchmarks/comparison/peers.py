"""The peers: the same products by PyHessian, curvlinops and hessian-eigenthings, each in its own best mode."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .timing import Contestant
from .twins import Twin

LARGEST_EMPIRICAL = 2 << 30
"""Bytes of the per-example gradients that hessian-eigenthings keeps."""


def pyhessian(twin: Twin, vectors: torch.Tensor, quantity: str) -> list[Contestant]:
    """Its `hessian` on one batch: the graph of the gradient is kept, and differentiated for each vector."""
    if quantity != "hessian":
        return []
    from pyhessian.utils import hessian_vector_product

    made = pyhessian_object(twin)
    v = twin.split(vectors[0])

    def run() -> torch.Tensor:
        return torch.cat([one.reshape(-1) for one in hessian_vector_product(made.gradsH, made.params, v)])

    return [Contestant("PyHessian", quantity, run, 1, _first(twin))]


def pyhessian_object(twin: Twin):
    """PyHessian's `hessian`, its gradient's graph kept."""
    from pyhessian import hessian

    twin.model.zero_grad(set_to_none=True)
    return hessian(twin.model, twin.criterion, data=(twin.x, twin.y), cuda=False)


def curvlinops_operator(twin: Twin, quantity: str):
    """curvlinops' operator."""
    from curvlinops import EFLinearOperator, GGNLinearOperator, HessianLinearOperator

    kinds = {"hessian": HessianLinearOperator, "ggn": GGNLinearOperator, "empirical-fisher": EFLinearOperator}
    data = [(twin.x, twin.y)]
    return kinds[quantity](twin.model, twin.criterion, twin.params, data, check_deterministic=False)


def curvlinops(twin: Twin, vectors: torch.Tensor, quantity: str, blocks: tuple[int, ...]) -> list[Contestant]:
    """Its operators on one batch, vectors single and in blocks (`vmap`, as it does it)."""
    if quantity == "ggn-trace":
        operator = curvlinops_operator(twin, "ggn")
    else:
        operator = curvlinops_operator(twin, quantity)

    def product(block: int) -> Callable[[], torch.Tensor]:
        columns = vectors[0] if block == 1 else vectors[:block].T.contiguous()
        return lambda: operator @ columns

    def form(block: int) -> Callable[[], np.ndarray]:
        columns = vectors[:block].T.contiguous()
        return lambda: ((operator @ columns) * columns).sum(0).numpy()

    make, first = (form, _plain) if quantity == "ggn-trace" else (product, _first(twin))
    return [Contestant("curvlinops", quantity, make(block), block, first) for block in blocks]


def eigenthings(twin: Twin, vectors: torch.Tensor, quantity: str) -> list[Contestant]:
    """Its operators with one batch as the loader."""
    operator = eigenthings_operator(twin, quantity)
    v = vectors[0]
    if quantity == "ggn-trace":
        return [Contestant("eigenthings", quantity, lambda: np.atleast_1d(float(v @ operator.matvec(v))), 1, _plain)]
    return [Contestant("eigenthings", quantity, lambda: operator.matvec(v), 1, _first(twin))]


def eigenthings_operator(twin: Twin, quantity: str):
    """hessian-eigenthings' operator."""
    from hessian_eigenthings.loss_fns.standard import (
        supervised_forward,
        supervised_loss,
        supervised_loss_of_output,
        supervised_per_sample_loss,
    )
    from hessian_eigenthings.operators import EmpiricalFisherOperator, GGNOperator, HessianOperator

    loader = [(twin.x, twin.y)]
    if quantity == "hessian":
        return HessianOperator(twin.model, loader, supervised_loss(twin.criterion))
    if quantity in ("ggn", "ggn-trace"):
        return GGNOperator(twin.model, loader, supervised_forward, supervised_loss_of_output(twin.criterion))
    if len(twin.x) != len(twin.y):
        raise RuntimeError("its empirical Fisher matrix has a gradient a sequence, not a token")
    if 4 * len(twin.x) * twin.dim > LARGEST_EMPIRICAL:
        raise RuntimeError(f"its per-example gradients would take {4e-9 * len(twin.x) * twin.dim:.0f} GB")
    return EmpiricalFisherOperator(twin.model, loader, supervised_per_sample_loss(twin.criterion))


def _first(twin: Twin) -> Callable[[torch.Tensor], np.ndarray]:
    return lambda out: twin.to_curv((out if out.ndim == 1 else out[:, 0]).detach().numpy())


def _plain(out: np.ndarray) -> np.ndarray:
    return out[:1]
