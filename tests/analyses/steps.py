"""Problems whose steps are known in closed form, and how `curv step` is run on them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from curvcli.analyses.common.context import Context
from curvcli.analyses.step import analysis as step
from curvcli.analyses.step.analysis import Inputs
from curvcli.curvature.flatten import Layout
from curvcli.linalg.iterate import Silent
from curvcli.problem import Problem
from curvcli.schema.step import StepSettings
from tests.problems import make_problem

METHODS = ("newton", "gauss-newton", "natural", "kfac", "ekfac", "hessian-free", "bfgs", "covariance")


def answer(problem: Problem, given: Inputs | None = None, **settings: Any) -> Any:
    """The answer with the step among its arrays."""
    chosen = StepSettings(**{"dtype": "float64", "skip_checks": True, "arrays": "x.npz", **settings})
    return step.run(Context(problem, Silent(), given or Inputs()), chosen)


def delta(problem: Problem, found: Any) -> np.ndarray:
    """The step of an answer as a vector."""
    return np.concatenate([np.ravel(found.arrays[name]) for name in Layout.of(problem.params).names])


def linear(count: int = 20, dim: int = 4, outputs: int = 2, l2: float = 0.0) -> Problem:
    """Linear regression: J is quadratic, G = H, and one layer is exact in its Kronecker factors."""
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(count, dim)) * np.geomspace(0.3, 2, dim)
    params = {"a/kernel": rng.normal(size=(dim, outputs)), "a/bias": rng.normal(size=outputs)}
    return make_problem(
        lambda p, x: x @ p["a/kernel"] + p["a/bias"][None], params, inputs, rng.normal(size=(count, outputs)), l2=l2
    )


def decay() -> Problem:
    """y = u₀ exp(−u₁ t) + u₂, with noise: three parameters, a minimum that is not degenerate, weights away from it."""
    rng, t = np.random.default_rng(0), np.linspace(0, 3, 40)[:, None]
    targets = 2 * np.exp(-1.3 * t) + 0.5 + 0.05 * rng.normal(size=t.shape)

    def predict(p: dict, x: Any) -> Any:
        u = p["A"] @ p["w"] + p["b"]
        return u[0] * jnp.exp(-u[1] * x) + u[2]

    start = {"w": np.array([1.6, 1.0, 0.6])}
    return make_problem(predict, {**start, "A": np.eye(3), "b": np.zeros(3)}, t, targets, batch_size=40)
