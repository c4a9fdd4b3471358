"""Where an objective has kinks or jumps, which no second derivative sees: read off the equations, by the flow of data.

An operation counts if what it is given depends on the differentiated parameters and its output reaches the outputs
other than through `stop_gradient` (as the shift of a softmax does). Three kinds are let pass: a bound that a quantity
of known sign does not come to, such as max(0, variance); a switch by equality, as of safe divisions; and an activation
whose pieces meet with equal slopes. The last is told from numbers: what is computed entry by entry from one array is a
function of one variable, whose second differences say whether its slope jumps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from curvcli.curvature.jaxprs.work import abstract_batch
from curvcli.curvature.products.sums import regulariser_arguments, regulariser_function
from curvcli.jax_internals import Interpreter, inner_jaxprs, plain_where_unknown, scan_sizes, source
from curvcli.problem import Problem

FOLDED = ("abs", "sign", "max", "min", "clamp", "rem")
STEPS = ("round", "floor", "ceil")
COMPARED = ("lt", "le", "gt", "ge", "lt_to", "le_to")
ORDERED = (
    "reduce_max", "reduce_min", "argmax", "argmin", "sort", "top_k", "approx_top_k", "cummax", "cummin",
    "reduce_window_max", "reduce_window_min",
)  # fmt: skip
SMOOTH = ("logaddexp",)
"""Functions of JAX of two variables that are smooth, by name, whatever they are made of."""

ENTRYWISE = frozenset(
    (*FOLDED, *STEPS, *COMPARED, "eq", "ne", "add", "add_any", "sub", "mul", "div", "neg", "exp", "exp2", "expm1",
     "log", "log1p", "tanh", "logistic", "erf", "erfc", "sin", "cos", "tan", "atan", "sinh", "cosh", "sqrt", "rsqrt",
     "cbrt", "square", "pow", "integer_pow", "select_n", "and", "or", "not", "is_finite", "convert_element_type",
     "copy", "reduce_precision")
)  # fmt: skip
MOVES = ("broadcast_in_dim", "reshape", "squeeze", "transpose", "convert_element_type", "copy", "expand_dims")
"""Operations that change no value."""

SIGNS_KEPT = (
    "add", "add_any", "mul", "div", "min", "reduce_sum", "reduce_max", "reduce_min", "reduce_window_sum", "dot_general",
    "cumsum", "log1p", "psum", "slice", "dynamic_slice", "gather", "concatenate", *MOVES,
)  # fmt: skip
"""What gives no negative number where it is given none."""

SMALL = 1e-2
"""A bound up to here on what cannot be negative guards against rounding, and divisions by zero."""

LONGEST = 24
"""Operations between an activation's variable and its kink."""

REACH, FINE, COARSE = 12.0, 1e-3, 1e-2
"""Values of an activation's variable that are looked at, and two distances of second differences."""


@dataclass(eq=False)
class Node:
    """A value: the operation that makes it of others."""

    name: str
    parents: list[Node] = field(default_factory=list)
    depends: bool = False  # on the differentiated parameters
    value: float | None = None  # of every entry, where that is known
    equation: Any = None
    label: str = ""  # what a user knows it by
    children: list[Node] = field(default_factory=list)
    place: int = field(default_factory=itertools.count().__next__)  # after its parents'


@plain_where_unknown(lambda problem: [])
def kinks(problem: Problem) -> list[str]:
    """What makes kinks or jumps of J in its parameters, by the names of functions or operations; none is empty.

    The network, a regulariser of the user's own, and a loss of the user's own, in its outputs.

    Cost: a trace of each; nothing of the network is computed.
    """
    params, frozen = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (problem.params, problem.frozen)
    )
    batch = abstract_batch(problem, problem.batches.batch_size)
    found = function_kinks(problem.predict, params, frozen, batch.inputs)
    if not problem.loss.known:
        outputs = jax.eval_shape(problem.predict, params, frozen, batch.inputs)
        found += function_kinks(problem.loss.value, outputs, batch.targets)
    if problem.regulariser.fn is not None:
        fn, nest, squared, l2, *_ = regulariser_arguments(problem, problem.params)
        regulariser = regulariser_function(fn, nest, squared, l2, problem.params, problem.frozen["params"])
        found += function_kinks(regulariser, params)
    return list(dict.fromkeys(found))


@plain_where_unknown(lambda function, first, *rest: [])
def function_kinks(function: Any, first: Any, *rest: Any) -> list[str]:
    """The same of a function, in its first argument: a tree of arrays or of their shapes."""
    closed = jax.make_jaxpr(function)(first, *rest)
    count = len(jax.tree.leaves(first))
    inputs = [Node("input", depends=i < count) for i in range(len(closed.jaxpr.invars))]
    outputs = _Flow().run(closed.jaxpr, closed.consts, inputs)
    found: list[str] = []
    for node in _reaching(outputs):
        if node.label not in found and _bends(node) and not _is_smooth_activation(node):
            found.append(node.label)
    return found


def _constant(value: Any) -> Node:
    """A constant, with its value where all entries have the same."""
    array = np.asarray(value) if getattr(value, "size", 1) <= 1 << 16 and not _is_key(value) else None
    same = array is not None and array.size and array.dtype.kind in "fiub" and np.all(array == array.flat[0])
    return Node("constant", value=float(array.flat[0]) if same and array is not None else None)


def _is_key(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


class _Flow(Interpreter):
    """Makes the nodes of equations; those inside a function that a user knows by its name have that name."""

    def __init__(self, label: str = "") -> None:
        self.label = label

    def constant(self, value: Any) -> Node:
        return _constant(value)

    def equation(self, equation: Any, inputs: list[Node]) -> list[Node]:
        name, bodies = equation.primitive.name, inner_jaxprs(equation)
        if name == "cond":
            branches = [self._inside(body, inputs[1:]) for body in bodies]
            label = self.label or "cond"
            return [
                _node("select_n", [inputs[0], *outputs], equation, label) for outputs in zip(*branches, strict=True)
            ]
        if name == "scan":
            return self._repeated(equation, bodies[0], inputs)
        if bodies and name != "while":
            return self.call(equation, bodies[0], inputs)
        label = self.label or ("where" if name in COMPARED else name)
        return [_node(name, inputs, equation, label) for _ in equation.outvars]

    def call(self, equation: Any, body: ClosedJaxpr, inputs: list[Node]) -> list[Node]:
        name = equation.params.get("name") or source(body.jaxpr)[0]
        if name in SMOOTH:
            return [_node(name, inputs, None, name) for _ in equation.outvars]
        outputs = _Flow(_public(name) or self.label)._inside(body, inputs)
        if len(outputs) == len(equation.outvars):
            return outputs
        return [_node(equation.primitive.name, inputs, None, self.label) for _ in equation.outvars]

    def _inside(self, body: ClosedJaxpr, inputs: list[Node]) -> list[Node]:
        """The outputs of an inner jaxpr, which takes the last of the inputs if it takes fewer."""
        return self.run(body.jaxpr, body.consts, inputs[len(inputs) - len(body.jaxpr.invars) :])

    def _repeated(self, equation: Any, body: ClosedJaxpr, inputs: list[Node]) -> list[Node]:
        """A loop's outputs, from two turns: by the second all that depends on the parameters does."""
        consts, carried = scan_sizes(equation)
        carry, rows = inputs[consts : consts + carried], inputs[consts + carried :]
        outputs: list[Node] = []
        for _ in range(2):
            outputs = self._inside(body, [*inputs[:consts], *carry, *rows])
            turns = zip(carry, outputs[:carried], strict=True)
            carry = [_node("carry", [old, new], None, self.label) for old, new in turns]
        return [*carry, *outputs[carried:]]


def _node(name: str, parents: list[Node], equation: Any, label: str) -> Node:
    depends = name != "stop_gradient" and any(one.depends for one in parents)
    value = parents[0].value if name in MOVES and parents and not depends else None
    node = Node(name, parents, depends, value, equation, label)
    for one in dict.fromkeys(parents):
        one.children.append(node)
    return node


def _public(name: str) -> str:
    """Names that a user knows a function by: those of a jaxpr may be `_where`, `<lambda>` or `fn`."""
    return name if name.isidentifier() and not name.startswith("_") and name not in ("fn", "fun", "f") else ""


def _reaching(outputs: list[Node]) -> Iterator[Node]:
    """The nodes that depend on the parameters and reach the outputs, but for what only stop_gradient does."""
    waiting, seen = list(outputs), set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or not node.depends:
            continue
        seen.add(id(node))
        yield node
        waiting += node.parents


def _bends(node: Node) -> bool:
    """Whether the operation has a kink or a jump where it depends on the parameters."""
    name, parents = node.name, node.parents
    moving = [one for one in parents if one.depends]
    if name in ORDERED or name in STEPS or name == "rem":
        return True
    if name in ("abs", "sign"):
        return not _is_positive(parents[0])
    if name == "while":
        return False  # no network with one has a reverse mode
    if name in ("max", "min", *COMPARED):
        constants = [one.value for one in parents if not one.depends]
        never = -np.inf if name == "max" else np.inf
        if len(moving) == 1 and constants[0] is not None:
            guard = name != "min" and -np.inf <= constants[0] <= SMALL and _is_positive(moving[0])
            return not (guard or (name in ("max", "min") and constants[0] == never))
        return True
    if name == "clamp":
        return parents[1].depends
    if name == "convert_element_type":
        before, after = (one.aval.dtype for one in (node.equation.invars[0], node.equation.outvars[0]))
        return jnp.issubdtype(before, jnp.floating) and jnp.issubdtype(after, jnp.integer)
    return False


def _is_positive(node: Node, depth: int = 40) -> bool:
    """Whether a value is plainly never negative, but for rounding: squares, their means, variances."""
    if not node.depends:
        return node.value is None or node.value >= 0  # weights of a mean are taken to be positive
    name, parents = node.name, node.parents
    if depth == 0:
        return False
    if name in ("exp", "exp2", "logistic", "abs", "square", "sqrt", "rsqrt", "erfc", "cosh"):
        return True
    if name == "integer_pow":
        return node.equation.params["y"] % 2 == 0
    if name == "mul" and parents[0] is parents[1]:
        return True
    if name in ("max", "select_n"):
        pieces = parents if name == "max" else parents[1:]
        return (any if name == "max" else all)(_is_positive(one, depth - 1) for one in pieces)
    if name == "sub":
        return _is_mean_of_squares(parents[0]) and _is_square(parents[1])
    if name == "pow":
        return _is_positive(parents[0], depth - 1)
    return name in SIGNS_KEPT and all(_is_positive(one, depth - 1) for one in parents)


def _is_mean_of_squares(node: Node) -> bool:
    """E[x²]: a sum of squares, scaled by what does not depend on the parameters."""
    node = _unscaled(node)
    return node.name in ("reduce_sum", "dot_general", "psum") and all(_is_positive(one) for one in node.parents)


def _is_square(node: Node) -> bool:
    node = _unscaled(node)
    even = node.name == "integer_pow" and node.equation.params["y"] % 2 == 0
    return even or node.name == "square" or (node.name == "mul" and node.parents[0] is node.parents[1])


def _unscaled(node: Node) -> Node:
    """What a value is but for factors and places."""
    while node.name in MOVES or (node.name in ("mul", "div") and sum(one.depends for one in node.parents) == 1):
        node = next(one for one in node.parents if one.depends)
    return node


def _is_smooth_activation(node: Node) -> bool:
    """Whether all that is computed entry by entry from one array that this operation goes back to is smooth.

    The ends of that computation are looked at as functions of one variable.
    """
    for root in _roots(node):
        inside = {root, *_inside_of(root)}
        reached = _downstream(node, inside)
        ends = [one for one in reached if not one.children or any(child not in inside for child in one.children)]
        if ends and all(_has_no_jump(root, one) for one in ends):
            return True
    return False


def _roots(node: Node) -> Iterator[Node]:
    """The arrays, upwards, of each of which alone this is computed entry by entry, all else being known numbers."""
    front = {node}
    for _ in range(LONGEST):
        last = max(front, key=lambda one: one.place)
        if last.name not in ENTRYWISE or any(not one.depends and one.value is None for one in last.parents):
            return
        front = front - {last} | {one for one in last.parents if one.depends}
        if len(front) == 1:
            yield from front


def _inside_of(root: Node) -> list[Node]:
    """All that is computed entry by entry from this alone, parents first."""
    inside = {root}
    order: list[Node] = []
    waiting = list(root.children)
    while waiting:
        one = waiting.pop(0)
        if one in inside or one.name not in ENTRYWISE:
            continue
        if all(parent in inside or (not parent.depends and parent.value is not None) for parent in one.parents):
            inside.add(one)
            order.append(one)
            waiting += one.children
    return order


def _downstream(node: Node, inside: set[Node]) -> list[Node]:
    """Those inside that an operation reaches, itself included."""
    order, seen = [node], {node}
    for one in order:
        for child in one.children:
            if child in inside and child not in seen:
                seen.add(child)
                order.append(child)
    return order


def _has_no_jump(root: Node, end: Node) -> bool:
    """Whether second differences of a function of one variable shrink with their distance, as a kink's do not."""
    if end.equation is None or not jnp.issubdtype(end.equation.outvars[0].aval.dtype, jnp.floating):
        return False
    largest = []
    for distance in (COARSE, FINE):
        grid = np.arange(-REACH, REACH, distance) + 0.37 * distance
        with np.errstate(all="ignore"), jax.enable_x64(True):
            behind, middle, ahead = (_evaluated(root, end, grid + shift) for shift in (-distance, 0.0, distance))
        bend = np.abs(ahead - 2 * middle + behind) / distance
        largest.append(float(np.max(bend[np.isfinite(bend)], initial=0.0)))
    return largest[1] <= 0.5 * largest[0] or largest[0] < 1e-9


def _evaluated(root: Node, end: Node, values: np.ndarray) -> np.ndarray:
    """An end of an activation at values of its root, in float64."""
    known: dict[Node, Any] = {root: jnp.asarray(values)}

    def of(node: Node) -> Any:
        if node not in known:
            if not node.depends:
                return jnp.full(values.shape, float(node.value or 0.0))
            given = [of(one) for one in node.parents]
            equation = node.equation
            given = [_widened(one, atom) for one, atom in zip(given, equation.invars, strict=True)]
            if node.name in ("convert_element_type", "reduce_precision", "copy"):
                known[node] = _widened(given[0], equation.outvars[0])
            else:
                known[node] = equation.primitive.bind(*given, **equation.params)
        return known[node]

    return np.asarray(of(end), np.float64)


def _widened(array: Any, atom: Any) -> Any:
    """An array in the type that an equation has there, floats in float64."""
    return array.astype("float64" if jnp.issubdtype(atom.aval.dtype, jnp.floating) else atom.aval.dtype)
