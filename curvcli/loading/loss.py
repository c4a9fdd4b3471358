"""The loss that a specification names, and the likelihood that it is declared to stand for."""

from __future__ import annotations

import difflib
from typing import Any

import jax

from curvcli.errors import SpecError
from curvcli.loading.model import user_code
from curvcli.loading.targets import Targets
from curvcli.losses import LOSSES, Loss, user_loss
from curvcli.schema.spec import ProblemSpec


def named_loss(spec: ProblemSpec, targets: Targets) -> Loss:
    """The loss by name, or the user's own."""
    name = spec.loss.name or ""
    if name in LOSSES:
        return LOSSES[name]
    if ":" not in name:
        near = difflib.get_close_matches(name, LOSSES, 1)
        raise SpecError(
            f"unknown loss {name!r}",
            f"did you mean {near[0]}?" if near else f"known: {', '.join(LOSSES)}, or module:fn for your own",
        )
    function = targets.load(name)
    if not callable(function):
        raise SpecError(f"the loss {name} is no function", "it should be fn(outputs, targets) -> one loss an example")
    return user_loss(name, function, **_likelihood(spec.loss.likelihood, targets))


def _likelihood(name: str | None, targets: Targets) -> dict[str, Any]:
    """What makes a user's loss a likelihood: a loss of the table, or a sampler of targets."""
    if name is None:
        return {}
    if name in LOSSES:
        return {"likelihood": LOSSES[name]}
    if ":" not in name:
        near = difflib.get_close_matches(name, LOSSES, 1)
        raise SpecError(
            f"unknown [loss] likelihood {name!r}",
            f"did you mean {near[0]}?" if near else f"known: {', '.join(LOSSES)}, or module:fn for a sampler",
        )
    function = targets.load(name)
    if not callable(function):
        raise SpecError(f"the likelihood {name} is no function", "it should be fn(outputs, key) -> targets")
    return {"draw": function}


def check_likelihood(loss: Loss, outputs: Any, labels: Any) -> None:
    """The declared likelihood fits the outputs; what a sampler draws fits the loss."""
    if loss.likelihood is not None and loss.likelihood.integer_targets and (outputs.ndim < 2 or outputs.shape[-1] < 2):
        raise SpecError(
            f"[loss] likelihood {loss.likelihood.name} needs outputs [batch, …, classes], not {list(outputs.shape)}",
            "for two classes and one logit give sigmoid_cross_entropy",
        )
    if loss.draw is None:
        return
    one = jax.ShapeDtypeStruct((1, *outputs.shape[1:]), outputs.dtype)
    drawn = user_code("the likelihood", jax.eval_shape, loss.draw, one, jax.random.key(0))
    shape = getattr(drawn, "shape", None)
    if shape != (1, *labels.shape[1:]):
        raise SpecError(
            f"[loss] likelihood draws targets of shape {list(shape or ())} for one example, the data's have "
            f"{[1, *labels.shape[1:]]}",
            "it is called as fn(outputs, key) with a batch of one example, and returns a batch of one target",
        )
    user_code("the loss", jax.eval_shape, loss.value, one, drawn)
