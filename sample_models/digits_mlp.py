"""Trains and writes digits_mlp.ckpt: a tanh network 64-128-128-10, converged on all the digits."""

import jax
import jax.numpy as jnp
from common import cast, cross_entropy, digits, minimise, report, squared_norm, write

from curvcli.zoo import MLP

L2 = 1e-4
TOML = f"""
[model]
target = "curvcli.zoo:MLP"
kind = "linen"
kwargs = {{ features = [128, 128, 10], activation = "tanh" }}

[checkpoint]
path = "."
params = "params"

[data]
path = "digits.npz"
inputs = "x"
targets = "y"

[loss]
name = "softmax_cross_entropy"
l2 = {L2}
reduction = "mean"
"""

x, y = digits()
model = MLP((128, 128, 10), "tanh")


def objective(params):
    logits = model.apply({"params": params}, x)
    return jnp.mean(cross_entropy(logits, y)) + L2 / 2 * squared_norm(params)


params = minimise(objective, model.init(jax.random.key(0), x[:1])["params"], iterations=4000, gtol=1e-9)
params = cast(params, jnp.float32)
report("digits_mlp", objective, params)
write("digits_mlp", {"params": params}, TOML, "digits.npz", {"x": x, "y": y})
