"""The table of losses: a row says everything that curv needs to know of a loss.

The rows are likelihoods, s A(z) − t·z up to a term in t: −log of an exponential family in its natural parameter z, for
s draws whose sum is t. Hence ∂L/∂z = s A'(z) − t, the output Hessian is s A''(z), and the Fisher matrix of s draws is
the Gauss–Newton matrix. s is 1, except where targets are rows over classes: there it is Σ_c t_c, which need not be 1
(counts of several annotators, labels with weights), so that the loss is −Σ_c t_c log p_c.

An output may be infinite where the target allows it: a class of logit −∞ that no label has, a logit of ±∞ whose label
agrees, a log-rate of −∞ whose count is 0. The loss is then the limit, and its derivatives by that output are 0. Where
the target has mass on what is ruled out the loss is infinite. Both branches of every choice are finite: a derivative of
the branch that is not taken is multiplied by 0.

Adding a loss means adding a row to `LOSSES` and its name to `LOSS_NAMES` (in `schema/spec.py`, from which help and
schema take the list). Every facet of a row is a required argument; tests/test_loss_row.py checks each against `value`.

Source: Grosse, *Neural Net Training Dynamics*, chapter 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import Array


@dataclass(frozen=True)
class Loss:
    """A loss per example, never reduced: of the table (`Likelihood`), or the user's own.

    Parameters
    ----------
    name
        As in `[loss] name`.
    value
        `(z, t) -> L`: outputs [b, ..., C] and targets to losses [b, ...] (one a *unit*: an example, or a token).
    classes
        Whether outputs are the logits of C exclusive classes, and targets their labels: class numbers [b, ...], or rows
        [b, ..., C] of shares or counts. A row of zeros is padding, and a row that sums to s stands for s draws.
    unit
        What the loss counts.
    adapt
        Makes of a function of the user's own outputs and more what takes those of the problem, and returns its units.
    likelihood
        For a user's loss: the loss of the table whose distribution its outputs are declared to stand for.
    draw
        For a user's loss: `(outputs, key) -> targets`, drawn from the model's own distribution.
    """

    name: str
    value: Callable[[Array, Array], Array]
    classes: bool = False
    unit: str = "units"
    adapt: Callable[[Callable[..., Array]], Callable[..., Array]] = lambda function: function
    likelihood: Likelihood | None = None
    draw: Callable[[Array, Array], Array] | None = None

    @property
    def known(self) -> bool:
        """Whether it is a row of the table."""
        return isinstance(self, Likelihood)

    @property
    def family(self) -> Likelihood | None:
        """The loss of the table that gives the Fisher matrix, if any does."""
        return self if isinstance(self, Likelihood) else self.likelihood

    @property
    def draws(self) -> Callable[[Array, Array], Array] | None:
        """`(z, t) -> s`, the draws that targets stand for, [b, ...]; None: one each."""
        return _class_draws if self.classes else None


@dataclass(frozen=True, kw_only=True)
class Likelihood(Loss):
    """A row of the table: −log of an exponential family in its natural parameters z.

    No facet has a default. `None` says that the likelihood has none; what needs it then refuses, and names it.

    Parameters
    ----------
    mean
        `z -> A'(z)`, the expected target of a single draw, of the shape of z.
    hessian_product
        `(z, t, dz) -> s A''(z) dz`, of the shape of z. Without a target (None) it is that of a single draw.
    root
        `(z, noise) -> R noise` with R Rᵀ = A''(z), of the shape of z.
    identity_hessian
        Whether A''(z) = I, so that the classical Gauss–Newton matrix is the GGN.
    pseudo_gradient
        `(key, z) -> A'(z) − t` at a target t drawn from the model's own distribution, of the shape of z, whose last
        axis is C: mean 0 and covariance A''(z).
    label_product
        `(z, dz) -> ∂/∂t ⟨∂L/∂z, dz⟩`, of the shape of z, class numbers counting as rows.
    target_range
        Least and largest target; of labels by class, of the entries of rows. Checked when data are loaded.
    log_normaliser
        `t -> −log p(t | z) − L(z, t)`, of each output [b, ..., C] or one number for all, on the host. `compare
        --laplace` needs it.
    least
        `t -> min over z of L(z, t)`, from rows [b, ..., C] to [b, ...], on the host; −∞ where there is none. Says how
        far a loss can fall.
    margin
        `(z, t) -> [b, ...]`, log-odds of the unit's own label. `influence --measure margin` needs it.
    """

    classes: bool = field()
    unit: str = field()
    mean: Callable[[Array], Array]
    hessian_product: Callable[[Array, Array | None, Array], Array]
    root: Callable[[Array, Array], Array]
    identity_hessian: bool
    pseudo_gradient: Callable[[Array, Array], Array]
    label_product: Callable[[Array, Array], Array]
    target_range: tuple[float, float]
    log_normaliser: Callable[[np.ndarray], np.ndarray | float] | None
    least: Callable[[np.ndarray], np.ndarray] | None
    margin: Callable[[Array, Array], Array] | None


DRAWN = "float32"
"""Type of the random numbers behind drawn labels, in any arithmetic: the draws of a seed are those of one matrix."""

# The pseudo-gradients are p − y with the cancelling digits kept: at the label drawn, p_y − 1 is −(the others' sum).


def _squared_error(z: Array, t: Array) -> Array:
    return 0.5 * jnp.sum(jnp.square(z - t), axis=-1)


def _normal_draw(key: Array, z: Array) -> Array:
    return jax.random.normal(key, z.shape, DRAWN).astype(z.dtype)


def minus(z: Array, dz: Array) -> Array:
    """The label product of A'(z) − t."""
    return -dz


def _zero(t: np.ndarray) -> float:
    return 0.0


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


def _class_draws(z: Array, t: Array) -> Array:
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
    return product if t is None else _class_draws(z, t)[..., None] * product


def _softmax_draw(key: Array, z: Array) -> Array:
    drawn = _is_at(z, jax.random.categorical(key, z.astype(DRAWN))[..., None])
    others = jnp.where(drawn, 0, _softmax(z))
    return jnp.where(drawn, -jnp.sum(others, axis=-1, keepdims=True), others)


def _softmax_root(z: Array, noise: Array) -> Array:
    # R = diag(√p) − p√pᵀ: R Rᵀ = diag(p) − p pᵀ.
    p = _softmax(z)
    scaled = jnp.sqrt(p) * noise
    return scaled - p * jnp.sum(scaled, axis=-1, keepdims=True)


def _softmax_least(t: np.ndarray) -> np.ndarray:
    """−Σ t log(t/s), s = Σ t: at outputs log t. Without bound where one is negative."""
    sums = t.sum(axis=-1, keepdims=True)
    return np.where(np.all(t >= 0, axis=-1), np.sum(-scipy.special.rel_entr(np.maximum(t, 0), sums), axis=-1), -np.inf)


def _log_odds(z: Array, t: Array) -> Array:
    own = jax.nn.one_hot(jnp.argmax(one_hot(z, t), axis=-1), z.shape[-1], dtype=bool)
    certain = jnp.all(own | (z == -jnp.inf), axis=-1)
    others = jax.nn.logsumexp(jnp.where(own & ~certain[..., None], -jnp.inf, z), axis=-1)
    return jnp.where(certain, 0, jnp.sum(jnp.where(own, z, 0), axis=-1) - others)


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


def _sigmoid_least(t: np.ndarray) -> np.ndarray:
    inside = np.all((t >= 0) & (t <= 1), axis=-1)
    p = np.clip(t, 0, 1)
    return np.where(inside, np.sum(scipy.special.entr(p) + scipy.special.entr(1 - p), axis=-1), -np.inf)


def _signed(z: Array, t: Array) -> Array:
    return jnp.sum((2 * t - 1) * jnp.where(jnp.isinf(z), 0, z), axis=-1)


def _poisson(z: Array, t: Array) -> Array:
    never = ~_possible(z)
    rate = jnp.where(never, 0, z)
    return jnp.sum(jnp.where(never, jnp.where(t == 0, 0, jnp.inf), jnp.exp(rate) - t * rate), axis=-1)


def _poisson_draw(key: Array, z: Array) -> Array:
    return jnp.exp(z) - jax.random.poisson(key, jnp.exp(z).astype(DRAWN)).astype(z.dtype)


def _poisson_least(t: np.ndarray) -> np.ndarray:
    return np.where(np.all(t >= 0, axis=-1), np.sum(t + scipy.special.entr(np.maximum(t, 0)), axis=-1), -np.inf)


LOSSES: dict[str, Likelihood] = {
    loss.name: loss
    for loss in (
        Likelihood(
            name="squared_error",
            value=_squared_error,
            mean=lambda z: z,
            hessian_product=lambda z, t, dz: dz,
            root=lambda z, noise: noise,
            identity_hessian=True,
            pseudo_gradient=_normal_draw,
            label_product=minus,
            target_range=(-np.inf, np.inf),
            log_normaliser=lambda t: 0.5 * math.log(2 * math.pi),
            least=lambda t: np.zeros(t.shape[:-1]),
            margin=None,
            classes=False,
            unit="units",
        ),
        Likelihood(
            name="softmax_cross_entropy",
            value=_softmax_cross_entropy,
            mean=_softmax,
            hessian_product=_softmax_hessian_product,
            root=_softmax_root,
            identity_hessian=False,
            pseudo_gradient=_softmax_draw,
            label_product=_softmax_label_product,
            target_range=(0, np.inf),
            log_normaliser=_zero,
            least=_softmax_least,
            margin=_log_odds,
            classes=True,
            unit="nats",
        ),
        Likelihood(
            name="sigmoid_cross_entropy",
            value=_sigmoid_cross_entropy,
            mean=jax.nn.sigmoid,
            hessian_product=_sigmoid_hessian_product,
            root=_sigmoid_root,
            identity_hessian=False,
            pseudo_gradient=_sigmoid_draw,
            label_product=minus,
            target_range=(0, 1),
            log_normaliser=_zero,
            least=_sigmoid_least,
            margin=_signed,
            classes=False,
            unit="nats",
        ),
        Likelihood(
            name="poisson",
            value=_poisson,
            mean=jnp.exp,
            hessian_product=lambda z, t, dz: jnp.exp(z) * dz,
            root=lambda z, noise: jnp.exp(0.5 * z) * noise,
            identity_hessian=False,
            pseudo_gradient=_poisson_draw,
            label_product=minus,
            target_range=(0, np.inf),
            log_normaliser=lambda t: scipy.special.gammaln(t + 1.0),
            least=_poisson_least,
            margin=None,
            classes=False,
            unit="nats",
        ),
    )
}


def user_loss(
    name: str,
    fn: Callable[[Array, Array], Array],
    *,
    likelihood: Likelihood | None = None,
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
    return Loss(name, fn, likelihood=likelihood, draw=draw)
