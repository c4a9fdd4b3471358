"""Points whose nature is planted: quadratics of one size share their compiled programs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from curvcli.analyses.common.context import Context
from curvcli.analyses.saddle import analysis as saddle
from curvcli.linalg.iterate import Silent
from curvcli.problem import Problem
from curvcli.schema.saddle import SaddleResult, SaddleSettings
from tests.problems import make_problem


def run(problem: Problem, monitor: Any = None, adam: Any = None, **settings: Any) -> Any:
    settings = {"dtype": "float64", "skip_checks": True, **settings}
    return saddle.run(Context(problem, monitor or Silent(), adam), SaddleSettings(**settings))


def verdict(problem: Problem, **settings: Any) -> SaddleResult:
    return run(problem, **settings).result


# Quadratics: the matrix is a frozen parameter, so that all of one size share their programs.


def no_outputs(params: dict, x: Any) -> Any:
    return jnp.zeros_like(x, params["w"].dtype)


def _form(params: dict) -> Any:
    return 0.5 * params["w"] @ (params["matrix"] @ params["w"]) + params["slope"] @ params["w"]


def _diagonal_form(params: dict) -> Any:
    return 0.5 * jnp.sum(params["matrix"] * jnp.square(params["w"]))


QUADRATIC, DIAGONAL = (
    make_problem(no_outputs, {"w": np.zeros(1)}, np.zeros((1, 1)), np.zeros((1, 1)), regulariser=form)
    for form in (_form, _diagonal_form)
)


def quadratic(matrix: np.ndarray, at: np.ndarray, slope: np.ndarray | None = None) -> Problem:
    """½wᵀAw + bᵀw at a point; by default with b = −A·at, so that the point is stationary."""
    slope = -matrix @ at if slope is None else slope
    frozen = {"matrix": jnp.asarray(matrix), "slope": jnp.asarray(slope)}
    return replace(QUADRATIC, params={"w": jnp.asarray(at)}, frozen={"params": frozen, "collections": {}})


def diagonal(values: np.ndarray, dtype: str = "float64") -> Problem:
    """½ Σ λ w² at w = 0."""
    frozen = {"params": {"matrix": jnp.asarray(values, dtype)}, "collections": {}}
    batches = replace(DIAGONAL.batches, cast=np.dtype(dtype))
    return replace(DIAGONAL, params={"w": jnp.zeros(len(values), dtype)}, frozen=frozen, batches=batches)


LARGE = {
    "minimum-within-tolerance": np.linspace(0.1, 1, 1600),
    "saddle": np.r_[-0.05, np.linspace(0.1, 1, 1599)],
    "local-maximum": -np.linspace(0.1, 1, 1600),
    "degenerate": np.r_[np.zeros(400), np.linspace(0.1, 1, 1200)],
}
