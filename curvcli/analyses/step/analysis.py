"""A second-order step, previewed: how long, how good, and what the next damping should be.

Source: Grosse, *Neural Net Training Dynamics*, chapter 4, sections 2 to 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from curvcli.analyses.common import planning, preconditioners
from curvcli.analyses.common.answer import Answer
from curvcli.analyses.common.checks import examined, finite_objective
from curvcli.analyses.common.context import Context
from curvcli.analyses.common.dense import DENSE_BLOCK, plan_factors
from curvcli.analyses.common.precision import weights_norm
from curvcli.analyses.step.judging import Judgement, by_rule, judge, next_damping
from curvcli.analyses.step.proposals import (
    Memory,
    curvature_along_gradient,
    is_dense,
    own_matrix,
    pair_behind,
    proposer,
)
from curvcli.analyses.step.starting_point import Ground, Tally
from curvcli.analyses.step.stepping import in_plane, walk
from curvcli.curvature import along
from curvcli.curvature.flatten import Layout
from curvcli.linalg.meter import Meter
from curvcli.problem import Params, Problem
from curvcli.schema.inspect import Forecast
from curvcli.schema.matrices import FACTORED
from curvcli.schema.plan import Plan
from curvcli.schema.step import ITERATIVE, FunctionChange, StepResult, StepSettings, WeightChange

FIRST = 1e-3
"""Of the curvature along the gradient: the λ that `--damping auto` begins with (Madsen, Nielsen and Tingleff 2004)."""

EXPECTED_STEPS = 60
"""Products of a solve, for a forecast."""


@dataclass(frozen=True)
class Inputs:
    """What comes from files.

    Parameters
    ----------
    previous
        The step before, by parameter path.
    factors
        Arrays that `--save-factors` wrote.
    """

    previous: Params | None = None
    factors: dict[str, np.ndarray] | None = None


def run(context: Context[Inputs], settings: StepSettings) -> Answer[StepResult]:
    """The step of a method at these weights, judged by J and by its quadratic model; more steps where asked for.

    Raises
    ------
    NumericsError
        Something is not finite.
    MemoryLimitError
        The matrix does not fit.
    SpecError
        The method needs a likelihood that the loss does not have.
    UsageError, DataError
        The factors given are of other weights, or of another network.

    Notes
    -----
    Cost: D products where C is written out (up to 1500 parameters), else those of conjugate gradients, anew for every
    λ tried; for `kfac` a forward pass and a cotangent. For every λ a product and a forward pass on top.
    """
    problem, given, monitor = context.problem, context.inputs, context.monitor
    memory_plan(problem, settings)
    value, gradient = finite_objective(problem)
    meter = Meter()
    tally = Tally(meter, settings, gradient=1)
    here = Ground.at(problem, settings, monitor, tally, gradient)
    checks, warnings = examined(problem, here.model, settings, 1, settings.model)
    tally.before = meter.products
    memory = _memory(here, given)
    propose, plane = proposer(here, memory), in_plane(here, memory)
    given_damping = None if settings.damping == "auto" else settings.damping
    start = given_damping or FIRST * curvature_along_gradient(here, own_matrix(here))
    if given_damping is None:
        first, trials = by_rule(here, propose, plane, start)
    else:
        first, trials = judge(here, propose(given_damping), given_damping, plane), []
    delta = jnp.asarray(first.delta, problem.dtype)
    rms, kl = along.function_change(problem, delta)
    tally.forward += 2
    passes = tally.passes
    factors = {}
    if settings.save_factors:
        assert memory.running is not None
        factors = memory.running.arrays(problem)
    walked = walk(here, first, memory, start)
    warnings += _remarks(here, first)
    moved: dict[str, np.ndarray] = {}
    if settings.save is not None:
        if walked.moved.any():
            moved = _by_path(problem, walked.moved, plus=problem.params)
        else:
            warnings.append("--save: no checkpoint is written, since no step was made")
    size, slope, norm = weights_norm(problem), here.slope, first.judged.step_norm
    result = StepResult(
        **dict(first.judged), dim=problem.dim, method=settings.method, model=settings.model,
        gradient_norm=slope, noise=here.noise,
        gradient_cosine=float(np.clip(-first.delta @ here.gradient / (slope * norm), -1, 1)) if slope * norm else None,
        next_damping=next_damping(first.judged.damping, first.grade, start),
        step_size=first.step_size, rescaled=first.rescaled, momentum=first.momentum,
        function_change=FunctionChange(rms=rms, kl=kl) if np.isfinite(rms) else None,
        weight_change=WeightChange(norm=norm, relative=norm / size if size else None),
        trials=trials, cg=list(first.proposal.cg), negative_curvature=first.proposal.negative, solve=first.solve,
        steps=walked.records if settings.steps > 1 else [], final_loss=walked.loss, passes=passes,
        saved=settings.save if moved else None,
    )  # fmt: skip
    arrays = _by_path(problem, first.delta) if settings.arrays else {}
    return Answer(result, meter, value, checks, warnings, arrays, params=moved, factors=factors)


def forecast(context: Context[Any], settings: StepSettings) -> tuple[Plan, Forecast]:
    """How the work would be cut, the bytes, and an estimate of the products."""
    problem = context.problem
    plan = memory_plan(problem, settings)
    trials = 10 if settings.damping == "auto" else 1
    dense = is_dense(problem, settings) and settings.method in ITERATIVE
    solve = min(settings.most_products, EXPECTED_STEPS, 2 * problem.dim) if settings.method in ITERATIVE else 0
    rows = 1 if settings.momentum is None else 2
    if dense:
        written = -(-problem.dim // DENSE_BLOCK) * DENSE_BLOCK
        products = settings.steps * written + (trials + settings.steps - 1) * rows
    else:
        products = (trials + settings.steps - 1) * (solve + rows)
    passes = products // (DENSE_BLOCK if dense else 1) + 2 * trials + 3 * settings.steps
    return planning.cut(problem, plan.at_once), planning.forecast(
        problem, products=products + 1, data_passes=passes, bytes=plan.bytes, programs="step"
    )


def memory_plan(problem: Problem, settings: StepSettings) -> planning.MemoryPlan:
    """Vectors in a block, and the bytes: the matrix written out, or factors, or vectors on the host.

    Raises
    ------
    MemoryLimitError
        It does not fit.
    """
    if settings.method in FACTORED:
        return plan_factors(problem, settings)
    if settings.method in ITERATIVE and is_dense(problem, settings):
        return planning.plan_dense(problem.dim, min(DENSE_BLOCK, problem.dim), settings.max_memory)
    kept = 30 if settings.method == "hessian-free" else 3 * settings.history if settings.method == "bfgs" else 8
    return planning.plan_vectors(problem, settings, problem.dim, rows=2 * kept, block=2)


def _memory(here: Ground, given: Inputs) -> Memory:
    """What there is before the first step."""
    settings, layout, memory = here.settings, Layout.of(here.problem.params), Memory()
    if given.previous is not None:
        leaves = [np.asarray(given.previous[name], np.float64).reshape(-1) for name in layout.names]
        memory.previous = np.concatenate(leaves)
        if settings.method == "bfgs":
            memory.pairs.append(pair_behind(here, memory.previous))
    if settings.method in FACTORED:
        memory.running = preconditioners.running_factors(
            here.problem, settings, settings.method, given.factors,
            every=settings.update_every, stale=settings.stale_factors,
        )  # fmt: skip
    return memory


def _by_path(problem: Problem, vector: np.ndarray, plus: Params | None = None) -> dict[str, np.ndarray]:
    """A vector [D] by parameter path, added to parameters where these are given; float64."""
    layout, found, start = Layout.of(problem.params), {}, 0
    for name, shape, size in zip(layout.names, layout.shapes, layout.sizes, strict=True):
        leaf = vector[start : start + size].reshape(shape)
        found[name], start = leaf if plus is None else np.asarray(plus[name], np.float64) + leaf, start + size
    return found


def _remarks(here: Ground, first: Judgement) -> list[str]:
    """Warnings where a step is less than it looks."""
    remarks, judged, solve, settings = [], first.judged, first.solve, here.settings
    if judged.actual_decrease is None or judged.actual_decrease < -here.noise:
        risen = "is not finite there" if judged.actual_decrease is None else f"rises by {-judged.actual_decrease:.3g}"
        remarks.append(f"J {risen}: the step is too long for its model; more --damping, or auto")
    elif judged.ratio_reason is not None:
        remarks.append(
            f"no reduction ratio: {judged.ratio_reason}"
            + (": --dtype float64" if settings.dtype == "float32" and judged.predicted_decrease > 0 else "")
        )
    negative = first.proposal.negative
    if negative is not None:
        used = "the step goes along it" if negative.used else "J does not fall along it, and it is left out"
        remarks.append(f"C + λI has negative curvature ({negative.curvature:.3g}): {used}")
    elif solve.status in ("not-converged", "flat", "stopped", "least-squares"):
        why = {
            "not-converged": "more --cg-steps, more --damping, or --precondition",
            "flat": "a direction without curvature was met: more --damping",
            "stopped": "the run ended",
            "least-squares": "C + λI is singular, and the step leaves out its null space: more --damping",
        }[solve.status]
        remarks.append(f"the solve has not converged (relative residual {solve.residual:.2g}): {why}")
    if settings.method == "bfgs" and not solve.iterations:
        remarks.append(
            "bfgs has no step to learn from: this is the gradient's, scaled; give --momentum FILE, or --steps"
        )
    return remarks
