"""A network evaluated equation by equation, some of them by other means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax.extend import core

Rule = Callable[[Any, list[Any]], list[Any] | None]
"""`(equation, inputs) -> outputs`, or None where it stays as it is."""


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
