"""A problem in float64, whatever the arithmetic of the analysis: for what hangs on the last digits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from curvcli.curvature.work import equations
from curvcli.problem import Batches, Problem


def in_float64(problem: Problem, examples: int | None = None) -> Problem:
    """The problem with everything that floats in float64; to be used under `jax.enable_x64(True)`.

    Parameters
    ----------
    examples
        Only the first ones, in one batch.
    """

    def cast(leaf: Any) -> Any:
        return jnp.asarray(leaf, "float64") if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    params, frozen = jax.tree.map(cast, (problem.params, problem.frozen))
    batches, size = problem.batches, problem.batches.batch_size
    inputs, targets, weight = batches.inputs, batches.targets, batches.weight
    if examples is not None:
        size = min(examples, batches.num_examples)
        inputs, targets, weight = jax.tree.map(lambda leaf: leaf[:size], (inputs, targets, weight))
    weight = np.asarray(weight, "float64")
    return replace(
        problem, params=params, frozen=frozen, batches=Batches(inputs, targets, weight, size, np.dtype("float64"))
    )


def network_jaxpr(problem: Problem) -> Any:
    """The network's equations for a batch."""
    batch = next(iter(problem.batches))
    return jax.make_jaxpr(problem.predict)(problem.params, problem.frozen, batch.inputs).jaxpr


def precision(problem: Problem) -> float:
    """The largest eps among the floating dtypes that the network computes in: a model may set its own."""
    dtypes = {getattr(v.aval, "dtype", None) for one in equations(network_jaxpr(problem)) for v in one.outvars}
    return max(float(jnp.finfo(d).eps) for d in dtypes | {np.dtype("float64")} if d and jnp.issubdtype(d, jnp.floating))
