"""Networks with batch statistics as users write them, and their training-mode objective written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree

COUNT, CLASSES = 48, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(COUNT, 4)) * [1, 2, 0.5, 1] + [0, 3, 0, -1]
Y = RNG.integers(0, CLASSES, COUNT)


class Linen(nn.Module):
    """Two BatchNorm layers and a dropout, told by `train`."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        for width in (5, 4):
            x = nn.Dense(width)(x)
            x = jnp.tanh(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(CLASSES)(x)


class Nnx(nnx.Module):
    """The same without an argument of its call."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.second = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 4, rngs=rngs)
        self.one, self.two = nnx.BatchNorm(5, rngs=rngs), nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.drop, self.last = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(4, CLASSES, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = jnp.tanh(self.one(self.first(x)))
        x = jnp.tanh(self.two(self.second(x)))
        return self.last(self.drop(x))


class NnxTold(Nnx):
    """Told by `train`, which its layers' calls are given."""

    def __call__(self, x: Any, train: bool = False) -> Any:
        x = jnp.tanh(self.one(self.first(x), use_running_average=not train))
        x = jnp.tanh(self.two(self.second(x), use_running_average=not train))
        return self.last(self.drop(x, deterministic=not train))


class Own(nn.Module):
    """A normalisation of the user's own, with other names, which only the call's argument switches."""

    @nn.compact
    def __call__(self, x: Any, training: bool) -> Any:
        x = nn.Dense(5)(x)
        centre = self.variable("batch_stats", "centre", jnp.zeros, (5,))
        spread = self.variable("batch_stats", "running_var", jnp.ones, (5,))
        mean, var = centre.value, spread.value
        if training:
            mean, var = x.mean(0), x.var(0)
            if not self.is_initializing():
                centre.value, spread.value = 0.99 * centre.value + 0.01 * mean, 0.75 * spread.value + 0.25 * var
        x = jnp.tanh((x - mean[None]) / jnp.sqrt(var[None] + 1e-3))
        return nn.Dense(CLASSES)(nn.Dropout(0.3, deterministic=not training)(x))


class NoTraining(nn.Module):
    """Statistics that no call writes."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(5)(x)) if False else nn.Dense(5)(x)
        return nn.Dense(CLASSES)(x / self.variable("batch_stats", "var", jnp.ones, (5,)).value[None])


def linen_variables(model: Any, seed: int) -> dict[str, Any]:
    """Weights away from their start, and statistics that are some data's."""
    variables = model.init(jax.random.key(seed), X[:2], **({"training": False} if isinstance(model, Own) else {}))
    return moved(variables, seed)


def nnx_variables(cls: type, seed: int) -> dict[str, Any]:
    return moved(nnx.to_pure_dict(nnx.state(cls(nnx.Rngs(seed)), nnx.Any(nnx.Param, nnx.BatchStat))), seed)


def moved(tree: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.asarray(leaf, float) + rng.uniform(0.05, 0.4, leaf.shape), tree)


def normalised(x: Any, scale: Any, bias: Any, moments: Any = None) -> Any:
    """Batch normalisation by hand, with the batch's own moments if none are given."""
    mean, var = (x.mean(0), x.var(0)) if moments is None else moments
    return (x - mean[None]) / jnp.sqrt(var[None] + 1e-5) * scale[None] + bias[None]


NAMES = {
    Linen: [("Dense_0", "BatchNorm_0"), ("Dense_1", "BatchNorm_1"), ("Dense_2", None)],
    Nnx: [("first", "one"), ("second", "two"), ("last", None)],
    NnxTold: [("first", "one"), ("second", "two"), ("last", None)],
}


def outputs(cls: type, params: dict[str, Any], x: Any, statistics: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """Outputs of Linen, Nnx or NnxTold by hand, and the moments of what each BatchNorm is given."""
    found = {}
    for dense, norm in NAMES[cls]:
        x = x @ params[dense]["kernel"] + params[dense]["bias"][None]
        if norm is not None:
            found[norm] = {"mean": x.mean(0), "var": x.var(0)}
            given = None if statistics is None else (statistics[norm]["mean"], statistics[norm]["var"])
            x = jnp.tanh(normalised(x, params[norm]["scale"], params[norm]["bias"], given))
    return x, found


def objective(cls: type, params: dict[str, Any], batch: int) -> tuple[Callable[[Any], Any], Any]:
    """The mean over batches of the training-mode loss, of the flat parameters in the order of their paths."""
    flat, unravel = ravel_pytree(params)

    def value(w: Any) -> Any:
        starts = range(0, COUNT - COUNT % batch, batch)
        z = jnp.concatenate([outputs(cls, unravel(w), jnp.asarray(X[i : i + batch]))[0] for i in starts])
        return optax.softmax_cross_entropy_with_integer_labels(z, jnp.asarray(Y[: len(z)])).mean()

    return value, flat


def params_of(cls: type, variables: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and statistics, nested by layer."""
    if cls is Linen:
        return variables["params"], variables["batch_stats"]
    split = [
        {
            layer: {k: v for k, v in leaves.items() if (k in ("mean", "var")) == wanted}
            for layer, leaves in variables.items()
        }
        for wanted in (False, True)
    ]
    return tuple({layer: leaves for layer, leaves in one.items() if leaves} for one in split)  # type: ignore[return-value]
