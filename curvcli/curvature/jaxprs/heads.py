"""The last layer of a network with many outputs, some rows at a time: outputs [b, T, V] are never held whole.

A network whose outputs are a product of features with weights, and what is then done entry by entry (a bias, a factor,
a soft cap), is cut in front of that product. All behind it, the loss included, acts on each token by itself, so that
it is computed for one chunk of tokens after the other, forwards and backwards, and anew wherever it is needed again.
A chunk has all V outputs of its tokens: what `losses.py` and `outputs.py` say of outputs holds for it as it is, where
chunks of the vocabulary would ask for passes more, for the normaliser and for ⟨p, u⟩.

Cost: one product more with the last layer's weights, for the outputs that are not kept. Memory: a few times
`CHUNK_BYTES` in place of a few times the outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.curvature.jaxprs.rewriting import Rewrite, evaluated
from curvcli.curvature.products.outputs import OutputMap, weighted
from curvcli.jax_internals import bound, is_literal, plain_where_unknown
from curvcli.losses import Loss
from curvcli.problem import Batch, Params, unit_weight

Functions = tuple[Callable, Loss]
Middle = Callable[..., OutputMap]

OUTPUT_BYTES = 32 << 20
"""Outputs of a batch that are held whole: they are no more than its other intermediate values."""

CHUNK_BYTES = 8 << 20
"""Outputs of a chunk: about what the caches of a CPU hold."""

ENTRYWISE = ("add", "sub", "mul", "div", "max", "min", "neg", "tanh", "convert_element_type", "copy")


class Values(NamedTuple):
    """What the last layer is given; also tangents and cotangents of it."""

    features: Array  # [b, ..., d]
    weights: list[Array]  # those that are differentiated: [d, V] or [V, d], and what is added, or multiplied with


class Head(NamedTuple):
    """A network in two parts: outputs = last(*body(params))."""

    body: Callable[[Params], Values]
    last: Callable[[Array, list[Array]], Array]  # features [c, ..., d] and weights to outputs [c, ..., V]
    outputs: jax.ShapeDtypeStruct


def batch_loss(functions: Functions, params: Params, frozen: dict, batch: Batch) -> Array:
    """Σ_n a_n L(f(w, x_n), t_n) over one batch, not normalised."""
    return jnp.sum(example_losses(functions, params, frozen, batch))


def example_losses(functions: Functions, params: Params, frozen: dict, batch: Batch) -> Array:
    """Each example's weighted loss, its tokens summed: [b]."""

    def losses(outputs: Array, part: Batch) -> Array:
        return weighted(functions[1].value(outputs, part.targets), part)

    return by_examples(losses, functions, params, frozen, batch)


def by_examples(
    tell: Callable[[Array, Batch], Array], functions: Functions, params: Params, frozen: dict, batch: Batch
) -> Array:
    """`tell(outputs [c, ..., V], part of the batch) -> [c, ...]` summed over each example's units: [b]."""
    predict, loss = functions
    head = cut(functions, params, frozen, batch)
    if head is None:
        units = tell(predict(params, frozen, batch.inputs), batch)
    else:
        values = head.body(params)
        chunks = _chunks(head, loss.known, batch, values.features)
        piece = jax.checkpoint(lambda weights, features, part: tell(head.last(features, weights), part))
        units = jax.lax.map(lambda given: piece(values.weights, *given), chunks)
        units = _joined(units, head, loss.known)
    return jnp.sum(units.reshape(len(batch.weight), -1), axis=1)


def in_two(
    middle: Middle, functions: Functions, params: Params, frozen: dict, batch: Batch
) -> tuple[Callable[[Params], Any], Callable[..., Callable[[Any], Any]]]:
    """The network up to its last layer, and what stands between J and Jᵀ there; both as they are if nothing is cut."""
    head = cut(functions, params, frozen, batch)
    if head is None:
        return lambda p: functions[0](p, frozen, batch.inputs), middle

    def around(loss: Loss, values: Values, batch: Batch, *extra: Array) -> Callable[[Values], Values]:
        by_units = _by_units(loss, extra)

        @jax.checkpoint
        def piece(weights: Any, moved: Any, features: Array, tangent: Array, part: Batch) -> tuple[Array, list[Array]]:
            outputs, forward = jax.linearize(head.last, features, weights)
            across = middle(loss, outputs, part, *extra)
            return jax.linear_transpose(forward, features, weights)(across(forward(tangent, moved)))

        def product(tangent: Values) -> Values:
            def step(total: list[Array], given: Any) -> tuple[list[Array], Array]:
                back, found = piece(values.weights, tangent.weights, *given)
                return jax.tree.map(jnp.add, total, found), back

            chunks = _chunks(head, by_units, batch, values.features, tangent.features)
            total, back = jax.lax.scan(step, jax.tree.map(jnp.zeros_like, values.weights), chunks)
            return Values(_joined(back, head, by_units).reshape(values.features.shape), total)

        return product

    return head.body, around


class Forms(NamedTuple):
    """uᵀ C u of tangents of the outputs u = J v, from what the first part of `in_two` gives, and k derivatives of it.

    Parameters
    ----------
    extra
        What the middle takes beside the batch.
    """

    middle: Middle
    functions: Functions
    params: Params
    frozen: dict
    batch: Batch
    extra: tuple[Array, ...]

    def pairs(self, values: Any, tangents: Any) -> Array:
        """Σ_n u_iᵀ C_n u_j: [k, k]."""

        def rows(vectors: Array) -> Array:
            return vectors.reshape(len(vectors), -1)

        told = self._told(lambda tangents, images: rows(tangents) @ rows(images).T, values, tangents)[0]
        return jnp.sum(told, axis=0)

    def of_examples(self, values: Any, tangents: Any) -> Array:
        """u_iᵀ C_n u_i of each example: [k, b]."""

        def shares(tangents: Array, images: Array) -> Array:
            return jnp.sum(tangents * images, axis=tuple(range(2, tangents.ndim))).T

        told, head = self._told(shares, values, tangents)
        units = told[0] if head is None else _joined(told, head, _by_units(self.functions[1], self.extra))
        return jnp.sum(units.reshape(len(self.batch.weight), -1, units.shape[-1]), axis=1).T

    def _told(self, tell: Callable[[Array, Array], Array], values: Any, tangents: Any) -> tuple[Array, Head | None]:
        """`tell(U, C U)` of each chunk, of shape [k, c, ...]: [chunks, ...]."""
        loss, batch = self.functions[1], self.batch
        head = cut(self.functions, self.params, self.frozen, batch)
        if head is None:
            return tell(tangents, jax.vmap(self.middle(loss, values, batch, *self.extra))(tangents))[None], None

        def piece(given: Any) -> Array:
            features, moved, part = given
            outputs, forward = jax.linearize(head.last, features, values.weights)
            pushed = jax.vmap(forward)(jnp.moveaxis(moved, -2, 0), tangents.weights)
            return tell(pushed, jax.vmap(self.middle(loss, outputs, part, *self.extra))(pushed))

        count, by_units = len(tangents.features), _by_units(loss, self.extra)
        moved = jnp.moveaxis(tangents.features, 0, -2)
        chunks = _chunks(head, by_units, batch, values.features, moved, vectors=count)
        return jax.lax.map(piece, chunks), head


def _by_units(loss: Loss, extra: tuple[Array, ...]) -> bool:
    """Whether tokens are apart: a user's loss may couple those of an example, to which draws of labels belong too."""
    return loss.known and not extra


def _joined(chunks: Array, head: Head, by_units: bool) -> Array:
    """[chunks, rows, ...] as [units, ...], or [examples, ...], without the padding."""
    return chunks.swapaxes(0, 1).reshape(-1, *chunks.shape[2:])[: _rows(head, by_units)]


def _rows(head: Head, by_units: bool) -> int:
    """Units of a batch, or its examples."""
    return int(np.prod(head.outputs.shape[:-1] if by_units else head.outputs.shape[:1]))


def _chunks(head: Head, by_units: bool, batch: Batch, *features: Array, vectors: int = 1) -> tuple[Any, ...]:
    """Features and the batch by chunks of units, or of examples: [chunks, rows, ...]; padded, under weight 0."""
    shape, total = head.outputs.shape, _rows(head, by_units)
    axes = len(shape) - 1 if by_units else 1
    each = int(np.prod(shape)) // total * head.outputs.dtype.itemsize * vectors
    count = -(-total // min(max(CHUNK_BYTES // each, 1), total))
    size = -(-total // count)

    def chunked(leaf: Array, **how: Any) -> Array:
        rows = leaf.reshape(total, *leaf.shape[axes:])
        padded = jnp.pad(rows, ((0, count * size - total), *((0, 0),) * (rows.ndim - 1)), **how)
        # A chunk has rows from all over the batch: where devices share it, every one has its part of each chunk.
        return padded.reshape(size, count, *rows.shape[1:]).swapaxes(0, 1)

    def of_units(leaf: Array) -> Array:
        return jnp.broadcast_to(unit_weight(leaf, axes), shape[:axes]) if leaf.ndim < axes else leaf

    part = Batch(
        None,
        jax.tree.map(lambda leaf: chunked(leaf, mode="edge"), batch.targets),
        chunked(of_units(batch.weight)),
        chunked(of_units(batch.index), mode="edge"),
    )
    return (*(chunked(one, mode="edge") for one in features), part)


@plain_where_unknown(lambda *arguments: None)
def cut(functions: Functions, params: Params, frozen: dict, batch: Batch) -> Head | None:
    """The network cut in front of its last layer; None where the outputs are few, or come from no such layer."""
    predict, given = functions[0], (params, frozen, batch.inputs)
    outputs = jax.eval_shape(predict, *given)
    if isinstance(outputs, tuple):  # with a tangent beside them
        return None
    if outputs.size * outputs.dtype.itemsize <= OUTPUT_BYTES or outputs.ndim < 2:
        return None
    leaves, nested = jax.tree.leaves(given), jax.make_jaxpr(predict)(*given)
    traced = jax.make_jaxpr(lambda *leaves: evaluated(nested.jaxpr, nested.consts, leaves, [INLINED]))(*leaves)
    jaxpr, names = traced.jaxpr, len(jax.tree.leaves(params))
    found = _tail(jaxpr, jaxpr.invars[len(jax.tree.leaves((params, frozen))) :])
    if found is None:
        return None
    tail, features, sides = found
    moving = _reached(jaxpr, jaxpr.invars[:names])
    skipped = {id(equation) for equation, _ in tail}
    kept = [equation for equation in jaxpr.eqns if id(equation) not in skipped]

    def upto(wanted: list[Any], p: Params) -> list[Any]:
        before = SimpleNamespace(constvars=jaxpr.constvars, invars=jaxpr.invars, eqns=kept, outvars=wanted)
        return evaluated(before, traced.consts, jax.tree.leaves((p, *given[1:])), [])

    def body(p: Params) -> Values:
        first, *weights = upto([features, *(one for one in sides if one in moving)], p)
        return Values(first, weights)

    fixed = [one for one in sides if one not in moving]
    known = dict(zip(fixed, upto(fixed, params), strict=True)) if fixed else {}

    def last(rows: Array, weights: list[Array]) -> Array:
        those = known | dict(zip([one for one in sides if one in moving], weights, strict=True))
        return _evaluated_tail(tail, rows, those)

    return Head(body, last, outputs)


INLINED = Rewrite(wanted=lambda jaxpr: True, rule=lambda equation, inputs: None)
"""All equations as they are, those of calls in place of the calls."""


def _reached(jaxpr: Any, variables: list[Any]) -> set[Any]:
    """These variables and all that depend on them."""
    reached = set(variables)
    for equation in jaxpr.eqns:
        if any(not is_literal(one) and one in reached for one in equation.invars):
            reached.update(equation.outvars)
    return reached


def _tail(jaxpr: Any, inputs: list[Any]) -> tuple[list[Any], Any, list[Any]] | None:
    """The equations from the last product on, each with its operands, before these were spread over the tokens.

    Returns
    -------
    Pairs of an equation and its operands, None standing for the features or outputs; the features; and the weights.
    """
    made = {out: equation for equation in jaxpr.eqns for out in equation.outvars}
    varying = _reached(jaxpr, inputs)
    uses = Counter(one for equation in jaxpr.eqns for one in equation.invars if not is_literal(one))

    def varies(atom: Any) -> bool:
        return not is_literal(atom) and atom in varying

    tail: list[Any] = []
    at: Any = jaxpr.outvars[0]
    while not is_literal(at) and at in made and uses[at] == bool(tail):
        equation = made[at]
        given: list[Any] = [None if varies(one) else one for one in equation.invars]
        if given.count(None) != 1:
            return None
        at = equation.invars[given.index(None)]
        if equation.primitive.name == "dot_general":
            (left, right), (batched, _) = equation.params["dimension_numbers"]
            if given[0] is not None or tuple(left) != (at.aval.ndim - 1,) or batched:
                return None
            if given[1].aval.ndim != 2 or len(right) != 1 or at.aval.ndim != equation.outvars[0].aval.ndim:
                return None
            tail.insert(0, (equation, given))
            sides = [one for _, operands in tail for one in operands if one is not None]
            return tail, at, list(dict.fromkeys(one for one in sides if not is_literal(one)))
        narrow = [one if one is None else _narrow(one, made) for one in given]
        if equation.primitive.name not in ENTRYWISE or narrow.count(None) != 1:
            return None
        tail.insert(0, (equation, narrow))
    return None


def _narrow(atom: Any, made: dict[Any, Any]) -> Any:
    """An operand with a value for each of the V outputs, or one for all, before it was spread; None if it has more."""
    if is_literal(atom):
        return atom
    spread = made.get(atom)
    if spread is not None and spread.primitive.name == "broadcast_in_dim":
        inner = spread.invars[0]
        last = (*spread.params["broadcast_dimensions"], -1)[-2 if inner.aval.ndim else -1]
        if is_literal(inner) or inner.aval.ndim == 0 or last == atom.aval.ndim - 1:
            atom = inner
    wide = int(np.prod(atom.aval.shape[:-1])) > 1
    return None if wide else atom


def _evaluated_tail(tail: list[Any], rows: Array, weights: dict[Any, Array]) -> Array:
    """Outputs [c, ..., V] of features [c, ..., d]."""
    value = rows

    def aligned(atom: Any) -> Any:
        if is_literal(atom):
            return atom.val
        side = weights[atom]
        return side.reshape((1,) * (value.ndim - 1) + side.shape[-1:]) if side.ndim else side

    (product, (_, kernel)), *rest = tail
    contracted = (value.ndim - 1,), product.params["dimension_numbers"][0][1]
    how = product.params | {"dimension_numbers": (contracted, ((), ()))}
    value = product.primitive.bind(value, weights[kernel], **how)
    for equation, operands in rest:
        (value,) = bound(equation, [value if one is None else aligned(one) for one in operands])
    return value
