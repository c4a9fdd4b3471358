"""Forward mode for networks that only have a reverse mode: a `custom_vjp` without a rule for tangents.

The reverse mode u ↦ Jᵀu of such a function is linear, so that its transpose is J. Both can be differentiated again, if
what the function's own forward pass calls is treated in the same way (that it calls the function itself is how JAX's
documentation has it): the pass is traced, and evaluated equation by equation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from curvcli.curvature.jaxprs.rewriting import Rewrite, evaluated, rewritten
from curvcli.jax_internals import CUSTOM_VJP, bound, closed, inner_jaxprs, plain_where_unknown


def with_forward_mode(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of arrays; each `custom_vjp` in it has a forward derivative, from its reverse one.

    Notes
    -----
    Cost: a derivative takes a forward and a backward pass, then the transpose of the latter; elsewhere nothing changes.
    """
    return rewritten(function, TANGENTS)


@plain_where_unknown(lambda jaxpr: False)
def only_backwards(jaxpr: Any) -> bool:
    """Whether a function with a `custom_vjp` is called, which JAX cannot differentiate forwards."""
    return any(
        equation.primitive.name == CUSTOM_VJP or any(only_backwards(body.jaxpr) for body in inner_jaxprs(equation))
        for equation in jaxpr.eqns
    )


def _with_tangents(equation: Any, inputs: list[Any]) -> list[Any] | None:
    """The outputs of a call of a `custom_vjp`, differentiable forwards to any order."""
    if equation.primitive.name != CUSTOM_VJP:
        return None
    body = closed(equation.params["call_jaxpr"])
    moving = [i for i, leaf in enumerate(inputs) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]

    @jax.custom_jvp
    def through(*given: Any) -> list[Any]:
        return evaluated(body.jaxpr, body.consts, given, [TANGENTS])

    @through.defjvp
    def _(given: Any, tangents: Any) -> Any:
        values = through(*given)

        def backwards(cotangents: list[Any], *given: Any) -> Any:
            def of_floats(*floats: Array) -> list[Any]:
                known = dict(zip(moving, floats, strict=True))
                return bound(equation, [known.get(i, leaf) for i, leaf in enumerate(given)])

            return jax.vjp(of_floats, *(given[i] for i in moving))[1](cotangents)

        traced = jax.make_jaxpr(backwards)(values, *given)
        transposed = jax.linear_transpose(
            lambda one: tuple(evaluated(traced.jaxpr, traced.consts, [*one, *given], [TANGENTS])), values
        )
        return values, transposed(tuple(tangents[i] for i in moving))[0]

    return through(*inputs)


def _whole(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays whose forward derivatives, to any order, are transposes of its whole reverse ones."""

    @jax.custom_jvp
    def through(*args: Any) -> Any:
        return function(*args)

    @through.defjvp
    def _(args: Any, tangents: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        moved = jax.tree.leaves(tangents)
        moving = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]

        def along(leaves: list[Any], moved: list[Any]) -> Any:
            def of_floats(*floats: Array) -> Any:
                known = dict(zip(moving, floats, strict=True))
                return function(*jax.tree.unflatten(structure, [known.get(i, leaf) for i, leaf in enumerate(leaves)]))

            values, back = jax.vjp(of_floats, *(leaves[i] for i in moving))
            # uᵀJ is linear in u: its own reverse derivative along the tangents is J times them.
            return jax.vjp(back, jax.tree.map(jnp.zeros_like, values))[1](tuple(moved))[0]

        return through(*args), _whole(along)(leaves, [moved[i] for i in moving])

    return through


TANGENTS = Rewrite(only_backwards, _with_tangents, _whole)
