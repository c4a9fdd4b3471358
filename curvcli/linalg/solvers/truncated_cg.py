"""Truncated conjugate gradients: the least of Q(p) = gᵀp + ½ pᵀAp, sought until more of it is not worth the products.

One system at a time, vectors in float64 on the host whatever the products are computed in. A may be indefinite: a
direction of negative curvature ends the iteration, and is an answer.

Source: Steihaug (1983) and Nocedal and Wright, *Numerical Optimization*, algorithm 7.2, for the boundary and negative
curvature; Martens (2010), *Deep learning via Hessian-free optimization*, sections 4.4 to 4.6, for the stop by relative
progress, the warm start and the iterates that are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

Ending = Literal["converged", "relative-progress", "boundary", "negative-curvature", "flat", "not-converged", "stopped"]
Product = Callable[[np.ndarray], np.ndarray]
"""[dim] -> [dim]."""

ROUNDING = 64
"""Curvatures below this times eps·‖A‖ are rounding."""

PROGRESS, LOOKBACK, SHARE = 5e-4, 10, 0.1
"""Martens' ε, and k = max(10, i/10): the iteration i ends when Q has gained less than k·ε of itself in k iterations."""

SPACING = 1.3
"""Between the iterates that are kept, as a factor of their numbers."""


class Step(NamedTuple):
    """One iteration, for the trace."""

    iteration: int
    quadratic: float  # Q
    residual: float  # ‖g + A p‖


class Negative(NamedTuple):
    """A direction d with dᵀAd < 0 beyond rounding, along which Q falls from `start` on."""

    start: np.ndarray  # [dim], p before
    direction: np.ndarray  # [dim]
    curvature: float  # dᵀAd / dᵀd


@dataclass
class Truncated:
    """Where the iteration ended."""

    p: np.ndarray  # [dim]
    residual: np.ndarray  # g + A p, of the recurrence
    ending: Ending
    products: int
    lowest: float  # the smallest dᵀAd / dᵀd met; inf before the first
    negative: Negative | None = None
    trace: list[Step] = field(default_factory=list)
    kept: list[tuple[int, np.ndarray]] = field(default_factory=list)  # iterates at a geometric spacing, the last too

    @property
    def on_boundary(self) -> bool:
        """Whether the trust region kept it from going on."""
        return self.ending in ("boundary", "negative-curvature")


def truncated_cg(
    product: Product,
    gradient: np.ndarray,
    *,
    tolerance: float,
    most: int,
    eps: float,
    radius: float = np.inf,
    start: np.ndarray | None = None,
    precondition: Product | None = None,
    by_progress: bool = False,
    stop: Callable[[int], bool] = lambda products: False,
) -> Truncated:
    """Conjugate gradients for A p = −g.

    Parameters
    ----------
    product
        v ↦ A v.
    gradient
        g [dim].
    tolerance
        For ‖g + A p‖.
    most
        Products, at most.
    eps
        Of the arithmetic that the products are computed in.
    radius
        p ends where ‖p‖ would be larger. Where negative curvature is met p is taken to this boundary, if it is finite;
        else p is what was found before, and the direction is returned.
    start
        The first p, [dim]; shortened to the radius. Costs a product.
    precondition
        v ↦ M⁻¹ v, M ≈ A.
    by_progress
        Martens' rule instead of the tolerance alone; iterates are kept for his backtracking.
    stop
        Asked after every product, with their number; True ends the iteration.

    Returns
    -------
    Truncated
        `flat`: the next direction has no curvature beyond rounding, so that nothing is known of where to go along it.

    Notes
    -----
    Cost: a product an iteration. Memory: 5 vectors, and with `by_progress` some 4 ln(iterations) more.
    """
    apply = precondition or (lambda v: v)
    p, residual, spent = np.zeros_like(gradient), gradient, 0
    if start is not None:
        p = start * min(1.0, radius / max(float(np.linalg.norm(start)), np.finfo(float).tiny))
        residual, spent = gradient + product(p), 1
    z = apply(residual)
    direction, square = -z, float(residual @ z)
    found = Truncated(p, residual, "not-converged", spent, np.inf)
    _note(found, gradient, 0, by_progress)
    norm, iteration = 0.0, 0
    while True:
        if np.linalg.norm(found.residual) <= tolerance or square == 0:
            return _ended(found, "converged")
        if by_progress and _settled([step.quadratic for step in found.trace]):
            return _ended(found, "relative-progress")
        if found.products >= most:
            return _ended(found, "not-converged")
        if found.products > spent and stop(found.products):
            return _ended(found, "stopped")
        image = product(direction)
        found.products, iteration = found.products + 1, iteration + 1
        length = float(direction @ direction)
        norm = max(norm, float(np.linalg.norm(image)) / length**0.5)
        form = float(direction @ image)
        if abs(form) <= ROUNDING * eps * norm * length:
            return _ended(found, "flat")
        found.lowest = min(found.lowest, form / length)
        alpha = square / form
        if form < 0 or np.linalg.norm(found.p + alpha * direction) >= radius:
            if form < 0:
                found.negative = Negative(found.p, direction, form / length)
            if np.isfinite(radius):
                alpha = _to_boundary(found.p, direction, radius)
                found.p, found.residual = found.p + alpha * direction, found.residual + alpha * image
                _note(found, gradient, iteration, by_progress)
            return _ended(found, "negative-curvature" if form < 0 else "boundary")
        found.p, found.residual = found.p + alpha * direction, found.residual + alpha * image
        z = apply(found.residual)
        before, square = square, float(found.residual @ z)
        direction = square / before * direction - z
        _note(found, gradient, iteration, by_progress)


def _note(found: Truncated, gradient: np.ndarray, iteration: int, keep: bool) -> None:
    """One more line of the trace; the iterate itself where its number is the next of the spacing."""
    quadratic = 0.5 * float(found.p @ (gradient + found.residual))  # pᵀAp = pᵀ(residual − g)
    found.trace.append(Step(iteration, quadratic, float(np.linalg.norm(found.residual))))
    if keep and iteration and (not found.kept or iteration >= np.ceil(SPACING * found.kept[-1][0])):
        found.kept.append((iteration, found.p))


def _ended(found: Truncated, ending: Ending) -> Truncated:
    """With its ending; the last iterate is among those kept."""
    found.ending = ending
    if found.kept and found.kept[-1][0] < found.trace[-1].iteration:
        found.kept.append((found.trace[-1].iteration, found.p))
    return found


def _settled(values: list[float]) -> bool:
    """Whether Q, by iteration from 0 on, gains less than ε an iteration relative to itself."""
    last = len(values) - 1
    back = max(LOOKBACK, int(SHARE * last))
    return last > back and values[-1] < 0 and (values[-1] - values[-1 - back]) / values[-1] < back * PROGRESS


def _to_boundary(p: np.ndarray, direction: np.ndarray, radius: float) -> float:
    """τ ≥ 0 with ‖p + τ·direction‖ = radius, for ‖p‖ ≤ radius."""
    a, b, c = float(direction @ direction), float(p @ direction), min(float(p @ p) - radius**2, 0.0)
    root = float(np.sqrt(b * b - a * c))
    # The form in which nothing cancels; without warm start and preconditioner b ≥ 0.
    return -c / (b + root) if b > 0 else (root - b) / a
