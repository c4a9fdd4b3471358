"""Does a first-order response mean anything at these weights?

The formulas hold at a minimum: the gradient is zero and the Hessian positive. Elsewhere they are those of the damped
quadratic model around the weights, which is a statement about the model and not about training.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import Array

from curvcli.analyses.common.dense import DENSE_BLOCK, written_out
from curvcli.analyses.common.precision import weights_norm
from curvcli.analyses.common.room import beyond, room_to_fall
from curvcli.analyses.common.stationarity import DECREMENT
from curvcli.analyses.influence.context import Study
from curvcli.analyses.influence.solves import Newton
from curvcli.analyses.influence.solving import known, scouted, undamped
from curvcli.analyses.spectrum import noise
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.reductions import norm
from curvcli.schema.influence import Validity
from curvcli.schema.matrices import MATRICES

TELLING = 0.05
"""A difference between C and the Hessian that is worth a word."""


def validity(study: Study, newton: Newton) -> Validity:
    """The verdict, in words too.

    Cost: two products, and D where C was written out, else a short Lanczos process of the Hessian; none where C is it.
    """
    settings = study.settings
    slope, step = np.asarray(study.gradient, np.float64), np.asarray(newton.step, np.float64)
    hessian = None
    if not MATRICES[settings.matrix].own_hessian:
        hessian = study.meter.count(undamped(study.problem, settings, "hessian"))
    low, norm = _lowest(study, hessian)
    decrement = 0.5 * float(slope @ step)
    distance = float(np.linalg.norm(step)) / max(weights_norm(study.problem), 1e-30)
    known_decrement = (
        newton.record.status in ("converged", "least-squares") and np.isfinite(decrement) and decrement >= 0
    )
    high = DECREMENT * abs(study.loss)
    negative = low.value < -max(noise(settings) * norm, low.residual if low.value + low.residual >= 0 else 0.0)
    near = decrement <= high or not slope.any()
    room = room_to_fall(study.problem, study.loss)
    impossible = known_decrement and beyond(decrement, room)
    if not known_decrement and slope.any():
        verdict, words = "unknown", "how far the weights are from a minimum is not known: that solve has not converged"
    elif impossible:
        verdict = "not-at-minimum"
        words = (
            f"the quadratic model does not hold: it has a Newton step lower the loss by {decrement:.2g}, which can "
            f"fall by {room:.3g} at most; scores are those of that model, and say nothing of a network trained again"
        )
    elif not near:
        verdict = "not-at-minimum"
        words = (
            f"no minimum: a Newton step would lower the loss by {decrement:.2g} of {study.loss:.3g} and move the "
            f"weights by {distance:.1%}; scores describe the damped quadratic model here, not a network trained again"
        )
    elif negative:
        verdict = "negative-curvature"
        words = (
            f"the gradient is small, but the Hessian has an eigenvalue of {low.value:.2g} ({-low.value / norm:.1e} of "
            "its norm): no strict minimum; with --matrix ggn the scores leave that curvature out"
        )
    else:
        verdict = "minimum"
        words = (
            f"a minimum as far as seen: a Newton step would lower the loss by {decrement:.2g}, and no negative "
            "curvature was found"
        )
        gap = _gap(study, hessian, newton.step)
        if gap > TELLING:
            words += (
                f"; the {settings.matrix} is {gap:.0%} off the Hessian along that step: --matrix hessian gives the "
                "response of training itself"
            )
    return Validity(
        verdict=verdict, words=words, gradient_norm=float(np.linalg.norm(slope)), loss_above_least=room,
        model_holds=None if room is None or not known_decrement else not impossible,
        decrement=decrement if known_decrement else None, distance=distance if known_decrement else None,
        lambda_min=low,
    )  # fmt: skip


def caution(valid: Validity) -> str | None:
    """A few words to stand beside every ranking; None at a minimum."""
    if valid.model_holds is False:
        return "the quadratic model does not hold here: no prediction of retraining"
    return {
        "minimum": None,
        "not-at-minimum": "the weights are at no minimum: scores of the damped model, not of retraining",
        "negative-curvature": "the Hessian has negative curvature here: no strict minimum",
        "unknown": "how far the weights are from a minimum is not known",
    }[valid.verdict]


def _gap(study: Study, hessian: LinearOperator | None, newton: Array) -> float:
    """‖(C − H) s‖ / ‖(C + λI) s‖ along the Newton step, which like all solutions leans to small curvature.

    Cost: a product with each.
    """
    if hessian is None or not np.any(newton):
        return 0.0
    step = jnp.asarray(newton, hessian.dtype)[None]
    image = study.system.matrix.matmat(step)
    whole = float(norm(image + study.system.damping * step))
    return float(norm(hessian.matmat(step) - image)) / max(whole, 1e-300)


def _lowest(study: Study, hessian: LinearOperator | None) -> tuple[Any, float]:
    """The smallest eigenvalue found of the Hessian, without λ, and its norm."""
    settings, system = study.settings, study.system
    if hessian is None:
        choice = system.choice
        norm = max(abs(choice.lambda_max), abs(choice.lambda_min))
        return system.low, norm
    if system.values is not None:
        values = scipy.linalg.eigvalsh(written_out(hessian, min(DENSE_BLOCK, hessian.dim), study.monitor))
        norm = float(np.abs(values).max())
        return known(float(values[0]), norm, settings), norm
    extent = scouted(hessian, settings, study.monitor, processes=1)  # its mean is not asked for
    return extent.low, max(abs(extent.high), abs(extent.low.value))
