"""Is the gradient zero, for these weights and this curvature?

Two tests, free of the scales of J and w: ‖∇J‖ ≤ τ‖H‖·(size of w), and a decrement ½ ∇Jᵀ(|H| + τ‖H‖I)⁻¹∇J, by which J
lies above the place where its quadratic model is flat, that is small against J.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from curvcli.analyses.common.precision import weights_norm
from curvcli.analyses.common.room import beyond
from curvcli.linalg.iterate import Monitor, iterate
from curvcli.linalg.krylov.gauss import SettledForm
from curvcli.linalg.operator import LinearOperator
from curvcli.problem import Problem
from curvcli.schema.saddle import SaddleSettings, Stationarity

WEIGHT_FLOOR = 0.01
"""The size of w is at least this times √D, so that w = 0 has one too."""

DECREMENT = 1e-3
"""Share of |J| that the decrement of a stationary point may have."""

STEPS = 200


class Decrement(NamedTuple):
    """½ ∇Jᵀ(|H| + τ‖H‖I)⁻¹∇J."""

    value: float
    settled: bool  # whether it is known, not merely begun


def size_of(problem: Problem) -> float:
    """The length of w that counts."""
    return max(weights_norm(problem), WEIGHT_FLOOR * problem.dim**0.5)


def exact_decrement(values: np.ndarray, along: np.ndarray, shift: float) -> Decrement:
    """From all eigenvalues [D] and the gradient's coefficients [D]; `shift` is τ‖H‖."""
    if not shift or not along.any():
        return Decrement(0.0, settled=True)
    return Decrement(0.5 * float(np.sum(np.square(along) / (np.abs(values) + shift))), settled=True)


def sampled_decrement(operator: LinearOperator, gradient: np.ndarray, shift: float, monitor: Monitor) -> Decrement:
    """From the Lanczos process that begins at the gradient [D]. Cost: some 40 to 100 products, at most `STEPS`."""
    size = float(np.linalg.norm(gradient))
    if not size or not shift:
        return Decrement(0.0, settled=True)
    start = jnp.asarray(gradient / size, operator.dtype)[None]
    form = SettledForm(start, min(STEPS, operator.dim), f=lambda x: 1 / (np.abs(x) + shift))
    state = iterate(form, operator, None, monitor=monitor, stage="decrement")
    return Decrement(0.5 * size**2 * form.form(state), form.settled(state))


def tested(
    settings: SaddleSettings, loss: float, gradient: np.ndarray, decrement: Decrement, norm: float, weight_size: float,
    room: float | None,
) -> Stationarity:  # fmt: skip
    """Both figures beside what they are held against; `norm` is ‖H‖, `room` how far the loss can fall."""
    tau, scale, size = settings.stationary_tol, norm * weight_size, float(np.linalg.norm(gradient))
    return Stationarity(
        gradient=size / scale if scale else float(size > 0), gradient_tolerance=tau, weight_size=weight_size,
        decrement=decrement.value, decrement_settled=decrement.settled, loss_above_least=room,
        model_holds=None if room is None else not beyond(decrement.value, room),
        decrement_tolerance=max(DECREMENT * abs(loss), tau**2 * scale * weight_size),
    )  # fmt: skip


def is_stationary(test: Stationarity, gradient: np.ndarray, norm: float, *, norm_from_above: bool) -> bool | None:
    """Both tests passed, one failed, or neither can be said: None.

    A norm that may be too small makes both tests stricter: they may fail for it, but not pass.
    """
    if not gradient.any():
        return True
    decrement = test.decrement
    if not test.decrement_settled:  # no more than if H were zero along the whole gradient
        shift = test.gradient_tolerance * norm
        decrement = 0.5 * float(gradient @ gradient) / shift if shift else np.inf
    if test.gradient <= test.gradient_tolerance and decrement <= test.decrement_tolerance:
        return True
    failed = test.gradient > test.gradient_tolerance or test.decrement_settled
    return False if failed and norm_from_above else None
