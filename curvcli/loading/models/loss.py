"""The loss that a specification names, and the likelihood that it is declared to stand for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from curvcli.errors import SpecError
from curvcli.loading.models.network import user_code
from curvcli.loading.spec.targets import Targets
from curvcli.losses import LOSSES, Likelihood, Loss, user_loss
from curvcli.schema.spec import ProblemSpec


def named_loss(spec: ProblemSpec, targets: Targets) -> Loss:
    """The loss by name, or the user's own."""
    name = spec.loss.name or ""
    row = _row_of_table(name, "loss", "your own")
    if row is not None:
        return row
    function: Callable[..., Any] = targets.load(name)
    if not callable(function):
        raise SpecError(f"the loss {name} is no function", "it should be fn(outputs, targets) -> one loss an example")
    return user_loss(name, function, **_likelihood(spec.loss.likelihood, targets))


def _row_of_table(name: str, what: str, otherwise: str) -> Likelihood | None:
    """The row of this name; None where it is a target `module:fn`.

    Raises
    ------
    SpecError
        It is neither.
    """
    if name in LOSSES or ":" in name:
        return LOSSES.get(name)
    near = difflib.get_close_matches(name, LOSSES, 1)
    raise SpecError(
        f"unknown {what} {name!r}",
        f"did you mean {near[0]}?" if near else f"known: {', '.join(LOSSES)}, or module:fn for {otherwise}",
    )


def _likelihood(name: str | None, targets: Targets) -> dict[str, Any]:
    """What makes a user's loss a likelihood: a loss of the table, or a sampler of targets."""
    if name is None:
        return {}
    row = _row_of_table(name, "[loss] likelihood", "a sampler")
    if row is not None:
        return {"likelihood": row}
    function = targets.load(name)
    if not callable(function):
        raise SpecError(f"the likelihood {name} is no function", "it should be fn(outputs, key) -> targets")
    return {"draw": function}


def unit_shape(loss: Loss, outputs: Any, labels: Any) -> tuple[int, ...]:
    """The shape of the losses of one batch, [b, ...]; only the axis of examples may depend on b.

    Parameters
    ----------
    outputs, labels
        Shape and dtype of those of one batch.

    Raises
    ------
    SpecError
        The losses have another shape.
    """
    # Batches of two other sizes, neither of them an axis of the outputs or targets: a batch as long as there are tokens
    # or classes cannot tell these from examples.
    axes = {*outputs.shape, *labels.shape}
    others = [size for size in range(2, len(axes) + 4) if size not in axes][:2]
    shapes = []
    for size in (outputs.shape[0], *others):
        batch = (jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype) for array in (outputs, labels))
        units = user_code("the loss", jax.eval_shape, loss.value, *batch)
        shapes.append(tuple(getattr(units, "shape", ())))
        if not shapes[-1] or shapes[-1][0] != size:
            raise SpecError(
                f"the loss {loss.name} returns shape {list(shapes[-1])}, not one loss an example",
                "do not reduce inside the loss: return [batch] or [batch, tokens]; the reduction is --reduction",
            )
        if any(shape[1:] != shapes[0][1:] for shape in shapes):
            pairs = _named("N" if length == size else length for length in shapes[-1])
            raise SpecError(
                f"the loss {loss.name} returns shape {pairs}, a number for each pair of the N examples: outputs "
                f"{_named(('N', *outputs.shape[1:]))} and targets {_named(('N', *labels.shape[1:]))} are broadcast "
                "against each other",
                "give both the same axes inside the loss: outputs[:, 0], or targets[:, None]",
            )
    return shapes[0]


def _named(axes: Iterable[Any]) -> str:
    """`[N, 1]`."""
    return f"[{', '.join(map(str, axes))}]"


def summed_over_outputs(loss: Loss) -> Loss:
    """The loss of an example, or of a token, from a loss that gives a number for each output, [b, ..., C]."""

    def adapt(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda z, *rest: jnp.sum(function(z, *rest), axis=-1)

    return replace(loss, value=adapt(loss.value), adapt=adapt)


def of_single_outputs(loss: Loss) -> Loss:
    """The same loss for outputs with an axis of length 1 behind, [b, ..., C, 1]: each output is a unit of its own."""

    def adapt(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda z, *rest: function(z[..., 0], *rest)

    draw = None if loss.draw is None else adapt(loss.draw)
    return replace(loss, value=adapt(loss.value), adapt=adapt, draw=draw)


def check_likelihood(loss: Loss, outputs: Any, labels: Any, weights: tuple[int, ...]) -> None:
    """The declared likelihood fits outputs and weights [N, ...]; what a sampler draws fits the loss."""
    if loss.likelihood is not None and weights[1:] != outputs.shape[1 : len(weights)]:
        raise SpecError(
            f"the mask has shape {_named(('N', *weights[1:]))}, and [loss] likelihood {loss.likelihood.name} has the "
            f"losses {_named(('N', *outputs.shape[1:-1]))}",
            "leave [loss] likelihood out, or return a loss for every token of the outputs",
        )
    if loss.likelihood is not None and loss.likelihood.classes and (outputs.ndim < 2 or outputs.shape[-1] < 2):
        raise SpecError(
            f"[loss] likelihood {loss.likelihood.name} needs outputs [batch, …, classes], not {list(outputs.shape)}",
            "for two classes and one logit give sigmoid_cross_entropy",
        )
    if loss.draw is None:
        return
    row = jax.ShapeDtypeStruct((1, *outputs.shape[1:]), outputs.dtype)
    drawn = user_code("the likelihood", jax.eval_shape, loss.draw, row, jax.random.key(0))
    shape = getattr(drawn, "shape", None)
    if shape != (1, *labels.shape[1:]):
        raise SpecError(
            f"[loss] likelihood draws targets of shape {list(shape or ())} for one example, the data's have "
            f"{[1, *labels.shape[1:]]}",
            "it is called as fn(outputs, key) with a batch of one example, and returns a batch of one target",
        )
    user_code("the loss", jax.eval_shape, loss.value, row, drawn)
