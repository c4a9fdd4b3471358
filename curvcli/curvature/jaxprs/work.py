"""What a network does for one example, read off its jaxpr: nothing is computed."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from curvcli.jax_internals import plain_where_unknown, repeated_equations
from curvcli.problem import Batch, Problem


class Work(NamedTuple):
    """Of one forward pass of one example."""

    bytes: int  # of all intermediate values
    flops: int  # of matrix products and convolutions
    equations: int  # of the network's jaxpr, those that are repeated counted once


def _outputs_work(problem: Problem) -> Work:
    """What is known without equations: the outputs, and a multiplication and an addition for each parameter."""
    batch = abstract_batch(problem, 1)
    outputs = jax.tree.leaves(jax.eval_shape(problem.predict, problem.params, problem.frozen, batch.inputs))
    return Work(sum(leaf.size * leaf.dtype.itemsize for leaf in outputs), 2 * problem.dim, len(problem.params))


@plain_where_unknown(_outputs_work)
def network_work(problem: Problem) -> Work:
    """Bytes of the intermediate values and floating-point operations of the network for one example."""
    batch = abstract_batch(problem, 1)
    jaxpr = jax.make_jaxpr(problem.predict)(problem.params, problem.frozen, batch.inputs)
    parameter_shapes = {leaf.shape for leaf in problem.params.values()}
    total_bytes = total_flops = count = 0
    for equation, times in repeated_equations(jaxpr.jaxpr):
        count += 1
        total_flops += times * _flops(equation)
        for variable in equation.outvars:
            shape = getattr(variable.aval, "shape", None)
            # Transposes and casts of parameters are not counted.
            if shape is not None and shape not in parameter_shapes and shape[::-1] not in parameter_shapes:
                total_bytes += times * int(np.prod(shape)) * getattr(variable.aval.dtype, "itemsize", 4)
    return Work(total_bytes, total_flops, count)


def abstract_batch(problem: Problem, batch_size: int) -> Batch:
    """Shapes of a batch, and its dtypes as JAX takes them: integers of 64 bits are those of 32 without x64."""
    batch = next(iter(problem.batches))

    def shaped(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), jax.dtypes.canonicalize_dtype(leaf.dtype))

    return jax.tree.map(shaped, batch)


def _flops(equation: Any) -> int:
    """A multiplication and an addition for each term of each output."""
    if equation.primitive.name == "dot_general":
        contracted, _ = equation.params["dimension_numbers"][0]
        left = equation.invars[0].aval.shape
        terms = int(np.prod([left[axis] for axis in contracted]))
    elif equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        terms = int(np.prod(kernel)) // kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    else:
        return 0
    return 2 * terms * int(np.prod(equation.outvars[0].aval.shape))
