"""Forward mode for networks that only have a reverse mode: a `custom_vjp` without a rule for tangents.

The reverse mode u ↦ Jᵀu is linear, so that its transpose is J. JAX can transpose and differentiate that again, which is
all that any matrix here asks of a network.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from curvcli.curvature.work import inner_jaxprs

Array = Any


@lru_cache(maxsize=256)
def with_forward_mode(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of arrays; where it has a `custom_vjp`, its forward derivative comes from its reverse one.

    Equal functions give the same object, so that what was compiled for it serves again.

    Notes
    -----
    Cost: a derivative takes a forward and a backward pass, then the transpose of the latter; elsewhere nothing changes.
    """

    @jax.custom_jvp
    def through(*args: Any) -> Any:
        return function(*args)

    @through.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        leaves, tree = jax.tree.flatten(primals)
        moving = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]

        def of_floats(*floats: Array) -> Any:
            given = dict(zip(moving, floats, strict=True))
            return function(*jax.tree.unflatten(tree, [given.get(i, leaf) for i, leaf in enumerate(leaves)]))

        values, back = jax.vjp(of_floats, *(leaves[i] for i in moving))
        along = jax.tree.leaves(tangents)
        return values, jax.linear_transpose(back, values)(tuple(along[i] for i in moving))[0]

    def chosen(*args: Any) -> Any:
        return (through if only_backwards(jax.make_jaxpr(function)(*args).jaxpr) else function)(*args)

    return chosen


def only_backwards(jaxpr: Any) -> bool:
    """Whether a function with a `custom_vjp` is called, which JAX cannot differentiate forwards."""
    return any(
        one.primitive.name.startswith("custom_vjp_call") or any(only_backwards(inner) for inner in inner_jaxprs(one))
        for one in jaxpr.eqns
    )
