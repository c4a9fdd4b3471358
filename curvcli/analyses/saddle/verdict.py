"""From evidence to a verdict on a point; no verdict goes beyond its evidence."""

from __future__ import annotations

from dataclasses import dataclass

from curvcli.schema.estimate import Eigenvalue
from curvcli.schema.saddle import Classification


@dataclass(frozen=True)
class Evidence:
    """What is known of a point.

    Parameters
    ----------
    stationary
        By both tests, or since ∇J = 0; None where neither can be said.
    low, high
        The extreme eigenvalues found.
    cut
        Up to here an eigenvalue counts as zero.
    certified
        Whether curvature below −cut along `low`'s vector is confirmed by float64 and by the loss.
    bounded
        Whether no curvature lies below the bound's −ε‖H‖.
    exact
        Whether every eigenvalue is known.
    null_space
        Whether some eigenvalue is surely within ±cut.
    all_below
        Whether every eigenvalue is below −cut.
    falls
        Whether the loss falls beside the point as gradient and Hessian do not allow.
    """

    stationary: bool | None
    low: Eigenvalue
    high: Eigenvalue
    cut: float
    certified: bool
    bounded: bool
    exact: bool
    null_space: bool
    all_below: bool
    falls: bool = False


def classify(evidence: Evidence) -> Classification:
    """The class of a point, `undecided` where the evidence is short of one."""
    low, high, cut = evidence.low, evidence.high, evidence.cut
    if evidence.stationary is False:
        return "not-stationary"
    if evidence.stationary is None:
        return "undecided"
    if low.value < -cut:
        if not evidence.certified:
            return "undecided"
        if high.value - high.residual > cut:
            return "saddle"
        return "local-maximum" if evidence.all_below else "undecided"
    # A Ritz value is never below λ_min: without the bound, or a residual, a positive one says nothing.
    if not evidence.bounded or evidence.falls:
        return "undecided"
    if low.value - low.residual > cut:
        return "minimum-within-tolerance"
    settled = evidence.exact or low.converged
    return "degenerate" if settled and evidence.null_space else "undecided"
