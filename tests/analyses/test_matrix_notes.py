"""What is said of a matrix before its numbers: kinks that a Hessian leaves out, and losses that are not convex."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.analyses.common.checks import matrix_notes
from curvcli.losses import user_loss
from curvcli.problem import Regulariser
from tests.problems import make_problem, mlp_problem


def notes(problem: Any, matrix: str) -> list[str]:
    return matrix_notes(problem, matrix, 0)


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
    "selu": jax.nn.selu,
    "hard tanh": jax.nn.hard_tanh,
    "max-pooling": lambda h: nn.max_pool(h, (2,), (2,)),
    "in a loop": lambda h: jax.lax.scan(lambda c, _: (jax.nn.relu(c), None), h, None, length=2)[0],
    "under jit": jax.jit(jax.nn.relu),
    "where": lambda h: jnp.where(h > 0.3, h, 0.2 * h),
    "where by another": lambda h: jnp.where(h[:, :, ::-1] > 0, h, 0.0),
    "a difference": lambda h: jnp.maximum(h - h.mean(), 0),
    "abs": jnp.abs,
    "round": jnp.round,
    "floor": jnp.floor,
    "sign": lambda h: h * jnp.sign(h),
    "clip": lambda h: jnp.clip(h, -1, 1),
    "minimum": lambda h: jnp.minimum(h, 1.5),
    "largest": lambda h: h - h.max(axis=-1, keepdims=True),
    "sort": lambda h: jnp.sort(h, axis=-1),
    "argmax": lambda h: h * jnp.take_along_axis(h, jnp.argmax(h, -1)[..., None], -1),
    "one-hot": lambda h: h * jax.nn.one_hot(jnp.argmax(h, -1), 6),
    "integers": lambda h: h.astype(int) * h,
    "cond": lambda h: jax.lax.cond(h.sum() > 0, lambda x: x, lambda x: 2 * x, h),
    "gated": lambda h: jnp.maximum(h, 0) * jnp.roll(h, 1),
    "a bound that binds": lambda h: jnp.maximum(jnp.square(h), 1.0),
}
SMOOTH = {
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "exact gelu": lambda h: jax.nn.gelu(h, approximate=False),
    "elu": jax.nn.elu,
    "celu": lambda h: jax.nn.celu(h, 0.5),
    "softplus": jax.nn.softplus,
    "softplus by hand": lambda h: jnp.maximum(h, 0) + jnp.log1p(jnp.exp(-jnp.abs(h))),
    "huber": lambda h: jnp.where(jnp.abs(h) < 1, 0.5 * h**2, jnp.abs(h) - 0.5),
    "squared relu": lambda h: jnp.square(jax.nn.relu(h)),
    "mish": jax.nn.mish,
    "log_sigmoid": jax.nn.log_sigmoid,
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
    "logsumexp": lambda h: h - jax.nn.logsumexp(h, axis=-1, keepdims=True),
    "softmax by hand": lambda h: jax.nn.tanh(jnp.exp(h - jax.lax.stop_gradient(h.max(-1, keepdims=True)))),
    "layer norm": normalised(nn.LayerNorm()),
    "slow layer norm": normalised(nn.LayerNorm(use_fast_variance=False)),
    "group norm": normalised(nn.GroupNorm(2)),
    "batch norm": lambda h: nn.BatchNorm(use_running_average=False).init_with_output(jax.random.key(0), h)[0],
    "rms norm": normalised(nn.RMSNorm()),
    "variance": lambda h: h / jnp.sqrt(jnp.clip(jnp.var(h, -1, keepdims=True), 1e-6)),
    "variance by hand": lambda h: h / jnp.sqrt(1e-5 + jnp.maximum((h**2).mean() - h.mean() ** 2, 0)),
    "weighted variance": lambda h: h / jnp.sqrt(
        1e-5 + jnp.maximum(h * h @ jnp.full((6, 1), 1 / 6) - jnp.square(h @ jnp.full((6, 1), 1 / 6)), 0)
    ),
    "unit length": lambda h: h / jnp.maximum(jnp.linalg.norm(h, axis=-1, keepdims=True), 1e-8),
    "safe division": lambda h: jnp.tanh(h) / jnp.where(h == 0, 1.0, h),
    "attention": normalised(nn.MultiHeadDotProductAttention(2)),
    "mask": lambda h: jnp.where(jnp.arange(6)[None, None] < 3, h, -1.0),
    "size": lambda h: h / jnp.sqrt(jnp.abs(jnp.square(h)).sum(-1, keepdims=True) + 1e-3),
}  # fmt: skip


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


def test_kinks_of_loss_and_regulariser() -> None:
    problem = network(jnp.tanh)
    lasso = replace(
        problem, regulariser=Regulariser(0.0, lambda p: 0.1 * sum(jnp.abs(leaf).sum() for leaf in p.values()))
    )
    absolute = replace(problem, loss=user_loss("net.py:l1", lambda z, t: jnp.abs(z - t).sum(-1)))
    smooth = replace(problem, loss=user_loss("net.py:bce", lambda z, t: (jax.nn.softplus(z) - z * t).sum(-1)))
    assert [len(notes(one, "hessian")) for one in (lasso, absolute, smooth)] == [1, 1, 0]
    assert "abs" in notes(lasso, "hessian")[0]


def test_what_is_held_fixed_has_no_kinks() -> None:
    """Of the last layer's block the network behind it is linear: the ReLU is of fixed numbers."""
    problem = network(jax.nn.relu)
    params = {name: leaf for name, leaf in problem.params.items() if name == "b"}
    frozen = {**problem.frozen, "params": {"a": problem.params["a"]}}
    assert notes(replace(problem, params=params, frozen=frozen), "hessian") == []


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
