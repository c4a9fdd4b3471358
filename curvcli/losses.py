"""The table of losses.

The four named losses are s A(z) − t·z up to a term in t: −log of an exponential family in its natural parameter z, for
s draws whose sum is t. Hence ∂L/∂z = s A'(z) − t, the output Hessian is s A''(z), and the Fisher matrix of s draws is
the Gauss–Newton matrix. s is 1, except in softmax cross-entropy: there it is Σ_c t_c, which need not be 1 (counts of
several annotators, labels with weights), so that the loss is −Σ_c t_c log p_c.

An output may be infinite where the target allows it: a class of logit −∞ that no label has, a logit of ±∞ whose label
agrees, a log-rate of −∞ whose count is 0. The loss is then the limit, and its derivatives by that output are 0. Where
the target has mass on what is ruled out the loss is infinite. Both branches of every choice are finite: a derivative of
the branch that is not taken is multiplied by 0.

Source: Grosse, *Neural Net Training Dynamics*, chapter 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


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
        `(z, t, dz) -> H_z dz`, of the shape of z, in closed form; None asks for automatic differentiation. Without a
        target (None) it is that of a single draw, A''(z) dz.
    integer_targets
        Whether targets may be class numbers instead of rows of the shape of the outputs.
    known
        Whether it is one of the table: its targets can be checked, and it is a negative log-likelihood in natural
        parameters, so that Fisher = Gauss–Newton.
    pseudo_gradient
        `(key, z) -> ∂L/∂z` at targets drawn from the model's own distribution, of the shape of z, whose last axis is C:
        mean 0 and covariance A''(z). Only for losses of the table.
    root
        `(z, noise) -> R noise` with R Rᵀ = A''(z), of the shape of z. Only for losses of the table.
    mean
        `z -> A'(z)`, the expected target of a single draw, of the shape of z. Only for losses of the table.
    label_product
        `(z, dz) -> ∂/∂t ⟨∂L/∂z, dz⟩`, of the shape of z, class numbers counting as rows. Only for losses of the table.
    draws
        `(z, t) -> s`, the draws that targets stand for, [b, ...]; None: one each.
    adapt
        Makes of a function of the user's own outputs and more what takes those of the problem, and returns its units.
    likelihood
        For a user's loss: the loss of the table whose distribution its outputs are declared to stand for.
    draw
        For a user's loss: `(outputs, key) -> targets`, drawn from the model's own distribution.
    """

    name: str
    value: Callable[[Array, Array], Array]
    hessian_product: Callable[[Array, Array | None, Array], Array] | None
    integer_targets: bool = False
    known: bool = True
    pseudo_gradient: Callable[[Array, Array], Array] | None = None
    root: Callable[[Array, Array], Array] | None = None
    mean: Callable[[Array], Array] | None = None
    label_product: Callable[[Array, Array], Array] | None = None
    draws: Callable[[Array, Array], Array] | None = None
    adapt: Callable[[Callable[..., Array]], Callable[..., Array]] = lambda function: function
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


def _minus(z: Array, dz: Array) -> Array:
    return -dz  # of A'(z) − t


def one_hot(z: Array, t: Array) -> Array:
    """Class numbers as rows of the shape of z; soft labels stay as they are."""
    return jax.nn.one_hot(t, z.shape[-1], dtype=z.dtype) if t.ndim == z.ndim - 1 else t


def labelled(targets: np.ndarray) -> np.ndarray:
    """Whether each unit of a classification has a label: a class number of 0 or more, or a row of any mass."""
    return targets >= 0 if np.issubdtype(targets.dtype, np.integer) else np.any(targets > 0, axis=-1)


def _possible(z: Array) -> Array:
    """Which classes a logit of −∞ does not rule out; those of a NaN, which is to be seen, are not."""
    return z != -jnp.inf


def _softmax_cross_entropy(z: Array, t: Array) -> Array:
    # Differences to the largest logit, and log1p of what the others add: of an example that is fitted well, the loss
    # and its derivatives are e^−margin, which logsumexp(z) − t·z would lose in the rounding of z.
    top, possible = jnp.argmax(z, axis=-1, keepdims=True), _possible(z)
    below = jnp.where(possible, z - jnp.take_along_axis(z, top, axis=-1), 0)
    others = jnp.where(possible & ~_is_at(z, top), jnp.exp(below), 0)
    log_sum = jnp.log1p(jnp.sum(others, axis=-1))
    if t.ndim < z.ndim:
        own = _is_at(z, t[..., None])
        loss = log_sum - jnp.sum(jnp.where(own, below, 0), axis=-1)
    else:
        own = t > 0
        loss = jnp.sum(t, axis=-1) * log_sum - jnp.sum(t * below, axis=-1)
    return jnp.where(jnp.any(own & ~possible, axis=-1), jnp.inf, loss)


def _softmax(z: Array) -> Array:
    """Class probabilities; 0 for all of a unit that rules out every class, which only one without weight may."""
    possible = _possible(z)
    shares = jnp.where(possible, jnp.exp(jnp.where(possible, z - jnp.max(z, axis=-1, keepdims=True), 0)), 0)
    return shares / (jnp.sum(shares, axis=-1, keepdims=True) + ~jnp.any(possible, axis=-1, keepdims=True))


def _softmax_draws(z: Array, t: Array) -> Array:
    return jnp.ones(t.shape, z.dtype) if t.ndim < z.ndim else jnp.sum(t, axis=-1)


def _centred(z: Array, dz: Array) -> tuple[Array, Array]:
    """p and dz − ⟨p, dz⟩."""
    # After a shift of dz by its entry at the largest logit, which changes nothing, and where p is nearly one-hot takes
    # away what would cancel.
    top = jnp.argmax(z, axis=-1, keepdims=True)
    p, shifted = _softmax(z), dz - jnp.take_along_axis(dz, top, axis=-1)
    return p, shifted - jnp.sum(p * shifted, axis=-1, keepdims=True)


def _softmax_label_product(z: Array, dz: Array) -> Array:
    return -_centred(z, dz)[1]  # of s p − t, s = Σ t


def _softmax_hessian_product(z: Array, t: Array | None, dz: Array) -> Array:
    p, centred = _centred(z, dz)
    product = p * centred
    return product if t is None else _softmax_draws(z, t)[..., None] * product


def _softmax_draw(key: Array, z: Array) -> Array:
    drawn = _is_at(z, jax.random.categorical(key, z.astype(DRAWN))[..., None])
    others = jnp.where(drawn, 0, _softmax(z))
    return jnp.where(drawn, -jnp.sum(others, axis=-1, keepdims=True), others)


def _softmax_root(z: Array, noise: Array) -> Array:
    # R = diag(√p) − p√pᵀ: R Rᵀ = diag(p) − p pᵀ.
    p = _softmax(z)
    scaled = jnp.sqrt(p) * noise
    return scaled - p * jnp.sum(scaled, axis=-1, keepdims=True)


def _is_at(z: Array, place: Array) -> Array:
    return jax.lax.broadcasted_iota(place.dtype, z.shape, z.ndim - 1) == place


def _sigmoid_cross_entropy(z: Array, t: Array) -> Array:
    # Not softplus(z) − t z: e^−|z|, all that is left where the label is certain, would be lost in the rounding of z, as
    # would the second derivative. −|z| is a choice of sign, because |z| has no derivative at 0.
    infinite, positive = jnp.isinf(z), z > 0
    finite = jnp.where(infinite, 0, z)
    loss = jnp.log1p(jnp.exp(jnp.where(positive, -finite, finite))) + jnp.where(positive, 1 - t, -t) * finite
    return jnp.sum(jnp.where(infinite, jnp.where(t == positive, 0, jnp.inf), loss), axis=-1)


def _sigmoid_hessian_product(z: Array, t: Array | None, dz: Array) -> Array:
    # σ(z) σ(−z), not σ(1 − σ): the latter loses all digits for large z.
    return jax.nn.sigmoid(z) * jax.nn.sigmoid(-z) * dz


def _sigmoid_root(z: Array, noise: Array) -> Array:
    return jnp.sqrt(jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)) * noise


def _sigmoid_draw(key: Array, z: Array) -> Array:
    drawn = jax.random.bernoulli(key, jax.nn.sigmoid(z).astype(DRAWN))
    return jnp.where(drawn, -jax.nn.sigmoid(-z), jax.nn.sigmoid(z))


def _poisson(z: Array, t: Array) -> Array:
    never = ~_possible(z)
    rate = jnp.where(never, 0, z)
    return jnp.sum(jnp.where(never, jnp.where(t == 0, 0, jnp.inf), jnp.exp(rate) - t * rate), axis=-1)


def _poisson_draw(key: Array, z: Array) -> Array:
    return jnp.exp(z) - jax.random.poisson(key, jnp.exp(z).astype(DRAWN)).astype(z.dtype)


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("squared_error", _squared_error, lambda z, t, dz: dz, pseudo_gradient=_normal_draw,
             root=lambda z, noise: noise, mean=lambda z: z, label_product=_minus),
        Loss("softmax_cross_entropy", _softmax_cross_entropy, _softmax_hessian_product, integer_targets=True,
             pseudo_gradient=_softmax_draw, root=_softmax_root, mean=_softmax, label_product=_softmax_label_product,
             draws=_softmax_draws),
        Loss("sigmoid_cross_entropy", _sigmoid_cross_entropy, _sigmoid_hessian_product, pseudo_gradient=_sigmoid_draw,
             root=_sigmoid_root, mean=jax.nn.sigmoid, label_product=_minus),
        Loss("poisson", _poisson, lambda z, t, dz: jnp.exp(z) * dz, pseudo_gradient=_poisson_draw,
             root=lambda z, noise: jnp.exp(0.5 * z) * noise, mean=jnp.exp, label_product=_minus),
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
