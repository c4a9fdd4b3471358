"""What an example does to itself: draws from a matrix, own responses, and the leverage h_n = J_n B⁻¹ J_nᵀ / M.

Everything here rests on vectors u_k with Σ_k u_k u_kᵀ = B⁻¹, B = C + λI: the scaled eigenvectors of B, which are exact;
or s_k/√K with s_k = B⁻¹ y_k and y_k drawn with covariance B, so that the s_k have the covariance B⁻¹. Each example's
share then comes from forward derivatives along the u_k, for all examples in one pass.

Source: the draws: Papandreou and Yuille (2010), *Gaussian sampling by local perturbations*; the leverage correction:
Cook and Weisberg (1982), *Residuals and influence in regression*, chapter 5, in its form for vector outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli import streams
from curvcli.compiling import jit
from curvcli.curvature.flatten import Layout
from curvcli.curvature.influence import queries, responses
from curvcli.curvature.matrices import facet
from curvcli.curvature.products import linear_map as products
from curvcli.curvature.products import outputs, sums
from curvcli.curvature.products.linear_map import Functions
from curvcli.devices import on_host
from curvcli.problem import Batch, Params, Problem
from curvcli.streams import Stream


def draw(problem: Problem, name: str, shift: float, seed: int, first: int, count: int) -> Array:
    """Vectors [count, D] of mean 0 and covariance A + shift·I, A the data term of the matrix of this name.

    Parameters
    ----------
    shift
        l2 and damping.
    first
        Number of the first draw: draws of one seed are numbered, and do not depend on how many are made.

    Notes
    -----
    Only where `matrices.has_root`. Cost: a forward pass, and a backward one a draw.
    """
    layout, functions, cotangents = Layout.of(problem.params), sums.functions(problem), facet(name, "root").cotangents
    keys = outputs.draw_keys(seed, first + count, Stream.MATRIX_ROOTS)[first:]
    parts = (
        _pulled_draws(cotangents, functions, layout, problem.params, problem.frozen, batch, keys)
        for batch in sums.resident(problem.batches)
    )
    pulled = sums.total(parts) / problem.normaliser**0.5
    flat = jax.vmap(lambda key: jax.random.normal(streams.last(key), (layout.dim,), problem.dtype))
    return pulled + shift**0.5 * flat(keys)


@jit(static_argnums=(0, 1, 2))
def _pulled_draws(
    cotangents: Callable[..., Array], functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch,
    keys: Array,
) -> Array:  # fmt: skip
    z, back = jax.vjp(lambda p: functions[0](p, frozen, batch.inputs), params)
    drawn = cotangents(functions[1], z, batch, keys)
    return layout.ravel(jax.vmap(back)(drawn)[0])


class Own(NamedTuple):
    """Own responses of a batch's examples, summed over the vectors: means if each is a sample."""

    total: responses.Piece  # Σ_k of (∇q_n·u_k)((∇²_{wθ_n}J)ᵀ u_k), [b, (O,) ...]
    squares: responses.Piece  # of the squares of the summands, those of their contrasts where one is given


def own_entries(
    problem: Problem,
    parameter: responses.Parameter,
    measure: queries.Measure,
    vectors: Array,
    at_once: int,
    contrast: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> Iterator[Own]:
    """Σ_k of the derivative of each example's own measure along u_k, times its own entry for u_k; vectors [k, D].

    Parameters
    ----------
    contrast
        `(entries [k, b, ...], targets [b, ...])` to differences of entries, whose spread is wanted.

    Cost: two forward derivatives a vector, one pass over the data for every `at_once` of them.
    """
    totals: list[Own] = []
    for start in range(0, len(vectors), at_once):
        block = vectors[start : start + at_once]
        slopes, row = queries.batch_slopes(problem, problem.batches, measure, block), 0
        pieces = responses.entries(problem, parameter, block)
        for index, (along, piece) in enumerate(zip(slopes, pieces, strict=True)):
            targets = np.asarray(problem.batches.targets[row : row + along.shape[1]])
            row += along.shape[1]
            terms = {name: _outer(along, one) for name, one in piece.items()}
            total = {name: one.sum(axis=0) for name, one in terms.items()}
            if contrast is not None:
                terms = {name: _outer(along, contrast(one, targets)) for name, one in piece.items()}
            found = Own(total, {name: np.square(one).sum(axis=0) for name, one in terms.items()})
            if start == 0:
                totals.append(found)
            else:
                before = totals[index]
                totals[index] = Own(
                    {name: before.total[name] + one for name, one in found.total.items()},
                    {name: before.squares[name] + one for name, one in found.squares.items()},
                )
    yield from totals


def _outer(slopes: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """[k, b] or [k, b, O] by [k, b, ...]: [k, b, (O,) ...], in float64."""
    entries = entries.astype(np.float64)
    if slopes.ndim == 2:
        return slopes.reshape(*slopes.shape, *(1,) * (entries.ndim - 2)) * entries
    own = slopes.reshape(*slopes.shape, *(1,) * (entries.ndim - 2))
    return own * entries[:, :, None]


def leverages(problem: Problem, vectors: Array, at_once: int) -> Iterator[np.ndarray]:
    """h_n of each example, batch by batch: float64 [b, O, O], O its outputs. Cost: a forward derivative a vector."""
    layout, functions = Layout.of(problem.params), sums.functions(problem)
    left = problem.batches.num_examples
    for batch in sums.resident(problem.batches):
        _, jacobian = products.forward(functions, problem.params, problem.frozen, batch)
        total: Any = 0.0
        for start in range(0, len(vectors), at_once):
            tangents = products.apply(problem.way, layout, jacobian, vectors[start : start + at_once])
            total = total + on_host(_gram(tangents)).astype(np.float64)
        rows = min(left, problem.batches.batch_size)
        yield total[:rows] / problem.normaliser
        left -= rows


@jit
def _gram(tangents: Array) -> Array:
    """Σ_k t_k t_kᵀ of each example: [b, O, O]."""
    flat = tangents.reshape(*tangents.shape[:2], -1)
    return jnp.einsum("kbi,kbj->bij", flat, flat)


class Pull(NamedTuple):
    """One batch's examples in the space of their outputs."""

    leverage: np.ndarray  # h_n, [b, O, O]
    curvature: np.ndarray  # H_n h_n, [b, O, O]
    gradient: np.ndarray  # a_n ∂L/∂z, [b, O]
    slope: np.ndarray  # ∂L/∂z of the examples as queries, whose weight multiplies nothing, [b, O]
    tangents: np.ndarray  # J_n s of the queries, [k, b, O]


def pulls(problem: Problem, name: str, vectors: Array, leverage: Iterator[np.ndarray], at_once: int) -> Iterator[Pull]:
    """What the leverage correction takes: of each batch, for query solutions s [k, D] and its h_n.

    Cost: a forward derivative a vector.
    """
    layout, functions = Layout.of(problem.params), sums.functions(problem)
    size = problem.batches.batch_size
    for batch, h in zip(sums.resident(problem.batches), leverage, strict=True):
        z, jacobian = products.forward(functions, problem.params, problem.frozen, batch)
        tangents = np.concatenate([
            on_host(products.apply(problem.way, layout, jacobian, vectors[start : start + at_once])).astype(np.float64)
            for start in range(0, len(vectors), at_once)
        ])  # fmt: skip
        rows = len(h)
        padded = np.concatenate([h, np.zeros((size - rows, *h.shape[1:]))]).astype(problem.dtype)
        found = _in_outputs(facet(name, "pull"), functions[1], z, batch, padded)
        flat = tangents.reshape(*tangents.shape[:2], -1)[:, :rows]
        curved, gradient, slope = (one.astype(np.float64)[:rows] for one in on_host(found))
        yield Pull(h, curved, gradient, slope, flat)


@jit(static_argnums=(0, 1))
def _in_outputs(middle: Any, loss: Any, z: Array, batch: Batch, leverage: Array) -> tuple[Array, Array, Array]:
    """a_n H_n h_n [b, O, O], a_n ∂L/∂z [b, O], and ∂L/∂z of those that count [b, O]."""
    across = middle(loss, z, batch)
    columns = jnp.moveaxis(leverage, -1, 0)  # [O, b, O]
    images = jax.vmap(lambda column: across(column.reshape(z.shape)).reshape(len(z), -1))(columns)
    counted = batch._replace(weight=(batch.weight > 0).astype(batch.weight.dtype))
    gradient, slope = (
        jax.grad(lambda out, part=part: outputs.weighted_loss(loss, out, part))(z).reshape(len(z), -1)
        for part in (batch, counted)
    )
    return jnp.moveaxis(images, 0, -1), gradient, slope


def loss_sizes(problem: Problem, bytes_in_flight: int = 256 << 20) -> tuple[np.ndarray, np.ndarray]:
    """L_n and ‖∇L_n‖ of each example's weighted loss: float64 [N] each.

    As many gradients at once as the bytes allow, and no more. Cost: a gradient an example.
    """
    size = int(np.clip(bytes_in_flight // (4 * problem.dim * problem.dtype.itemsize), 1, problem.batches.batch_size))
    functions, batches = sums.functions(problem), problem.batches.resized(size)
    parts = on_host([_sizes(functions, problem.params, problem.frozen, batch) for batch in batches])
    losses, norms = (np.concatenate(one, dtype=np.float64)[: batches.num_examples] for one in zip(*parts, strict=True))
    return losses, norms


@jit(static_argnums=0)
def _sizes(functions: Functions, params: Params, frozen: dict, batch: Batch) -> tuple[Array, Array]:
    predict, loss = functions

    def sizes(one: Batch) -> tuple[Array, Array]:
        single = jax.tree.map(lambda leaf: leaf[None], one)
        objective = lambda p: outputs.weighted_loss(loss, predict(p, frozen, single.inputs), single)  # noqa: E731
        value, gradient = jax.value_and_grad(objective)(params)
        leaves = jax.tree.leaves(gradient)
        # In units of the largest entry, whose square float32 may not hold.
        peak = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves]))
        unit = jnp.where(peak > 0, peak, 1)
        return value, unit * jnp.sqrt(sum(jnp.sum(jnp.square(leaf / unit)) for leaf in leaves))

    return jax.vmap(sizes)(batch)
