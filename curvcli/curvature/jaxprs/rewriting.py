"""A network evaluated equation by equation, some of them by other means.

Inner functions in which nothing is to be rewritten are called as they are. Others are entered: functions under `jit`,
branches, and the bodies of `scan` and `checkpoint`, which stay what they are around their new bodies. A `while` loop is
not entered: no network with one has a reverse mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import jax

from curvcli.jax_internals import UNREADABLE, bound, closed, inner_jaxprs, is_known, is_literal, scan_sizes

Rule = Callable[[Any, list[Any]], list[Any] | None]
"""`(equation, inputs) -> outputs`, or None where it stays as it is."""
Inside = Callable[[Any], Callable[..., list[Any]]]


class Rewrite(NamedTuple):
    """What is computed by other means."""

    wanted: Callable[[Any], bool]  # whether anything in a jaxpr is
    rule: Rule
    whole: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function
    """The same of a whole function, where the equations of an unknown JAX cannot be evaluated one by one."""


@lru_cache(maxsize=256)
def rewritten(function: Callable[..., Any], *rewrites: Rewrite) -> Callable[..., Any]:
    """The same function of arrays, rewritten where there is anything to rewrite.

    Equal functions give the same object, so that what was compiled for it serves again.
    """

    def adapted(*args: Any) -> Any:
        traced, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        active = [one for one in rewrites if one.wanted(traced.jaxpr)]
        if not active:
            return function(*args)
        try:
            outputs = evaluated(traced.jaxpr, traced.consts, jax.tree.leaves(args), active)
        except UNREADABLE:
            if is_known():
                raise
            return reduce(lambda whole, rewrite: rewrite.whole(whole), active, function)(*args)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return adapted


def evaluated(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], rewrites: Sequence[Rewrite]) -> list[Any]:
    """The outputs of a jaxpr."""
    values: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if is_literal(atom) else values[atom]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        outputs = next((found for one in rewrites if (found := one.rule(equation, inputs)) is not None), None)
        if outputs is None:
            outputs = _called(equation, inputs, rewrites)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _called(equation: Any, inputs: list[Any], rewrites: Sequence[Rewrite]) -> list[Any]:
    """The outputs of an equation that is itself none to rewrite; what it calls may be."""
    enter = ENTERED.get(equation.primitive.name)
    if enter is None or not any(one.wanted(inner) for inner in inner_jaxprs(equation) for one in rewrites):
        return bound(equation, inputs)

    def inside(inner: Any) -> Callable[..., list[Any]]:
        """What an inner jaxpr computes, as a function of its arguments."""
        body = closed(inner)
        return lambda *args: evaluated(body.jaxpr, body.consts, args, rewrites)

    return list(enter(equation, inside, inputs))


def _jit(equation: Any, inside: Inside, inputs: list[Any]) -> list[Any]:
    return inside(equation.params["jaxpr"])(*inputs)


def _checkpoint(equation: Any, inside: Inside, inputs: list[Any]) -> list[Any]:
    params = equation.params
    kept = {name: params[name] for name in ("policy", "prevent_cse")}
    return jax.checkpoint(inside(params["jaxpr"]), **kept)(*inputs)


def _cond(equation: Any, inside: Inside, inputs: list[Any]) -> list[Any]:
    return jax.lax.switch(inputs[0], [inside(branch) for branch in equation.params["branches"]], *inputs[1:])


def _scan(equation: Any, inside: Inside, inputs: list[Any]) -> list[Any]:
    params = equation.params
    (first, carried), body = scan_sizes(equation), inside(params["jaxpr"])
    consts, carry, rows = inputs[:first], inputs[first : first + carried], inputs[first + carried :]

    def step(carry: list[Any], row: list[Any]) -> tuple[list[Any], list[Any]]:
        outputs = body(*consts, *carry, *row)
        return outputs[:carried], outputs[carried:]

    kept = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, stacked = jax.lax.scan(step, carry, rows, **kept)
    return [*carry, *stacked]


ENTERED: dict[str, Callable[[Any, Inside, list[Any]], list[Any]]] = {
    "jit": _jit, "pjit": _jit, "cond": _cond, "scan": _scan, "checkpoint": _checkpoint, "remat2": _checkpoint,
}  # fmt: skip
"""By primitive: `(equation, inside, inputs) -> outputs`, called again around what `inside` makes of inner jaxprs."""
