"""The point that a step starts from: J, its gradient, its quadratic model, and what is spent on all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from curvcli.analyses.common.stationarity import size_of
from curvcli.analyses.lines import directions as lines
from curvcli.curvature import along, build
from curvcli.linalg.iterate import Monitor
from curvcli.linalg.krylov.lanczos import not_finite
from curvcli.linalg.meter import Meter
from curvcli.linalg.operator import LinearOperator
from curvcli.problem import Problem
from curvcli.schema.matrices import MATRICES
from curvcli.schema.step import Passes, StepSettings

FORWARD, GRADIENT, GAUSS_NEWTON, HESSIAN, FACTORS = 1, 3, 5, 9, 4
"""Matrix products that a dense layer takes: one forward; two more for the cotangents of inputs and weights; of a
linearised network two forward and two back, after one to linearise it; forward over reverse, two for each of the
gradient's three, and these; for factors the gradients of the outputs alone, and two products for A and S."""


@dataclass
class Tally:
    """What was spent: products are in the meter."""

    meter: Meter
    settings: StepSettings
    forward: int = 0
    gradient: int = 0
    factors: int = 0
    before: int = 0  # products that were no part of the step

    @property
    def passes(self) -> Passes:
        """So far, as the report has it."""
        products = self.meter.products - self.before
        product = HESSIAN if MATRICES[self.settings.model].second_derivatives else GAUSS_NEWTON
        matmuls = FORWARD * self.forward + GRADIENT * self.gradient + product * products + FACTORS * self.factors
        return Passes(
            forward=self.forward, gradient=self.gradient, products=products, factors=self.factors,
            in_gradients=matmuls / GRADIENT,
        )  # fmt: skip


@dataclass
class Ground:
    """w, and what is known there; vectors are float64 on the host.

    Parameters
    ----------
    gradient
        ∇J [D].
    origin
        J(w), summed as `losses` are.
    noise
        Differences of J up to here are rounding.
    model
        The exact matrix in Q, without λ.
    """

    problem: Problem
    settings: StepSettings
    monitor: Monitor
    tally: Tally
    gradient: np.ndarray
    origin: float
    noise: float
    model: LinearOperator

    @classmethod
    def at(
        cls,
        problem: Problem,
        settings: StepSettings,
        monitor: Monitor,
        tally: Tally,
        gradient: Any,
        noise: float | None = None,
    ) -> Ground:
        """The ground at a problem's weights; the noise is measured where none is given, by six forward passes more."""
        nothing = jnp.zeros((0, problem.dim), problem.dtype)
        points = lines.reference_points(problem, 0)[: None if noise is None else 1]
        losses = along.losses(problem, lines.with_nudge(problem, nothing, settings.seed), points)
        assert losses is not None
        tally.forward, tally.meter.data_passes = tally.forward + len(points), tally.meter.data_passes + 1
        noise = lines.rounding(problem, losses) if noise is None else noise
        model = tally.meter.count(built(problem, settings, settings.model))
        slope = np.asarray(gradient, np.float64)
        return cls(problem, settings, monitor, tally, slope, float(losses[0]), noise, model)

    @property
    def eps(self) -> float:
        """Of the arithmetic of products."""
        return float(np.finfo(self.problem.dtype).eps)

    @property
    def slope(self) -> float:
        """‖∇J‖."""
        return float(np.linalg.norm(self.gradient))

    @property
    def size(self) -> float:
        """The length of w that counts."""
        return size_of(self.problem)

    def images(self, rows: np.ndarray, operator: LinearOperator | None = None, *, judge: bool = False) -> np.ndarray:
        """Products of the model, or another matrix, with rows [k, D]; those to judge by are in float64.

        Rows are scaled by powers of two on their way: a residual is as small as the gradient, and its products with a
        matrix of that size would be below the smallest number of float32.

        Raises
        ------
        NumericsError
            A product is not finite.
        """
        operator = operator or self.model
        scale = np.exp2(np.frexp(np.max(np.abs(rows), axis=1, keepdims=True, initial=0.0))[1])
        if judge:
            found = operator.images(rows / scale)
        else:
            found = np.asarray(operator.matmat(jnp.asarray(rows / scale, self.problem.dtype)), np.float64)
        if not np.all(np.isfinite(found)):
            raise not_finite(operator.dtype)
        return scale * found

    def product(self, operator: LinearOperator, damping: float) -> Callable[[np.ndarray], np.ndarray]:
        """v ↦ (A + λI) v for vectors [D]."""
        return lambda v: self.images(v[None], operator)[0] + damping * v

    def losses(self, rows: np.ndarray, points: Any) -> np.ndarray:
        """J(w + points @ rows): [p], for rows [k, D] and points [p, k]."""
        found = along.losses(self.problem, jnp.asarray(rows, self.problem.dtype), np.asarray(points, np.float64))
        assert found is not None
        self.tally.forward += len(found)
        self.tally.meter.data_passes += 1
        return found


def built(problem: Problem, settings: StepSettings, name: str) -> LinearOperator:
    """A matrix by name, without λ."""
    return build(problem, name, with_regulariser=settings.regulariser, seed=settings.seed)
