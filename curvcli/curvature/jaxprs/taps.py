"""Where parameters enter a network, found in its jaxpr: layers, their inputs, and a place to perturb their outputs.

No tags are asked of a model and none of its classes is known: linen, nnx and plain functions all end in the same
equations. Each parameter is followed as an array of indices through whatever only moves its entries (reshapes,
transposes, casts, broadcasts), up to the equation that takes it:

    matrix products            dense layers, whatever axes they contract
    convolutions               as matrix products with patches
    gathers of rows            embeddings, matrix products with one-hot rows
    sums with the output       the bias of the layer that the sum follows

The network is looked at for one example; batches are `vmap` over it, so that every axis of a layer's input that is not
contracted is a position at which the weights are shared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.curvature.jaxprs.work import abstract_batch
from curvcli.jax_internals import Interpreter, bound, plain_where_unknown
from curvcli.problem import Params, Problem

Kind = Literal["dense", "conv", "embed"]

MOVES = ("reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "convert_element_type", "copy", "copy_p")
"""Primitives that only move entries, or cast them."""


class Layer(NamedTuple):
    """One use of a kernel.

    Parameters
    ----------
    site
        Number of the equation, as `Interpreter.site` counts.
    kernel, bias
        Paths of the parameters; None without bias.
    rows
        [fan_in, fan_out], the flat index in the kernel of each entry of the matrix that multiplies the inputs.
    bias_rows
        [fan_out], the same for the bias.
    positions
        How often the weights are used for one example.
    side
        Which operand of a matrix product the kernel is.
    """

    kind: Kind
    site: int
    kernel: str
    rows: np.ndarray
    bias: str | None = None
    bias_rows: np.ndarray | None = None
    positions: int = 1
    side: int = 1

    @property
    def fan_in(self) -> int:
        """Inputs, the bias's constant not counted."""
        return self.rows.shape[0]

    @property
    def fan_out(self) -> int:
        """Outputs."""
        return self.rows.shape[1]


@dataclass
class NetworkLayers:
    """The layers of a network, and what became of its other parameters.

    Parameters
    ----------
    layers
        In order of evaluation.
    others
        Parameters that fit no rule, with the reason.
    filters
        [fan_in, filters] by kernel, layer or not: the flat indices of what reaches each output unit.
    biases
        Parameters that are added to the output of a kernel.
    """

    layers: list[Layer] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)
    filters: dict[str, np.ndarray] = field(default_factory=dict)
    biases: set[str] = field(default_factory=set)


class _Moved(NamedTuple):
    """A parameter on its way: where each entry comes from."""

    name: str
    entries: np.ndarray


class _Output(NamedTuple):
    """A layer's output on its way to its bias: which of the layer's outputs each entry is."""

    layer: int
    unit: np.ndarray


def _no_layers(problem: Problem) -> NetworkLayers:
    """Where equations cannot be read, every parameter has its diagonal."""
    return NetworkLayers(others=dict.fromkeys(problem.params, f"the equations of jax {jax.__version__} are not known"))


@plain_where_unknown(_no_layers)
def find_layers(problem: Problem) -> NetworkLayers:
    """The layers of a problem's network. Nothing is computed but indices."""
    equations, names = traced(problem)
    walk = _Walk(names, {name: tuple(leaf.shape) for name, leaf in problem.params.items()})
    inputs: list[Any] = [
        _Moved(name, np.arange(problem.params[name].size, dtype=np.int32).reshape(problem.params[name].shape))
        if name is not None else None
        for name in names
    ]  # fmt: skip
    walk.run(equations.jaxpr, equations.consts, inputs)
    return walk.result()


def traced(problem: Problem) -> tuple[Any, list[str | None]]:
    """The jaxpr of the network for one example, and the names of its arguments that are differentiated parameters."""
    batch = abstract_batch(problem, 1)
    arguments = (problem.params, problem.frozen, batch.inputs)
    traced = jax.make_jaxpr(problem.predict)(*arguments)
    paths = jax.tree_util.tree_flatten_with_path(arguments)[0]
    names = [path[1].key if path[0].idx == 0 else None for path, _ in paths]
    return traced, names


class _Walk(Interpreter):
    """Follows parameters and layer outputs through the equations; None stands for all else."""

    def __init__(self, names: list[str | None], shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.layers: list[Layer] = []
        self.uses: dict[str, list[str]] = {name: [] for name in names if name is not None}
        self.output_uses: list[int] = []
        self.filters: dict[str, np.ndarray] = {}

    def result(self) -> NetworkLayers:
        """Layers whose parameters are used nowhere else; the others' parameters by reason."""
        result = NetworkLayers(
            filters=self.filters, biases={layer.bias for layer in self.layers if layer.bias is not None}
        )
        for index, layer in enumerate(self.layers):
            if len(self.uses[layer.kernel]) > 1:
                result.others[layer.kernel] = f"used {len(self.uses[layer.kernel])} times"
                if layer.bias is not None:
                    result.others[layer.bias] = "its kernel is used more than once"
                continue
            if layer.bias is not None and (len(self.uses[layer.bias]) > 1 or self.output_uses[index] > 1):
                result.others[layer.bias] = "used more than once"
                layer = layer._replace(bias=None, bias_rows=None)
            result.layers.append(layer)
        taken = {name for layer in result.layers for name in (layer.kernel, layer.bias)}
        for name, uses in self.uses.items():
            if name not in taken and name not in result.others:
                result.others[name] = uses[0] if uses else "not used"
        return result

    def constant(self, value: Any) -> None:
        return None

    def equation(self, equation: Any, inputs: list[Any]) -> list[Any]:
        name, nothing = equation.primitive.name, [None] * len(equation.outvars)
        if all(value is None for value in inputs):
            return nothing
        if name in MOVES and inputs[0] is not None:
            return [self._move(equation, inputs[0])]
        rule = {
            "dot_general": self._dense, "conv_general_dilated": self._conv, "gather": self._embed,
            "add": self._bias, "add_any": self._bias,
        }.get(name)  # fmt: skip
        output = NotImplemented if rule is None else rule(equation, inputs)
        if output is not NotImplemented:
            return [output]
        for value in inputs:
            if isinstance(value, _Moved):
                self.uses[value.name].append(f"enters {name}")
            elif isinstance(value, _Output):
                self.output_uses[value.layer] += 1
        return nothing

    def _move(self, equation: Any, moved: Any) -> Any:
        index = moved.entries if isinstance(moved, _Moved) else moved.unit
        if equation.primitive.name in ("convert_element_type", "copy", "copy_p"):
            return moved
        with jax.ensure_compile_time_eval():
            entries = np.asarray(equation.primitive.bind(jnp.asarray(index), **equation.params))
        return moved._replace(entries=entries) if isinstance(moved, _Moved) else moved._replace(unit=entries)

    def _add_layer(
        self, kind: Kind, moved: _Moved, rows: np.ndarray, units: np.ndarray, positions: int, side: int = 1
    ) -> Any:
        """A use of a whole kernel, each entry once."""
        self.uses[moved.name].append(f"enters a {kind} layer")
        if not self._add_filters(moved, rows):
            self.uses[moved.name].append("only in part")
        self.layers.append(Layer(kind, self.site, moved.name, rows, positions=positions, side=side))
        self.output_uses.append(0)
        return _Output(len(self.layers) - 1, units)

    def _add_filters(self, moved: _Moved, rows: np.ndarray) -> bool:
        """The columns of a kernel at its first use; False where it is not used whole, each entry once."""
        whole = len(np.unique(rows)) == rows.size == np.prod(self.shapes[moved.name], dtype=int)
        if whole:
            self.filters.setdefault(moved.name, rows)
        return whole

    def _dense(self, equation: Any, arguments: list[Any]) -> Any:
        side = 1 if isinstance(arguments[1], _Moved) else 0
        moved, other = arguments[side], arguments[1 - side]
        if not isinstance(moved, _Moved) or isinstance(other, _Moved):
            return NotImplemented
        contract, batch = equation.params["dimension_numbers"]
        axes = list(contract[side])
        free = [axis for axis in range(moved.entries.ndim) if axis not in axes]
        fan_in = int(np.prod([moved.entries.shape[axis] for axis in axes]))
        rows = moved.entries.transpose(*axes, *free).reshape(fan_in, -1)
        if batch[0]:  # a matrix for each of a batch: filters of their own, and no layer
            self._add_filters(moved, rows)
            return NotImplemented
        # The product's axes: the free ones of the left operand, then those of the right.
        shape = equation.outvars[0].aval.shape
        units = np.arange(rows.shape[1], dtype=np.int32).reshape([moved.entries.shape[axis] for axis in free])
        lead = len(shape) - len(free)
        units = units.reshape(*(1,) * lead, *units.shape) if side else units.reshape(*units.shape, *(1,) * lead)
        positions = int(np.prod(shape, dtype=int)) // max(rows.shape[1], 1)
        return self._add_layer("dense", moved, rows, np.broadcast_to(units, shape), positions, side)

    def _conv(self, equation: Any, arguments: list[Any]) -> Any:
        moved, given = arguments[1], equation.params
        plain = given["feature_group_count"] == given["batch_group_count"] == 1
        if not isinstance(moved, _Moved) or isinstance(arguments[0], _Moved):
            return NotImplemented
        spec = given["dimension_numbers"]
        # Patches come as (height, width, channels), whatever the order in the kernel.
        order = (*spec.rhs_spec[2:], spec.rhs_spec[1], spec.rhs_spec[0])
        turned = moved.entries.transpose(order)
        rows = turned.reshape(-1, turned.shape[-1])
        if not plain:
            self._add_filters(moved, rows)
            return NotImplemented
        shape, feature = equation.outvars[0].aval.shape, spec.out_spec[1]
        unit_shape = [1] * len(shape)
        unit_shape[feature] = shape[feature]
        units = np.broadcast_to(np.arange(shape[feature], dtype=np.int32).reshape(unit_shape), shape)
        positions = int(np.prod(shape, dtype=int)) // shape[feature]
        return self._add_layer("conv", moved, rows, units, positions)

    def _embed(self, equation: Any, arguments: list[Any]) -> Any:
        moved, numbers = arguments[0], equation.params["dimension_numbers"]
        if not isinstance(moved, _Moved) or moved.entries.ndim != 2 or tuple(numbers.collapsed_slice_dims) != (0,):
            return NotImplemented
        if tuple(numbers.start_index_map) != (0,) or tuple(equation.params["slice_sizes"]) != (
            1,
            moved.entries.shape[1],
        ):
            return NotImplemented
        shape = equation.outvars[0].aval.shape
        axis = numbers.offset_dims[0]
        unit_shape = [1] * len(shape)
        unit_shape[axis] = shape[axis]
        units = np.broadcast_to(np.arange(shape[axis], dtype=np.int32).reshape(unit_shape), shape)
        return self._add_layer("embed", moved, moved.entries, units, int(np.prod(shape, dtype=int)) // shape[axis])

    def _bias(self, equation: Any, arguments: list[Any]) -> Any:
        """A parameter added to a layer's output, one entry for each of its units."""
        pair = sorted(arguments, key=lambda one: isinstance(one, _Moved))
        if not isinstance(pair[0], _Output) or not isinstance(pair[1], _Moved):
            return NotImplemented
        output, moved = pair
        layer = self.layers[output.layer]
        # The factor of an embedding is its diagonal, which has no room for a constant input.
        if layer.kind == "embed" or layer.bias is not None or output.unit.ndim != moved.entries.ndim:
            return NotImplemented
        added = np.broadcast_to(moved.entries, output.unit.shape)
        rows = np.full(layer.fan_out, -1, np.int32)
        rows[output.unit.reshape(-1)] = added.reshape(-1)
        whole = len(np.unique(rows)) == layer.fan_out == np.prod(self.shapes[moved.name], dtype=int)
        if not whole or not np.array_equal(rows[output.unit], added):
            return NotImplemented
        self.uses[moved.name].append("is a bias")
        self.output_uses[output.layer] += 1
        self.layers[output.layer] = layer._replace(bias=moved.name, bias_rows=rows)
        return None


# --- evaluation with taps ---------------------------------------------------------------------------------


Tapped = Callable[[Params, dict, Any, list[Array]], tuple[Array, list[Array]]]
"""`(params, frozen, inputs of one example, perturbations [P, fan_out]) -> (outputs, inputs of the layers [P, fan_in])`;
of an embedding its row numbers [P]."""


def tapped(problem: Problem, layers: list[Layer]) -> Tapped:
    """The network for one example, with what the layers are given, and a perturbation added to what they give.

    The derivative by a perturbation is the pre-activation gradient at every position. Perturbations of zero leave the
    outputs as they are.
    """
    sites = {layer.site: (index, layer) for index, layer in enumerate(layers)}
    equations = traced(problem)[0] if layers else None

    def network(params: Params, frozen: dict, inputs: Any, perturbations: list[Array]) -> tuple[Array, list[Array]]:
        single = jax.tree.map(lambda leaf: leaf[None], inputs)
        if equations is None:
            return problem.predict(params, frozen, single)[0], []
        tapping = _Tapping(sites, perturbations)
        outputs = tapping.run(equations.jaxpr, equations.consts, jax.tree.leaves((params, frozen, single)))
        return outputs[0][0], [tapping.inputs[index] for index in range(len(layers))]

    return network


class _Tapping(Interpreter):
    """Evaluates the network; keeps the inputs of its layers, and adds perturbations to their outputs."""

    def __init__(self, sites: dict[int, tuple[int, Layer]], perturbations: list[Array]) -> None:
        self.sites, self.perturbations = sites, perturbations
        self.inputs: dict[int, Array] = {}

    def equation(self, equation: Any, inputs: list[Any]) -> list[Any]:
        outputs = bound(equation, inputs)
        if self.site not in self.sites:
            return outputs
        index, layer = self.sites[self.site]
        self.inputs[index] = _layer_inputs(equation, layer, inputs)
        return [outputs[0] + _as_output(equation, layer, self.perturbations[index], outputs[0])]


def _layer_inputs(equation: Any, layer: Layer, given: list[Array]) -> Array:
    """What multiplies the kernel: [P, fan_in], or the rows that are gathered: [P]."""
    params = equation.params
    if layer.kind == "embed":
        return given[1].reshape(-1)
    if layer.kind == "dense":
        axes = list(params["dimension_numbers"][0][1 - layer.side])
        x = given[1 - layer.side]
        rest = [axis for axis in range(x.ndim) if axis not in axes]
        return x.transpose(*rest, *axes).reshape(-1, layer.fan_in)
    window = [given[1].shape[axis] for axis in params["dimension_numbers"].rhs_spec[2:]]
    return _patches(given[0], window, params).reshape(-1, layer.fan_in)


def _patches(x: Array, window: list[int], params: Any) -> Array:
    """What a convolution sees at every position: the positions in the order of its output, (window, channels) last.

    Slices side by side: JAX's own patches are a convolution with an identity, slower on a CPU by half.
    """
    spec = params["dimension_numbers"]
    batch, channel, *space = spec.lhs_spec
    margins: list[tuple[int, int, int]] = [(0, 0, 0)] * x.ndim
    for axis, (low, high), dilation in zip(space, params["padding"], params["lhs_dilation"], strict=True):
        margins[axis] = (low, high, dilation - 1)
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), margins)
    x = x.transpose(batch, *space, channel)
    pieces = []
    for corner in np.ndindex(*window):
        cut = [slice(None)]
        for at, wide, apart, stride, size in zip(
            corner, window, params["rhs_dilation"], params["window_strides"], x.shape[1:-1], strict=True
        ):
            last = size - (wide - 1 - at) * apart  # the window's far end stays inside
            cut.append(slice(at * apart, last, stride))
        pieces.append(x[tuple(cut)])
    places = np.argsort([spec.out_spec[0], *spec.out_spec[2:]])
    return jnp.concatenate(pieces, axis=-1).transpose(*places, x.ndim - 1)


def _as_output(equation: Any, layer: Layer, perturbation: Array, output: Array) -> Array:
    """[P, fan_out] in the shape of the layer's output."""
    name = equation.primitive.name
    if name == "dot_general":
        return (perturbation if layer.side else perturbation.T).reshape(output.shape)
    axis = equation.params["dimension_numbers"]
    axis = axis.out_spec[1] if name == "conv_general_dilated" else axis.offset_dims[0]
    moved = [n for i, n in enumerate(output.shape) if i != axis]
    return jnp.moveaxis(perturbation.reshape(*moved, -1), -1, axis)
