"""Hessian, Gauss–Newton, Fisher, empirical Fisher and what stands for them: how far apart are they at this point?

Small matrices are written out: everything is exact. Of larger ones the top eigenpairs are found, their span counts
exactly for all matrices, and common random vectors in its complement tell the rest.

Source: Grosse, *Neural Net Training Dynamics*, chapter 2, section 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from curvcli.analyses import eigs
from curvcli.analyses.common import planning
from curvcli.analyses.common.answer import Answer
from curvcli.analyses.common.checks import finite_objective, matrix_notes, network_notes, self_checks
from curvcli.analyses.common.context import Context
from curvcli.analyses.common.dense import DENSE_BLOCK, DENSE_DIM, factor_rows
from curvcli.analyses.common.precision import network_jaxpr
from curvcli.analyses.common.rounding import relative as relative_rounding
from curvcli.analyses.compare.candidates import CLOSED, Candidate, Choice, candidates, choose, diagonalised, recipe_of
from curvcli.analyses.compare.laplace import laplace, plan_laplace
from curvcli.analyses.compare.measures import Reader
from curvcli.analyses.compare.step_angles import step_angles
from curvcli.analyses.eigs import EigsPlan, Pairs
from curvcli.analyses.spectrum import eigenvalue, tolerance
from curvcli.errors import MemoryLimitError
from curvcli.linalg.iterate import Monitor
from curvcli.linalg.krylov.orthonormal import orthonormalise
from curvcli.linalg.meter import Meter
from curvcli.linalg.reductions import inner_products
from curvcli.linalg.statistics import spent
from curvcli.linalg.trace.together import Together
from curvcli.problem import Problem
from curvcli.schema.compare import ComparedName, CompareResult, CompareSettings, Distance, Overlap
from curvcli.schema.eigs import EigsSettings
from curvcli.schema.estimate import Eigenvalue
from curvcli.schema.inspect import Forecast
from curvcli.schema.matrices import FACTORED, setting_damping
from curvcli.schema.plan import Plan
from curvcli.schema.report import Check
from curvcli.streams import Stream

Array = Any

BLOCK = 8
FIRST_LOOK = 16
"""Probes before the intervals are first held against a tolerance."""

MOST_GROWTH = 4.0
APART = 10.0
"""A span of eigenvectors is determined where the gap behind it is this many residuals: by Davis and Kahan it is then
known to within an angle of 0.1."""


@dataclass(frozen=True)
class ComparePlan:
    """How the matrices are looked at, and what it takes."""

    method: str
    at_once: int  # vectors in a block
    bytes: int
    products: int


class Look(NamedTuple):
    """What the common vectors told, and what the intervals hold with."""

    together: Together
    level: float  # error probability of an interval


def run(context: Context[None], settings: CompareSettings) -> Answer[CompareResult]:
    """Distances, traces, top eigenspaces and damped steps of several curvature matrices.

    Cost: D products a matrix where they are written out; else for each that is no product of factors `probes` products,
    one a top eigenvector of any matrix, about 3k + 20 for its eigenpairs, and those of one solve.
    """
    problem, monitor = context.problem, context.monitor
    value, gradient = finite_objective(problem)
    meter, choice = Meter(), choose(problem, settings)
    plan = memory_plan(problem, settings, choice)
    found = candidates(problem, settings, choice.names, meter)
    checks, warnings = _examined(problem, settings, found, plan.at_once)
    if plan.method == "dense":
        found = [diagonalised(one, monitor) for one in found]
    tops = [_top_pairs(problem, settings, one, monitor, warnings) for one in found]
    rounding = [0.0] * len(found)
    if plan.method == "dense":
        look = _dense_look(found, settings)
    else:
        rounding = [relative_rounding(one.operator, settings.seed) for one in found]
        look = _sampled_look(found, tops, rounding, settings, plan.at_once, monitor, meter, warnings)
    reader = Reader(settings, look.level, look.together, found, rounding)
    traces = {one.name: reader.trace(i) for i, one in enumerate(found)}
    reference = setting_damping(choice.names)
    result = CompareResult(
        dim=problem.dim,
        method=plan.method,  # type: ignore[arg-type]
        reason=_reason(problem, settings, plan, look.together),
        matrices=choice.names,
        equal=choice.equal,
        left_out=choice.left_out,
        known_vectors=problem.dim - look.together.rest if plan.method == "sampled" else 0,
        distances=_distances(reader, choice.names),
        traces=traces,
        frobenius_norms={one.name: reader.norm(i) for i, one in enumerate(found)},
        top_eigenvalues={one.name: _eigenvalues(pairs, settings) for one, pairs in zip(found, tops, strict=True)},
        overlaps=_overlaps(choice.names, tops, settings.k),
        step_angles=step_angles(problem, settings, found, gradient, (reference, traces[reference]), monitor, warnings),
    )
    arrays: dict[str, np.ndarray] = {}
    if settings.laplace is not None:
        told, arrays = laplace(
            problem, settings, value, gradient, monitor, meter, warnings, dense=plan.method == "dense"
        )
        result = result.model_copy(update={"laplace": told})
    return Answer(result, meter, value, checks, warnings, arrays)


def memory_plan(problem: Problem, settings: CompareSettings, choice: Choice) -> ComparePlan:
    """The method, vectors in a block, bytes, and about how many products.

    Raises
    ------
    MemoryLimitError
        The matrices do not fit, or not even blocks of one vector.
    """
    dim, count = problem.dim, len(choice.names)
    costly = sum(name not in CLOSED for name in choice.names)
    limit, whole = planning.memory_limit(settings.max_memory), (2 * count + 3) * 8 * dim**2
    dense = settings.method == "dense" or (settings.method == "auto" and dim <= DENSE_DIM and whole <= limit)
    more = plan_laplace(problem, settings, dense=dense)
    if dense:
        if whole > limit:
            raise MemoryLimitError(
                f"{count} matrices written out ({dim:,} rows) take {planning.human_bytes(whole)}, the limit is "
                f"{planning.human_bytes(limit)}",
                "use --method sampled, fewer --matrices, or --params for a block of the parameters",
            )
        return ComparePlan("dense", min(DENSE_BLOCK, dim), whole + more.bytes, costly * dim + more.products)
    known = min(count * min(settings.k + 1, dim), dim)
    factors = factor_rows(problem, recipe_of(problem, settings)) if {*FACTORED} & {*choice.names} else 0
    asked = _eigs_settings(settings, dim)
    basis = eigs.memory_plan(problem, asked).bytes
    even = -(-settings.max_probes // -(-settings.max_probes // BLOCK))
    # Kept: the top vectors, and their orthonormal span; in flight: an image of a block under every matrix, differences.
    block = planning.plan_vectors(
        problem, settings, dim, rows=2 * known + factors, block=-(-even * (count + 2) // 6),
        growing=planning.Growing("use -k {}", settings.k, 2 * count),
    )  # fmt: skip
    at_once = max(min(even, 6 * block.at_once // (count + 2)), 2)  # pairs of vectors tell the error
    products = costly * (settings.max_probes + known + 3 * asked.k + 20 + settings.cg_steps // 5) + more.products
    return ComparePlan("sampled", at_once, max(block.bytes, basis) + more.bytes, products)


def forecast(context: Context[Any], settings: CompareSettings) -> tuple[Plan, Forecast]:
    """How the work would be cut, the bytes, and an estimate of the products: a solve is counted as 100."""
    problem = context.problem
    plan = memory_plan(problem, settings, choose(problem, settings))
    passes = -(-plan.products // plan.at_once)
    cost = planning.forecast(
        problem,
        products=plan.products, data_passes=passes, bytes=plan.bytes,
        programs="written out" if plan.method == "dense" else "several matrices",
    )  # fmt: skip
    return planning.cut(problem, plan.at_once), cost


def _examined(
    problem: Problem, settings: CompareSettings, found: list[Candidate], block: int
) -> tuple[dict[str, Check], list[str]]:
    """The self-checks, on the first matrix that has products of its own, and what should be known of each matrix."""
    checks, warnings = {}, []
    if not settings.skip_checks:
        first = next((one for one in found if one.spectral is None), found[0])
        checks, warnings = self_checks(problem, first.operator, settings, block, first.name)
    network = network_jaxpr(problem)
    warnings += network_notes(network)
    for one in found:
        warnings += matrix_notes(problem, one.name, settings.seed)
    if problem.regulariser.fn is not None and settings.regulariser and any(one.spectral is not None for one in found):
        warnings.append("the curvature of the regulariser is no part of kfac, ekfac and diagonal, but for l2")
    return checks, warnings


def _eigs_settings(settings: CompareSettings, dim: int) -> EigsSettings:
    """One pair more than is shown: the gap behind the last says whether their span is determined."""
    return EigsSettings(
        k=min(settings.k + 1, dim), tol=settings.tol, seed=settings.seed, dtype=settings.dtype,
        max_memory=settings.max_memory, method="lanczos",
    )  # fmt: skip


def _top_pairs(
    problem: Problem, settings: CompareSettings, candidate: Candidate, monitor: Monitor, warnings: list[str]
) -> Pairs:
    """The k + 1 largest eigenpairs of one matrix, values descending."""
    asked, said = _eigs_settings(settings, problem.dim), []
    known = candidate.operator.known is not None
    plan = EigsPlan("dense", 0, eigs.BLOCK, 0) if known else eigs.memory_plan(problem, asked)
    pairs = eigs.extreme_pairs(candidate.operator, asked, plan, monitor, said)
    missed = int(np.sum(pairs.residuals[: settings.k] > tolerance(asked) * pairs.norm))
    if missed:
        said.append(f"{missed} of {settings.k} top eigenvalues have not converged")
    warnings += [f"{candidate.name}: {one}" for one in said]
    return pairs


def _eigenvalues(pairs: Pairs, settings: CompareSettings) -> list[Eigenvalue]:
    shown = zip(pairs.values[: settings.k].tolist(), pairs.residuals.tolist(), strict=False)
    enough = tolerance(settings) * pairs.norm
    return [eigenvalue(value, residual, residual <= enough, None) for value, residual in shown]


def _overlaps(names: list[ComparedName], tops: list[Pairs], k: int) -> list[Overlap]:
    """Of all pairs, for every number of top vectors up to k."""
    found = []
    for i, j in combinations(range(len(names)), 2):
        one, other = tops[i], tops[j]
        count = min(k, len(one.values), len(other.values))
        inner = np.square(np.asarray(inner_products(one.vectors, other.vectors), np.float64))
        subspaces: list[float | None] = []
        for size in range(1, count + 1):
            settled = _determined(one, size) and _determined(other, size)
            share = float(inner[:size, :size].sum()) / size
            subspaces.append(min(share, 1.0) if settled else None)
        found.append(Overlap(a=names[i], b=names[j], subspaces=subspaces))
    return found


def _determined(pairs: Pairs, size: int) -> bool:
    """Whether the span of the first `size` vectors is that of eigenvectors, whatever the residuals."""
    if size >= len(pairs.values):
        return len(pairs.values) == np.shape(pairs.vectors)[-1]
    gap = pairs.values[size - 1] - pairs.values[size]
    return bool(gap >= APART * pairs.residuals[: size + 1].max())


def _dense_look(found: list[Candidate], settings: CompareSettings) -> Look:
    """Everything from the matrices written out."""
    matrices = [one.spectral.matrix for one in found]  # type: ignore[union-attr]
    together = Together(len(matrices[0]), len(matrices), jnp.zeros((0, len(matrices[0]))))
    apart = [np.square(matrices[i] - matrices[j]).sum() for i, j in together.pairs]
    together.exact = np.array([*map(np.trace, matrices), *(np.square(one).sum() for one in matrices), *apart])
    return Look(together, 1 - settings.confidence)


def _sampled_look(
    found: list[Candidate],
    tops: list[Pairs],
    rounding: list[float],
    settings: CompareSettings,
    at_once: int,
    monitor: Monitor,
    meter: Meter,
    warnings: list[str],
) -> Look:
    """The span of all top eigenvectors exactly, common vectors for the rest, until the distances are known well enough.

    Cost: a product a matrix for each of `probes` vectors and of the rows of the span.
    """
    operators, dtype = [one.operator for one in found], found[0].operator.dtype
    basis, _ = orthonormalise(jnp.concatenate([jnp.asarray(pairs.vectors, dtype) for pairs in tops]))
    together = Together(operators[0].dim, len(operators), basis)
    costly = sum(one.spectral is None for one in found)
    for start in range(0, len(basis), at_once):
        rows = basis[start : start + at_once]
        missing = at_once - len(rows)  # one compiled shape
        padded = jnp.pad(rows, ((0, missing), (0, 0)))
        together.add_known([one.matmat(padded) for one in operators], padded)
        meter.products -= missing * costly
        monitor.progress("top eigenspaces", start + len(rows), len(basis), "vectors")
    key = Stream.COMMON_PROBES.key(settings.seed)
    alpha, number = 1 - settings.confidence, 1
    budget = settings.max_probes if settings.rtol is None else min(FIRST_LOOK, settings.max_probes)
    while True:
        while together.rest and together.drawn < budget and not (together.drawn and monitor.stop()):
            tests = together.tests(key, min(at_once, settings.max_probes - together.drawn), dtype)
            together.add([one.matmat(tests) for one in operators], tests)
            monitor.progress("common vectors", together.drawn, settings.max_probes, "vectors")
        if settings.rtol is None:
            return Look(together, alpha)
        level = spent(alpha, number)
        margin = Reader(settings, level, together, found, rounding).widest()
        if margin <= settings.rtol or not together.rest:
            return Look(together, level)
        if together.drawn >= settings.max_probes or monitor.stop():
            warnings.append(f"--rtol {settings.rtol:g} was not reached with {together.drawn} probes")
            return Look(together, level)
        growth = min(1.15 * (margin / settings.rtol) ** 2, MOST_GROWTH)
        budget, number = min(int(np.ceil(together.drawn * growth)), settings.max_probes), number + 1


def _reason(problem: Problem, settings: CompareSettings, plan: ComparePlan, together: Together) -> str:
    if plan.method == "dense":
        return f"{problem.dim} dimensions: every matrix was written out"
    return (
        f"{problem.dim} dimensions: {together.drawn} common probes beside the span of all top eigenvectors"
        if settings.method == "auto"
        else "--method sampled was asked for"
    )


def _distances(reader: Reader, names: list[ComparedName]) -> list[Distance]:
    return [
        Distance(
            a=names[i], b=names[j], absolute=reader.distance(i, j), relative_to_a=reader.relative(i, j),
            relative_to_b=reader.relative(j, i), alignment=reader.alignment(i, j),
        )
        for i, j in combinations(range(len(names)), 2)
    ]  # fmt: skip
