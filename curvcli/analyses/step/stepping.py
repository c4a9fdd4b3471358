"""Several steps, really made: does the preview of one hold for those after it?

Under `--damping auto` λ goes from step to step by the Levenberg–Marquardt rule, and a step at which J does not fall is
not made. With a λ that is given every step is made. `kfac` keeps running averages of its factors (algorithm 1 of
Grosse, chapter 4), `bfgs` its pairs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from curvcli.analyses.step.judging import Judgement, judge, next_damping
from curvcli.analyses.step.proposals import Memory, proposer
from curvcli.analyses.step.starting_point import Ground
from curvcli.curvature.flatten import Layout
from curvcli.curvature.products.sums import objective_and_gradient
from curvcli.devices import on_host
from curvcli.linalg.iterate import finished
from curvcli.schema.step import PREVIOUS, StepRecord


class Walked(NamedTuple):
    """Where the steps lead."""

    moved: np.ndarray  # [D], w + all steps that were made − w
    loss: float | None  # J there; None where it is not finite
    records: list[StepRecord]


def accepted(here: Ground, found: Judgement) -> bool:
    """Whether the step is made: J is finite, and falls where λ may be chosen."""
    return bool(np.isfinite(found.after)) and (here.settings.damping != "auto" or found.after < here.origin)


def in_plane(here: Ground, memory: Memory) -> np.ndarray | None:
    """The step before, where the plane of both is searched; `hessian-free` starts from it instead."""
    return None if here.settings.method == "hessian-free" else memory.previous


def walk(here: Ground, first: Judgement, memory: Memory, start: float) -> Walked:
    """The first step and as many more as the settings ask for.

    Parameters
    ----------
    start
        λ that stands for 0 where it has to grow.

    Notes
    -----
    Cost: a gradient a step, and what its method and its judgement take. Nothing is compiled anew.
    """
    settings, layout = here.settings, Layout.of(here.problem.params)
    origin = on_host(layout.ravel(here.problem.params)).astype(np.float64)
    moved, records, found, spent = np.zeros_like(origin), [], first, 0.0
    for number in range(1, settings.steps + 1):
        made = accepted(here, found)
        in_gradients = here.tally.passes.in_gradients
        records.append(
            StepRecord(step=number, loss=here.origin, accepted=made, passes=in_gradients - spent, **dict(found.judged))
        )
        spent = in_gradients
        moved = moved + found.delta if made else moved
        last = number == settings.steps or finished(here.monitor, "stepping", number, settings.steps, "steps")
        if last or not (made or settings.damping == "auto"):
            break
        damping = found.judged.damping
        if settings.damping == "auto":
            damping = next_damping(damping, -np.inf if not made else found.grade, start)
        here = _moved(here, layout.unravel(jnp.asarray(origin + moved, here.problem.dtype)), made, found, memory)
        memory.index = number
        found = judge(here, proposer(here, memory)(damping), damping, in_plane(here, memory))
    loss = found.after if records[-1].accepted else here.origin
    return Walked(moved, loss if np.isfinite(loss) else None, records)


def _moved(here: Ground, params: dict, made: bool, found: Judgement, memory: Memory) -> Ground:
    """The ground after a step, and what the memory keeps of it; the same ground where it was not made."""
    if not made:
        return here
    problem = replace(here.problem, params=params)
    _, gradient = objective_and_gradient(problem, Layout.of(params))
    here.tally.gradient += 1
    there = Ground.at(problem, here.settings, here.monitor, here.tally, gradient, here.noise)
    if here.settings.method == "bfgs":
        memory.pairs.append((found.delta, there.gradient - here.gradient))
    if here.settings.momentum == PREVIOUS or memory.previous is not None:
        memory.previous = found.delta
    return there
