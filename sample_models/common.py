"""What the training scripts share: the digits, a minimiser, and the writing of a sample model."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curvcli.xla import guard_environment

guard_environment()  # before JAX starts: some XLA releases sum wrongly, and a model trained so is trained wrongly

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import scipy.optimize
from jax.flatten_util import ravel_pytree

HERE = Path(__file__).resolve().parent

# Minimised in float64, where rounding does not stop the descent; stored in what users store.
jax.config.update("jax_enable_x64", True)

cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's 1,797 digits: pixels [1797, 64] from 0 to 1, and labels [1797]."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y.astype(np.int32)


def cast(tree: Any, dtype: Any) -> Any:
    """The same tree with its floating leaves in another dtype."""
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def squared_norm(params: Any) -> Any:
    """‖w‖² over all leaves, biases too."""
    return sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params))


def minimise(objective: Callable[[Any], Any], params: Any, iterations: int, gtol: float) -> Any:
    """L-BFGS on the full batch, in float64, until no component of the gradient exceeds `gtol`."""
    start, unravel = ravel_pytree(cast(params, jnp.float64))
    value_and_grad = jax.jit(jax.value_and_grad(lambda w: objective(unravel(w))))

    evaluations = itertools.count(1)

    def on_host(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = value_and_grad(w)
        if (n := next(evaluations)) % 100 == 0:
            print(f"  evaluation {n}: J = {value:.8g}, ‖∇J‖ = {jnp.linalg.norm(grad):.3g}", flush=True)
        return float(value), np.asarray(grad)

    options = {"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": 50, "gtol": gtol, "ftol": 0.0}
    found = scipy.optimize.minimize(on_host, start, jac=True, method="L-BFGS-B", options=options)
    print(f"L-BFGS: {found.nit} iterations, {found.message}")
    return unravel(jnp.asarray(found.x))


def anneal(objective: Callable[[Any, Any], Any], params: Any, steps: int, learning_rate: float) -> Any:
    """Adam, its learning rate falling to zero, on `objective(params, key)` with a new random key each step."""
    optimiser = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    @jax.jit
    def train_step(params: Any, state: Any, key: Any) -> tuple[Any, Any]:
        updates, state = optimiser.update(jax.grad(objective)(params, key), state)
        return optax.apply_updates(params, updates), state

    state = optimiser.init(params)
    for step in range(steps):
        params, state = train_step(params, state, jax.random.key(step))
    return params


def report(name: str, objective: Callable[[Any], Any], params: Any) -> None:
    """Prints J and ‖∇J‖, computed in the dtype of the parameters."""
    value, grad = jax.jit(jax.value_and_grad(objective))(params)
    w, norm = ravel_pytree(params)[0], jnp.sqrt(squared_norm(grad))
    print(f"{name}: {w.size} parameters of {w.dtype}, J = {value:.8g}, ‖∇J‖ = {norm:.3g}")


def empty_folder(name: str) -> Path:
    """A folder beside the scripts, rid of what an earlier run wrote."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def add_data(folder: Path, toml: str, data: str, arrays: dict[str, np.ndarray]) -> None:
    """Puts `curv.toml` and the data file into a checkpoint's folder."""
    (folder / "curv.toml").write_text(toml.lstrip(), encoding="utf-8")
    np.savez_compressed(folder / data, **arrays)


def forget_paths(folder: Path) -> None:
    """Takes the absolute path out of Orbax's commit markers, of which only the presence counts."""
    for marker in folder.rglob("commit_success.txt"):
        marker.write_text("Checkpoint commit was successful.\n", encoding="utf-8")


def write(name: str, tree: Any, toml: str, data: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes `name`.ckpt: an Orbax checkpoint of `tree`, with its curv.toml and its data inside."""
    folder = empty_folder(f"{name}.ckpt")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)
        checkpointer.wait_until_finished()
        add_data(folder, toml, data, arrays)
        forget_paths(folder)
        # Orbax must not mind the two files beside its own.
        jax.tree.map(np.testing.assert_array_equal, checkpointer.restore(folder, tree), tree)
