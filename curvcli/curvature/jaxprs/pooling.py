"""Max-pooling by strided slices: what XLA's CPU backend does many times faster than windows that are reduced.

The values are the same, and so is the derivative: of the first of the largest entries of a window. A network is
rewritten equation by equation before it is differentiated; all others stay as they are.

`CURV_REWRITE=0` in the environment leaves networks as they were written.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from curvcli.curvature.jaxprs.rewriting import Rewrite, rewritten
from curvcli.jax_internals import equations

LARGEST = 16
"""Entries of a window, at most."""


def with_fast_pooling(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of arrays, its max-pooling by strided slices; on a CPU, where there is any."""
    return rewritten(function, SLICES)


def _wanted(jaxpr: Any) -> bool:
    if jax.default_backend() != "cpu" or os.environ.get("CURV_REWRITE") == "0":
        return False
    return any(_can_be_sliced(equation) for equation in equations(jaxpr))


def _can_be_sliced(equation: Any) -> bool:
    if equation.primitive.name != "reduce_window_max":
        return False
    values, given = equation.invars[0].aval, equation.params
    return (
        jnp.issubdtype(values.dtype, jnp.floating)
        and math.prod(given["window_dimensions"]) <= LARGEST
        and all(step == 1 for step in given["base_dilation"])
    )


def _sliced(equation: Any, inputs: list[Any]) -> list[Any] | None:
    """The outputs of a pooling that can be sliced."""
    if not _can_be_sliced(equation):
        return None
    given = equation.params
    return [
        max_pool(
            given["window_dimensions"], given["window_strides"], given["padding"], given["window_dilation"], *inputs
        )
    ]


SLICES = Rewrite(_wanted, _sliced)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
def max_pool(
    window: tuple[int, ...],
    strides: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    x: Array,
) -> Array:
    """The largest entry of each window of x; padding is never the largest."""
    return reduce(jnp.maximum, _slices(window, strides, padding, dilation, x, -jnp.inf))


@max_pool.defjvp
def _derivative(window: Any, strides: Any, padding: Any, dilation: Any, primals: Any, tangents: Any) -> Any:
    slices = _slices(window, strides, padding, dilation, primals[0], -jnp.inf)
    largest = reduce(jnp.maximum, slices)
    moved = _slices(window, strides, padding, dilation, tangents[0], 0.0)
    free, change = jnp.ones(largest.shape, bool), jnp.zeros_like(largest)
    for entry, tangent in zip(slices, moved, strict=True):
        first = free & (entry == largest)
        change, free = change + jnp.where(first, tangent, 0), free & ~first
    return largest, change


def _slices(window: Any, strides: Any, padding: Any, dilation: Any, x: Array, outside: float) -> list[Array]:
    """One strided slice for each place in the window."""
    padded = jax.lax.pad(x, jnp.asarray(outside, x.dtype), [(low, high, 0) for low, high in padding])
    counts = [
        (size - step * (width - 1) - 1) // stride + 1
        for size, width, stride, step in zip(padded.shape, window, strides, dilation, strict=True)
    ]

    def cut(offset: tuple[int, ...]) -> Array:
        start = [place * step for place, step in zip(offset, dilation, strict=True)]
        stop = [a + (n - 1) * stride + 1 for a, n, stride in zip(start, counts, strides, strict=True)]
        return jax.lax.slice(padded, start, stop, strides)

    return [cut(offset) for offset in itertools.product(*map(range, window))]
