"""The weight of each row of a layer: of an example's loss, or of one of its tokens' losses.

A layer has a row of inputs for every position at which its weights are used. Where the axes of the positions include
those of the tokens, the weight of a row is its token's. Axes are followed through the equations of the network:
a matrix product keeps those that it does not contract, an elementwise function keeps all. Axes that run together are
joined, from the inputs to the outputs [1, tokens, C], whose axes are known.

Other layers of a network whose tokens have weights (behind a strided convolution, or at one position for all tokens)
have no token to a row: each row that the weighted losses can reach takes the mean weight of the example's tokens.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.curvature.jaxprs.taps import Layer, traced
from curvcli.jax_internals import Interpreter, plain_where_unknown
from curvcli.problem import Problem

Axes = list[int]


class Rows(NamedTuple):
    """The positions of a layer, and where among their axes the tokens are.

    Parameters
    ----------
    shape
        Of the positions.
    axes
        The axis of the positions for each axis of the tokens that is longer than 1.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]


@plain_where_unknown(lambda problem, layers: [None] * len(layers))
def token_rows(problem: Problem, layers: list[Layer]) -> list[Rows | None]:
    """Where the tokens are in the rows of each layer; None where the weights are an example's, or no token fits.

    Nothing is computed but shapes.
    """
    tokens = problem.batches.weight.shape[1:]
    if problem.loss.draws is not None and np.issubdtype(problem.batches.targets.dtype, np.floating):
        tokens = problem.batches.targets.shape[1:-1]  # each row of targets has a sum of its own
    if not tokens:
        return [None] * len(layers)
    closed, _ = traced(problem)
    walk = _Walk({layer.site: layer for layer in layers})
    # Outputs [1, tokens, C]: of one example.
    inputs = [walk.new(len(atom.aval.shape)) for atom in closed.jaxpr.invars]
    outputs = walk.run(closed.jaxpr, closed.consts, inputs)[0]
    shape = closed.out_avals[0].shape
    if shape[1 : 1 + len(tokens)] != tokens:
        return [None] * len(layers)
    wanted = [walk.root(axis) for axis, size in zip(outputs[1:], tokens, strict=False) if size > 1]
    return [_matched(walk, wanted, *walk.positions[layer.site]) for layer in layers]


def _matched(walk: _Walk, wanted: Axes, axes: Axes, shape: tuple[int, ...]) -> Rows | None:
    """The axis of the positions for each of the tokens; None where one has none, or several."""
    roots = [walk.root(axis) if size > 1 else -1 for axis, size in zip(axes, shape, strict=True)]
    if any(roots.count(root) != 1 for root in wanted) or len(set(wanted)) < len(wanted):
        return None
    return Rows(shape, tuple(roots.index(root) for root in wanted))


def row_weights(weight: Array, layer: Layer, rows: Rows | None, gradients: Array) -> Array:
    """The weight of each row of a layer: [b, P].

    Parameters
    ----------
    weight
        Of a batch, [b] or [b, tokens].
    gradients
        [K, b, P, fan_out], zero in the rows that no weighted loss reaches.
    """
    size = len(weight)
    if weight.ndim == 1:
        return jnp.broadcast_to(weight[:, None], (size, layer.positions))
    if rows is None:
        reached = jnp.any(gradients != 0, axis=(0, 3))
        return jnp.where(reached, jnp.mean(weight.reshape(size, -1), axis=1)[:, None], 0)
    long = weight.reshape(size, *(n for n in weight.shape[1:] if n > 1))
    shape = [size] + [n if axis in rows.axes else 1 for axis, n in enumerate(rows.shape)]
    ordered = long.transpose(0, *(1 + np.argsort(rows.axes)))
    return jnp.broadcast_to(ordered.reshape(shape), (size, *rows.shape)).reshape(size, layer.positions)


class _Walk(Interpreter):
    """Numbers for the axes of a network's values; those that run together have one root."""

    def __init__(self, layers: dict[int, Layer]) -> None:
        self.parents: Axes = []
        self.layers = layers
        self.positions: dict[int, tuple[Axes, tuple[int, ...]]] = {}

    def new(self, count: int) -> Axes:
        """Axes of their own."""
        first = len(self.parents)
        self.parents += range(first, first + count)
        return self.parents[first:]

    def root(self, axis: int) -> int:
        """What stands for all axes that are joined with this one."""
        while self.parents[axis] != axis:
            self.parents[axis] = axis = self.parents[self.parents[axis]]
        return axis

    def join(self, one: int, other: int) -> None:
        """Take two axes for one."""
        self.parents[self.root(one)] = self.root(other)

    def constant(self, value: Any) -> Axes:
        return self.new(np.ndim(value))

    def equation(self, equation: Any, inputs: list[Axes]) -> list[Axes]:
        outputs = [self.new(len(atom.aval.shape)) for atom in equation.outvars]
        RULES.get(equation.primitive.name, _Walk._same_rank)(self, equation, inputs, outputs)
        if self.site in self.layers:
            free = _position_axes(equation, self.layers[self.site], len(outputs[0]))
            shape = equation.outvars[0].aval.shape
            self.positions[self.site] = [outputs[0][axis] for axis in free], tuple(shape[axis] for axis in free)
        return outputs

    def _same_rank(self, equation: Any, given: list[Axes], made: list[Axes]) -> None:
        """Elementwise functions, and whatever else keeps the order of axes: slices, sums, scans."""
        reduced = equation.params.get("axes", ()) if equation.primitive.name.startswith(("reduce", "arg")) else ()
        for source, x in zip(equation.invars, given, strict=True):
            kept = [axis for axis in range(len(x)) if axis not in reduced]
            for target, y in zip(equation.outvars, made, strict=True):
                if len(kept) == len(y):
                    for axis, place in zip(kept, range(len(y)), strict=True):
                        self._join_equal(source, x, axis, target, y, place)

    def _join_equal(self, source: Any, x: Axes, axis: int, target: Any, y: Axes, place: int) -> None:
        if source.aval.shape[axis] == target.aval.shape[place]:
            self.join(x[axis], y[place])

    def _transpose(self, equation: Any, given: list[Axes], made: list[Axes]) -> None:
        for place, axis in enumerate(equation.params["permutation"]):
            self.join(given[0][axis], made[0][place])

    def _broadcast(self, equation: Any, given: list[Axes], made: list[Axes]) -> None:
        for axis, place in enumerate(equation.params["broadcast_dimensions"]):
            self._join_equal(equation.invars[0], given[0], axis, equation.outvars[0], made[0], place)

    def _reshape(self, equation: Any, given: list[Axes], made: list[Axes]) -> None:
        """Axes that stay whole, between others that are cut or merged."""
        before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        starts = {math.prod(before[:axis]): axis for axis, size in enumerate(before) if size > 1}
        for place, size in enumerate(after):
            axis = starts.get(math.prod(after[:place])) if size > 1 else None
            if axis is not None and before[axis] == size:
                self.join(given[0][axis], made[0][place])

    def _dot(self, equation: Any, given: list[Axes], made: list[Axes]) -> None:
        """Those of a batch of matrices, then the free ones of the left operand, then those of the right."""
        contract, batch = equation.params["dimension_numbers"]
        left, right = ([axis for axis in range(len(x)) if axis not in (*taken, *shared)]
                       for x, taken, shared in zip(given, contract, batch, strict=True))  # fmt: skip
        kept = [given[0][axis] for axis in (*batch[0], *left)] + [given[1][axis] for axis in right]
        for one, other in zip(kept, made[0], strict=True):
            self.join(one, other)
        for one, other in zip(*batch, strict=True):
            self.join(given[0][one], given[1][other])

    def _conv(self, equation: Any, given: list[Axes], made: list[Axes]) -> None:
        """The batch, and the axes in space that keep their length."""
        spec = equation.params["dimension_numbers"]
        before, after = ((order[0], *order[2:]) for order in (spec.lhs_spec, spec.out_spec))
        for axis, place in zip(before, after, strict=True):
            self._join_equal(equation.invars[0], given[0], axis, equation.outvars[0], made[0], place)

    def _gather(self, equation: Any, given: list[Axes], made: list[Axes]) -> None:
        """The axes of the indices, and those of the operand that are taken as they are."""
        numbers = equation.params["dimension_numbers"]
        gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
        places = [place for place in range(len(made[0])) if place not in numbers.offset_dims]
        for axis, place in enumerate(places):
            self.join(given[1][axis], made[0][place])
        kept = [axis for axis in range(len(given[0])) if axis not in gone]
        for axis, place in zip(kept, numbers.offset_dims, strict=True):
            self._join_equal(equation.invars[0], given[0], axis, equation.outvars[0], made[0], place)


RULES = {
    "transpose": _Walk._transpose,
    "broadcast_in_dim": _Walk._broadcast,
    "reshape": _Walk._reshape,
    "squeeze": _Walk._reshape,
    "expand_dims": _Walk._reshape,
    "dot_general": _Walk._dot,
    "conv_general_dilated": _Walk._conv,
    "gather": _Walk._gather,
}
"""Equations that do not keep the order of axes."""


def _position_axes(equation: Any, layer: Layer, rank: int) -> list[int]:
    """The axes of a layer's output that are no units, in the order of the layer's rows."""
    name, numbers = equation.primitive.name, equation.params["dimension_numbers"]
    if name == "dot_general":
        free = len(equation.invars[layer.side].aval.shape) - len(numbers[0][layer.side])
        return list(range(rank - free)) if layer.side else list(range(free, rank))
    units = (numbers.out_spec[1],) if name == "conv_general_dilated" else numbers.offset_dims
    return [axis for axis in range(rank) if axis not in units]
