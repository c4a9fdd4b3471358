"""The losses of the table: digits that must not be lost."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.losses import LOSSES


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
        assert target.min() > loss.target_range[0] - 1e-9
        assert target.max() < loss.target_range[1] + 1e-9


def test_pseudo_gradient_of_a_confident_example_keeps_its_digits() -> None:
    """p_y − 1 in float32 is 0 where the others' probabilities are 1e-9; the sum of the entries must stay 0."""
    z = jnp.asarray([21.0, 0.3, -0.5], "float32")
    drawn = np.asarray(LOSSES["softmax_cross_entropy"].pseudo_gradient(jax.random.key(0), z))
    exact = np.exp(np.asarray(z, np.float64) - 21.0)
    np.testing.assert_allclose(drawn, [-exact[1:].sum(), *exact[1:]], rtol=1e-5)
    logit = jnp.asarray([21.0], "float32")
    drawn = np.asarray(LOSSES["sigmoid_cross_entropy"].pseudo_gradient(jax.random.key(0), logit))
    np.testing.assert_allclose(drawn, [-np.exp(-21.0)], rtol=1e-5)
