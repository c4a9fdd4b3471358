"""Which training examples, labels and inputs drive a prediction?

    s_q = (C + λI)⁻¹ ∇q,   dq/dθ_n = −(∇²_{wθ_n} J)ᵀ s_q

One solve a query, all in one block, and one forward pass over the data give the response of every query to every
example. Without queries each example is asked about itself.

Source: Grosse, *Neural Net Training Dynamics*, chapter 2, section 5; Koh and Liang (2017) for removal.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from curvcli.analyses.common import planning, preconditioners
from curvcli.analyses.common.answer import Answer
from curvcli.analyses.common.checks import examined, finite_objective
from curvcli.analyses.common.context import Context
from curvcli.analyses.common.dense import DENSE_BLOCK
from curvcli.analyses.influence import response, scoring, solving
from curvcli.analyses.influence import self_influence as own
from curvcli.analyses.influence.context import Inputs, Study
from curvcli.analyses.influence.validity import caution, validity
from curvcli.curvature.influence.queries import check_labels, check_measure
from curvcli.curvature.products.ntk import outputs_per_example
from curvcli.errors import MemoryLimitError, UsageError
from curvcli.linalg.meter import Meter
from curvcli.problem import Problem
from curvcli.schema.influence import InfluenceResult, InfluenceSettings, Mode, Target
from curvcli.schema.inspect import Forecast
from curvcli.schema.matrices import FACTORED, MATRICES
from curvcli.schema.plan import Plan

EXPECTED_STEPS, LEAST_STEPS = 120, 8
"""Products a query, for a forecast: 120/√k in a block of k. Measured at the tolerance of 1e-4: 82 of 4, 9 of 101."""


def run(context: Context[Inputs], settings: InfluenceSettings) -> Answer[InfluenceResult]:
    """Scores of every example, with the certificate of every solve.

    Raises
    ------
    UsageError
        Labels, inputs or outputs do not allow what is asked for, or the factors given are of other weights.
    DataError
        The factors given are of another network.
    NumericsError
        Something is not finite, or conjugate gradients met negative curvature.
    MemoryLimitError
        Right-hand sides, solutions or scores do not fit.

    Notes
    -----
    Cost: some 20 to 300 products a query (all queries share one block Krylov space: many cost fewer each), or D in all
    for a dense answer; some 64 to look at the spectra; a forward pass over the data a query. `samples` solves more for
    self-influence and leverage where the matrix is not written out.
    """
    problem, given, monitor = context.problem, context.inputs, context.monitor
    plan = memory_plan(problem, settings, given)
    factors = None
    if settings.factored is not None:
        factors = preconditioners.running_factors(
            problem, settings, settings.factored, given.factors, stands_for_ggn=settings.solver in FACTORED
        )
    loss, gradient = finite_objective(problem)
    meter = Meter()
    matrix = meter.count(solving.undamped(problem, settings, settings.matrix))
    checks, warnings = examined(problem, matrix, settings, min(plan.at_once, count_rows(problem, settings, given) + 1))
    system, doubts = solving.prepare(problem, settings, matrix, plan.at_once, factors, monitor)
    warnings += doubts
    meter.data_passes += 0 if factors is None else factors.data_passes
    study = Study(problem, settings, given, system, meter, monitor, plan.at_once, loss, gradient, warnings)
    if settings.hyper or settings.perturb is not None:
        found, newton = response.respond(study)
    elif given.queries is not None:
        found, newton = scoring.of_queries(study)
    else:
        found, newton = scoring.of_examples(study)
    valid = validity(study, newton)
    warnings += system.remarks()
    if (said := caution(valid)) is not None:
        warnings.append(valid.words)
        found["top"] = [one.model_copy(update={"caution": said}) for one in found.get("top", [])]
    result = InfluenceResult(
        mode=settings.mode, target=target(study), units=units(problem, settings, given),
        sign=SIGNS["perturb" if settings.perturb else settings.mode],
        solver=system.solver, solves=system.records, damping=system.damping, damping_choice=system.choice,
        validity=valid, **found,
    )  # fmt: skip
    return Answer(result, meter, loss, checks, warnings, study.arrays if settings.scores else {}, study.axes)


def forecast(context: Context[Inputs], settings: InfluenceSettings) -> tuple[Plan, Forecast]:
    """How the work would be cut, the bytes, and an estimate of the products."""
    problem, given = context.problem, context.inputs
    plan, rows = memory_plan(problem, settings, given), count_rows(problem, settings, given)
    dense = solving.is_dense(problem, settings)
    solves = rows + 1 + (settings.samples if needs_root(settings, given) else 0)
    each = min(max(EXPECTED_STEPS / min(solves, plan.at_once) ** 0.5, LEAST_STEPS), settings.max_probes)
    # Validity asks for the Hessian too.
    own_hessian = MATRICES[settings.matrix].own_hessian
    matrices, own_steps = (1, solving.STEPS) if own_hessian else (2, solving.FEW_STEPS)
    block = min(DENSE_BLOCK, problem.dim)
    written = -(-problem.dim // block) * block
    looks = solving.SCOUTS * own_steps + (matrices - 1) * solving.STEPS
    if solving.chooses_by_all(problem, settings):
        looks += written - solving.SCOUTS * own_steps
    products = matrices * written if dense else round(solves * each) + looks
    passes = (
        -(-products // plan.at_once)
        + (problem.dim if dense and needs_root(settings, given) else solves) // plan.at_once
        + 4
    )
    return planning.cut(problem, plan.at_once), planning.forecast(
        problem, products=products, data_passes=passes, bytes=plan.bytes, programs="written out" if dense else "solves"
    )


def memory_plan(problem: Problem, settings: InfluenceSettings, given: Inputs) -> planning.MemoryPlan:
    """Vectors in a block, and the bytes; everything that can be said before a product is spent is said here.

    Raises
    ------
    UsageError
        Labels, inputs or outputs do not allow what is asked for.
    MemoryLimitError
        It does not fit.
    """
    check(problem, settings)
    if given.queries is not None:
        check_labels(problem.loss, given.queries, settings.measure, given.first)
    solves = count_rows(problem, settings, given) + 1
    if needs_root(settings, given) and not solving.is_dense(problem, settings):
        if settings.solver not in FACTORED:
            own.check_drawable(problem, settings)
        solves = max(solves, settings.samples)
    if given.groups is not None:
        solves = max(solves, len(np.unique(given.groups)))
    plan = solving.vectors_at_once(problem, settings, solves)
    if _responds(settings):
        return plan
    kept = scoring.score_bytes(problem, settings, given, plan.at_once)
    limit = planning.memory_limit(settings.max_memory)
    if plan.bytes + kept > limit:
        raise MemoryLimitError(
            f"all scores take {planning.human_bytes(kept)} and the solves {planning.human_bytes(plan.bytes)}, "
            f"the limit is {planning.human_bytes(limit)}",
            "ask fewer queries at once, or leave out --scores: the top examples are kept without",
        )
    return planning.MemoryPlan(plan.at_once, plan.bytes + kept)


def check(problem: Problem, settings: InfluenceSettings) -> None:
    """Whether measure, labels and inputs allow what is asked for.

    Raises
    ------
    UsageError
        They do not.
    """
    check_measure(problem.loss, settings.measure)
    batch = next(iter(problem.batches))
    leaves = jax.tree.leaves(batch.inputs)
    if settings.mode == "input-perturb" and not all(jnp.issubdtype(one.dtype, jnp.floating) for one in leaves):
        raise UsageError(
            "--input-perturb needs inputs that are real numbers, and these are integers",
            "perturb what an embedding makes of them: give the model without it; or use --label-perturb",
        )
    if settings.mode == "input-perturb" and len(leaves) > 1 and (settings.scores or "").endswith(".parquet"):
        raise UsageError(
            f"--scores {settings.scores}: a table holds one array, and there are scores of {len(leaves)} input arrays",
            "write .npz or .safetensors",
        )
    if settings.mode == "label-perturb" and not (
        problem.loss.known or jnp.issubdtype(jnp.asarray(batch.targets).dtype, jnp.floating)
    ):
        raise UsageError(
            f"--label-perturb needs targets that {problem.loss.name} takes as real numbers, and these are integers",
            "give soft labels, or one of the known losses",
        )
    if settings.leverage and outputs_per_example(problem) > MOST_OUTPUTS:
        raise UsageError(
            f"--leverage inverts a matrix of the outputs of each example, and these are "
            f"{outputs_per_example(problem)}", f"it takes at most {MOST_OUTPUTS}"
        )  # fmt: skip


MOST_OUTPUTS = 256
"""Outputs of an example, for the leverage correction."""


def needs_root(settings: InfluenceSettings, given: Inputs) -> bool:
    """Whether self-influence or leverage is asked for."""
    return settings.self_ or settings.leverage or (given.queries is None and not _responds(settings))


def _responds(settings: InfluenceSettings) -> bool:
    return bool(settings.hyper) or settings.perturb is not None


def count_rows(problem: Problem, settings: InfluenceSettings, given: Inputs) -> int:
    """Right-hand sides of the queries."""
    if given.queries is None or _responds(settings):
        return 0
    per_query = outputs_per_example(problem) if settings.measure == "output" else 1
    return given.queries.num_examples * per_query


def target(study: Study) -> Target | None:
    """What is asked about; None for self-ranking."""
    settings, given = study.settings, study.given
    if given.queries is None:
        return None
    return Target(
        measure=settings.measure, source=given.source, rows=(given.first, given.first + given.queries.num_examples),
        outputs=outputs_per_example(study.problem) if settings.measure == "output" else None,
    )  # fmt: skip


SIGNS: dict[Mode | Literal["perturb"], str] = {
    "remove": "positive: without the example the measure is higher (a loss that it held down)",
    "label-perturb": "positive: more of this label raises the measure",
    "input-perturb": "positive: a larger input raises the measure",
    "hyper": "positive: a larger hyperparameter raises the measure",
    "perturb": "positive: the change raises the measure",
}


def units(problem: Problem, settings: InfluenceSettings, given: Inputs) -> str:
    """What a score counts."""
    whose = "example" if given.queries is None else "query"
    measure = {
        "loss": f"{problem.loss.unit} of the {whose}'s loss",
        "output": "units of the output",
        "margin": "nats of log-odds",
    }
    if settings.perturb is not None:
        return f"{measure[settings.measure]}, for the change as given"
    by = {
        "remove": "removed example",
        "label-perturb": "unit of label",
        "input-perturb": "unit of input",
        "hyper": "unit of the hyperparameter",
    }
    return f"{measure[settings.measure]} per {by[settings.mode]}"
