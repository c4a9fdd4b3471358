"""Attention by a kernel that has a backward pass and no other: decoders have the same matrices with it as without."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvcli.analyses.common.checks import examined
from curvcli.curvature import build
from curvcli.loading.checkpoints.trees import flatten_tree, nest_tree
from curvcli.problem import Problem
from curvcli.schema.settings import AnalysisSettings
from tests.problems import make_problem

EPS = float(np.finfo("float64").eps)
WORDS, LENGTH, WIDTH, HEADS = 7, 4, 6, 2


def plain(q: Any, k: Any, v: Any) -> Any:
    """Causal attention [b, T, heads, width]."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    scores = jnp.where(jnp.tri(q.shape[1], dtype=bool)[None, None], scores, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)


def _tiles(q: Any, k: Any, v: Any) -> tuple[Any, Any]:
    """As kernels do it: keys one tile after the other, with a running maximum and sum; log of the sum beside it."""
    scale, at = q.shape[-1] ** -0.5, jnp.arange(q.shape[1])[:, None, None]

    def tile(carry: Any, given: Any) -> Any:
        top, total, mixed = carry
        key, value, place = given
        scores = jnp.where(at[None] >= place, jnp.sum(q * key[:, None], axis=-1, keepdims=True) * scale, -1e30)
        higher = jnp.maximum(top, scores)
        shrink, weight = jnp.exp(top - higher), jnp.exp(scores - higher)
        return (higher, shrink * total + weight, shrink * mixed + weight * value[:, None]), None

    start = jnp.full((*q.shape[:3], 1), -1e30, q.dtype), jnp.zeros((*q.shape[:3], 1), q.dtype), jnp.zeros_like(q)
    rows = jnp.moveaxis(k, 1, 0), jnp.moveaxis(v, 1, 0), jnp.arange(k.shape[1])
    (top, total, mixed), _ = jax.lax.scan(tile, start, rows)
    return mixed / total, top + jnp.log(total)


@jax.custom_vjp
def kernel(q: Any, k: Any, v: Any) -> Any:
    """The same, with a backward pass of its own that computes the weights anew."""
    return _tiles(q, k, v)[0]


def _forward(q: Any, k: Any, v: Any) -> Any:
    out, log_sum = _tiles(q, k, v)
    return out, (q, k, v, out, log_sum)


def _backward(kept: Any, slope: Any) -> Any:
    q, k, v, out, log_sum = kept
    scale = q.shape[-1] ** -0.5
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * scale - jnp.moveaxis(log_sum, 1, 2)
    weight = jnp.where(jnp.tri(q.shape[1], dtype=bool)[None, None], jnp.exp(scores), 0)
    inner = jnp.einsum("bqhd,bkhd->bhqk", slope, v) - jnp.moveaxis(jnp.sum(slope * out, -1, keepdims=True), 1, 2)
    change = weight * inner * scale
    return (
        jnp.einsum("bhqk,bkhd->bqhd", change, k), jnp.einsum("bhqk,bqhd->bkhd", change, q),
        jnp.einsum("bhqk,bqhd->bkhd", weight, slope),
    )  # fmt: skip


kernel.defvjp(_forward, _backward)


class Layer(nn.Module):
    """Attention and a dense layer; called by `nn.scan`."""

    attention: Any

    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> Any:
        q, k, v = (nn.Dense(WIDTH, name=name)(x).reshape(*x.shape[:2], HEADS, -1) for name in "qkv")
        x = x + self.attention(q, k, v).reshape(x.shape)
        return x + nn.tanh(nn.Dense(WIDTH)(x)), None


class Decoder(nn.Module):
    """Two layers: one after the other, or scanned over and computed anew in the backward pass."""

    attention: Any
    scanned: bool = False

    @nn.compact
    def __call__(self, ids: Any) -> Any:
        x = nn.Embed(WORDS, WIDTH)(ids)
        if self.scanned:
            many = nn.scan(nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
            x = many(self.attention)(x, None)[0]
        else:
            for _ in range(2):
                x = Layer(self.attention)(x)[0]
        return nn.Dense(WORDS)(x)


class NnxDecoder(nnx.Module):
    """One layer, in nnx."""

    def __init__(self, attention: Any, rngs: nnx.Rngs) -> None:
        self.attention = attention
        self.tokens, self.qkv = nnx.Embed(WORDS, WIDTH, rngs=rngs), nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
        self.logits = nnx.Linear(WIDTH, WORDS, rngs=rngs)

    def __call__(self, ids: Any) -> Any:
        x = self.tokens(ids)
        q, k, v = (one.reshape(*x.shape[:2], HEADS, -1) for one in jnp.split(self.qkv(x), 3, axis=-1))
        return self.logits(x + self.attention(q, k, v).reshape(x.shape))


def problem(where: str, attention: Any) -> Problem:
    rng = np.random.default_rng(0)
    ids, labels = rng.integers(0, WORDS, (2, 5, LENGTH)).astype(np.int32)
    weight = (rng.random((5, LENGTH)) < 0.7).astype(float)
    rest = {"loss": "softmax_cross_entropy", "weight": weight, "normaliser": weight.sum(), "batch_size": 2}
    if where == "nnx":
        graph, state = nnx.split(NnxDecoder(attention, nnx.Rngs(0)))
        leaves, tree = jax.tree.flatten(state)
        names = [f"{place:02}" for place in range(len(leaves))]

        def call(p: Any, x: Any) -> Any:
            return nnx.merge(graph, jax.tree.unflatten(tree, [p[name] for name in names]))(x)

        return make_problem(call, dict(zip(names, leaves, strict=True)), ids, labels, **rest)
    model = Decoder(attention, scanned=where == "scan over remat")
    params = flatten_tree(model.init(jax.random.key(0), ids)["params"])
    return make_problem(lambda p, x: model.apply({"params": nest_tree(p)}, x), params, ids, labels, **rest)


@pytest.mark.first_tier("nnx")
@pytest.mark.parametrize("where", ["linen", "scan over remat", "nnx"])
def test_a_kernel_without_forward_mode(where: str) -> None:
    one, other = problem(where, plain), problem(where, kernel)
    vectors = jnp.asarray(np.random.default_rng(1).normal(size=(2, one.dim)))
    for matrix in ("hessian", "ggn"):
        expected, found = (build(each, matrix).matmat(vectors) for each in (one, other))
        np.testing.assert_allclose(found, expected, atol=1e3 * EPS * np.abs(expected).max(), err_msg=matrix)


def test_that_it_is_taken_is_said() -> None:
    decoder = problem("nnx", kernel)
    checks, warnings = examined(decoder, build(decoder, "ggn"), AnalysisSettings(matrix="ggn", dtype="float64"), 2)
    assert all(check.passed for check in checks.values())
    assert any("reverse over reverse" in warning for warning in warnings)


def test_jaxs_own_attention() -> None:
    """It has a forward mode where it is no kernel."""
    attention = partial(jax.nn.dot_product_attention, is_causal=True, implementation="xla")
    one, other = problem("nnx", plain), problem("nnx", attention)
    vectors = jnp.asarray(np.random.default_rng(1).normal(size=(2, one.dim)))
    expected, found = (build(each, "hessian").matmat(vectors) for each in (one, other))
    # Its softmax is in float32, whatever the arithmetic.
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
