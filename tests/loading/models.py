"""Networks of every kind as users write and save them, and their objectives written by hand, dense and in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization
from jax.flatten_util import ravel_pytree

from curvcli import errors
from curvcli.curvature import build
from curvcli.linalg.operator import to_dense
from curvcli.loading.resolve import Loaded, load_problem
from curvcli.loading.spec.files import FoundSpec, merge
from curvcli.problem import Problem
from curvcli.schema.settings import DataSettings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import orbax.checkpoint as ocp

HERE = __name__
COUNT, TOKENS, CLASSES = 6, 3, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(COUNT, 3))
IMAGES = RNG.normal(size=(COUNT, 4, 4, 1))
IDS = RNG.integers(0, 4, (COUNT, TOKENS))
LABELS = np.array([0, 2, 1, 1, 0, 2])
VALUES = RNG.normal(size=(COUNT, 2))
TOKEN_LABELS = np.array([[0, 1, 2], [2, 2, 0], [1, 1, 1], [0, 2, 1], [2, 0, 0], [1, 0, 2]])
MASK = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], float)


# --- networks, as users write them ------------------------------------------------------------------------


class CNN(nn.Module):
    """A convolution with batch statistics and dropout, told by `train`."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.Conv(2, (3, 3))(x)
        x = jnp.tanh(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x.mean(axis=(1, 2)))
        return nn.Dense(CLASSES)(x)


class Listed(nnx.Module):
    """Layers in an nnx.List, batch statistics and dropout."""

    def __init__(self, width: int = 4, *, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(3, width, rngs=rngs), nnx.Linear(width, CLASSES, rngs=rngs)])
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.layers[1](self.drop(jnp.tanh(self.norm(self.layers[0](x)))))


def mlp(params: list[dict[str, Any]], x: Any) -> Any:
    """A plain function of a list of layers."""
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"][None])
    return x @ params[-1]["w"] + params[-1]["b"][None]


class Tokens(nn.Module):
    """Each token's logits depend on those before it: [b, T] to [b, T, classes]."""

    @nn.compact
    def __call__(self, ids: Any, deterministic: bool = False) -> Any:
        x = jnp.tanh(jnp.cumsum(nn.Embed(4, 2)(ids), axis=1))
        return nn.Dense(CLASSES)(nn.Dropout(0.5)(x, deterministic=deterministic))


class Pair(nn.Module):
    """Two inputs by name."""

    @nn.compact
    def __call__(self, left: Any, right: Any) -> Any:
        return nn.Dense(2, name="a")(left) * jnp.tanh(nn.Dense(2, name="b")(right))


# --- the same by hand, of parameters by path --------------------------------------------------------------


def affine(p: Any, name: str, x: Any, kernel: str = "kernel", bias: str = "bias") -> Any:
    """x·W + b."""
    return x @ p[f"{name}/{kernel}"] + p[f"{name}/{bias}"]


def normalised(x: Any, mean: Any, var: Any, scale: Any, bias: Any) -> Any:
    """Batch normalisation with fixed statistics."""
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


def cnn_by_hand(p: Any, stats: Any, x: Any) -> Any:
    """`CNN`, the convolution as nine shifted products."""
    padded, size = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), x.shape[1]
    x = p["Conv_0/bias"] + sum(
        padded[:, i : i + size, j : j + size] @ p["Conv_0/kernel"][i, j] for i in range(3) for j in range(3)
    )
    mean, var = stats["batch_stats/BatchNorm_0/mean"], stats["batch_stats/BatchNorm_0/var"]
    x = jnp.tanh(normalised(x, mean, var, p["BatchNorm_0/scale"], p["BatchNorm_0/bias"]))
    return affine(p, "Dense_0", x.mean(axis=(1, 2)))


def listed_by_hand(p: Any, stats: Any, x: Any) -> Any:
    """`Listed`."""
    x = normalised(affine(p, "layers/0", x), stats["norm/mean"], stats["norm/var"], p["norm/scale"], p["norm/bias"])
    return affine(p, "layers/1", jnp.tanh(x))


def mlp_by_hand(p: Any, stats: Any, x: Any) -> Any:
    """`mlp`."""
    return affine(p, "1", jnp.tanh(affine(p, "0", x, "w", "b")), "w", "b")


def tokens_by_hand(p: Any, stats: Any, ids: Any) -> Any:
    """`Tokens`."""
    x = p["Embed_0/embedding"][ids]
    return affine(p, "Dense_0", jnp.tanh(jnp.tri(TOKENS) @ x))


def pair_by_hand(p: Any, stats: Any, x: Any) -> Any:
    """`Pair`."""
    return affine(p, "a", x["left"]) * jnp.tanh(affine(p, "b", x["right"]))


def cross_entropy(z: Any, t: Any) -> Any:
    """−log softmax(z)_t."""
    return -jnp.take_along_axis(jax.nn.log_softmax(z), t[..., None], axis=-1)[..., 0]


def squared_error(z: Any, t: Any) -> Any:
    """½‖z − t‖²."""
    return 0.5 * jnp.sum((z - t) ** 2, axis=-1)


# --- losses and regularisers of the user's own ------------------------------------------------------------


def quartic(z: Any, t: Any) -> Any:
    """A loss per example that the table does not have."""
    return jnp.sum((z - t) ** 4 + (z - t) ** 2, axis=-1)


def coupled(z: Any, t: Any) -> Any:
    """A loss per example that couples its tokens: [b, T, C] to [b]."""
    return jax.nn.logsumexp(z.reshape(len(z), -1), axis=-1) + 0.1 * jnp.sum(z, axis=(1, 2)) ** 2


def coupled_tokens(z: Any, t: Any) -> Any:
    """A loss per token that depends on the token before: [b, T, C] to [b, T]."""
    before = jnp.pad(z[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return cross_entropy(z, t) + 0.3 * jnp.sum((z - before) ** 2, axis=-1)


def penalty(params: Any) -> Any:
    """A regulariser that is no quadratic: Σ w⁴ − Σ w³ of every leaf."""
    return sum(jnp.sum(leaf**4) - jnp.sum(leaf**3) for leaf in jax.tree.leaves(params))


# --- saving -----------------------------------------------------------------------------------------------


def orbax(path: Path, tree: Any) -> None:
    """Save with Orbax."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), tree)


def msgpack(path: Path, tree: Any) -> None:
    """Save with flax.serialization."""
    path.write_bytes(serialization.to_bytes(tree))


def npz(path: Path, tree: Any) -> None:
    """Save with numpy, keys joined by slashes."""
    with path.open("wb") as stream:
        np.savez(stream, **by_path(tree))


def by_path(tree: Any) -> dict[str, np.ndarray]:
    """Leaves by slash-separated path, in float64."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def random_like(shapes: Any, seed: int = 3) -> Any:
    """Random leaves of these shapes: none zero, variances positive."""
    rng = np.random.default_rng(seed)

    def one(path: Any, leaf: Any) -> Any:
        values = rng.normal(size=leaf.shape) * 0.7
        return np.abs(values) + 0.5 if jax.tree_util.keystr(path).count("var") else values

    return jax.tree_util.tree_map_with_path(one, shapes)


def linen_variables(module: nn.Module, *inputs: Any, **kwargs: Any) -> Any:
    """Random variables of a linen module."""
    return random_like(jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **kwargs)))


def nnx_state(module: Callable[..., nnx.Module] = Listed) -> Any:
    """Random state of an nnx module, its random streams as they are."""
    state = nnx.state(module(rngs=nnx.Rngs(0)))
    streams, rest = nnx.split_state(state, nnx.RngState, ...)
    return nnx.merge_state(streams, nnx.from_flat_state(nnx.to_flat_state(random_like(rest))))


def list_params() -> list[dict[str, np.ndarray]]:
    """Of `mlp`."""
    shapes = [((3, 4), (4,)), ((4, 2), (2,))]
    rng = np.random.default_rng(4)
    return [{"w": rng.normal(size=w), "b": rng.normal(size=b)} for w, b in shapes]


# --- loading ----------------------------------------------------------------------------------------------


def load(folder: Path, spec: dict[str, dict[str, Any]], *, trusted: bool = True, **settings: Any) -> Loaded:
    """The problem of a curv.toml in a folder with the checkpoint `ckpt`, in float64."""
    found = FoundSpec(spec, folder, "curv.toml", trusted)
    return load_problem(
        merge(found, {}), found, folder / "ckpt", DataSettings(dtype="float64", **settings), step=None, trust=False
    )


def write_data(folder: Path, inputs: Any, targets: Any, **more: Any) -> None:
    """data.npz with `x` (or inputs by name), `y` and more."""
    arrays = inputs if isinstance(inputs, dict) else {"x": inputs}
    np.savez(folder / "data.npz", **arrays, y=targets, **more)


def spec_for(target: str, loss: str = "squared_error", /, **tables: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The tables of a curv.toml; a target without colon is one of this module."""
    tables = {table: dict(entries) for table, entries in tables.items()}
    model = {"target": target if ":" in target else f"{HERE}:{target}", **tables.pop("model", {})}
    data = {"path": "data.npz", **tables.pop("data", {})}
    return {"model": model, "data": data, "loss": {"name": loss, **tables.pop("loss", {})}, **tables}


def small(
    folder: Path, loss: str = "squared_error", /, targets: Any = VALUES, **tables: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """The curv.toml of a list of layers on random data."""
    npz(folder / "ckpt", list_params())
    write_data(folder, X, targets)
    return spec_for("mlp", loss, **tables)


def refused(kind: type[errors.CurvError], function: Callable[..., Any], *args: Any, says: Any, **kwargs: Any) -> None:
    """The function raises this error, in one line each for what happened and what to do, with these words."""
    with pytest.raises(errors.CurvError) as caught:
        function(*args, **kwargs)
    error = caught.value
    told = f"{error.message} | {error.hint}"
    assert type(error) is kind, told
    assert error.message
    assert error.hint
    assert "\n" not in told
    for words in (says,) if isinstance(says, str) else says:
        assert words in told, told


# --- dense truth ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """J(w) = (1/M) Σ a L(f(w, x), t) + R(w), written without batches or curv.

    Parameters
    ----------
    outputs
        `(params by path, stats by path, inputs) -> z`.
    params, stats
        By path.
    inputs, targets, loss, weight, normaliser
        Of the sum.
    regulariser
        R of the parameters by path.
    """

    outputs: Callable[..., Any]
    params: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    inputs: Any
    targets: Any
    loss: Callable[..., Any]
    weight: Any = None
    normaliser: float = COUNT
    regulariser: Callable[[Any], Any] = lambda params: 0.0

    def matrix(self, name: str) -> np.ndarray:
        """The matrix of this name by jax.hessian and jax.jacobian."""
        flat, unravel = ravel_pytree({k: jnp.asarray(v, "float64") for k, v in self.params.items()})
        inputs, targets = jax.tree.map(jnp.asarray, (self.inputs, self.targets))
        with jax.numpy_rank_promotion("allow"):
            outputs = jax.jit(lambda w: self.outputs(unravel(w), self.stats, inputs))

            def data(z: Any) -> Any:
                units = self.loss(z, targets)
                weight = jnp.ones(()) if self.weight is None else jnp.asarray(self.weight)
                weight = weight.reshape(weight.shape + (1,) * (units.ndim - weight.ndim))
                return jnp.sum(units * weight) / self.normaliser

            regulariser = np.asarray(jax.jit(jax.hessian(lambda w: jnp.asarray(self.regulariser(unravel(w)))))(flat))
            if name == "hessian":
                return np.asarray(jax.jit(jax.hessian(lambda w: data(outputs(w))))(flat)) + regulariser
            z = outputs(flat)
            jacobian = np.asarray(jax.jit(jax.jacobian(outputs))(flat)).reshape(z.size, -1)
            if name == "ggn":
                middle = np.asarray(jax.jit(jax.hessian(lambda v: data(v.reshape(z.shape))))(z.reshape(-1)))
            else:
                weight = np.ones(len(z)) if self.weight is None else np.asarray(self.weight)
                weight = weight.reshape(weight.shape + (1,) * (z.ndim - weight.ndim))
                middle = np.diag(np.broadcast_to(weight, z.shape).reshape(-1)) / self.normaliser
            return jacobian.T @ middle @ jacobian + regulariser


def same_matrix(problem: Problem, name: str, truth: np.ndarray, batch_size: int = 4, **options: Any) -> None:
    """The operator's dense matrix is the truth."""
    problem = replace(problem, batches=problem.batches.resized(batch_size))
    found = to_dense(build(problem, name, **options))
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-11 * np.abs(truth).max())
