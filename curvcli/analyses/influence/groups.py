"""Groups of examples removed as a whole: the sum of their scores, and what their own curvature adds.

With g_U = (1/M) Σ_{n∈U} ∇L_n, C_U the group's part of C and B = C + λI, one Newton step without the group is

    Δw = (B − C_U)⁻¹ g_U = B⁻¹ g_U + B⁻¹ C_U B⁻¹ g_U + …,

whose first term is the sum of the examples' scores. Here the whole series is the yardstick, solved for and not summed.

Source: Basu, You and Feizi (2020), *On second-order group influence functions*.
"""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.analyses.influence.context import Study
from curvcli.analyses.influence.solving import undamped
from curvcli.curvature.influence.responses import mixed
from curvcli.linalg.solvers import minres
from curvcli.linalg.solvers.solution import Status
from curvcli.problem import Problem, Regulariser
from curvcli.schema.influence import GroupScore

DISAGREE = 0.2
"""Of Newton's score: by how much the first order may be off before it is flagged."""


def removed(study: Study, gradients: Array, solutions: Array, first_order: np.ndarray) -> list[GroupScore]:
    """Every group against every query.

    Parameters
    ----------
    gradients, solutions
        ∇q and B⁻¹∇q, [R, D].
    first_order
        Sums of the examples' scores, [R, G].

    Notes
    -----
    Cost: a solve a group for the second order, and MINRES for Newton's, the groups of a block in lockstep, whose
    products read the whole data and each group's own examples.
    """
    names, member = np.unique(study.given.groups, return_inverse=True)  # type: ignore[arg-type]
    found = []
    for start in range(0, len(names), study.at_once):
        block = range(start, min(start + study.at_once, len(names)))
        parts = [_alone(study.problem, np.flatnonzero(member == index)) for index in block]
        second, newton, status = _solved(study, parts, [f"group {names[index]}" for index in block])
        ahead = np.asarray(solutions, np.float64) @ second.T
        stepped = np.asarray(gradients, np.float64) @ newton.T
        for column, index in enumerate(block):
            first, true = first_order[:, index], stepped[:, column]
            off = float(np.linalg.norm(first - true)) > DISAGREE * float(np.linalg.norm(true))
            found.append(
                GroupScore(
                    name=str(names[index]), size=int(np.sum(member == index)), first_order=first.tolist(),
                    second_order=(first + ahead[:, column]).tolist(), newton=true.tolist(), disagree=off,
                    status=status[column],
                )
            )  # fmt: skip
    apart = [one.name for one in found if one.disagree]
    if apart:
        study.warnings.append(
            f"{len(apart)} of {len(found)} groups are too large for the sum of their scores ({', '.join(apart[:4])}): "
            "take Newton's"
        )
    return found


def _solved(study: Study, parts: list[Problem], names: list[str]) -> tuple[np.ndarray, np.ndarray, list[Status]]:
    """C_U B⁻¹ g_U and (B − C_U)⁻¹ g_U of some groups, [G, D] each, and what became of the latter."""
    settings = study.settings
    right = jnp.stack([mixed(part) for part in parts])
    alone = [undamped(part, settings, settings.matrix).matmat for part in parts]
    own = lambda vectors: jnp.concatenate([one(vectors[i : i + 1]) for i, one in enumerate(alone)])  # noqa: E731
    second = own(study.system.solve(right, names))
    whole = study.system.operator
    rest = whole.with_products(lambda vectors: whole.matmat(vectors) - own(vectors), psd=False)
    newton = minres.solve(rest, right, tol=settings.tol, max_steps=settings.max_probes, monitor=study.monitor)
    return np.asarray(second, np.float64), np.asarray(newton.x, np.float64), newton.status


def _alone(problem: Problem, rows: np.ndarray) -> Problem:
    """The group's examples, the normaliser of all; in batches of few sizes, each of which is another program."""
    size = min(problem.batches.batch_size, 1 << (len(rows) - 1).bit_length())
    return replace(problem, batches=problem.batches.chosen(rows).resized(size), regulariser=Regulariser())
