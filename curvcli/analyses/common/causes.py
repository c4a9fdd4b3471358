"""What a failed self-check points to: the likely cause, and what of that kind is found in the network and the loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from curvcli.analyses.common.precision import objective_jaxpr
from curvcli.curvature.jaxprs.work import abstract_batch
from curvcli.jax_internals import CUSTOM_DERIVATIVES, equations, inner_jaxprs, plain_where_unknown, source
from curvcli.problem import Problem

CAUSES = {
    "deterministic": "the model draws random numbers at evaluation (dropout left on?)",
    "block": "a product depends on the vectors beside it (a model that mixes examples, or a fault of the XLA compiler)",
    "symmetric": "a custom derivative (custom_vjp, custom_jvp) is not the derivative of its function",
    "gradient_vs_loss": "the gradient is not the loss's (stop_gradient, a straight-through estimator, custom_vjp)",
    "product_vs_gradient": "the product is not the derivative of the gradient (stop_gradient, custom derivatives)",
    "per_example": "an example's loss depends on those beside it or on its place, and all answers on the batch size "
    "(batch statistics, or dropout with a fixed key, left on?)",
}

RANDOM = {
    "random_bits": "random draws",
    "threefry2x32": "random draws",
    "rng_bit_generator": "random draws",
    "pure_callback": "a callback to Python",
    "io_callback": "a callback to Python",
}
ROUNDING = ("round", "sign", "floor", "ceil")
DERIVATIVES = {"stop_gradient": "stop_gradient", **{name: name for name in ROUNDING}}
"""Primitives that can spoil a derivative, and what they are called; custom derivatives have names of their own."""
EXAMPLES = 10007
"""A number of examples that no other axis is likely to have, where only shapes are looked at."""
JAX = str(Path(jax.__file__).parent)


def likely_cause(check: str, problem: Problem) -> str:
    """What the failure of a check points to, in words. Cost: a trace of the objective."""
    found = _distinct_suspects(problem, RANDOM if check in ("deterministic", "per_example") else DERIVATIVES)
    if "stop_gradient" not in found:
        found = [name for name in found if name != "sign"]  # of logsumexp
    elif any(name in found for name in ROUNDING):
        found = ["a straight-through estimator", *found]
    if check == "per_example" and (pairs := _pairs(problem)) is not None:
        found.append(f"{pairs} in the loss, a number for each pair of the N examples, as [N, 1] against [N] gives it")
    return CAUSES[check] + (f"; found in the model or loss: {', '.join(found)}" if found else "")


@plain_where_unknown(lambda problem, named: [])
def _distinct_suspects(problem: Problem, named: dict[str, str]) -> list[str]:
    return list(dict.fromkeys(_suspects(objective_jaxpr(problem), named)))


@plain_where_unknown(lambda problem: None)
def _pairs(problem: Problem) -> str | None:
    """The shape of a value in the loss that has two axes of examples, `[N, N]`; None where there is none."""
    batch = abstract_batch(problem, EXAMPLES)
    z = jax.eval_shape(problem.predict, problem.params, problem.frozen, batch.inputs)
    shapes = (one.aval.shape for equation in equations(jax.make_jaxpr(problem.loss.value)(z, batch.targets).jaxpr)
              for one in equation.outvars)  # fmt: skip
    paired = next((shape for shape in shapes if shape.count(EXAMPLES) > 1), None)
    return None if paired is None else f"[{', '.join('N' if n == EXAMPLES else str(n) for n in paired)}]"


def _suspects(jaxpr: Any, named: dict[str, str], in_jax: bool = False) -> Iterator[str]:
    """Equations of the kind that is looked for, by name.

    What JAX's own functions do to their derivatives is right, and how a softmax is shifted does not matter.
    """
    maker = {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}
    for equation in jaxpr.eqns:
        primitive, bodies = equation.primitive.name, inner_jaxprs(equation)
        name, file, line = source(bodies[0].jaxpr) if bodies else ("", "", "")
        if primitive in named:
            if primitive != "stop_gradient" or not (in_jax or _is_largest(equation, maker)):
                yield named[primitive]
        elif primitive in CUSTOM_DERIVATIVES and named is DERIVATIVES and not file.startswith(JAX):
            yield f"{primitive.removesuffix('_call')} {name} ({Path(file).name}:{line})"
        else:
            for body in bodies:
                yield from _suspects(body.jaxpr, named, source(body.jaxpr)[1].startswith(JAX))


def _is_largest(equation: Any, maker: dict[Any, Any], depth: int = 4) -> bool:
    """Whether what goes in is the largest of some entries, but for a few steps in between."""
    makers = [maker[one] for one in equation.invars if not hasattr(one, "val") and one in maker]
    if any(one.primitive.name == "reduce_max" for one in makers):
        return True
    return depth > 1 and any(_is_largest(one, maker, depth - 1) for one in makers)
