"""The table of losses.

The four named losses are A(z) − t·z up to a term in t: −log of an exponential family in its natural parameter z.
Hence ∂L/∂z = A'(z) − t, the output Hessian is A''(z) whatever the target, and the Fisher matrix is the Gauss–Newton
matrix. Source: Grosse, *Neural Net Training Dynamics*, chapter 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

Array = Any


@dataclass(frozen=True)
class Loss:
    """A loss per example, never reduced.

    Parameters
    ----------
    name
        As in `[loss] name`.
    value
        `(z, t) -> L`: outputs [b, ..., C] and targets to losses [b, ...] (one a *unit*: an example, or a token).
    hessian_product
        `(z, t, dz) -> H_z dz`, of the shape of z, in closed form; None asks for automatic differentiation.
    integer_targets
        Whether targets may be class numbers instead of rows of the shape of the outputs.
    known
        Whether it is one of the table: its targets can be checked, and it is a negative log-likelihood in natural
        parameters, so that Fisher = Gauss–Newton.
    pseudo_gradient
        `(key, z) -> ∂L/∂z` at targets drawn from the model's own distribution, of the shape of z, whose last axis is C:
        mean 0 and covariance H_z. Only for losses of the table.
    root
        `(z, noise) -> R noise` with R Rᵀ = H_z, of the shape of z. Only for losses of the table.
    likelihood
        For a user's loss: the loss of the table whose distribution its outputs are declared to stand for.
    draw
        For a user's loss: `(outputs, key) -> targets`, drawn from the model's own distribution.
    """

    name: str
    value: Callable[[Array, Array], Array]
    hessian_product: Callable[[Array, Array, Array], Array] | None
    integer_targets: bool = False
    known: bool = True
    pseudo_gradient: Callable[[Array, Array], Array] | None = None
    root: Callable[[Array, Array], Array] | None = None
    likelihood: Loss | None = None
    draw: Callable[[Array, Array], Array] | None = None

    @property
    def family(self) -> Loss | None:
        """The loss of the table that gives the Fisher matrix, if any does."""
        return self if self.known else self.likelihood


DRAWN = "float32"
"""Type of the random numbers behind drawn labels, in any arithmetic: the draws of a seed are those of one matrix."""

# The pseudo-gradients are p − y with the cancelling digits kept: at the label drawn, p_y − 1 is −(the others' sum).


def _squared_error(z: Array, t: Array) -> Array:
    return 0.5 * jnp.sum(jnp.square(z - t), axis=-1)


def _normal_draw(key: Array, z: Array) -> Array:
    return jax.random.normal(key, z.shape, DRAWN).astype(z.dtype)


def one_hot(z: Array, t: Array) -> Array:
    """Class numbers as rows of the shape of z; soft labels stay as they are."""
    return jax.nn.one_hot(t, z.shape[-1], dtype=z.dtype) if t.ndim == z.ndim - 1 else t


def _softmax_cross_entropy(z: Array, t: Array) -> Array:
    # Differences to the largest logit, and log1p of what the others add: of an example that is fitted well, the loss
    # and its derivatives are e^−margin, which logsumexp(z) − t·z would lose in the rounding of z.
    top = jnp.argmax(z, axis=-1, keepdims=True)
    best, labels = jnp.take_along_axis(z, top, axis=-1), one_hot(z, t)
    others = jnp.where(_is_top(z, top), 0, jnp.exp(z - best))
    loss = jnp.log1p(jnp.sum(others, axis=-1)) - jnp.sum(labels * (z - best), axis=-1)
    if t.ndim < z.ndim:
        return loss
    return loss + (1 - jnp.sum(labels, axis=-1)) * best[..., 0]  # soft labels need not sum to 1


def _softmax_hessian_product(z: Array, t: Array, dz: Array) -> Array:
    # p ⊙ (dz − ⟨p, dz⟩) after a shift of dz by its entry at the largest logit: H_z 1 = 0, so the shift changes nothing,
    # and where p is nearly one-hot it takes away what would cancel.
    top = jnp.argmax(z, axis=-1, keepdims=True)
    p, shifted = jax.nn.softmax(z, axis=-1), dz - jnp.take_along_axis(dz, top, axis=-1)
    return p * (shifted - jnp.sum(p * shifted, axis=-1, keepdims=True))


def _softmax_draw(key: Array, z: Array) -> Array:
    drawn = _is_top(z, jax.random.categorical(key, z.astype(DRAWN))[..., None])
    others = jnp.where(drawn, 0, jax.nn.softmax(z, axis=-1))
    return jnp.where(drawn, -jnp.sum(others, axis=-1, keepdims=True), others)


def _softmax_root(z: Array, noise: Array) -> Array:
    # R = diag(√p) − p√pᵀ: R Rᵀ = diag(p) − p pᵀ.
    p = jax.nn.softmax(z, axis=-1)
    scaled = jnp.sqrt(p) * noise
    return scaled - p * jnp.sum(scaled, axis=-1, keepdims=True)


def _is_top(z: Array, top: Array) -> Array:
    return jax.lax.broadcasted_iota(top.dtype, z.shape, z.ndim - 1) == top


def _sigmoid_cross_entropy(z: Array, t: Array) -> Array:
    return jnp.sum(jax.nn.softplus(z) - t * z, axis=-1)


def _sigmoid_hessian_product(z: Array, t: Array, dz: Array) -> Array:
    # σ(z) σ(−z), not σ(1 − σ): the latter loses all digits for large z.
    return jax.nn.sigmoid(z) * jax.nn.sigmoid(-z) * dz


def _sigmoid_root(z: Array, noise: Array) -> Array:
    return jnp.sqrt(jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)) * noise


def _sigmoid_draw(key: Array, z: Array) -> Array:
    drawn = jax.random.bernoulli(key, jax.nn.sigmoid(z).astype(DRAWN))
    return jnp.where(drawn, -jax.nn.sigmoid(-z), jax.nn.sigmoid(z))


def _poisson(z: Array, t: Array) -> Array:
    return jnp.sum(jnp.exp(z) - t * z, axis=-1)


def _poisson_draw(key: Array, z: Array) -> Array:
    return jnp.exp(z) - jax.random.poisson(key, jnp.exp(z).astype(DRAWN)).astype(z.dtype)


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("squared_error", _squared_error, lambda z, t, dz: dz, pseudo_gradient=_normal_draw,
             root=lambda z, noise: noise),
        Loss("softmax_cross_entropy", _softmax_cross_entropy, _softmax_hessian_product, integer_targets=True,
             pseudo_gradient=_softmax_draw, root=_softmax_root),
        Loss("sigmoid_cross_entropy", _sigmoid_cross_entropy, _sigmoid_hessian_product, pseudo_gradient=_sigmoid_draw,
             root=_sigmoid_root),
        Loss("poisson", _poisson, lambda z, t, dz: jnp.exp(z) * dz, pseudo_gradient=_poisson_draw,
             root=lambda z, noise: jnp.exp(0.5 * z) * noise),
    )
}  # fmt: skip


def user_loss(
    name: str,
    fn: Callable[[Array, Array], Array],
    *,
    likelihood: Loss | None = None,
    draw: Callable[[Array, Array], Array] | None = None,
) -> Loss:
    """A loss of the user's own: its output Hessian comes by automatic differentiation.

    Parameters
    ----------
    name
        The target it came from.
    fn
        `(outputs, targets) -> losses`, one per example (or per token).
    likelihood, draw
        What makes it a likelihood, for the Fisher matrices, if anything does: a loss of the table, or a sampler of
        targets.
    """
    return Loss(name, fn, None, known=False, likelihood=likelihood, draw=draw)
