"""How far a loss can fall: no model that predicts more than this holds."""

from __future__ import annotations

import numpy as np
import scipy.special

from curvcli.devices import on_host
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
    if problem.loss.name not in LEAST or not problem.loss.known or problem.regulariser.fn is not None:
        return None
    if problem.loss.integer_targets and np.issubdtype(problem.batches.targets.dtype, np.integer):
        return loss
    total = 0.0
    for batch in problem.batches:
        targets, weight = (on_host(one).astype(np.float64) for one in (batch.targets, batch.weight))
        least = LEAST[problem.loss.name](targets)
        weight = np.broadcast_to(unit_weight(weight, least.ndim), least.shape)
        total += float(np.sum(least[weight > 0] * weight[weight > 0]))
    return loss - total / problem.normaliser if np.isfinite(total) else None


def _softmax(t: np.ndarray) -> np.ndarray:
    """−Σ t log(t/s), s = Σ t: at outputs log t. Without bound where one is negative."""
    sums = t.sum(axis=-1, keepdims=True)
    return np.where(np.all(t >= 0, axis=-1), np.sum(-scipy.special.rel_entr(np.maximum(t, 0), sums), axis=-1), -np.inf)


def _sigmoid(t: np.ndarray) -> np.ndarray:
    inside = np.all((t >= 0) & (t <= 1), axis=-1)
    p = np.clip(t, 0, 1)
    return np.where(inside, np.sum(scipy.special.entr(p) + scipy.special.entr(1 - p), axis=-1), -np.inf)


def _poisson(t: np.ndarray) -> np.ndarray:
    return np.where(np.all(t >= 0, axis=-1), np.sum(t + scipy.special.entr(np.maximum(t, 0)), axis=-1), -np.inf)


LEAST = {
    "squared_error": lambda t: np.zeros(t.shape[:-1]),
    "softmax_cross_entropy": _softmax,
    "sigmoid_cross_entropy": _sigmoid,
    "poisson": _poisson,
}
"""By loss: the least of each unit over its outputs, from targets [b, ..., C]: [b, ...]; −∞ where there is none."""


def beyond(predicted: float, room: float | None) -> bool:
    """Whether a predicted decrease is more than the loss can fall, rounding left aside."""
    return room is not None and predicted > max(room, 0.0) * (1 + 1e-3)
