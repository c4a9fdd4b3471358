"""V A Vᵀ of a block of vectors by forward derivatives alone: with U = J V it is Σ U C Uᵀ over the batches.

Where A is Jᵀ C J, the transpose that a product needs is most of the work that a form does without: a form costs about
half a product, and a block gives those of all pairs of its vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax import Array

from curvcli.compiling import jit
from curvcli.curvature.flatten import Layout
from curvcli.curvature.jaxprs import heads
from curvcli.curvature.products import linear_map as products
from curvcli.curvature.products import sums
from curvcli.curvature.products.linear_map import Functions, Middle
from curvcli.problem import Batch, Params, Problem


def pair_forms(
    pairs: Callable[..., Array],
    problem: Problem,
    layout: Layout,
    batches: Iterable[Batch],
    normaliser: float,
    *extra: Array,
) -> Callable[[Array], Array]:
    """`vectors [k, dim] -> V (data term) Vᵀ [k, k]`, from the facet `pairs` of a matrix."""
    return lambda vectors: sums.total(pairs(problem, layout, batch, vectors, *extra) for batch in batches) / normaliser


def with_rest(
    data_term: Callable[[Array], Array] | None, regulariser: Callable[[Array], Array] | None, damping: float
) -> Callable[[Array], Array] | None:
    """The forms of the whole matrix from those of its data term and the products of its regulariser."""
    if data_term is None:
        return None

    def forms(vectors: Array) -> Array:
        rest = damping * vectors if regulariser is None else regulariser(vectors) + damping * vectors
        return data_term(vectors) + vectors @ rest.T

    return forms


def sandwich(
    middle: Middle,
    problem: Problem,
    layout: Layout,
    batch: Batch,
    vectors: Array,
    *extra: Array,
) -> Array:
    """Σ_n u_iᵀ C_n u_j of one batch, u = J_n v: [k, k]. One forward derivative a vector."""
    functions = sums.functions(problem)
    z, jacobian = _forward(middle, functions, problem.params, problem.frozen, batch)
    tangents = products.apply(problem.way, layout, jacobian, vectors)
    return _pairs(middle, functions, problem.params, problem.frozen, batch, extra, z, tangents)


@jit(static_argnums=(0, 1))
def _forward(
    middle: Middle, functions: Functions, params: Params, frozen: dict, batch: Batch
) -> tuple[Any, products.LinearMap]:
    return jax.linearize(heads.in_two(middle, functions, params, frozen, batch)[0], params)


@jit(static_argnums=(0, 1))
def _pairs(
    middle: Middle, functions: Functions, params: Params, frozen: dict, batch: Batch, extra: Any, z: Any, tangents: Any
) -> Array:
    return heads.Forms(middle, functions, params, frozen, batch, extra).pairs(z, tangents)


def covariance(problem: Problem, layout: Layout, batch: Batch, vectors: Array, mean: Array) -> Array:
    """Σ_n ((g_n − ḡ)·v_i)((g_n − ḡ)·v_j) over the batch's examples with any weight: [k, k]."""
    return _covariance(sums.functions(problem), layout, problem.params, problem.frozen, batch, vectors, mean)


@jit(static_argnums=(0, 1))
def _covariance(
    functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch, vectors: Array, mean: Array
) -> Array:
    centred = products.centred_slopes(functions, layout, params, frozen, batch, vectors, mean)
    return centred @ centred.T
