"""A network evaluated equation by equation, some of them by other means."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
from jax.extend import core

Rule = Callable[[Any, list[Any]], list[Any] | None]
"""`(equation, inputs) -> outputs`, or None where it stays as it is."""


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
        rules = [one.rule for one in rewrites if one.wanted(closed.jaxpr)]
        if not rules:
            return function(*args)

        def rule(equation: Any, inputs: list[Any]) -> list[Any] | None:
            return next((outputs for one in rules if (outputs := one(equation, inputs)) is not None), None)

        outputs = evaluated(closed.jaxpr, closed.consts, jax.tree.leaves(args), rule)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return adapted


def evaluated(jaxpr: Any, consts: list[Any], args: list[Any], rule: Rule) -> list[Any]:
    """The outputs of a jaxpr; inner functions that are called once are entered, loops and checkpoints are not."""
    values: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        outputs = rule(equation, inputs)
        if outputs is None and equation.primitive.name in ("jit", "pjit"):
            inner = equation.params["jaxpr"]
            outputs = evaluated(inner.jaxpr, inner.consts, inputs, rule)
        elif outputs is None:
            outputs = bound(equation, inputs)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def bound(equation: Any, inputs: list[Any]) -> list[Any]:
    """The outputs of an equation as it stands."""
    outputs = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
    return outputs if equation.primitive.multiple_results else [outputs]
