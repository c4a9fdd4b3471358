"""Matrices as operators: their products, the forms of their examples, and the memory of their linear maps, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli import journal
from curvcli.curvature.flatten import Layout
from curvcli.curvature.jaxprs.work import abstract_batch
from curvcli.curvature.kronecker.kfac import Recipe, Sampling, Sharing
from curvcli.curvature.likelihood import check_output_hessian
from curvcli.curvature.matrices import (
    MATRICES,
    abstract_extra,
    check_likelihood,
    dimension,
    extra_arguments,
    facet,
    has,
)
from curvcli.curvature.products import linear_map as products
from curvcli.curvature.products import pairs, sums
from curvcli.devices import on_host
from curvcli.linalg.operator import LinearOperator
from curvcli.problem import Problem, Way, in_float64
from curvcli.schema.matrices import MATRICES as FACTS
from curvcli.schema.settings import AnalysisSettings


def build_for(problem: Problem, settings: AnalysisSettings) -> LinearOperator:
    """The matrix that an analysis was asked for; see `build`."""
    return build(
        problem,
        settings.matrix,
        damping=settings.damping,
        with_regulariser=settings.regulariser,
        mc_samples=settings.mc_samples,
        seed=settings.seed,
        factors=settings.factors,
        sharing=settings.sharing,
    )


def build(
    problem: Problem,
    name: str,
    *,
    damping: float = 0.0,
    with_regulariser: bool = True,
    mc_samples: int = 1,
    seed: int = 0,
    factors: Sampling = "sampled",
    sharing: Sharing = "expand",
) -> LinearOperator:
    """The matrix of this name as a linear operator on blocks of vectors [k, dim].

    Parameters
    ----------
    problem
        Network, loss, data and weights.
    name
        In `MATRICES`.
    damping
        λ; λI is added.
    with_regulariser
        Whether ∇²R is part of the matrix, where it can be.
    mc_samples, seed
        Label samples a unit for `fisher-mc` and sampled factors, and where they come from.
    factors, sharing
        Of matrices in closed form: see `kronecker.Recipe`.

    Raises
    ------
    SpecError
        The matrix needs a likelihood that the loss does not have, or one with the loss's own output Hessian.

    Notes
    -----
    Cost of a product: one linearisation of each batch, shared by the block (or by all blocks: `Problem.way`), and k
    applications of it; twice that for `ntk`. Building `gradient-covariance` costs one gradient.
    """
    check_likelihood(problem.loss, name)
    row = MATRICES[name]
    if has(name, "factors"):
        recipe = Recipe(factors, sharing, mc_samples, seed)
        if factors != "empirical":
            check_output_hessian(problem, name)
        known = facet(name, "factors").assemble(problem, recipe, with_regulariser=with_regulariser)
        return known.damped(damping).operator()
    layout, batches, data_forms, floor = Layout.of(problem.params), sums.resident(problem.batches), None, 0.0
    if has(name, "products"):
        data_term = facet(name, "products")(problem, layout, batches)
    else:
        divisor = row.normaliser(problem)
        extra = extra_arguments(problem, name, batches, mc_samples=mc_samples, seed=seed)
        data_term = sums.sum_products(facet(name, "field"), problem, layout, batches, divisor, *extra)
        if row.extra.subtracted is not None:
            floor = float(np.finfo(np.float64).eps) * row.extra.subtracted(*extra)
        if has(name, "pairs"):
            data_forms = pairs.pair_forms(facet(name, "pairs"), problem, layout, batches, divisor, *extra)
    regularised = with_regulariser and FACTS[name].regularised
    regulariser = sums.regulariser_products(problem, layout) if regularised else None

    def matmat(vectors: Array) -> Array:
        out = data_term(vectors)
        if regulariser is not None:
            out = out + regulariser(vectors)
        return out + damping * vectors if damping else out

    # A user's regulariser may curve downwards; the ½·l2·‖w‖² of curv's own does not.
    psd = row.psd(problem.loss) and damping >= 0 and (regulariser is None or problem.regulariser.fn is None)
    forms = pairs.with_rest(data_forms, regulariser, damping)
    # With the arguments that the matrix depends on: other products are not to be taken for these.
    what = (name, damping, regularised, mc_samples, seed)
    if forms is not None:
        forms = journal.whole(forms, problem, "forms", *what)
    how = {"damping": damping, "with_regulariser": with_regulariser, "mc_samples": mc_samples, "seed": seed}
    application = "map" if problem.way.application == "vmap" else "vmap"
    another = replace(problem, way=Way(application))
    return LinearOperator(
        journal.rows(matmat, problem, "products", *what), dimension(problem, name), problem.dtype, psd, forms,
        mesh=problem.batches.mesh, floor=floor,
        by_another=(lambda: build(another, name, **how)) if has(name, "field") else None,
        precise=_in_float64(problem, name, damping, with_regulariser, mc_samples, seed),
    )  # fmt: skip


def _in_float64(
    problem: Problem, name: str, damping: float, with_regulariser: bool, mc_samples: int, seed: int
) -> Callable[[Any], np.ndarray] | None:
    """The products of a matrix in float64, on the host; None where that is the problem's own arithmetic.

    The float64 problem is made when the first product is asked for. It takes no more memory than the products that
    were planned for: the batches are half as large, and large data are read anew at every pass.
    """
    if problem.dtype == np.float64:
        return None

    @cache
    def operator() -> LinearOperator:
        precise = in_float64(problem)
        batches = replace(precise.batches, streamed=precise.batches.streamed or precise.batches.nbytes > HELD_BYTES)
        half = -(-batches.batch_size // 2)
        precise = replace(precise, batches=batches.resized(half), way=replace(precise.way, kept_bytes=0))
        arguments = {"damping": damping, "with_regulariser": with_regulariser, "mc_samples": mc_samples, "seed": seed}
        return build(precise, name, **arguments)

    def matmat(vectors: Any) -> np.ndarray:
        rows = on_host(vectors).astype(np.float64)
        with jax.enable_x64(True):
            return on_host(operator().matmat(jnp.asarray(rows)))

    return matmat


HELD_BYTES = 256 << 20
"""Data in float64 up to this size are put on the device beside those of the analysis."""


def example_forms(problem: Problem, name: str, vectors: Array, *, mc_samples: int = 1, seed: int = 0) -> np.ndarray:
    """Contributions of the examples to vᵀAv, scaled so that their mean is vᵀ(data term)v exactly.

    Parameters
    ----------
    problem
        Network, loss, data and weights.
    name
        In `MATRICES`, with the facet `forms`.
    vectors
        [k, dim].
    mc_samples, seed
        As for `build`: the same draws.

    Returns
    -------
    Float64 [k, N] on the host; 0 for an example without weight. Regulariser and damping are no part of it.

    Raises
    ------
    SpecError
        The matrix has no contributions of examples, or needs a likelihood that the loss does not have.

    Notes
    -----
    Cost: k forward-mode derivatives, about half of k products; for `hessian` and `residual` second ones, 0.4 to 1 of
    them. For `gradient-covariance` one gradient more, for the mean.
    """
    by_example = facet(name, "forms")
    check_likelihood(problem.loss, name)
    layout, batches = Layout.of(problem.params), sums.resident(problem.batches)
    extra = extra_arguments(problem, name, batches, mc_samples=mc_samples, seed=seed)
    piece = partial(by_example, sums.functions(problem), layout, problem.params, problem.frozen)
    parts = on_host([piece(batch, vectors, *extra) for batch in batches])
    count = problem.batches.num_examples
    shares = np.concatenate(parts, axis=1, dtype=np.float64)[:, :count]
    return shares * (count / MATRICES[name].normaliser(problem))


def linear_map_bytes(problem: Problem, name: str, *, mc_samples: int = 1, seed: int = 0) -> int:
    """What the linear map of one batch keeps of the forward and backward passes; 0 where none is made. Nothing runs.

    Weights and inputs are not copied.
    """
    if not has(name, "field"):
        return 0
    check_likelihood(problem.loss, name)
    layout, batch = Layout.of(problem.params), abstract_batch(problem, problem.batches.batch_size)
    extra = abstract_extra(problem, name, mc_samples=mc_samples, seed=seed)
    made = jax.eval_shape(
        partial(products.linearised, facet(name, "field"), sums.functions(problem), layout),
        problem.params,
        problem.frozen,
        batch,
        *extra,
    )
    return sum(one.size * one.dtype.itemsize for one in jax.tree.leaves(made))
