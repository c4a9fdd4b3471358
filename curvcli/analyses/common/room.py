"""How far a loss can fall: no model that predicts more than this holds."""

from __future__ import annotations

import numpy as np

from curvcli.devices import on_host
from curvcli.losses import Likelihood
from curvcli.problem import Problem, unit_weight


def room_to_fall(problem: Problem, loss: float) -> float | None:
    """J less a bound that it is never below, whatever the weights; None where no bound is known.

    Of the losses of the table the least over the outputs z given the targets; R is at least 0 where it is the squared
    norm alone. Cost: a look at the targets.

    Parameters
    ----------
    loss
        J.
    """
    row = problem.loss
    if not isinstance(row, Likelihood) or row.least is None or problem.regulariser.fn is not None:
        return None
    if row.classes and np.issubdtype(problem.batches.targets.dtype, np.integer):
        return loss
    total = 0.0
    for batch in problem.batches:
        targets, weight = (on_host(one).astype(np.float64) for one in (batch.targets, batch.weight))
        least = row.least(targets)
        weight = np.broadcast_to(unit_weight(weight, least.ndim), least.shape)
        total += float(np.sum(least[weight > 0] * weight[weight > 0]))
    return loss - total / problem.normaliser if np.isfinite(total) else None


def beyond(predicted: float, room: float | None) -> bool:
    """Whether a predicted decrease is more than the loss can fall, rounding left aside."""
    return room is not None and predicted > max(room, 0.0) * (1 + 1e-3)
