"""Writes linear_autoencoder.ckpt: Grosse's regularised linear autoencoder, at its closed-form optimum.

It is the example of *Neural Net Training Dynamics* (CSC 2541), chapter 2, section 4.3. Known there: a loss of
2.2150983, λ_max = 2.078364, a trace of 256.90022, and curvature 1.358681 along `rescale` and 4.1928e-4 along
`rotate`. What these numbers settle about the lecture's conventions: N = 1000 points of variances
linspace(1, 0, 20) are drawn from numpy's seed 0; the loss is the mean of ½‖z − x‖²; the regulariser is
½ Σ_k λ_k (…), with λ from 0 to half the smallest kept eigenvalue of XᵀX/N (not of the true covariance, and
X is not centred); the larger the eigenvalue, the smaller its λ; rescaling multiplies *both* matrices by e^s.
"""

import jax.numpy as jnp
import numpy as np
from common import report, write

from curvcli.zoo import SMALLEST_KEPT_VARIANCE, LinearAutoencoder, latent_l2, latent_penalties

N, D, K = 1000, 20, 10
TOML = f"""
[model]
target = "curvcli.zoo:LinearAutoencoder"
kind = "linen"
kwargs = {{ features = {D}, latents = {K} }}

[checkpoint]
path = "."
params = "params"

[data]
path = "gaussian.npz"
inputs = "x"
targets = "x"

[loss]
name = "squared_error"
reduction = "mean"
regulariser = "curvcli.zoo:latent_l2"
"""

# The legacy generator: the lecture's seed means these numbers and no others.
x = np.random.RandomState(0).randn(N, D) * np.sqrt(np.linspace(1, 0, D))
variances, axes = np.linalg.eigh(x.T @ x / N)
variances, axes = variances[::-1][:K], axes[:, ::-1][:, :K]
np.testing.assert_allclose(variances[-1], SMALLEST_KEPT_VARIANCE, rtol=1e-14)

# The closed form: component k is kept, shrunk by sqrt(1 − λ_k/σ²_k) on the way in and again on the way out.
encoder = axes * np.sqrt(1 - latent_penalties(K) / variances)
params = {"encoder": {"kernel": jnp.asarray(encoder)}, "decoder": {"kernel": jnp.asarray(encoder.T)}}
model = LinearAutoencoder(D, K)


def objective(params):
    error = model.apply({"params": params}, x) - x
    return 0.5 * jnp.mean(jnp.sum(error**2, axis=1)) + latent_l2(params)


report("linear_autoencoder", objective, params)
write("linear_autoencoder", {"params": params}, TOML, "gaussian.npz", {"x": x})
