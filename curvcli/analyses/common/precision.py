"""What a problem computes, read off its equations: the types of its arithmetic, a digest of its code."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from curvcli.curvature.jaxprs import heads
from curvcli.curvature.jaxprs.work import abstract_batch
from curvcli.curvature.products import sums
from curvcli.devices import on_host
from curvcli.jax_internals import equations, plain_where_unknown
from curvcli.problem import Batch, Params, Problem, in_float64


def network_jaxpr(problem: Problem) -> Any:
    """The network's equations for a batch."""
    batch = next(iter(problem.batches))
    return jax.make_jaxpr(problem.predict)(problem.params, problem.frozen, batch.inputs).jaxpr


def code_digest(problem: Problem) -> str:
    """A digest of what model, loss and regulariser compute, from their traced equations and constants."""
    closed = _traced(problem)
    text = re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr))  # addresses of functions in this process
    digest = hashlib.sha256(text.encode())
    for constant in closed.consts:
        digest.update(np.ascontiguousarray(constant).data)
    return digest.hexdigest()


def _traced(problem: Problem) -> Any:
    functions = problem.predict, problem.loss

    def objective(params: Params, frozen: dict, batch: Batch) -> Any:
        fn, nest, squared, l2, *rest = sums.regulariser_arguments(replace(problem, frozen=frozen), params)
        regulariser = sums.regulariser_function(fn, nest, squared, l2, *rest)
        return heads.batch_loss(functions, params, frozen, batch) + regulariser(params)

    # Shapes alone, and of one example: where arrays lie, and how many are in a batch, is no part of the code.
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (problem.params, problem.frozen))
    return jax.make_jaxpr(objective)(*shapes, abstract_batch(problem, 1))


def objective_jaxpr(problem: Problem) -> Any:
    """The equations of network, loss and regulariser for a batch."""
    return _traced(problem).jaxpr


@plain_where_unknown(lambda problem: float(jnp.finfo(problem.dtype).eps))
def precision(problem: Problem) -> float:
    """The largest eps among the floating dtypes that J is computed in: a model, loss or regulariser may set its own."""
    dtypes = {getattr(v.aval, "dtype", None) for one in equations(objective_jaxpr(problem)) for v in one.outvars}
    return max(float(jnp.finfo(d).eps) for d in dtypes | {np.dtype("float64")} if d and jnp.issubdtype(d, jnp.floating))


def coarsest(problem: Problem) -> float:
    """The eps of the coarsest type that J is computed in where float64 is asked for: that of float64, or larger."""
    with jax.enable_x64(True):
        return precision(in_float64(problem, 1))


def weights_norm(problem: Problem) -> float:
    """‖w‖ of the differentiated parameters."""
    return float(np.sqrt(sum(np.sum(np.square(leaf.astype(np.float64))) for leaf in on_host(problem.params).values())))
