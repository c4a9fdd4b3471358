"""Losses of the user's own beside the equal named one: units, weights, the declared likelihood, the shapes returned."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from curvcli import CurvError, CurvWarning, Objective
from curvcli.errors import DataError, SpecError

RNG = np.random.default_rng(0)
X, VALUES, LABELS = RNG.normal(size=(25, 4)), RNG.normal(size=(25, 3)), RNG.integers(0, 3, 25)
WEIGHTS = RNG.uniform(0.2, 3.0, 25) * (RNG.random(25) < 0.8)
PARAMS = {"w": RNG.normal(size=(4, 3)), "u": RNG.normal(size=(3, 3))}
CLASS_WEIGHTS = np.array([1.0, 5.0, 0.5])


def network(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["w"]) @ params["u"]


def elementwise(z: Any, t: Any) -> Any:
    return 0.5 * (z - t) ** 2


def cross_entropy(z: Any, t: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(z, t)


def smoothed(z: Any, t: Any) -> Any:
    return optax.softmax_cross_entropy(z, optax.smooth_labels(jax.nn.one_hot(t, 3), 0.1))


def weighted(z: Any, t: Any) -> Any:
    return jnp.asarray(CLASS_WEIGHTS)[t] * cross_entropy(z, t)


def trace(objective: Objective, matrix: str, params: Any = PARAMS, **settings: Any) -> float:
    return objective.trace(params, matrix=matrix, dtype="float64", skip_checks=True, **settings).result.trace.value


@pytest.mark.first_tier("tokens")
@pytest.mark.parametrize("reduction", ["mean", "tokens"])
def test_the_outputs_of_an_example_are_one_unit(reduction: Any) -> None:
    named, own = (
        Objective(network, (X, VALUES, WEIGHTS), loss, likelihood="squared_error", reduction=reduction)
        for loss in ("squared_error", elementwise)
    )
    by_hand = [
        weight * np.sum(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)]) ** 2)
        for weight, x, t in zip(WEIGHTS, X, VALUES, strict=True)
        for gradient in [jax.grad(lambda p, x=x, t=t: jnp.sum(elementwise(network(p, x[None]), t[None])))(PARAMS)]
    ]
    divisor = WEIGHTS.sum() if reduction == "tokens" else np.count_nonzero(WEIGHTS)
    assert trace(own, "empirical-fisher") == pytest.approx(sum(by_hand) / divisor, rel=1e-12)
    for matrix, settings in (
        ("hessian", {}), ("ggn", {}), ("gradient-covariance", {}), ("fisher", {}), ("kfac", {"factors": "exact"}),
        ("ekfac", {"factors": "exact"}), ("kfac", {"factors": "empirical"}), ("ekfac", {"factors": "empirical"}),
    ):  # fmt: skip
        assert trace(own, matrix, **settings) == pytest.approx(trace(named, matrix, **settings), rel=1e-12), matrix
    options: dict[str, Any] = {"remove": True, "queries": "0:3", "damping": 0.1, "dtype": "float64"}
    one, other = (each.influence(PARAMS, **options).result for each in (named, own))
    np.testing.assert_allclose(other.scores, one.scores, rtol=1e-9)


def test_outputs_with_weights_of_their_own_are_units() -> None:
    mask = RNG.uniform(0.2, 3.0, (25, 3)) * (RNG.random((25, 3)) < 0.7)
    own = Objective(network, (X, VALUES, mask), elementwise, likelihood="squared_error", reduction="tokens")
    tokens = lambda params, x: network(params, x)[..., None]  # noqa: E731
    named = Objective(tokens, (X, VALUES[..., None], mask), "squared_error", reduction="tokens")
    for matrix in ("hessian", "ggn", "empirical-fisher", "fisher", "gauss-newton"):
        assert trace(own, matrix) == pytest.approx(trace(named, matrix), rel=1e-12), matrix
    for factors in ("exact", "empirical"):
        assert trace(own, "ekfac", factors=factors) == pytest.approx(trace(named, "ekfac", factors=factors), rel=1e-12)
    with pytest.raises(DataError, match="the mask has shape"):
        trace(Objective(network, (X, VALUES, mask), lambda z, t: elementwise(z, t).sum(axis=-1)), "hessian")


@pytest.mark.first_tier("float64-smoothed")
@pytest.mark.parametrize("loss", [cross_entropy, smoothed])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_likelihood_of_the_same_hessian_stands_for_the_loss(loss: Any, dtype: Any) -> None:
    own = Objective(network, (X, LABELS), loss, likelihood="softmax_cross_entropy")
    for scale in (1.0, 30.0):  # logits as of a network that fits
        params = {**PARAMS, "u": scale * PARAMS["u"]}
        found = own.trace(params, matrix="ekfac", factors="exact", dtype=dtype)
        ggn = own.trace(params, matrix="ggn", dtype=dtype)
        tolerance = 1e-3 if dtype == "float32" else 1e-9
        assert found.result.trace.value == pytest.approx(ggn.result.trace.value, rel=tolerance)


@pytest.mark.slow
def test_a_likelihood_of_another_hessian_is_refused() -> None:
    own = Objective(network, (X, LABELS), weighted, likelihood="softmax_cross_entropy")
    named = Objective(network, (X, LABELS, CLASS_WEIGHTS[LABELS]), "softmax_cross_entropy")
    assert trace(own, "ggn") == pytest.approx(trace(named, "ggn"), rel=1e-12)
    common: dict[str, Any] = {"dtype": "float64", "skip_checks": True}
    for asked in (
        lambda: own.trace(PARAMS, matrix="kfac", **common),
        lambda: own.diag(PARAMS, matrix="ekfac", factors="exact", **common),
        lambda: own.step(PARAMS, method="kfac", **common),
        lambda: own.influence(PARAMS, remove=True, queries="0", solver="ekfac", damping=0.1, **common),
        lambda: own.compare(PARAMS, matrices="ggn,diagonal", **common),
    ):
        with pytest.raises(SpecError, match="another Hessian in the outputs"):
            asked()
    left_out = own.compare(PARAMS, **common).result.left_out
    assert set(left_out) == {"kfac", "ekfac", "diagonal"}
    # At observed labels the factors are the loss's own, and a preconditioner changes no answer.
    empirical = trace(own, "ekfac", factors="empirical")
    assert empirical == pytest.approx(trace(own, "empirical-fisher"), rel=1e-12)
    own.influence(PARAMS, remove=True, queries="0", solver="cg", precondition="kfac", damping=0.1, **common)


def test_rare_examples_of_another_hessian_are_seen() -> None:
    labels = np.where(np.arange(2000) == 7, 1, 0)
    x = RNG.normal(size=(2000, 4))
    own = Objective(network, (x, labels), weighted, likelihood="softmax_cross_entropy")
    with pytest.raises(SpecError, match="another Hessian"):
        trace(own, "kfac")


def broadcast(z: Any, t: Any) -> Any:
    return 0.5 * (z - t[None]) ** 2  # [N, 1] and [N]


def test_pairs_of_examples_are_named() -> None:
    first = lambda params, x: network(params, x)[:, :1]  # noqa: E731
    flat = lambda params, x: network(params, x)[:, 0]  # noqa: E731
    for count in (1, 3, 25):
        with pytest.raises(SpecError, match=r"\[N, N\].* outputs \[N, 1\] and targets \[N\]"):
            trace(Objective(first, (X[:count], VALUES[:count, 0]), broadcast), "hessian")
        with pytest.raises(SpecError, match=r"\[N, N\].* outputs \[N\] and targets \[N, 1\]"):
            trace(Objective(flat, (X[:count], VALUES[:count, :1]), lambda z, t: (z[None] - t) ** 2), "hessian")
    with pytest.raises(CurvError, match="the loss fails"):  # as many examples as classes: [3, 3] and [3]
        trace(Objective(network, (X[:3], VALUES[:3, 0]), broadcast), "hessian")
    for loss in ("squared_error", "sigmoid_cross_entropy"):
        with pytest.raises(DataError, match=r"\[N, 1\]"):
            trace(Objective(first, (X, LABELS / 2), loss), "hessian")


@pytest.mark.first_tier("3")
@pytest.mark.parametrize("tokens", [2, 3, 4, 5])
def test_a_loss_a_token_is_none_of_them(tokens: int) -> None:
    # As many tokens as examples, and as classes.
    x, labels = RNG.normal(size=(4, tokens, 4)), RNG.integers(0, 3, (4, tokens))
    own, named = (Objective(network, (x, labels), loss) for loss in (cross_entropy, "softmax_cross_entropy"))
    assert trace(own, "hessian") == pytest.approx(trace(named, "hessian"), rel=1e-12)


def test_an_untrusted_result_warns_and_says_so() -> None:
    first = lambda params, x: network(params, x)[:, :1]  # noqa: E731
    pairs = Objective(first, (X, VALUES[:, 0]), lambda z, t: broadcast(z, t).mean(axis=1))
    with pytest.warns(CurvWarning, match=r"not to be relied on: self-check 'per_example' failed.*\[N, N\] in the loss"):
        found = pairs.eigs(PARAMS, k=1, dtype="float64")
    assert found.report.untrusted
    assert repr(found).startswith("UNTRUSTED (per_example failed): Found(EigsReport")
    right = Objective(first, (X, VALUES[:, :1]), "squared_error").eigs(PARAMS, k=1, dtype="float64")
    assert repr(right).startswith("Found(EigsReport")
