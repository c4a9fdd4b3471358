"""Does the likelihood that a user's loss declares have the loss's own Hessian in the outputs?

K-FAC, E-KFAC and the diagonal are made from the Hessian of the likelihood, and stand for the Gauss-Newton matrix of the
loss. A loss with class weights, a temperature or a focal term has another one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.compiling import jit
from curvcli.curvature.products import outputs, sums
from curvcli.curvature.products.linear_map import Functions
from curvcli.errors import SpecError
from curvcli.problem import Batch, Params, Problem

TOLERANCE = 1e-3
"""Relative difference of products with both Hessians up to which they are taken for the same."""

ROUNDING = 100
"""Of eps: rounding of the user's own derivatives, relative to the tangents; probabilities lose as much near 0 and 1."""


def hessian_difference(problem: Problem) -> float:
    """‖(H − H') v‖ / ‖H' v‖ over all outputs, H of the loss, H' of its likelihood, v normal; 0 where that is rounding.

    Cost: a forward pass over the data. Nothing is computed for a loss of the table, or one without a likelihood.
    """
    if problem.loss.known or problem.loss.family is None:
        return 0.0
    functions, total = sums.functions(problem), np.zeros(3)
    for batch in sums.resident(problem.batches):
        total += np.asarray(_batch_squares(functions, problem.params, problem.frozen, batch), np.float64)
    apart, size, tangents = np.sqrt(total)
    if not np.isfinite(apart):
        return float("inf")
    rounding = ROUNDING * float(np.finfo(problem.dtype).eps) * tangents
    return 0.0 if apart <= TOLERANCE * size + rounding else float(apart / (size or tangents))


@jit(static_argnums=0)
def _batch_squares(functions: Functions, params: Params, frozen: dict, batch: Batch) -> Array:
    """‖(H − H') v‖², ‖H' v‖² and ‖a v‖² of one batch."""
    predict, loss = functions
    z = predict(params, frozen, batch.inputs)
    tangent = jax.random.normal(jax.random.fold_in(jax.random.key(0), batch.index[0]), z.shape, z.dtype)
    own, declared, weighted = (
        across(loss, z, batch)(tangent) for across in (outputs.loss_hessian, outputs.fisher, outputs.identity)
    )
    return jnp.stack([jnp.sum(jnp.square(one)) for one in (own - declared, declared, weighted)])


def difference_in_words(problem: Problem) -> str | None:
    """Why the likelihood does not stand for the loss; None where it does. Cost: that of `hessian_difference`."""
    difference = hessian_difference(problem)
    if not difference:
        return None
    assert problem.loss.family is not None
    return (
        f"[loss] likelihood {problem.loss.family.name} has another Hessian in the outputs than the loss "
        f"{problem.loss.name} (relative difference {difference:.2g})"
    )


def check_output_hessian(problem: Problem, name: str) -> None:
    """A matrix that is made from the likelihood stands for the Gauss-Newton matrix of the loss.

    Raises
    ------
    SpecError
        It does not.
    """
    if (words := difference_in_words(problem)) is not None:
        raise SpecError(
            f"{name} stands for the ggn, and {words}",
            "use --matrix ggn; give class weights as weights of the examples ([data] mask) beside the named loss; or "
            "use --factors empirical",
        )
