"""Trains and writes tanh_regression.ckpt: a curve through noisy points, at an exact minimum.

After Grosse, *Neural Net Training Dynamics* (CSC 2541), chapter 2, figure 5.
"""

import jax
import jax.numpy as jnp
import numpy as np
from common import minimise, report, squared_norm, write
from jax.flatten_util import ravel_pytree

from curvcli.zoo import MLP

L2 = 1e-4
TOML = f"""
[model]
target = "curvcli.zoo:MLP"
kind = "linen"
kwargs = {{ features = [16, 16, 1], activation = "tanh" }}

[checkpoint]
path = "."
params = "params"

[data]
path = "points.npz"
inputs = "x"
targets = "y"

[loss]
name = "squared_error"
l2 = {L2}
reduction = "mean"
"""

rng = np.random.default_rng(0)
x = np.sort(rng.uniform(-3, 3, (40, 1)), axis=0)
y = np.sin(2 * x) + 0.3 * x + 0.15 * rng.standard_normal(x.shape)
model = MLP((16, 16, 1), "tanh")


def objective(params):
    error = model.apply({"params": params}, x) - y
    return 0.5 * jnp.mean(jnp.sum(error**2, axis=1)) + L2 / 2 * squared_norm(params)


params = minimise(objective, model.init(jax.random.key(0), x)["params"], iterations=20000, gtol=1e-7)

# A few Newton steps take the gradient from what L-BFGS can reach to rounding.
w, unravel = ravel_pytree(params)
for _ in range(3):
    gradient = jax.grad(lambda w: objective(unravel(w)))(w)
    hessian = jax.hessian(lambda w: objective(unravel(w)))(w)
    w = w - jnp.linalg.solve(hessian, gradient)
lowest = float(jnp.linalg.eigvalsh(hessian)[0])
print(f"smallest eigenvalue {lowest:.3g}")
assert lowest > 0, "not a minimum"

params = unravel(w)
report("tanh_regression", objective, params)
write("tanh_regression", {"params": params}, TOML, "points.npz", {"x": x, "y": y})
