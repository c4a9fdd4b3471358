"""Trains and writes digits_cnn.ckpt: a ReLU network with batch normalisation on the digits as images.

First trained as usual, on minibatches with their own statistics; then the weights alone, on all digits with
the running statistics fixed, to a stationary point of the loss that `curv` sees (evaluation mode).
"""

import jax
import jax.numpy as jnp
import optax
from common import anneal, cast, cross_entropy, digits, minimise, report, squared_norm, write

from curvcli.zoo import CNN

L2 = 1e-4
EPOCHS, BATCH, LEARNING_RATE = 20, 64, 3e-3
TOML = f"""
[model]
target = "curvcli.zoo:CNN"
kind = "linen"
kwargs = {{ features = [16, 32, 32], classes = 10 }}

[checkpoint]
path = "."
params = "params"          # batch_stats are held fixed

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
x = x.reshape(-1, 8, 8, 1)
model = CNN((16, 32, 32), 10)
variables = cast(model.init(jax.random.key(0), x[:1]), jnp.float32)
params, batch_stats = variables["params"], variables["batch_stats"]
optimiser = optax.adam(LEARNING_RATE)


def objective(params, batch_stats):
    logits = model.apply({"params": params, "batch_stats": batch_stats}, x)
    return jnp.mean(cross_entropy(logits, y)) + L2 / 2 * squared_norm(params)


@jax.jit
def train_step(params, batch_stats, state, rows):
    def batch_loss(params):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updated = model.apply(variables, x[rows], train=True, mutable=["batch_stats"])
        loss = jnp.mean(cross_entropy(logits, y[rows])) + L2 / 2 * squared_norm(params)
        return loss, updated["batch_stats"]

    grads, batch_stats = jax.grad(batch_loss, has_aux=True)(params)
    updates, state = optimiser.update(grads, state)
    return optax.apply_updates(params, updates), batch_stats, state


x, y, state = jnp.asarray(x), jnp.asarray(y), optimiser.init(params)
for epoch in range(EPOCHS):
    order = jax.random.permutation(jax.random.key(epoch), len(x))
    for start in range(0, len(x) - BATCH + 1, BATCH):
        params, batch_stats, state = train_step(params, batch_stats, state, order[start : start + BATCH])
report("after Adam", lambda p: objective(p, batch_stats), params)

params = cast(minimise(lambda p: objective(p, batch_stats), params, iterations=1500, gtol=1e-8), jnp.float32)
# Across the kinks of ReLU, L-BFGS zigzags; small steps that get smaller calm the gradient down.
params = anneal(lambda p, _: objective(p, batch_stats), params, steps=1000, learning_rate=1e-4)
report("digits_cnn", lambda p: objective(p, batch_stats), params)
write("digits_cnn", {"params": params, "batch_stats": batch_stats}, TOML, "digits.npz", {"x": x, "y": y})
