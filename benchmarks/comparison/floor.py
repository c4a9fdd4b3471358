"""The floor: floating-point operations of the tangent-only products, by formula.

Forward activations and backward signals are kept; only tangents are computed. A product of a signal with weights, or
of two signals (attention), that takes m multiplications and additions forward takes 2·m operations, and

* a Gauss–Newton product: forward two such products (tangent of the input with the weights, input with the tangent of
  the weights), backward two (to the input, to the weights): 8·m. A layer that reads the data has no tangent of its
  input and sends nothing back to it: 4·m.
* a Hessian product: forward two; backward two for the signal to the input (tangent of the signal with the weights,
  signal with the tangent of the weights) and two for the weights (tangent of the input with the signal, input with the
  tangent of the signal): 12·m; at the data one forward and one backward: 4·m.
* a quadratic form of the Gauss–Newton matrix: the forward part, 4·m, at the data 2·m.

The empirical Fisher matrix is counted as the Gauss–Newton matrix (Jᵀ C J with another C). Element-wise work, softmax,
look-ups of embeddings and biases are not counted; convolutions with padding are counted as if nothing were zero.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

PER_MAC = {"hessian": (12, 4), "ggn": (8, 4), "empirical-fisher": (8, 4), "ggn-trace": (4, 2)}
"""Operations a multiplication: of an inner layer, of one that reads the data."""


class Multiplication(NamedTuple):
    """[rows, inner] · [inner, outer] for one example, `times` times."""

    rows: int
    inner: int
    outer: int
    times: int = 1
    at_data: bool = False
    weights: bool = True

    @property
    def macs(self) -> int:
        """Multiplications and additions for one example."""
        return self.rows * self.inner * self.outer * self.times


def multiplications(name: str) -> list[Multiplication]:
    """Of one example of a workload, forward."""
    if name == "W1":
        return _dense(64, 128, 128, 10)
    if name == "W4":
        return _dense(784, 2048, 2048, 2048, 10)
    if name == "W2":
        convolutions = [Multiplication(16 * 16, 25, 16, at_data=True), Multiplication(8 * 8, 25 * 16, 32)]
        return convolutions + [one._replace(at_data=False) for one in _dense(512, 512, 128, 10)]
    assert name == "W3", name
    length, width, heads, layers, vocabulary = 128, 256, 8, 4, 512
    block = [
        Multiplication(length, width, 3 * width),
        Multiplication(length, width // heads, length, heads, weights=False),
        Multiplication(length, length, width // heads, heads, weights=False),
        Multiplication(length, width, width),
        Multiplication(length, width, 4 * width),
        Multiplication(length, 4 * width, width),
    ]
    return block * layers + [Multiplication(length, width, vocabulary)]


def operations(name: str, matrix: str, examples: int) -> int:
    """Floating-point operations of one product (or form) with the whole data."""
    inner, at_data = PER_MAC[matrix]
    return examples * sum(one.macs * (at_data if one.at_data else inner) for one in multiplications(name))


def typical_shapes(name: str, examples: int, limit: int = 16384) -> list[tuple[int, int, int]]:
    """Shapes [m, k]·[k, n] of the two heaviest layers: forward, to the input, to the weights."""
    layers = {(one.rows, one.inner, one.outer): one.macs for one in multiplications(name) if one.weights}
    shapes = []
    for rows, inner, outer in sorted(layers, key=lambda key: -layers[key])[:2]:
        rows = min(rows * examples, limit)
        shapes += [(rows, inner, outer), (rows, outer, inner), (inner, rows, outer)]
    return list(dict.fromkeys(shapes))


def _dense(*widths: int) -> list[Multiplication]:
    pairs = enumerate(itertools.pairwise(widths))
    return [Multiplication(1, one, following, at_data=index == 0) for index, (one, following) in pairs]
