"""The table of losses: closed-form output Hessians, and digits that must not be lost."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.losses import LOSSES
from tests.problems import targets_for


@pytest.mark.parametrize("name", LOSSES)
def test_output_hessian_is_the_second_derivative(name: str) -> None:
    loss, z = LOSSES[name], jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)))
    t = jnp.asarray(targets_for(name, 5, 4))
    for i in range(5):
        hessian = jax.hessian(lambda row, i=i: loss.value(row[None], t[i : i + 1])[0])(z[i])
        product = jax.vmap(lambda dz, i=i: loss.hessian_product(z[i][None], t[i : i + 1], dz[None])[0])(jnp.eye(4))
        np.testing.assert_allclose(product, hessian, atol=1e-14)


def test_softmax_against_its_definition() -> None:
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
    soft = rng.random((6, 5))  # does not sum to 1
    loss = LOSSES["softmax_cross_entropy"].value
    normaliser = np.log(np.exp(z).sum(axis=1))
    np.testing.assert_allclose(
        loss(jnp.asarray(z), jnp.asarray(labels)), normaliser - z[np.arange(6), labels], rtol=1e-13
    )
    expected = -np.sum(soft * (z - normaliser[:, None]), axis=1)
    np.testing.assert_allclose(loss(jnp.asarray(z), jnp.asarray(soft)), expected, rtol=1e-13)


@pytest.mark.parametrize("margin", [5.0, 15.0, 30.0])
def test_softmax_of_a_confident_example_keeps_its_digits(margin: float) -> None:
    """At a margin of 18, p(dz − ⟨p, dz⟩) in float32 is off by 20 %."""
    rng = np.random.default_rng(0)
    exact = np.array([[margin, 0.3, -0.5, 0.1]])
    direction, loss = rng.normal(size=(1, 4)), LOSSES["softmax_cross_entropy"]
    label = jnp.zeros(1, jnp.int32)

    def product(dtype: str) -> Any:
        return loss.hessian_product(jnp.asarray(exact, dtype), label, jnp.asarray(direction, dtype))

    def by_autodiff(dtype: str) -> Any:
        z, dz = jnp.asarray(exact, dtype), jnp.asarray(direction, dtype)
        return jax.jvp(jax.grad(lambda one: loss.value(one, label)[0]), (z,), (dz,))[1]

    for function in (product, by_autodiff):
        np.testing.assert_allclose(function("float32"), function("float64"), rtol=5e-6)
    p = np.exp(exact - exact.max()) / np.exp(exact - exact.max()).sum()
    others = p[0, 1:]
    assert float(loss.value(jnp.asarray(exact, "float32"), label)[0]) == pytest.approx(
        -np.log1p(-others.sum()), rel=1e-5
    )


@pytest.mark.parametrize("name", LOSSES)
def test_pseudo_gradients_have_mean_zero_and_the_output_hessian_as_covariance(name: str) -> None:
    """Within 5 standard errors of 40,000 draws, entry by entry."""
    loss, z = LOSSES[name], jnp.asarray([0.3, -1.2, 0.8, 0.0])
    keys = jax.random.split(jax.random.key(0), 40_000)
    drawn = np.asarray(jax.vmap(loss.pseudo_gradient, (0, None))(keys, z))
    products = np.einsum("si,sj->sij", drawn, drawn)
    covariance = jax.vmap(lambda dz: loss.hessian_product(z[None], None, dz[None])[0])(jnp.eye(4))
    for samples, expected in ((drawn, np.zeros(4)), (products, np.asarray(covariance))):
        stderr = samples.std(axis=0, ddof=1) / np.sqrt(len(drawn))
        assert np.all(np.abs(samples.mean(axis=0) - expected) <= 5 * stderr + 1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_pseudo_gradients_are_gradients_at_a_target(name: str) -> None:
    """Each is ∂L/∂z at some target that the loss allows; tokens draw on their own."""
    loss, z = LOSSES[name], jnp.asarray(np.random.default_rng(0).normal(size=(7, 4)))
    drawn = np.asarray(loss.pseudo_gradient(jax.random.key(1), z))
    target = np.asarray(loss.mean(z)) - drawn  # ∂L/∂z = A'(z) − t
    if name == "softmax_cross_entropy":
        np.testing.assert_allclose(np.sort(target, axis=1), np.tile([0.0, 0, 0, 1], (7, 1)), atol=1e-12)
        assert len(set(target.argmax(axis=1))) > 1
    elif name != "squared_error":
        np.testing.assert_allclose(target, np.round(target), atol=1e-12)
        assert target.min() > -1e-9
        assert name == "poisson" or target.max() < 1 + 1e-9


def test_pseudo_gradient_of_a_confident_example_keeps_its_digits() -> None:
    """p_y − 1 in float32 is 0 where the others' probabilities are 1e-9; the sum of the entries must stay 0."""
    z = jnp.asarray([21.0, 0.3, -0.5], "float32")
    drawn = np.asarray(LOSSES["softmax_cross_entropy"].pseudo_gradient(jax.random.key(0), z))
    exact = np.exp(np.asarray(z, np.float64) - 21.0)
    np.testing.assert_allclose(drawn, [-exact[1:].sum(), *exact[1:]], rtol=1e-5)
    logit = jnp.asarray([21.0], "float32")
    drawn = np.asarray(LOSSES["sigmoid_cross_entropy"].pseudo_gradient(jax.random.key(0), logit))
    np.testing.assert_allclose(drawn, [-np.exp(-21.0)], rtol=1e-5)
