"""V A Vᵀ of a block of vectors by forward derivatives alone: with U = J V it is Σ U C Uᵀ over the batches.

Where A is Jᵀ C J, the transpose that a product needs is most of the work that a form does without: a form costs about
half a product, and a block gives those of all pairs of its vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from curvcli.curvature import outputs, sums
from curvcli.curvature.flatten import Layout
from curvcli.curvature.products import Functions, Middle
from curvcli.losses import Loss
from curvcli.problem import Batch, Params, Problem

Array = Any


def pair_forms(
    problem: Problem, name: str, layout: Layout, batches: Iterable[Batch], normaliser: float, *extra: Array
) -> Callable[[Array], Array] | None:
    """`vectors [k, dim] -> V (data term) Vᵀ [k, k]`; None for a matrix that is not Jᵀ C J (`PAIRS`)."""
    if name not in PAIRS:
        return None
    piece = partial(PAIRS[name], problem, layout)
    return lambda vectors: sums.total(piece(batch, vectors, *extra) for batch in batches) / normaliser


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
    z, linear = _forward(sums.functions(problem)[0], problem.params, problem.frozen, batch)
    apply = _together if problem.way.application == "vmap" else _one_by_one
    return _pairs(middle, problem.loss, z, batch, apply(layout, linear, vectors), *extra)


@partial(jax.jit, static_argnums=0)
def _forward(predict: Callable, params: Params, frozen: dict, batch: Batch) -> tuple[Array, Callable]:
    """Outputs of a batch, and J as a value."""
    return jax.linearize(lambda p: predict(p, frozen, batch.inputs), params)


@partial(jax.jit, static_argnums=0)
def _together(layout: Layout, linear: Callable, vectors: Array) -> Array:
    return jax.vmap(linear)(layout.unravel(vectors))


def _one_by_one(layout: Layout, linear: Callable, vectors: Array) -> Array:
    return jnp.stack([_single(layout, linear, vectors, index) for index in range(len(vectors))])


@partial(jax.jit, static_argnums=0)
def _single(layout: Layout, linear: Callable, vectors: Array, index: int) -> Array:
    return linear(layout.unravel(vectors[index]))


@partial(jax.jit, static_argnums=(0, 1))
def _pairs(middle: Middle, loss: Loss, z: Array, batch: Batch, tangents: Array, *extra: Array) -> Array:
    images = jax.vmap(middle(loss, z, batch, *extra))(tangents)
    return tangents.reshape(len(tangents), -1) @ images.reshape(len(tangents), -1).T


def covariance(problem: Problem, layout: Layout, batch: Batch, vectors: Array, mean: Array) -> Array:
    """Σ_n ((g_n − ḡ)·v_i)((g_n − ḡ)·v_j) over the batch's examples with any weight: [k, k]."""
    return _covariance(sums.functions(problem), layout, problem.params, problem.frozen, batch, vectors, mean)


@partial(jax.jit, static_argnums=(0, 1))
def _covariance(
    functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch, vectors: Array, mean: Array
) -> Array:
    predict, loss = functions
    _, jvp = jax.linearize(lambda p: outputs.example_losses(loss, predict(p, frozen, batch.inputs), batch), params)
    centred = jax.vmap(jvp)(layout.unravel(vectors)) - (vectors @ mean)[:, None]
    centred = jnp.where(outputs.active(batch)[None], centred, 0)
    return centred @ centred.T


PAIRS = {
    **{name: partial(sandwich, middle) for name, middle in outputs.MIDDLES.items()},
    "gradient-covariance": covariance,
}
"""One batch's forms by matrix: `(problem, layout, batch, vectors, *extra) -> [k, k]`."""
