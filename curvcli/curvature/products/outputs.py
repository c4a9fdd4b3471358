"""What stands between J and Jᵀ in a curvature matrix Σ_n J_nᵀ C_n J_n: one batch's C on tangents of the outputs.

Each function is `(loss, outputs, batch, *extra) -> (tangent -> cotangent)`, both of the shape of the outputs
[b, ..., C], the weights of the examples (or tokens) inside; nothing divides by the normaliser. A *unit* is what has a
loss of its own: an example, or a token.

Cost: O(outputs), and one derivative of the loss where there is no closed form.
Source: Grosse, *Neural Net Training Dynamics*, chapter 2, for the sampled Fisher matrix ("pullback sampling trick").
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from curvcli.losses import DRAWN, LOSSES, Likelihood, Loss
from curvcli.problem import Batch, unit_weight
from curvcli.streams import Stream

OutputMap = Callable[[Array], Array]


def identity(loss: Loss, outputs: Array, batch: Batch) -> OutputMap:
    """a_u I: the classical Gauss–Newton matrix."""
    weight = unit_weight(batch.weight, outputs.ndim)
    return lambda tangent: weight * tangent


def loss_hessian(loss: Loss, outputs: Array, batch: Batch) -> OutputMap:
    """a_u H_z, the Hessian of the loss in the outputs: in closed form, or by automatic differentiation."""
    if loss.known:
        return fisher(loss, outputs, batch)
    # A user's loss may couple the tokens of an example: the weights go inside.
    gradient = jax.grad(lambda z: weighted_loss(loss, z, batch))
    return jax.linearize(gradient, outputs)[1]


def fisher(loss: Loss, outputs: Array, batch: Batch) -> OutputMap:
    """a_u E[dz dzᵀ], dz the gradient at targets from the model's own distribution: H_z of the loss's family.

    Of the table's own losses for as many draws as a target stands for, so that it is H_z of the loss; for a likelihood
    that is declared, whose targets may be anything, for one.
    """
    assert loss.family is not None
    assert loss.family.hessian_product is not None
    product, weight = loss.family.hessian_product, unit_weight(batch.weight, outputs.ndim)
    targets = batch.targets if loss.known else None
    return lambda tangent: weight * product(outputs, targets, tangent)


def draw_weight(loss: Loss, outputs: Array, batch: Batch) -> Array:
    """a_u s_u, s_u the draws that a target stands for: s draws have s times the covariance of one. [b, ..., 1]."""
    weight = unit_weight(batch.weight, outputs.ndim)
    return weight if loss.draws is None else weight * loss.draws(outputs, batch.targets)[..., None]


def sampled_fisher(loss: Loss, outputs: Array, batch: Batch, keys: Array) -> OutputMap:
    """a_u (1/S) Σ_s dz_s dz_sᵀ, dz_s the gradient at targets drawn from the model's own distribution.

    Parameters
    ----------
    keys
        [S], from `draw_keys`. An example's draws depend on its index alone, so that the matrix is the same in every
        product and for every batch size; sample s is the same whatever S.
    """

    if loss.family is None:
        assert loss.draw is not None
        draw = loss.draw  # the user's function sees a batch of one example
        # Of one type in any arithmetic: the draws of a seed are those of one matrix.
        targets = _each_example(lambda key, z: draw(z[None].astype(DRAWN), key)[0], keys, batch, outputs)
        maps = lambda t, tangent: _outer_products(lambda z: loss.value(z, t), outputs, batch)(tangent)  # noqa: E731
        return lambda tangent: jnp.mean(jax.vmap(maps, (0, None))(targets, tangent), axis=0)

    dz, weight = pseudo_gradients(loss, outputs, batch, keys), draw_weight(loss, outputs, batch)

    def across(tangent: Array) -> Array:
        inner = dz * tangent[None]
        if outputs.ndim > 1:  # outputs [b] have one number a unit, and no axis of their own for it
            inner = jnp.sum(inner, axis=-1, keepdims=True)
        return weight * jnp.mean(inner * dz, axis=0)

    return across


def pseudo_gradients(loss: Loss, outputs: Array, batch: Batch, keys: Array) -> Array:
    """∂L/∂z at labels drawn from the model, of one draw a unit, weights left out: [S, b, ..., C].

    The same draws as `sampled_fisher`'s.
    """
    assert loss.family is not None
    assert loss.family.pseudo_gradient is not None
    return _each_example(loss.family.pseudo_gradient, keys, batch, outputs)


def _each_example(draw: Callable[[Array, Array], Array], keys: Array, batch: Batch, rows: Array) -> Array:
    """What `draw(key, row)` gives for every key and each example's row: [S, b, ...]."""
    own = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(lambda key: jax.vmap(draw)(own(key, batch.index), rows))(keys)


def observed_cotangents(loss: Loss, outputs: Array, batch: Batch, keys: Array) -> Array:
    """Random y of mean 0 and covariance C of `observed_fisher`, for each key: [S, b, ..., C].

    Jᵀy then has the covariance Jᵀ C J: a root of the matrix, by sampling. Draws belong to examples, as in
    `sampled_fisher`.
    """
    values, back = jax.vjp(lambda z: loss.value(z, batch.targets), outputs)
    root = jnp.sqrt(unit_weight(batch.weight, values.ndim))
    signs = _each_example(lambda key, unit: jax.random.rademacher(key, unit.shape, unit.dtype), keys, batch, values)
    return jax.vmap(lambda sign: back(root * sign)[0])(signs)


def identity_cotangents(loss: Loss, outputs: Array, batch: Batch, keys: Array) -> Array:
    """The same with the covariance of `identity`."""
    weight = unit_weight(batch.weight, outputs.ndim)
    return _normal_cotangents(LOSSES["squared_error"], weight, outputs, batch, keys)


def fisher_cotangents(loss: Loss, outputs: Array, batch: Batch, keys: Array) -> Array:
    """The same with the covariance of `fisher`; only of a loss with a family.

    Normal, not labels drawn from the model: unlikely labels would give the few examples that have them all weight.
    """
    assert loss.family is not None
    return _normal_cotangents(loss.family, draw_weight(loss, outputs, batch), outputs, batch, keys)


def _normal_cotangents(family: Likelihood, weight: Array, outputs: Array, batch: Batch, keys: Array) -> Array:
    noise = _each_example(lambda key, z: jax.random.normal(key, z.shape, z.dtype), keys, batch, outputs)
    return jnp.sqrt(weight)[None] * jax.vmap(family.root, (None, 0))(outputs, noise)


def observed_fisher(loss: Loss, outputs: Array, batch: Batch) -> OutputMap:
    """a_u dz dzᵀ at the observed targets: the empirical Fisher matrix, one dz a unit."""
    return _outer_products(lambda z: loss.value(z, batch.targets), outputs, batch)


def _outer_products(losses: Callable[[Array], Array], outputs: Array, batch: Batch) -> OutputMap:
    """Σ_u a_u dz_u dz_uᵀ, dz_u the gradient of unit u's loss: forward for the inner products, back for their sum."""
    values, forward = jax.linearize(losses, outputs)
    back = jax.linear_transpose(forward, outputs)
    weight = unit_weight(batch.weight, values.ndim)
    return lambda tangent: back(weight * forward(tangent))[0]


def draw_keys(seed: int, samples: int, stream: Stream = Stream.LABELS) -> Array:
    """One key a label sample, or a draw of another stream: [samples]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(stream.key(seed), jnp.arange(samples))


def active(batch: Batch) -> Array:
    """Which examples have any weight: [b]."""
    return jnp.any(batch.weight.reshape(len(batch.weight), -1) > 0, axis=1)


def weighted_loss(loss: Loss, outputs: Array, batch: Batch) -> Array:
    """Σ_u a_u L_u of one batch, as a function of its outputs."""
    return jnp.sum(example_losses(loss, outputs, batch))


def example_losses(loss: Loss, outputs: Array, batch: Batch) -> Array:
    """Each example's weighted loss, its tokens summed: [b]."""
    units = weighted(loss.value(outputs, batch.targets), batch)
    return jnp.sum(units, axis=tuple(range(1, units.ndim)))


def weighted(units: Array, batch: Batch) -> Array:
    """a_u L_u of losses, or margins, [b, ...]; 0 where a unit has no weight, be it infinite there."""
    weight = unit_weight(batch.weight, units.ndim)
    return weight * jnp.where(weight != 0, units, 0)  # changes of weights may be negative
