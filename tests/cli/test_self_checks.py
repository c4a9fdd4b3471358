"""Models whose derivatives are not those of their loss: the report is marked, and the cause is named."""

import pytest

MODELS = """
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

GENERATOR = np.random.default_rng(0)


@jax.custom_vjp
def kernel(x):
    return jnp.tanh(x)


kernel.defvjp(lambda x: (kernel(x), x), lambda x, g: (g / jnp.cosh(x) ** 2,))


@jax.custom_vjp
def wrong(x):
    return jnp.tanh(x)


wrong.defvjp(lambda x: (wrong(x), x), lambda x, g: (1.1 * g / jnp.cosh(x) ** 2,))


class Network(nn.Module):
    features: tuple

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="Dense_1")(self.hidden(nn.remat(nn.Dense)(8, name="Dense_0")(x)))


class Rounds(Network):
    def hidden(self, h):
        return h + jax.lax.stop_gradient(jnp.round(2 * h) / 2 - h)


class Wrong(Network):
    def hidden(self, h):
        return wrong(h)


class Mixes(Network):
    def hidden(self, h):
        return jnp.tanh((h - h.mean(axis=0, keepdims=True)) / h.std(axis=0, keepdims=True))


class Drops(Network):
    def hidden(self, h):
        mask = jax.pure_callback(lambda: GENERATOR.random(8).astype(h.dtype), jax.ShapeDtypeStruct((8,), h.dtype))
        return jnp.tanh(h) * jnp.where(mask > 0.5, 2, 0).astype(h.dtype)[None]


class Loops(Network):
    def hidden(self, h):
        return jax.lax.scan(lambda c, _: (jax.checkpoint(kernel)(c), None), h, None, length=2)[0]
"""
NAMED = {
    "Rounds": ("gradient_vs_loss", "found in the model or loss: a straight-through estimator"),
    "Wrong": ("gradient_vs_loss", "found in the model or loss: custom_vjp wrong (models.py:"),
    "Mixes": ("per_example", "batch statistics"),
    "Drops": ("deterministic", "dropout left on?"),
}


@pytest.mark.first_tier("Wrong", "Mixes")
@pytest.mark.parametrize("model", NAMED)
def test_what_is_wrong_is_named(project, curv, model):
    project.write("models.py", MODELS)
    answered = curv("inspect", "--model", f"models.py:{model}", "--probes", 2)
    assert answered.code == 3
    report, (check, says) = answered.report, NAMED[model]
    assert report["untrusted"] is True
    assert not report["checks"][check]["passed"]
    (said,) = (line for line in answered.err.splitlines() if f"self-check '{check}' failed" in line)
    assert says in said


@pytest.mark.slow
def test_a_kernel_in_loops_and_checkpoints_is_trusted(project, curv):
    project.write("models.py", MODELS)
    answered = curv("inspect", "--model", "models.py:Loops", "--probes", 2, "--matrix", "ggn")
    assert answered.code == 0
    assert answered.report["untrusted"] is False
    assert "a custom_vjp without a rule for tangents" in answered.err
