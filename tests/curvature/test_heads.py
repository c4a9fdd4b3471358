"""The last layer some rows at a time: the same answers as with all outputs at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.curvature import build
from curvcli.curvature.jaxprs import heads
from curvcli.curvature.operators import example_forms
from curvcli.curvature.products import sums
from curvcli.linalg.operator import to_dense
from curvcli.losses import user_loss
from curvcli.problem import Problem
from tests.problems import dense_hessian, make_problem, mlp_problem, token_problem

EPS = float(np.finfo("float64").eps)
MATRICES = ["hessian", "ggn", "gauss-newton", "fisher-mc", "empirical-fisher", "gradient-covariance", "residual"]


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network is cut; a chunk has three rows of five outputs, which divides neither 16 tokens nor 4 examples."""
    monkeypatch.setattr(heads, "OUTPUT_BYTES", 0)
    monkeypatch.setattr(heads, "CHUNK_BYTES", 3 * 5 * 8)


def tied(change: Callable[[Any], Any] = lambda z: z) -> Problem:
    """Tokens through an embedding that is the last layer's kernel too, with a bias, under `jit`."""
    rng = np.random.default_rng(0)
    params = {"e": rng.normal(size=(5, 3)), "w": rng.normal(size=(3, 3)), "bias": rng.normal(size=5)}

    def predict(p: Any, ids: Any) -> Any:
        h = jnp.tanh(jnp.cumsum(p["e"][ids], axis=1) @ p["w"])
        return jax.jit(lambda h: change(jnp.dot(h, p["e"].T) + p["bias"][None, None]))(h)

    ids, labels = rng.integers(0, 5, (2, 9, 4)).astype(np.int32)
    weight = (rng.random((9, 4)) < 0.7) * rng.uniform(0.5, 2, (9, 1))
    weight[3] = 0  # a sequence without any token
    return make_problem(predict, params, ids, labels, "softmax_cross_entropy", weight=weight, batch_size=4, l2=0.1)


def coupled() -> Problem:
    """A user's loss under which the tokens of an example are not apart."""
    loss = user_loss("mine", lambda z, t: jnp.log(jnp.sum(jnp.exp(z), axis=(1, 2))) - jnp.sum(z[..., 0] * t, axis=1))
    problem = token_problem(loss=replace(loss, name="softmax_cross_entropy"), batch_size=4)
    return replace(problem, batches=replace(problem.batches, weight=np.linspace(0.5, 2, 9)))


def soft_labels() -> Problem:
    problem = token_problem(batch_size=4)
    soft = np.random.default_rng(3).random((9, 4, 5))  # does not sum to 1
    return replace(problem, batches=replace(problem.batches, targets=soft))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "tokens": lambda: token_problem(batch_size=4),
    "soft labels": soft_labels,
    "squared error": lambda: token_problem("squared_error", batch_size=4),
    "examples": lambda: mlp_problem(batch_size=5),
    "tied": tied,
    "soft cap": lambda: tied(lambda z: 3 * jnp.tanh(z / 3)),
    "coupled": coupled,
}


def is_cut(problem: Problem) -> bool:
    batch = next(iter(problem.batches))
    return heads.cut(sums.functions(problem), problem.params, problem.frozen, batch) is not None


@pytest.mark.first_tier("tokens")
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_matrix(name: str, request: pytest.FixtureRequest) -> None:
    possible = MATRICES if name == "tokens" else ["hessian", "ggn"]
    problem = PROBLEMS[name]()
    assert not is_cut(problem)
    whole = {one: to_dense(build(problem, one)) for one in possible}
    request.getfixturevalue("chunked")
    problem = PROBLEMS[name]()
    assert is_cut(problem)
    for one, expected in whole.items():
        found = to_dense(build(problem, one))
        np.testing.assert_allclose(found, expected, atol=1e3 * EPS * np.abs(expected).max(), err_msg=one)
    np.testing.assert_allclose(whole["hessian"], dense_hessian(problem), atol=1e-12)


@pytest.mark.first_tier("tokens")
@pytest.mark.parametrize("name", ["tokens", "examples", "coupled"])
def test_forms(name: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("chunked")
    problem = PROBLEMS[name]()
    vectors = jnp.asarray(np.random.default_rng(0).normal(size=(3, problem.dim)))
    for one in ("ggn", "empirical-fisher", "hessian", "residual"):
        operator = build(problem, one, with_regulariser=False)
        expected = np.asarray(vectors @ operator.matmat(vectors).T)
        shares = example_forms(problem, one, vectors)
        np.testing.assert_allclose(shares.mean(axis=1), np.diagonal(expected), rtol=1e-12)
        if operator.forms is not None:
            np.testing.assert_allclose(operator.forms(vectors), expected, atol=1e-13 * np.abs(expected).max())
        assert shares.shape == (3, problem.batches.num_examples)


def test_a_block_of_the_parameters(chunked: None) -> None:
    """Weights of the last layer that are held fixed have no derivatives to add up."""
    problem = tied()
    part = replace(problem, params={"w": problem.params["w"]}, frozen={**problem.frozen, "params": {
        name: leaf for name, leaf in problem.params.items() if name != "w"
    }})  # fmt: skip
    assert is_cut(part)
    start = problem.params["bias"].size + problem.params["e"].size
    for one in ("ggn", "hessian"):
        whole = to_dense(build(problem, one))[start:, start:]
        np.testing.assert_allclose(to_dense(build(part, one)), whole, atol=1e-13)


def test_other_networks_are_left_whole(chunked: None) -> None:
    """What mixes the outputs, or takes inputs beside them, is no last layer."""
    for change in (jax.nn.log_softmax, lambda z: z * jnp.arange(4.0)[None, :, None], lambda z: z[..., ::-1]):
        assert not is_cut(tied(change))
