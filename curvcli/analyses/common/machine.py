"""Does this machine compute rightly, and how fast?"""

from __future__ import annotations

import functools
import time
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from curvcli.analyses.common.free_memory import available_bytes
from curvcli.analyses.common.planning import memory_limit
from curvcli.compiling import jit
from curvcli.curvature import build
from curvcli.errors import NumericsError
from curvcli.linalg.probes import sphere
from curvcli.losses import LOSSES
from curvcli.problem import Batches, Problem, Regulariser
from curvcli.schema.doctor import Memory, Speed

WIDTHS, EXAMPLES, BLOCK, MATRIX = (64, 128, 128, 10), 1797, 8, 1024


def memory() -> Memory:
    """Bytes that are free, and those that an analysis would take at most."""
    return Memory(available=available_bytes(), limit=memory_limit(None))


def sums_rightly() -> bool:
    """Whether sums over an axis are right in programs of the shapes that products have, compiled as products are.

    Two releases of XLA get them wrong on CPUs: sums of products in arrays of more than 32,768 elements, and sums that
    are broadcast again, as the output Hessian of a softmax applied to a block of vectors.
    """
    random = np.random.default_rng(0)
    p, rows = random.normal(size=(512, 128)), random.normal(size=(2, 512, 128))
    exact = np.sum(p * rows, axis=-1, keepdims=True)
    sums, products = _softmax_sums(p.astype(np.float32), rows.astype(np.float32))
    return np.allclose(sums, exact, rtol=1e-3, atol=1e-3) and np.allclose(products, p * exact, rtol=1e-3, atol=1e-3)


@jit
def _softmax_sums(p: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """⟨p, r⟩ of each row r, and p ⟨p, r⟩: for p [n, c] and rows [k, n, c]."""
    sums = jax.vmap(lambda row: jnp.sum(p * row, axis=-1, keepdims=True))
    return sums(rows), jax.vmap(lambda row: p * jnp.sum(p * row, axis=-1, keepdims=True))(rows)


@functools.cache
def check_sums() -> None:
    """Once a process: this JAX must sum rightly.

    Raises
    ------
    NumericsError
        It does not, whatever compiler options are known here.
    """
    if not sums_rightly():
        raise NumericsError(
            f"XLA {metadata.version('jaxlib')} sums wrongly on this machine (as in jax issue #39103)",
            "install another release of jaxlib; curv doctor repeats this test",
        )


def speed(seconds: float = 1.0) -> Speed:
    """Hessian products of a small network for so many seconds, and products of matrices for a tenth of them."""
    operator = build(_network(), "hessian")
    vectors = sphere(jax.random.key(0), 0, BLOCK, operator.dim, operator.dtype)
    each, count = _timed(lambda: operator.matmat(vectors), seconds)
    matrix = jnp.ones((MATRIX, MATRIX), jnp.float32)
    multiply = jit(jnp.matmul)
    single, _ = _timed(lambda: multiply(matrix, matrix), 0.1 * seconds)
    return Speed(product_seconds=each / BLOCK, products=BLOCK * count, matrix_gflops=2e-9 * MATRIX**3 / single)


def _timed(call: Any, seconds: float) -> tuple[float, int]:
    """Seconds of a call, and how many were made; the first, which compiles, does not count."""
    jax.block_until_ready(call())
    start, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - start) < seconds or not count:
        jax.block_until_ready(call())
        count += 1
    return taken / count, count


def _network() -> Problem:
    random = np.random.default_rng(0)
    layers = range(len(WIDTHS) - 1)
    params = {
        f"{i}/kernel": jnp.asarray(random.normal(size=WIDTHS[i : i + 2]) / WIDTHS[i] ** 0.5, jnp.float32)
        for i in layers
    }
    inputs = random.normal(size=(EXAMPLES, WIDTHS[0])).astype(np.float32)
    labels, weight = random.integers(0, WIDTHS[-1], EXAMPLES), np.ones(EXAMPLES, np.float32)

    def predict(params: Any, frozen: Any, inputs: Any) -> Any:
        for i in layers:
            inputs = inputs @ params[f"{i}/kernel"]
            inputs = jnp.tanh(inputs) if i < layers[-1] else inputs
        return inputs

    batches = Batches(inputs, labels, weight, 599, np.dtype(np.float32))
    frozen = {"params": {}, "collections": {}}
    return Problem(
        params, frozen, predict, lambda one: one, LOSSES["softmax_cross_entropy"], batches, EXAMPLES, Regulariser()
    )
