"""A network evaluated equation by equation, some of them by other means.

Inner functions in which nothing is to be rewritten are called as they are. Others are entered: calls, branches, and the
bodies of `scan` and `checkpoint`, which stay what they are around their new bodies. A `while` loop is not entered: no
network with one has a reverse mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr

from curvcli.jax_internals import UNREADABLE, Interpreter, bound, inner_jaxprs, is_known, scan_sizes

Rule = Callable[[Any, list[Any]], list[Any] | None]
"""`(equation, inputs) -> outputs`, or None where it stays as it is."""
Functions = Sequence[Callable[..., list[Any]]]
Rebuild = Callable[[Any, Functions, list[Any]], Sequence[Any]]


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
        active = [rewrite for rewrite in rewrites if rewrite.wanted(traced.jaxpr)]
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
    return _Rewriter(rewrites).run(jaxpr, consts, args)


class _Rewriter(Interpreter):
    """Runs equations by the rules of rewrites; those without a rule, and what they hold, as they are."""

    def __init__(self, rewrites: Sequence[Rewrite]) -> None:
        self.rewrites = rewrites

    def equation(self, equation: Any, inputs: list[Any]) -> list[Any]:
        for rewrite in self.rewrites:
            outputs = rewrite.rule(equation, inputs)
            if outputs is not None:
                return outputs
        return self._rebuilt(LOOPS.get(equation.primitive.name), equation, inputs)

    def call(self, equation: Any, body: ClosedJaxpr, inputs: list[Any]) -> list[Any]:
        return self._rebuilt(_checkpoint if "policy" in equation.params else _inlined, equation, inputs)

    def _rebuilt(self, rebuild: Rebuild | None, equation: Any, inputs: list[Any]) -> list[Any]:
        """The outputs of an equation with its inner jaxprs rewritten, where there is anything to rewrite in them."""
        bodies = inner_jaxprs(equation) if rebuild is not None else []
        if rebuild is None or not any(rewrite.wanted(body.jaxpr) for body in bodies for rewrite in self.rewrites):
            return bound(equation, inputs)
        return list(rebuild(equation, [self._function(body) for body in bodies], inputs))

    def _function(self, body: ClosedJaxpr) -> Callable[..., list[Any]]:
        """What a jaxpr computes, as a function of its inputs."""
        return lambda *args: self.run(body.jaxpr, body.consts, args)


def _inlined(equation: Any, bodies: Functions, inputs: list[Any]) -> list[Any]:
    return bodies[0](*inputs)


def _checkpoint(equation: Any, bodies: Functions, inputs: list[Any]) -> list[Any]:
    kept = {name: equation.params[name] for name in ("policy", "prevent_cse")}
    return jax.checkpoint(bodies[0], **kept)(*inputs)


def _cond(equation: Any, bodies: Functions, inputs: list[Any]) -> list[Any]:
    return jax.lax.switch(inputs[0], bodies, *inputs[1:])


def _scan(equation: Any, bodies: Functions, inputs: list[Any]) -> list[Any]:
    first, carried = scan_sizes(equation)
    consts, carry, rows = inputs[:first], inputs[first : first + carried], inputs[first + carried :]

    def step(carry: list[Any], row: list[Any]) -> tuple[list[Any], list[Any]]:
        outputs = bodies[0](*consts, *carry, *row)
        return outputs[:carried], outputs[carried:]

    kept = {name: equation.params[name] for name in ("length", "reverse", "unroll")}
    carry, stacked = jax.lax.scan(step, carry, rows, **kept)
    return [*carry, *stacked]


LOOPS: dict[str, Rebuild] = {"cond": _cond, "scan": _scan}
"""By primitive, beside calls: the same equation around functions in place of its inner jaxprs."""
