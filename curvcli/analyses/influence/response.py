"""The other direction: one change of data or hyperparameters, and how weights and predictions respond.

    dw = −(C + λI)⁻¹ ∇²_{wθ} J Δθ,   d(measure) = its derivative along dw

One solve a change, then a forward derivative at any inputs. Source: Grosse, *Neural Net Training Dynamics*, chapter 2,
section 5 and figure 5, which shows the predictions after every iteration of conjugate gradients.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.analyses.influence.context import INLINE, Study
from curvcli.analyses.influence.solves import Newton
from curvcli.curvature.flatten import Layout
from curvcli.curvature.influence import queries, responses
from curvcli.curvature.products.ntk import example_outputs
from curvcli.errors import UsageError
from curvcli.problem import Problem
from curvcli.schema.influence import Response


def respond(study: Study) -> tuple[dict[str, Any], Newton]:
    """What the report says of the changes asked for, and the Newton step."""
    problem, system, given = study.problem, study.system, study.given
    changes = _changes(study)
    names, right = list(changes), jnp.stack(list(changes.values()))
    study.meter.data_passes += len(names)
    asked = problem.batches if given.queries is None else given.queries
    slopes = partial(queries.slopes, problem, asked, study.settings.measure)
    steps: list[np.ndarray] = []
    if study.settings.per_iteration:
        _, newton = system.solve_newton(study.gradient)
        # What is asked at every step, and not the steps themselves: they are as long as the weights.
        solutions = system.solve(right, names, after_step=lambda _, x: steps.append(slopes(-x)))
    else:
        solutions, newton = system.solve_newton(study.gradient, right, names)
    moved = -solutions
    change = slopes(moved)
    trail = np.concatenate([np.zeros_like(change), *steps]) if study.settings.per_iteration else None
    layout = Layout.of(problem.params)
    study.arrays |= {f"dw/{name}": np.asarray(leaf) for name, leaf in layout.unravel(moved).items()}
    study.arrays["change"], study.axes["change"] = change, ["change", "query", "output"][: change.ndim]
    if trail is not None:
        study.arrays["iterations"] = trail
    inline = max(change.size, 0 if trail is None else trail.size) <= INLINE
    if not inline and study.settings.scores is None:
        study.warnings.append("the changes of the queries are too many for the report: name a file with --scores")
    leaves = np.sqrt(np.asarray(layout.leaf_sums(jnp.square(moved)), np.float64))
    found = [
        Response(
            name=name, norm=float(np.linalg.norm(np.asarray(moved[i], np.float64))),
            layers={
                layer: float(np.linalg.norm(leaves[i, members])) for layer, members in layout.layers.items()
            },
            change=change[i].tolist() if inline else None,
            iterations=trail.tolist() if inline and trail is not None else None,
        )
        for i, name in enumerate(names)
    ]  # fmt: skip
    return {"responses": found}, newton


def _changes(study: Study) -> dict[str, Array]:
    """∇²_{wθ} J Δθ [D] of every change asked for, by name."""
    if study.settings.perturb is not None:
        return {"perturb": responses.mixed(_perturbed(study.problem, study.settings.mode, study.given.change))}
    found: dict[str, Array] = {}
    for text in study.settings.hyper:
        found.update(_of_hyperparameter(study, text))
    return found


def _perturbed(problem: Problem, mode: str, change: Any) -> Problem:
    """J's derivative along the change that a file gives."""
    if mode == "remove":
        return responses.shift_weights(problem, change)
    shift = responses.shift_labels if mode == "label-perturb" else responses.shift_inputs
    return shift(problem, change)


def _of_hyperparameter(study: Study, text: str) -> dict[str, Array]:
    problem = study.problem
    if text == "l2":
        return {"l2": Layout.of(problem.params).ravel(problem.params)}
    if text == "class-weights":
        labels = _classes(problem)
        return {
            f"class-weights {k}": responses.mixed(responses.shift_weights(problem, (labels == k).astype(problem.dtype)))
            for k in np.unique(labels[labels >= 0]).tolist()
        }
    function = study.given.functions[text]
    if text.startswith("loss:"):
        return {text: responses.mixed(responses.shift_loss(problem, text, function))}
    return {text: responses.mixed(responses.shift_regulariser(problem, function))}


def _classes(problem: Problem) -> np.ndarray:
    """The class of each example, or token.

    Raises
    ------
    UsageError
        The loss has no classes.
    """
    if not problem.loss.classes:
        raise UsageError(
            f"--hyper class-weights needs classes, and {problem.loss.name} has none", "use --hyper loss:TARGET"
        )
    targets = np.asarray(problem.batches.targets)
    return targets if targets.ndim < len(example_outputs(problem).shape) else targets.argmax(axis=-1)
