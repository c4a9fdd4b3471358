"""A network evaluated equation by equation, some of them by other means.

Inner functions in which nothing is to be rewritten are called as they are. Others are entered: functions under `jit`,
branches, and the bodies of `scan` and `checkpoint`, which stay what they are around their new bodies. A `while` loop is
not entered: no network with one has a reverse mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
from jax.extend import core

from curvcli.curvature.work import inner_jaxprs

Rule = Callable[[Any, list[Any]], list[Any] | None]
"""`(equation, inputs) -> outputs`, or None where it stays as it is."""
Inside = Callable[[Any], Callable[..., list[Any]]]


class Rewrite(NamedTuple):
    """What is computed by other means."""

    wanted: Callable[[Any], bool]  # whether anything in a jaxpr is
    rule: Rule


@lru_cache(maxsize=256)
def rewritten(function: Callable[..., Any], *rewrites: Rewrite) -> Callable[..., Any]:
    """The same function of arrays, rewritten where there is anything to rewrite.

    Equal functions give the same object, so that what was compiled for it serves again.
    """

    def adapted(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        active = [one for one in rewrites if one.wanted(closed.jaxpr)]
        if not active:
            return function(*args)
        outputs = evaluated(closed.jaxpr, closed.consts, jax.tree.leaves(args), active)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return adapted


def evaluated(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], rewrites: Sequence[Rewrite]) -> list[Any]:
    """The outputs of a jaxpr."""
    values: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

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
        jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
        return lambda *args: evaluated(jaxpr, consts, args, rewrites)

    return list(enter(equation.params, inside, inputs))


def _jit(params: dict[str, Any], inside: Inside, inputs: list[Any]) -> list[Any]:
    return inside(params["jaxpr"])(*inputs)


def _checkpoint(params: dict[str, Any], inside: Inside, inputs: list[Any]) -> list[Any]:
    kept = {name: params[name] for name in ("policy", "prevent_cse")}
    return jax.checkpoint(inside(params["jaxpr"]), **kept)(*inputs)


def _cond(params: dict[str, Any], inside: Inside, inputs: list[Any]) -> list[Any]:
    return jax.lax.switch(inputs[0], [inside(branch) for branch in params["branches"]], *inputs[1:])


def _scan(params: dict[str, Any], inside: Inside, inputs: list[Any]) -> list[Any]:
    first, carried, body = params["num_consts"], params["num_carry"], inside(params["jaxpr"])
    consts, carry, rows = inputs[:first], inputs[first : first + carried], inputs[first + carried :]

    def step(carry: list[Any], row: list[Any]) -> tuple[list[Any], list[Any]]:
        outputs = body(*consts, *carry, *row)
        return outputs[:carried], outputs[carried:]

    kept = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, stacked = jax.lax.scan(step, carry, rows, **kept)
    return [*carry, *stacked]


ENTERED: dict[str, Callable[[dict[str, Any], Inside, list[Any]], list[Any]]] = {
    "jit": _jit, "pjit": _jit, "cond": _cond, "scan": _scan, "checkpoint": _checkpoint, "remat2": _checkpoint,
}  # fmt: skip
"""By primitive: `(params, inside, inputs) -> outputs`, called again around what `inside` makes of the inner jaxprs."""


def bound(equation: Any, inputs: list[Any]) -> list[Any]:
    """The outputs of an equation as it stands."""
    outputs = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
    return outputs if equation.primitive.multiple_results else [outputs]
