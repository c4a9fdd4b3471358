"""What gradient descent, and Adam, do at this point: read off the eigenvalues.

On the quadratic model gradient descent with learning rate η multiplies the component along an eigenvector by 1 − ηλ at
every step; it is stable while η < 2/λ_max. Adam with a frozen preconditioner P is gradient descent with momentum on
P^(-1/2) H P^(-1/2), stable while λ_max of that is below (2 + 2β₁)/((1 − β₁)η).

Source: Grosse, *Neural Net Training Dynamics*, chapter 2, section 4.1; Cohen et al. (2022), *Adaptive gradient methods
at the edge of stability*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.analyses.spectrum import eigenvalue, noise, tolerance
from curvcli.compiling import jit
from curvcli.curvature.flatten import Layout
from curvcli.devices import on_host
from curvcli.linalg.iterate import Monitor, iterate
from curvcli.linalg.krylov import eigen
from curvcli.linalg.krylov import spaces as krylov
from curvcli.linalg.operator import LinearOperator
from curvcli.schema.estimate import Eigenvalue
from curvcli.schema.saddle import Adam, GradientDescent, LeftOut, Mode, SaddleSettings
from curvcli.streams import Stream

SHOWN = 5
"""Eigenvectors at each end whose rates are given."""

CAPACITY = 96
PRODUCTS = 400
"""Rows of the basis, and products, for the preconditioned sharpness."""

MOST_NAMED = 4
"""Arrays that a warning names."""


@dataclass(frozen=True)
class AdamState:
    """Adam's preconditioner, and what the checkpoint tells beside it.

    Parameters
    ----------
    preconditioner
        The diagonal P by parameter path, positive: √ν̂ + ε with both bias corrections.
    count
        Steps that the state has seen.
    learning_rate
        Where the checkpoint has it.
    beta1
        β₁.
    unseen
        Entries by parameter path that had no gradient beyond rounding in training: P there says nothing.
    """

    preconditioner: Mapping[str, np.ndarray]
    count: int
    learning_rate: float | None = None
    beta1: float = 0.9
    unseen: Mapping[str, np.ndarray] = field(default_factory=dict)


def stability_threshold(learning_rate: float, beta1: float = 0.9) -> float:
    """(2 + 2β₁)/((1 − β₁)η): Adam with P held fixed is stable on a quadratic while λ_max(P⁻¹H) is below it.

    >>> round(stability_threshold(0.5), 9)
    76.0
    """
    return (2 + 2 * beta1) / ((1 - beta1) * learning_rate)


def gradient_descent(
    values: np.ndarray, residuals: np.ndarray, top: Eigenvalue, learning_rate: float | None
) -> GradientDescent:
    """Rates along the eigenpairs given; `top` is λ_max."""
    order = np.argsort(-values, kind="stable")
    modes = [_mode(float(values[i]), float(residuals[i]), learning_rate) for i in order]
    stable = None if learning_rate is None else below(top, 2 / learning_rate)
    return GradientDescent(learning_rate=learning_rate, stable=stable, modes=modes)


def below(top: Eigenvalue, threshold: float) -> bool | None:
    """Whether λ_max is below a threshold; None where it is not known well enough, or not positive.

    What was found is never above λ_max, so that it alone can show instability; stability takes convergence.
    """
    if top.value >= threshold:
        return False
    return True if top.converged and top.value > 0 and top.interval[1] < threshold else None


def _mode(value: float, residual: float, learning_rate: float | None) -> Mode:
    if learning_rate is None:
        return Mode(eigenvalue=value, residual=residual, rate=None, steps_to_halve=None)
    moved, halved = learning_rate * value, None
    rate = abs(1 - moved)
    if 0 < moved < 2:
        # log1p keeps the digits of the slow ones, whose factor is close to 1.
        exact = math.log1p(-moved) if moved < 1 else math.log(rate) if rate else -np.inf
        halved = math.log(2) / -exact
    return Mode(eigenvalue=value, residual=residual, rate=rate, steps_to_halve=halved)


def ends(values: np.ndarray, residuals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `SHOWN` pairs at either end of ascending values."""
    count = len(values)
    chosen = sorted({*range(min(SHOWN, count)), *range(max(count - SHOWN, 0), count)})
    return values[chosen], residuals[chosen]


def adam_sharpness(
    layout: Layout,
    operator: LinearOperator,
    state: AdamState,
    settings: SaddleSettings,
    monitor: Monitor,
    warnings: list[str],
) -> Adam | None:
    """λ_max of P^(-1/2) H P^(-1/2) and Adam's threshold; None where P is known of no parameter.

    Parameters that training does not see are held fixed: λ_max is that of the block of the others. Cost: some 20 to 60
    products, at most `PRODUCTS`; twice that where there are such parameters.
    """
    scale = np.concatenate(
        [1 / np.sqrt(np.asarray(state.preconditioner[name], np.float64).reshape(-1)) for name in layout.names]
    )
    left_out = [
        LeftOut(name=name, count=int(mask.sum()), size=mask.size)
        for name in layout.names
        if (mask := np.asarray(state.unseen.get(name, False))).any()
    ]
    of_all = None
    if left_out:
        of_all = _largest(operator, scale, settings, monitor)
        shapes = zip(layout.names, layout.shapes, strict=True)
        masks = [np.broadcast_to(state.unseen.get(name, False), shape).reshape(-1) for name, shape in shapes]
        scale = np.where(np.concatenate(masks), 0.0, scale)
    if not scale.any():
        warnings.append("no parameter had a gradient in training beyond rounding: Adam's preconditioner is not known")
        return None
    top = _largest(operator, scale, settings, monitor)
    if not top.converged:
        warnings.append(f"the preconditioned λ_max has not converged: residual {top.residual:.2g}")
    if of_all is not None and abs(of_all.value - top.value) > of_all.residual + top.residual:
        count, told = sum(one.count for one in left_out), ", ".join(one.name for one in left_out[:MOST_NAMED])
        warnings.append(
            f"{count} parameters ({told}{', …' if len(left_out) > MOST_NAMED else ''}) had no gradient beyond rounding "
            "in training, as a bias before BatchNorm has none: Adam's preconditioner there is not known, and they are "
            f"left out of its λ_max, which is {of_all.value:.3g} with them"
        )
    rate = settings.learning_rate or state.learning_rate or None  # a warm-up may store 0
    threshold = None if rate is None else stability_threshold(rate, state.beta1)
    return Adam(
        count=state.count, lambda_max=top, learning_rate=rate, threshold=threshold,
        stable=None if threshold is None else below(top, threshold), left_out=left_out, lambda_max_of_all=of_all,
    )  # fmt: skip


def _largest(operator: LinearOperator, scale: np.ndarray, settings: SaddleSettings, monitor: Monitor) -> Eigenvalue:
    """λ_max of D A D, D the diagonal matrix of `scale` [dim]."""
    roots = jnp.asarray(scale, operator.dtype)
    conditioned = operator.with_products(
        lambda vectors: _scaled(operator.matmat(_scaled(vectors, roots)), roots),
        precise=_scaled_on_host(operator.precise, scale),
    )
    key = Stream.PRECONDITIONED_STARTS.key(settings.seed)
    block = min(2, operator.dim)
    algorithm = eigen.ThickRestart(
        0, 1, tol=0.5 * tolerance(settings), capacity=max(min(CAPACITY, operator.dim), 8), max_products=PRODUCTS,
        start=krylov.from_random(key, block, operator.dim, operator.dtype, operator.mesh), key=key,
    )  # fmt: skip
    found = algorithm.result(iterate(algorithm, conditioned, key, monitor=monitor, stage="Adam's sharpness"))
    values, residuals = eigen.true_residuals(conditioned, found.vectors)
    value = float(values[0])
    residual = max(float(residuals[0]), 0.5 * noise(settings) * abs(value))
    return eigenvalue(value, residual, residual <= tolerance(settings) * abs(value), None)


def _scaled_on_host(precise: Any, scale: np.ndarray) -> Any:
    """The same scaling of products in float64."""
    return None if precise is None else lambda vectors: scale * precise(scale * on_host(vectors).astype(np.float64))


@jit
def _scaled(vectors: Array, scale: Array) -> Array:
    return vectors * scale[None]


def ritz_pairs(low: Any, high: Any) -> tuple[np.ndarray, np.ndarray]:
    """Ritz values and residuals of two Krylov spaces, the lower pairs of one and the upper ones of the other."""
    bottom, top = krylov.ritz(low), krylov.ritz(high)
    size = min(len(bottom.values), len(top.values))
    low_count = min(SHOWN, -(-size // 2))
    high_count = min(SHOWN, size - low_count)
    high_ones = np.arange(len(top.values) - high_count, len(top.values))
    take = bottom.take(np.arange(low_count)), top.take(high_ones)
    values, residuals = (np.concatenate([getattr(one, name) for one in take]) for name in ("values", "residuals"))
    return values, residuals
