"""What is said of a matrix before its numbers: kinks that a Hessian leaves out, and losses that are not convex."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.analyses.checks import matrix_notes
from curvcli.analyses.precise import network_jaxpr
from curvcli.losses import user_loss
from curvcli.schema.settings import AnalysisSettings
from tests.problems import make_problem, mlp_problem


def notes(problem: Any, matrix: str) -> list[str]:
    settings: Any = {"matrix": matrix, "dtype": str(problem.dtype)}
    return matrix_notes(problem, AnalysisSettings(**settings), network_jaxpr(problem))


def network(hidden: Any) -> Any:
    """A network with something done to its hidden units [b, 4, 6]."""
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 6)), "b": rng.normal(size=(6, 2))}

    def predict(p: dict, x: Any) -> Any:
        return hidden(x @ p["a"]).mean(axis=1) @ p["b"]

    return make_problem(predict, params, rng.normal(size=(5, 4, 3)), rng.normal(size=(5, 2)))


def normalised(layer: nn.Module) -> Any:
    return lambda h: layer.apply(layer.init(jax.random.key(0), h), h)


KINKED = {
    "relu": jax.nn.relu,
    "by hand": lambda h: jnp.maximum(h, 0),
    "relu6": jax.nn.relu6,
    "leaky": jax.nn.leaky_relu,
    "max-pooling": lambda h: nn.max_pool(h, (2,), (2,)),
    "in a loop": lambda h: jax.lax.scan(lambda c, _: (jax.nn.relu(c), None), h, None, length=2)[0],
    "under jit": jax.jit(jax.nn.relu),
}
SMOOTH = {
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
    "layer norm": normalised(nn.LayerNorm()),
    "group norm": normalised(nn.GroupNorm(2)),
    "attention": normalised(nn.MultiHeadDotProductAttention(2)),
    "mask": lambda h: jnp.where(jnp.arange(6)[None, None] < 3, h, -1.0),
}


@pytest.mark.parametrize("name", KINKED)
def test_kinks_are_told_of(name: str) -> None:
    problem = network(KINKED[name])
    for matrix in ("hessian", "residual"):
        assert len(notes(problem, matrix)) == 1
        assert "kinks" in notes(problem, matrix)[0]
    for matrix in ("ggn", "gauss-newton", "fisher", "fisher-mc", "empirical-fisher", "gradient-covariance", "ntk"):
        assert notes(problem, matrix) == []


@pytest.mark.parametrize("name", SMOOTH)
def test_no_false_alarm(name: str) -> None:
    assert notes(network(SMOOTH[name]), "hessian") == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_convexity_of_a_users_loss(dtype: str) -> None:
    problem = mlp_problem("squared_error", dtype=dtype)
    for loss, convex in (
        (lambda z, t: jnp.sum(jnp.logaddexp(z, 0.0) - t * z, axis=-1), True),
        (lambda z, t: jnp.sum(jnp.abs(z - t), axis=-1), True),  # H_z = 0
        (lambda z, t: jnp.sum(jnp.log1p((z - t) ** 2), axis=-1), False),  # Cauchy's
    ):
        found = notes(replace(problem, loss=user_loss("net.py:mine", loss)), "ggn")
        assert len(found) == (0 if convex else 1)
        assert convex or "net.py:mine is not convex" in found[0]
    assert notes(problem, "ggn") == []
