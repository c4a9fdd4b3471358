"""K-FAC and E-KFAC: what their factors are made of, in passes over the data.

A layer's weights W [fan_in + 1, fan_out] (the bias a last row) have the gradient Σ_p ā_p g_pᵀ, p its positions, ā_p its
input with a 1 appended and g_p the gradient before its activation. K-FAC takes inputs and gradients for independent,

    G_layer ≈ A ⊗ S,   A = Σ a ā āᵀ / Σ a,   S = (1/M) Σ a g gᵀ,

a the weight of a row (an example's, or a token's: see `rows`), and layers for independent. Of a single linear layer
with squared error A ⊗ S is the matrix, whatever the weights. E-KFAC keeps the eigenvectors of A and S and replaces the
products of eigenvalues by the mean squares of the gradients in that basis, so that its trace is that of the matrix.
With weights shared over positions, `expand` takes positions for independent too; `reduce` first takes an example's
weighted mean of the inputs and the sum of the gradients, with the sum of the weights.

Parameters that fit no layer have their diagonal, exact for the cotangents used. l2 is added to every eigenvalue.

Source: Grosse, *Neural Net Training Dynamics*, chapter 4, section 5; Martens and Grosse (2015); Grosse and Martens
(2016) for convolutions; George et al. (2018) for E-KFAC; Eschenhagen et al. (2023) for expand and reduce.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import Array

from curvcli.compiling import jit
from curvcli.curvature.flatten import Layout
from curvcli.curvature.jaxprs.pooling import with_fast_pooling
from curvcli.curvature.jaxprs.taps import Layer, find_layers, tapped
from curvcli.curvature.kronecker.factors import Block, Kronecker, start_of
from curvcli.curvature.kronecker.rows import row_weights, token_rows
from curvcli.curvature.products import outputs, sums
from curvcli.curvature.products.ntk import outputs_per_example
from curvcli.losses import Loss
from curvcli.problem import Batch, Batches, Params, Problem

Sampling = Literal["exact", "sampled", "empirical"]
Sharing = Literal["expand", "reduce"]

RECORDED_BYTES = 256 << 20
"""What the inputs and gradients of all layers may take for one batch, and the gradients of examples without a layer."""


class Taps:
    """A network's layers and the network with taps; one object a problem, so that programs are compiled once."""

    def __init__(self, problem: Problem) -> None:
        found = find_layers(problem)
        self.layers, self.others = found.layers, found.others
        self.rows = token_rows(problem, self.layers)
        self.network = with_fast_pooling(tapped(problem, self.layers))
        layout = Layout.of(problem.params)
        self.index = [_index(layout, layer) for layer in self.layers]


def _index(layout: Layout, layer: Layer) -> np.ndarray:
    rows = layer.rows + start_of(layout, layer.kernel)
    if layer.bias is None or layer.bias_rows is None:
        return rows
    return np.concatenate([rows, layer.bias_rows[None] + start_of(layout, layer.bias)])


@dataclass(frozen=True)
class Recipe:
    """Which cotangents stand for the curvature, and how shared weights are treated.

    Parameters
    ----------
    sampling
        `exact`: the columns of a root of every example's output Hessian; `sampled`: gradients at labels drawn from the
        model, as for `fisher-mc`; `empirical`: at the observed labels.
    samples, seed
        Of the draws.
    """

    sampling: Sampling = "sampled"
    sharing: Sharing = "expand"
    samples: int = 1
    seed: int = 0


def kfac(
    problem: Problem,
    recipe: Recipe,
    *,
    corrected: bool = False,
    with_regulariser: bool = True,
    taps: Taps | None = None,
) -> Kronecker:
    """K-FAC, or E-KFAC, of the GGN of a problem.

    Parameters
    ----------
    corrected
        E-KFAC.
    taps
        Of this network, whatever its weights: with the same taps nothing is compiled again.

    Notes
    -----
    Cost: a forward pass, and a backward one a cotangent (samples, or outputs), over the data; O(fan³) a factor for the
    eigendecompositions; for E-KFAC the passes again.
    """
    taps = taps or Taps(problem)
    found = measured(problem, taps, recipe)
    return assembled(problem, taps, found, recipe, corrected=corrected, with_regulariser=with_regulariser)


def held_bytes(problem: Problem, recipe: Recipe) -> int:
    """Bytes of a batch's inputs and gradients, of the sums of their products, and of the eigenvectors.

    Nothing is computed.
    """
    layers, itemsize = find_layers(problem).layers, problem.dtype.itemsize
    examples = _batches(problem, layers, recipe).batch_size
    recorded = examples * _recorded_values(problem, layers, recipe) * itemsize
    rows = [(layer.fan_in + (layer.bias is not None), layer.fan_out) for layer in layers]
    # Of an embedding A is its diagonal. A batch's sums and all batches', in float64; eigenvectors and what finds them.
    squares = sum((a if layer.kind == "embed" else a * a) + s * s for layer, (a, s) in zip(layers, rows, strict=True))
    return recorded + squares * (2 * 8 + 3 * itemsize)


class Factors(NamedTuple):
    """What K-FAC is made of, in float64: layers as the taps have them.

    Parameters
    ----------
    layers
        A (of an embedding its diagonal alone) and S of each.
    diagonal
        By parameter, of those without a layer, flat.
    """

    layers: list[tuple[np.ndarray, np.ndarray]]
    diagonal: dict[str, np.ndarray]


def measured(problem: Problem, taps: Taps, recipe: Recipe) -> Factors:
    """The factors at the problem's weights. Cost: a forward pass, and a backward one a cotangent, over the data."""
    diagonal = squared_gradients(problem, taps.others, recipe) if taps.others else {}
    return Factors(_factors(problem, taps, recipe), diagonal)


def assembled(
    problem: Problem, taps: Taps, factors: Factors, recipe: Recipe, *, corrected: bool, with_regulariser: bool
) -> Kronecker:
    """K-FAC from factors, for O(fan³) each; E-KFAC, whose eigenvalues cost passes at the problem's weights again."""
    blocks = [_block(layer, index, a, s, problem.dtype) for layer, index, (a, s) in
              zip(taps.layers, taps.index, factors.layers, strict=True)]  # fmt: skip
    if corrected:
        values = _corrections(problem, taps, recipe, blocks)
        blocks = [block._replace(corrected=one) for block, one in zip(blocks, values, strict=True)]
    shift = problem.regulariser.l2 if with_regulariser else 0.0
    return Kronecker(
        Layout.of(problem.params), problem.dtype, blocks, factors.diagonal, taps.others, shift, problem.batches.mesh
    )


def diagonal(problem: Problem, recipe: Recipe, *, with_regulariser: bool = True) -> Kronecker:
    """The diagonal of the GGN alone, for the cotangents of the recipe, with l2. Cost: that of `squared_gradients`."""
    squares = squared_gradients(problem, problem.params, recipe)
    shift = problem.regulariser.l2 if with_regulariser else 0.0
    return Kronecker(Layout.of(problem.params), problem.dtype, [], squares, {}, shift, problem.batches.mesh)


def _block(layer: Layer, index: np.ndarray, a: np.ndarray, s: np.ndarray, dtype: Any) -> Block:
    """The eigendecompositions."""
    gradients, right = _eigen(s, dtype)
    if a.ndim == 1:
        inputs, left = a, None
    else:
        inputs, left = _eigen(a, dtype)
        left = jnp.asarray(left, dtype)
    # Both are sums of squares: what is below zero is rounding.
    return Block(
        layer.kernel.rpartition("/")[0] or layer.kernel, index, np.maximum(inputs, 0), left,
        np.maximum(gradients, 0), jnp.asarray(right, dtype),
    )  # fmt: skip


def _eigen(matrix: np.ndarray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """All eigenvalues, in float64, and vectors: by divide and conquer, in the precision that the sums have."""
    values, vectors = scipy.linalg.eigh(matrix.astype(dtype), driver="evd")
    return values.astype(np.float64), vectors


def _split(recipe: Recipe) -> tuple[Recipe, Array]:
    """What is static of it, and the keys of its draws: another seed compiles nothing anew."""
    return replace(recipe, seed=0), outputs.draw_keys(recipe.seed, recipe.samples)


def cotangent_count(problem: Problem, recipe: Recipe) -> int:
    """Cotangents an example that the recipe takes through the network."""
    return outputs_per_example(problem) if recipe.sampling == "exact" else recipe.samples


def _recorded_values(problem: Problem, layers: list[Layer], recipe: Recipe) -> int:
    """Numbers in an example's inputs and gradients of all layers."""
    return sum(one.positions * (one.fan_in + cotangent_count(problem, recipe) * one.fan_out) for one in layers)


def _batches(problem: Problem, layers: list[Layer], recipe: Recipe) -> Batches:
    """The data in batches whose inputs and gradients of all layers take `RECORDED_BYTES`: no vectors are in flight."""
    values = _recorded_values(problem, layers, recipe)
    total, largest = problem.batches.num_examples, RECORDED_BYTES // (problem.dtype.itemsize * max(values, 1))
    count = -(-total // max(largest, 1))
    return problem.batches.resized(-(-total // count))


def _factors(problem: Problem, taps: Taps, recipe: Recipe) -> list[tuple[np.ndarray, np.ndarray]]:
    """A and S of every layer, in float64."""
    piece = partial(_batch_factors, taps, problem.loss, *_split(recipe), problem.params, problem.frozen)
    total: list[Any] = []
    for batch in sums.resident(_batches(problem, taps.layers, recipe)):
        found = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), piece(batch))
        total = found if not total else jax.tree.map(np.add, total, found)
    return [(a / (weight or 1.0), s / problem.normaliser) for a, s, weight in total]


@jit(static_argnums=(0, 1, 2))
def _batch_factors(
    taps: Taps, loss: Loss, recipe: Recipe, keys: Array, params: Params, frozen: dict, batch: Batch
) -> list[Any]:
    """Σ a ā āᵀ, Σ a g gᵀ and Σ a of every layer over one batch."""
    z, acts, gradients = _recorded(taps, loss, recipe, keys, params, frozen, batch)
    found = []
    for layer, rows, a, g in zip(taps.layers, taps.rows, acts, gradients, strict=True):
        weight = row_weights(_unit_weights(loss, z, batch), layer, rows, g)
        inputs, back, weight = _shared(layer, recipe, a, g, weight)
        if layer.kind == "embed" and inputs.ndim == 2:
            counts = jnp.zeros(layer.fan_in, params[layer.kernel].dtype)
            left = counts.at[inputs.reshape(-1)].add(weight.reshape(-1))
        else:
            left = _gram(inputs * jnp.sqrt(weight)[..., None])
        found.append((left, _gram(back), jnp.sum(weight)))
    return found


def _unit_weights(loss: Loss, z: Array, batch: Batch) -> Array:
    """Weights of units: a target row that sums to s has the weight of s rows that sum to 1."""
    if loss.draws is None or batch.targets.ndim < z.ndim:
        return batch.weight
    return outputs.draw_weight(loss, z, batch)[..., 0]


def _gram(rows: Array) -> Array:
    """Σ r rᵀ over all axes but the last: one matrix product."""
    rows = rows.reshape(-1, rows.shape[-1])
    return rows.T @ rows


def _recorded(
    taps: Taps, loss: Loss, recipe: Recipe, keys: Array, params: Params, frozen: dict, batch: Batch
) -> tuple[Array, list[Array], list[Array]]:
    """Outputs, inputs [b, P, fan_in] and pre-activation gradients [K, b, P, fan_out], these with the weights."""
    size, dtype = len(batch.weight), next(iter(params.values())).dtype
    zero = [jnp.zeros((size, layer.positions, layer.fan_out), dtype) for layer in taps.layers]

    def network(perturbations: list[Array]) -> tuple[Array, list[Array]]:
        return jax.vmap(taps.network, (None, None, 0, 0))(params, frozen, batch.inputs, perturbations)

    z, back, acts = jax.vjp(network, zero, has_aux=True)
    return z, acts, jax.vmap(lambda one: back(one)[0])(cotangents(loss, recipe, keys, z, batch))


def cotangents(loss: Loss, recipe: Recipe, keys: Array, z: Array, batch: Batch) -> Array:
    """[K, b, ..., C] whose outer products add up (over K) to a_u H_u, or have it for their mean."""
    root_weight = jnp.sqrt(outputs.draw_weight(loss, z, batch))[None]
    if recipe.sampling == "exact":
        assert loss.family is not None
        shape = z.shape[1:]
        columns = jnp.eye(int(np.prod(shape)), dtype=z.dtype).reshape(-1, 1, *shape)
        noise = jnp.broadcast_to(columns, (len(columns), *z.shape))
        return root_weight * jax.vmap(loss.family.root, (None, 0))(z, noise)
    if recipe.sampling == "empirical":
        return outputs.observed_cotangents(loss, z, batch, keys) / recipe.samples**0.5
    return root_weight * outputs.pseudo_gradients(loss, z, batch, keys) / recipe.samples**0.5


def _shared(layer: Layer, recipe: Recipe, a: Array, g: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Inputs with the bias's 1, gradients (which have their weights) and weights, positions reduced where asked."""
    if recipe.sharing == "reduce" and layer.positions > 1:
        a = jax.nn.one_hot(a, layer.fan_in, dtype=g.dtype) if layer.kind == "embed" else a
        total = jnp.sum(weight, axis=1, keepdims=True)
        share = weight / jnp.where(total > 0, total, 1)
        a = jnp.sum(share[..., None] * a, axis=1, keepdims=True)
        g, weight = jnp.sum(g, axis=2, keepdims=True), total
    return _with_constant(layer, a), g, weight


def _with_constant(layer: Layer, a: Array) -> Array:
    """Inputs with the bias's 1."""
    if layer.bias is None or layer.kind == "embed":
        return a
    return jnp.concatenate([a, jnp.ones((*a.shape[:-1], 1), a.dtype)], axis=-1)


def _corrections(problem: Problem, taps: Taps, recipe: Recipe, blocks: list[Block]) -> list[np.ndarray]:
    """Mean squares of the gradients in the bases of the factors."""
    bases = [(block.input_basis, block.gradient_basis) for block in blocks]
    piece = partial(_batch_corrections, taps, problem.loss, *_split(recipe), problem.params, problem.frozen)
    total: Any = None
    for batch in sums.resident(_batches(problem, taps.layers, recipe)):
        found = [np.asarray(one, np.float64) for one in piece(batch, bases)]
        total = found if total is None else [x + y for x, y in zip(total, found, strict=True)]
    return [one / problem.normaliser for one in total]


@jit(static_argnums=(0, 1, 2))
def _batch_corrections(
    taps: Taps, loss: Loss, recipe: Recipe, keys: Array, params: Params, frozen: dict, batch: Batch, bases: Any
) -> list[Array]:
    _, acts, gradients = _recorded(taps, loss, recipe, keys, params, frozen, batch)
    found = []
    for layer, a, g, (left, right) in zip(taps.layers, acts, gradients, bases, strict=True):
        if layer.kind == "embed":
            inputs = jax.nn.one_hot(a, layer.fan_in, dtype=g.dtype)
        else:
            inputs = _with_constant(layer, a)
        inputs = inputs if left is None else inputs @ left
        turned = g @ right
        if layer.positions == 1:  # the square of a product is the product of squares
            found.append(jnp.einsum("bi,kbs->is", jnp.square(inputs[:, 0]), jnp.square(turned[:, :, 0])))
        else:
            nothing = jnp.zeros((inputs.shape[-1], turned.shape[-1]), g.dtype)
            found.append(jax.lax.scan(_add_squares, nothing, (inputs, jnp.moveaxis(turned, 1, 0)))[0])
    return found


def _add_squares(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
    """One example's squared gradients, its positions summed first."""
    return total + jnp.sum(jnp.square(jnp.einsum("pi,kps->kis", *pair)), axis=0), None


def squared_gradients(problem: Problem, names: Iterable[str], recipe: Recipe) -> dict[str, np.ndarray]:
    """The diagonal of the GGN for some parameters, flat, by name: squares of the examples' gradients, without l2.

    Cost: a forward pass, and a backward one a cotangent, over the data. Memory: `RECORDED_BYTES`, and one example's
    gradients at least.
    """
    names = tuple(sorted(names))
    size = sum(problem.params[name].size for name in names) * cotangent_count(problem, recipe)
    at_once = int(np.clip(RECORDED_BYTES // (size * problem.dtype.itemsize), 1, problem.batches.batch_size))
    total: Any = None
    for batch in problem.batches.resized(at_once):
        piece = _batch_diagonals(names, sums.functions(problem), *_split(recipe), problem.params, problem.frozen, batch)
        found = {name: np.asarray(one, np.float64) for name, one in piece.items()}
        total = found if total is None else {name: total[name] + one for name, one in found.items()}
    return {name: one.reshape(-1) / problem.normaliser for name, one in total.items()}


@jit(static_argnums=(0, 1, 2))
def _batch_diagonals(
    names: tuple[str, ...], functions: Any, recipe: Recipe, keys: Array, params: Params, frozen: dict, batch: Batch
) -> Params:
    predict, loss = functions
    chosen = {name: params[name] for name in names}
    given = cotangents(loss, recipe, keys, predict(params, frozen, batch.inputs), batch)

    def squares(inputs: Any, own: Array) -> Params:
        single = jax.tree.map(lambda leaf: leaf[None], inputs)
        _, back = jax.vjp(lambda some: predict({**params, **some}, frozen, single)[0], chosen)
        return jax.tree.map(lambda leaf: jnp.sum(jnp.square(leaf), axis=0), jax.vmap(lambda one: back(one)[0])(own))

    return jax.tree.map(lambda leaf: leaf.sum(axis=0), jax.vmap(squares)(batch.inputs, jnp.moveaxis(given, 1, 0)))
