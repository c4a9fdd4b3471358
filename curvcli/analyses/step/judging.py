"""Is a step what its quadratic model says? Q, J, their ratio, and what the Levenberg–Marquardt rule makes of it.

    Q(δ) = J + ∇Jᵀδ + ½ δᵀCδ,   ρ = (J(w) − J(w + δ)) / (Q(0) − Q(δ))

C is the exact matrix of the model, whatever stands for its inverse in the step. Source: Grosse, *Neural Net Training
Dynamics*, chapter 4; Martens and Grosse (2015), sections 6 and 7.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from curvcli.analyses.step.proposals import Proposal, Propose
from curvcli.analyses.step.starting_point import Ground
from curvcli.linalg.iterate import finished
from curvcli.linalg.solvers.subspace import least_over
from curvcli.schema.step import ITERATIVE, Judged, Momentum, Solve

LOW, HIGH, GROW = 0.25, 0.75, 1.5
"""Of ρ: below the first λ grows by the factor, above the second it shrinks by it."""

TRIALS = 30

RESOLVED = 0.1
"""A predicted decrease of which rounding of J is more than this part gives no ratio."""


class Judgement(NamedTuple):
    """A step, and what became of it."""

    delta: np.ndarray  # [D]
    after: float  # J(w + δ), perhaps not finite
    judged: Judged
    solve: Solve
    proposal: Proposal
    step_size: float | None
    momentum: Momentum | None
    rescaled: bool

    @property
    def grade(self) -> float | None:
        """ρ for the rule: −∞ where J is not finite, None where it says nothing."""
        return self.judged.reduction_ratio if np.isfinite(self.after) else -np.inf


def judge(here: Ground, proposal: Proposal, damping: float, previous: np.ndarray | None) -> Judgement:
    """The proposal rescaled, or joined with the step before, and held against J.

    Parameters
    ----------
    previous
        The step before [D], where the plane of both is searched.

    Notes
    -----
    Cost: a product for each of r and the step before, in one block; a forward pass.
    """
    settings, gradient = here.settings, here.gradient
    rows = proposal.r[None] if previous is None else np.stack([proposal.r, previous])
    images = here.images(rows, judge=True)
    # λ of the covariance is measured in squares of gradients: it is no curvature of J.
    own = 0.0 if settings.method == "covariance" else damping
    damped = images + own * rows
    alone = least_over(rows[:1], damped[:1], gradient, here.eps)
    alpha = None if alone is None else float(alone[0])
    downwards = proposal.negative is not None and proposal.negative.used
    momentum, rescaled = None, False
    chosen = np.zeros(len(rows))
    chosen[0] = 1.0
    if previous is not None and not downwards:
        both = least_over(rows, damped, gradient, here.eps)
        if both is not None:
            chosen, momentum = both, Momentum(step=float(both[0]), previous=float(both[1]))
    if momentum is None and settings.rescale and not proposal.least and not downwards and alpha is not None:
        chosen[0], rescaled = alpha, True
    delta, image = chosen @ rows, chosen @ images
    if settings.radius is not None and (length := float(np.linalg.norm(delta))) > settings.radius:
        delta, image = delta * (settings.radius / length), image * (settings.radius / length)
    after = float(here.losses(delta[None], [[1.0]])[0])
    judged = _compared(here, delta, image, damping, own, after)
    solve = proposal.solve
    if settings.method in ITERATIVE and settings.method != "covariance":
        residual = float(np.linalg.norm(damped[0] + gradient)) / (here.slope or 1.0)
        solve = solve.model_copy(update={"residual": residual})
        if solve.status == "converged" and residual > 2 * settings.tol:
            solve = solve.model_copy(update={"status": "not-converged"})
    return Judgement(delta, after, judged, solve, proposal, alpha, momentum, rescaled)


def _compared(here: Ground, delta: np.ndarray, image: np.ndarray, damping: float, own: float, after: float) -> Judged:
    """Predicted and actual decreases, and their ratios where these say anything."""
    norm = float(np.linalg.norm(delta))
    predicted = -float(here.gradient @ delta + 0.5 * delta @ image)
    predicted_damped = predicted - 0.5 * own * norm**2
    actual = here.origin - after if np.isfinite(after) else None
    if actual is None:
        reason = "J is not finite at w + δ"
    elif not norm:
        reason = "the step is zero"
    elif predicted <= 0:
        reason = "Q does not fall along the step"
    elif here.noise > RESOLVED * predicted:
        reason = f"Q falls by {predicted:.2g}, and differences of J below {here.noise:.2g} are rounding"
    else:
        reason = None
    ratio = None if actual is None or reason is not None else actual / predicted
    damped_counts = predicted_damped > 0 and here.noise <= RESOLVED * predicted_damped
    return Judged(
        damping=damping, step_norm=norm,
        predicted_decrease=predicted, predicted_decrease_damped=predicted_damped, actual_decrease=actual,
        reduction_ratio=ratio, ratio_reason=reason,
        reduction_ratio_damped=ratio * predicted / predicted_damped if ratio is not None and damped_counts else None,
    )  # fmt: skip


def next_damping(damping: float, grade: float | None, start: float) -> float:
    """The rule; `start` stands for λ = 0 where it has to grow."""
    if grade is not None and grade < LOW:
        return GROW * (damping or start)
    return damping / GROW if grade is not None and grade > HIGH else damping


def by_rule(
    here: Ground, propose: Propose, previous: np.ndarray | None, start: float
) -> tuple[Judgement, list[Judged]]:
    """The step of the λ at which J is lowest of those that the rule tries, and all that were tried.

    λ shrinks while ρ > 3/4 and J falls from trial to trial, or grows while ρ < 1/4; at most 30 trials.
    """
    best, trials, damping, way = None, [], start, 0
    while True:
        found = judge(here, propose(damping), damping, previous)
        trials.append(found.judged)
        after = found.after if np.isfinite(found.after) else np.inf
        lower = best is None or after < best.after or not np.isfinite(best.after)
        best = found if best is None or lower else best
        following = next_damping(damping, found.grade, start)
        turn = int(np.sign(following - damping))
        over = not turn or turn == -way or (turn < 0 and not lower) or len(trials) == TRIALS
        if finished(here.monitor, "damping", len(trials), TRIALS, "trials", over=over):
            return best, trials
        damping, way = following, turn
