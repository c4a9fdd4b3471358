"""The networks of `sample_models/`, and the linear autoencoder's regulariser and tangent transformations.

Each is an ordinary Flax linen module; a curv.toml names it as `curvcli.zoo:Name`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

PyTree = Any

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": nn.relu,
    "gelu": nn.gelu,
    "sigmoid": nn.sigmoid,
}


class MLP(nn.Module):
    """A multi-layer perceptron: `[b, …] -> [b, features[-1]]`.

    Parameters
    ----------
    features
        Widths of the layers `Dense_0`, `Dense_1`, …; the last is the number of logits or regression outputs,
        which no activation follows.
    activation
        A key of `ACTIVATIONS`.
    """

    features: Sequence[int]
    activation: str = "tanh"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        act = ACTIVATIONS[self.activation]
        x = x.reshape(len(x), -1)
        for width in self.features[:-1]:
            x = act(nn.Dense(width)(x))
        return nn.Dense(self.features[-1])(x)


class CNN(nn.Module):
    """ReLU convolutions with batch normalisation: images `[b, height, width, channels] -> [b, classes]`.

    Between convolutions the image is halved by averaging; after the last one it is averaged to one pixel.

    Parameters
    ----------
    features
        Channels after each convolution.
    classes
        Number of logits.
    """

    features: Sequence[int] = (16, 32, 32)
    classes: int = 10

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        for i, channels in enumerate(self.features):
            if i > 0:
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
            # No bias: batch normalisation has its own.
            x = nn.Conv(channels, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(self.classes)(x.mean(axis=(1, 2)))


class LinearAutoencoder(nn.Module):
    """x ↦ x·E·F through a few latents: `[b, features] -> [b, features]`.

    Its parameters are `encoder/kernel`, E of [features, latents], and `decoder/kernel`, F of
    [latents, features].

    Parameters
    ----------
    features
        Dimension D of the data.
    latents
        Dimension K of the code.
    """

    features: int
    latents: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        code = nn.Dense(self.latents, use_bias=False, name="encoder")(x)
        return nn.Dense(self.features, use_bias=False, name="decoder")(code)


# The smallest of the ten largest eigenvalues of XᵀX/N for the data X of sample_models/linear_autoencoder.py.
# A regulariser sees the parameters alone, so the number stands here; its test computes it from the data.
SMALLEST_KEPT_VARIANCE = 0.5065570472356926


def latent_penalties(latents: int) -> np.ndarray:
    """λ of [latents]: evenly spaced from 0 to half the smallest variance the autoencoder keeps."""
    return np.linspace(0, SMALLEST_KEPT_VARIANCE / 2, latents)


def latent_l2(params: PyTree) -> Array:
    """The regulariser ½ Σ_k λ_k (‖E[:, k]‖² + ‖F[k, :]‖²) of the linear autoencoder, a scalar.

    Unequal λ_k make the principal components themselves the optimum, not just their span (Bao et al. 2020,
    *Regularized linear autoencoders recover the principal components, eventually*).
    """
    encoder, decoder = params["encoder"]["kernel"], params["decoder"]["kernel"]
    penalties = jnp.asarray(latent_penalties(len(decoder)), decoder.dtype)
    return 0.5 * jnp.sum(penalties * (jnp.sum(encoder**2, axis=0) + jnp.sum(decoder**2, axis=1)))


def rescale(params: PyTree, s: Array) -> PyTree:
    """All weights of the linear autoencoder times e^s; the identity at s = 0."""
    return jax.tree.map(lambda w: w * jnp.exp(jnp.asarray(s, w.dtype)), params)


def rotate(params: PyTree, s: Array) -> PyTree:
    """The first two latents of the linear autoencoder turned by the angle s; the identity at s = 0.

    E ↦ E·R and F ↦ Rᵀ·F: the reconstruction stays, so that only the regulariser resists.
    """
    encoder, decoder = params["encoder"]["kernel"], params["decoder"]["kernel"]
    s = jnp.asarray(s, decoder.dtype)
    turn = jnp.array([[jnp.cos(s), -jnp.sin(s)], [jnp.sin(s), jnp.cos(s)]])
    return {
        "encoder": {"kernel": encoder.at[:, :2].set(encoder[:, :2] @ turn)},
        "decoder": {"kernel": decoder.at[:2].set(turn.T @ decoder[:2])},
    }


class CausalSelfAttention(nn.Module):
    """Multi-head attention of each token to itself and those before it: `[b, T, width] -> [b, T, width]`.

    Parameters
    ----------
    heads
        Number of heads; divides the width.
    """

    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, length, width = x.shape
        # No biases: softmax ignores the key's, and the projection's own bias makes the value's redundant.
        qkv = nn.Dense(3 * width, use_bias=False, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(b, length, 3, self.heads, width // self.heads), 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(width // self.heads).item()
        scores = jnp.where(jnp.tri(length, dtype=bool), scores, -jnp.inf)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), v)
        return nn.Dense(width, name="projection")(mixed.reshape(b, length, width))


class CharTransformer(nn.Module):
    """A small pre-norm decoder over characters: ids `[b, T] -> [b, T, vocabulary]`.

    Parameters
    ----------
    vocabulary
        Number of characters V.
    length
        The longest T there are positions for.
    width, layers, heads
        Of the residual stream, its blocks and their attention.
    dropout
        Rate on each branch; has no effect while `deterministic`.
    epsilon
        Added to the variance by which layer normalisation divides.
    """

    vocabulary: int
    length: int
    width: int = 32
    layers: int = 2
    heads: int = 4
    dropout: float = 0.0
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, ids: Array, deterministic: bool = True) -> Array:
        norm = partial(nn.LayerNorm, epsilon=self.epsilon)
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        tokens = nn.Embed(self.vocabulary, self.width, name="tokens")(ids)
        positions = nn.Embed(self.length, self.width, name="positions")(jnp.arange(ids.shape[1]))
        x = drop(tokens + positions[None])
        for _ in range(self.layers):
            x = x + drop(CausalSelfAttention(self.heads)(norm()(x)))
            hidden = nn.gelu(nn.Dense(4 * self.width)(norm()(x)))
            x = x + drop(nn.Dense(self.width)(hidden))
        return nn.Dense(self.vocabulary, name="logits")(norm()(x))
