"""A row for the table of losses, as a contributor writes it: counts of 0 to 2 with a logit link.

−log p(t | z) = 2 log(1 + e^z) − t z − log C(2, t) for each output z: `value`, and `log_normaliser`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import comb, entr

from curvcli.losses import DRAWN, Likelihood, minus


def variance(z: Any) -> Any:
    """A''(z) of each output."""
    return 2 * jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)


def pseudo_gradient(key: Any, z: Any) -> Any:
    """A'(z) − t, t drawn from the model."""
    successes = jax.random.bernoulli(key, jax.nn.sigmoid(z).astype(DRAWN)[None], (2, *z.shape))
    return 2 * jax.nn.sigmoid(z) - jnp.sum(successes, axis=0)


BINOMIAL = Likelihood(
    name="binomial",
    value=lambda z, t: jnp.sum(2 * jax.nn.softplus(z) - t * z, axis=-1),
    mean=lambda z: 2 * jax.nn.sigmoid(z),
    hessian_product=lambda z, t, dz: variance(z) * dz,
    root=lambda z, noise: jnp.sqrt(variance(z)) * noise,
    identity_hessian=False,
    pseudo_gradient=pseudo_gradient,
    label_product=minus,
    target_range=(0, 2),
    log_normaliser=lambda t: -np.log(comb(2, t)),
    least=lambda t: 2 * np.sum(entr(t / 2) + entr(1 - t / 2), axis=-1),
    margin=None,
    classes=False,
    unit="nats",
)
