"""One batch's curvature as a linear map, and its products with a block of vectors.

Every matrix is the derivative of a vector field on the parameters: of the gradient for the Hessian, of a linear map
(its own derivative) for the sandwiches Jᵀ C J. A batch is linearised once; the linear map, with what it needs of the
forward and backward passes, is a value that can be kept and applied to any number of vectors, at once or one by one.
Nothing here divides by the normaliser; `sums.py` does. Parameters and batches are arguments; only functions and shapes
are static.

Cost: one linearisation (forward, or forward and backward) and k applications, a product each.
Source: Pearlmutter (1994) for the Hessian; Schraudolph (2002) for the Gauss–Newton product; Dangel, *Large-scale linear
algebra with curvature matrices*.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from curvcli.compiling import jit
from curvcli.curvature.flatten import Layout
from curvcli.curvature.jaxprs import heads
from curvcli.curvature.products.borrowing import borrowed, returned
from curvcli.curvature.products.outputs import OutputMap, active, weighted_loss
from curvcli.losses import Loss
from curvcli.problem import Batch, Params, Way

Functions = tuple[Callable, Loss]
"""`(predict, loss)`: what is static in a problem."""
Middle = Callable[..., OutputMap]
"""One of the functions of `outputs.py`."""
VectorField = Callable[[Params], Params]
"""A function of the parameters whose derivative is the matrix."""
Field = Callable[..., VectorField]
"""`(functions, layout, params, frozen, batch, *extra) -> VectorField`."""
LinearMap = Callable[[Params], Array]
"""A derivative at a batch: a JAX tree whose leaves are arrays of the forward and backward passes."""


@jit(static_argnums=(0, 1))
def loss_and_gradient(
    functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch
) -> tuple[Array, Array]:
    """One batch's summed loss and its gradient [dim]."""
    value, gradient = jax.value_and_grad(lambda p: heads.batch_loss(functions, p, frozen, batch))(params)
    return value, layout.ravel(gradient)


@jit(static_argnums=0)
def loss_value(functions: Functions, params: Params, frozen: dict, batch: Batch) -> Array:
    """One batch's summed loss."""
    return heads.batch_loss(functions, params, frozen, batch)


def linearise(
    field: Field, functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch, *extra: Array
) -> LinearMap:
    """One batch's matrix as a linear map to vectors [dim]; `extra` is what the field takes beside the batch."""
    given = params, frozen, batch, *extra
    return returned(linearised(field, functions, layout, *given), given)


@jit(static_argnums=(0, 1, 2))
def linearised(
    field: Field, functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch, *extra: Array
) -> LinearMap:
    """The map without what is borrowed."""
    vector_field = field(functions, layout, params, frozen, batch, *extra)
    linear = jax.linearize(lambda p: layout.ravel(vector_field(p)), params)[1]
    return borrowed(linear, (params, frozen, batch, *extra))


def forward(functions: Functions, params: Params, frozen: dict, batch: Batch) -> tuple[Array, LinearMap]:
    """The outputs of one batch, and J as a linear map to their tangents."""
    given = params, frozen, batch
    return returned(_forward(functions, *given), given)


@jit(static_argnums=0)
def _forward(functions: Functions, params: Params, frozen: dict, batch: Batch) -> tuple[Array, LinearMap]:
    found = jax.linearize(lambda p: functions[0](p, frozen, batch.inputs), params)
    return borrowed(found, (params, frozen, batch))


def apply(way: Way, layout: Layout, linear: LinearMap, vectors: Array) -> Any:
    """A linear map applied to vectors [k, dim] in the way asked for: its images, arrays of [k, ...]."""
    if way.application == "map":
        return one_by_one(layout, linear, vectors)
    return by_pieces(way, lambda piece: together(layout, linear, piece), vectors)


def by_pieces(way: Way, product: Callable[[Array], Any], vectors: Array) -> Any:
    """The products with vectors [k, dim], at most `way.width` at once, in pieces of one shape for one compilation."""
    count = -(-len(vectors) // way.width)
    if count <= 1:
        return product(vectors)
    size = -(-len(vectors) // count)
    padded = jnp.pad(vectors, ((0, count * size - len(vectors)), (0, 0)))
    images = [product(padded[start : start + size]) for start in range(0, count * size, size)]
    return jax.tree.map(lambda *each: jnp.concatenate(each)[: len(vectors)], *images)


@jit(static_argnums=0)
def together(layout: Layout, linear: LinearMap, vectors: Array) -> Array:
    """All in one program: small products become large matrix multiplications."""
    return jax.vmap(linear)(layout.unravel(vectors))


def one_by_one(layout: Layout, linear: LinearMap, vectors: Array) -> Any:
    """One program a vector, the same for blocks of any size: the tangents of one vector fit the caches.

    The loop is the host's: XLA's CPU backend runs convolutions inside compiled loops through a slow path.
    """
    images = [single(layout, linear, vector) for vector in vectors]
    return jax.tree.map(lambda *each: jnp.stack(each), *images)


@jit(static_argnums=0)
def single(layout: Layout, linear: LinearMap, vector: Array) -> Array:
    """Its image of one vector [dim]."""
    return linear(layout.unravel(vector))


def centred_slopes(
    functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch, vectors: Array, mean: Array
) -> Array:
    """(g_n − ḡ)·v of the batch's examples, 0 for those without weight, ḡ = `mean` [dim]: [k, b]."""
    _, jvp = jax.linearize(lambda p: heads.example_losses(functions, p, frozen, batch), params)
    centred = jax.vmap(jvp)(layout.unravel(vectors)) - (vectors @ mean)[:, None]
    return jnp.where(active(batch)[None], centred, 0)


def hessian(functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch) -> VectorField:
    """∇² of one batch's summed loss: the derivative of the gradient (forward over reverse)."""
    return jax.grad(lambda p: heads.batch_loss(functions, p, frozen, batch))


def sandwich(
    middle: Middle, functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch, *extra: Array
) -> VectorField:
    """Σ_n J_nᵀ C_n J_n of one batch; `middle` is C, `extra` what it takes beside the batch."""
    network, around = heads.in_two(middle, functions, params, frozen, batch)
    outputs, jvp = jax.linearize(network, params)
    vjp = jax.linear_transpose(jvp, params)
    across = around(functions[1], outputs, batch, *extra)
    return lambda vector: vjp(across(jvp(vector)))[0]


def residual(functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch) -> VectorField:
    """H − G of one batch: the Hessian of ⟨∂L/∂z, f(w)⟩ with ∂L/∂z held fixed.

    Nothing is subtracted: where every example is fitted the answer is as small as ∂L/∂z, not as H's rounding.
    """

    def linear_part(outputs: Array, part: Batch) -> Array:
        slope = jax.grad(lambda z: weighted_loss(functions[1], z, part))(outputs)
        return jnp.sum((jax.lax.stop_gradient(slope) * outputs).reshape(len(outputs), -1), axis=1)

    return jax.grad(lambda p: jnp.sum(heads.by_examples(linear_part, functions, p, frozen, batch)))


def covariance(
    functions: Functions, layout: Layout, params: Params, frozen: dict, batch: Batch, mean: Array
) -> VectorField:
    """Σ_n (g_n − ḡ)(g_n − ḡ)ᵀ of one batch, over examples with any weight; ḡ = `mean` [dim].

    Both sides are centred, not the matrix: ḡ may be far larger than the spread, and ḡḡᵀ then all digits of Σ g_n g_nᵀ.
    """
    _, jvp = jax.linearize(lambda p: heads.example_losses(functions, p, frozen, batch), params)
    vjp, center = jax.linear_transpose(jvp, params), layout.unravel(mean)

    def product(vector: Params) -> Params:
        along = sum(jnp.vdot(center[name], vector[name]) for name in layout.names)
        centred = jnp.where(active(batch), jvp(vector) - along, 0)
        total = jnp.sum(centred)
        return {name: leaf - total * center[name] for name, leaf in vjp(centred)[0].items()}

    return product
