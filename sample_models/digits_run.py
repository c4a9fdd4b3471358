"""Trains and writes digits_run/: eight steps of a run of Adam on the digits, the first at initialisation.

The run is 20 epochs of minibatches at a constant learning rate, the best of 3e-4, 1e-3, 3e-3, 1e-2, 3e-2 by
the training objective J after the 20 epochs (`python digits_run.py tune` prints them).
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from common import add_data, cast, cross_entropy, digits, empty_folder, forget_paths, report, squared_norm

from curvcli.zoo import MLP

L2 = 1e-4
EPOCHS, BATCH = 20, 64
LEARNING_RATE = 1e-2
TRAINING = 1437  # four fifths
KEPT_STEPS = (0, 7, 14, 28, 55, 110, 220, 440)  # of 22 an epoch
TOML = f"""
[model]
target = "curvcli.zoo:MLP"
kind = "linen"
kwargs = {{ features = [64, 64, 10], activation = "tanh" }}

[checkpoint]
path = "."
params = "params"

[data]
path = "digits.npz"
inputs = "x"
targets = "y"
split = "train"

[loss]
name = "softmax_cross_entropy"
l2 = {L2}
reduction = "mean"
"""

x, y = digits()
order = np.random.default_rng(0).permutation(len(x))
train, test = order[:TRAINING], order[TRAINING:]
arrays = {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}
x_train, y_train = jnp.asarray(x[train]), jnp.asarray(y[train])
model = MLP((64, 64, 10), "tanh")


def objective(params, x=x_train, y=y_train):
    return jnp.mean(cross_entropy(model.apply({"params": params}, x), y)) + L2 / 2 * squared_norm(params)


def states(learning_rate):
    """The training state after 0, 1, 2, … steps."""
    optimiser = optax.adam(learning_rate)

    @jax.jit
    def train_step(params, opt_state, rows):
        grads = jax.grad(objective)(params, x_train[rows], y_train[rows])
        updates, opt_state = optimiser.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state

    params = cast(model.init(jax.random.key(0), x[:1])["params"], jnp.float32)
    opt_state, step = optimiser.init(params), 0
    yield {"params": params, "opt_state": opt_state, "step": jnp.int32(step)}
    for epoch in range(EPOCHS):
        rows = jax.random.permutation(jax.random.key(epoch), TRAINING)
        for start in range(0, TRAINING - BATCH + 1, BATCH):
            params, opt_state = train_step(params, opt_state, rows[start : start + BATCH])
            step += 1
            yield {"params": params, "opt_state": opt_state, "step": jnp.int32(step)}


def tune():
    for learning_rate in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2):
        *_, last = states(learning_rate)
        report(f"learning rate {learning_rate}", objective, last["params"])


def run():
    root = empty_folder("digits_run")
    options = ocp.CheckpointManagerOptions(create=True, enable_async_checkpointing=False)
    with ocp.CheckpointManager(root, options=options) as manager:
        add_data(root, TOML, "digits.npz", arrays)
        for step, state in enumerate(states(LEARNING_RATE)):
            if step in KEPT_STEPS:
                report(f"digits_run/{step}", objective, state["params"])
                manager.save(step, args=ocp.args.StandardSave(state))
        wrong = np.argmax(model.apply({"params": state["params"]}, x[test]), axis=1) != y[test]
        print(f"{wrong.mean():.1%} of the test digits wrong")
    forget_paths(root)
    # Orbax must not mind the two files beside its own.
    with ocp.CheckpointManager(root) as manager:
        assert manager.all_steps() == list(KEPT_STEPS)
        restored = manager.restore(KEPT_STEPS[-1], args=ocp.args.StandardRestore(state))
        jax.tree.map(np.testing.assert_array_equal, restored, state)


if "tune" in sys.argv:
    tune()
else:
    run()
