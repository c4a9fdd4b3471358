"""The compiled programs of a product, for what can be read off them: nothing runs.

They are the programs that the product will run, and JAX keeps them for it: what is compiled here is not compiled again.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
from jax import Array

from curvcli.curvature.flatten import Layout
from curvcli.curvature.matrices import abstract_extra, facet, has
from curvcli.curvature.products import linear_map as products
from curvcli.curvature.products import sums
from curvcli.curvature.products.borrowing import returned
from curvcli.devices import on_every
from curvcli.problem import Batch, Params, Problem, Way


class Programs(NamedTuple):
    """One batch's part of a product, compiled."""

    linearise: Any
    apply: Any
    times: int  # that `apply` runs for the block


class Room(NamedTuple):
    """Bytes on one device that the programs of one batch take, beside data, parameters and vectors."""

    linear: int  # the linear map: what the forward and backward passes keep
    making: int  # while it is made
    applying: int  # while it is applied


def product_programs(problem: Problem, name: str, count: int, *, mc_samples: int = 1, seed: int = 0) -> Programs | None:
    """The programs of a product of this matrix with `count` vectors; R left out.

    None where the matrix is no sum of linearised batches (`ntk`, `kfac`, `ekfac`).
    """
    if not has(name, "field"):
        return None
    mesh, layout, batch = problem.batches.mesh, Layout.of(problem.params), next(iter(problem.batches))
    where = None if mesh is None else on_every(mesh)
    extra = abstract_extra(problem, name, mc_samples=mc_samples, seed=seed)
    vectors = jax.ShapeDtypeStruct((count, problem.dim), problem.dtype, sharding=where)
    return compiled(
        facet(name, "field"), sums.functions(problem), layout, problem.way, problem.params, problem.frozen, batch,
        vectors, *extra,
    )  # fmt: skip


def compiled(
    field: products.Field, functions: products.Functions, layout: Layout, way: Way, params: Params, frozen: dict,
    batch: Batch, vectors: Any, *extra: Array,
) -> Programs:  # fmt: skip
    """The programs of one batch, as a product with vectors [k, dim] runs them.

    All arrays may be `jax.ShapeDtypeStruct`s with shardings: then nothing is allocated.
    """
    static, given = (field, functions, layout), (params, frozen, batch, *extra)
    linearise = products.linearised.lower(*static, *given).compile()
    made = jax.eval_shape(partial(products.linearised, *static), *given)
    if vectors.sharding is not None:  # an array on a single device counts as being on none
        made = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            made,
            linearise.output_shardings,
        )
    linear = returned(made, given)

    def like(shape: tuple[int, ...]) -> Any:
        return jax.ShapeDtypeStruct(shape, vectors.dtype, sharding=vectors.sharding)

    if way.application == "map":
        single = products.single.lower(layout, linear, like(vectors.shape[1:])).compile()
        return Programs(linearise, single, vectors.shape[0])
    pieces = -(-vectors.shape[0] // way.width)
    piece = like((-(-vectors.shape[0] // pieces), layout.dim))
    return Programs(linearise, products.together.lower(layout, linear, piece).compile(), pieces)


def room(programs: Programs) -> Room | None:
    """What the programs take; None where the backend does not say."""
    made, applied = programs.linearise.memory_analysis(), programs.apply.memory_analysis()
    if made is None or applied is None:
        return None
    return Room(made.output_size_in_bytes, made.temp_size_in_bytes, applied.temp_size_in_bytes)
