"""Hessian, Gauss–Newton, Fisher, empirical Fisher and what stands for them: how far apart are they at this point?

Small matrices are written out: everything is exact. Of larger ones the top eigenpairs are found, their span counts
exactly for all matrices, and common random vectors in its complement tell the rest.

Source: Grosse, *Neural Net Training Dynamics*, chapter 2, section 6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from curvcli.analyses.common.estimates import not_reached
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
from curvcli.linalg.sampling import Look, Looks, block_sizes
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


class CommonVectors(NamedTuple):
    """What the common vectors say of all matrices."""

    together: Together
    level: float  # error probability of an interval
    warnings: list[str]


def run(context: Context[None], settings: CompareSettings) -> Answer[CompareResult]:
    """Distances, traces, top eigenspaces and damped steps of several curvature matrices.

    Cost: D products a matrix where they are written out; else for each that is no product of factors `probes` products,
    one a top eigenvector of any matrix, about 3k + 20 for its eigenpairs, and those of one solve.
    """
    problem, monitor = context.problem, context.monitor
    value, gradient = finite_objective(problem)
    meter, choice = Meter(), choose(problem, settings)
    plan = memory_plan(problem, settings, choice)
    compared = candidates(problem, settings, choice.names, meter)
    checks, warnings = _examined(problem, settings, compared, plan.at_once)
    if plan.method == "dense":
        compared = [diagonalised(candidate, monitor) for candidate in compared]
    tops = [_top_pairs(problem, settings, candidate, monitor) for candidate in compared]
    warnings += [warning for pairs in tops for warning in pairs.warnings]
    rounding = [0.0] * len(compared)
    if plan.method == "dense":
        common = _dense_look(compared, settings)
    else:
        rounding = [relative_rounding(candidate.operator, settings.seed) for candidate in compared]
        common = _sampled_look(compared, tops, rounding, settings, plan.at_once, monitor, meter)
    warnings += common.warnings
    reader = Reader(settings, common.level, common.together, compared, rounding)
    traces = {candidate.name: reader.trace(i) for i, candidate in enumerate(compared)}
    reference = setting_damping(choice.names)
    result = CompareResult(
        dim=problem.dim,
        method=plan.method,  # type: ignore[arg-type]
        reason=_reason(problem, settings, plan, common.together),
        matrices=choice.names,
        equal=choice.equal,
        left_out=choice.left_out,
        known_vectors=problem.dim - common.together.rest if plan.method == "sampled" else 0,
        distances=_distances(reader, choice.names),
        traces=traces,
        frobenius_norms={candidate.name: reader.norm(i) for i, candidate in enumerate(compared)},
        top_eigenvalues={
            candidate.name: _eigenvalues(pairs, settings) for candidate, pairs in zip(compared, tops, strict=True)
        },
        overlaps=_overlaps(choice.names, tops, settings.k),
        step_angles=step_angles(
            problem, settings, compared, gradient, (reference, traces[reference]), monitor, warnings
        ),
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
    problem: Problem, settings: CompareSettings, compared: list[Candidate], block: int
) -> tuple[dict[str, Check], list[str]]:
    """The self-checks, on the first matrix that has products of its own, and what should be known of each matrix."""
    checks, warnings = {}, []
    if not settings.skip_checks:
        first = next((candidate for candidate in compared if candidate.spectral is None), compared[0])
        checks, warnings = self_checks(problem, first.operator, settings, block, first.name)
    network = network_jaxpr(problem)
    warnings += network_notes(network)
    for candidate in compared:
        warnings += matrix_notes(problem, candidate.name, settings.seed)
    closed = any(candidate.spectral is not None for candidate in compared)
    if problem.regulariser.fn is not None and settings.regulariser and closed:
        warnings.append("the curvature of the regulariser is no part of kfac, ekfac and diagonal, but for l2")
    return checks, warnings


def _eigs_settings(settings: CompareSettings, dim: int) -> EigsSettings:
    """One pair more than is shown: the gap behind the last says whether their span is determined."""
    return EigsSettings(
        k=min(settings.k + 1, dim), tol=settings.tol, seed=settings.seed, dtype=settings.dtype,
        max_memory=settings.max_memory, method="lanczos",
    )  # fmt: skip


def _top_pairs(problem: Problem, settings: CompareSettings, candidate: Candidate, monitor: Monitor) -> Pairs:
    """The k + 1 largest eigenpairs of one matrix, values descending."""
    asked = _eigs_settings(settings, problem.dim)
    known = candidate.operator.known is not None
    plan = EigsPlan("dense", 0, eigs.BLOCK, 0) if known else eigs.memory_plan(problem, asked)
    pairs = eigs.extreme_pairs(candidate.operator, asked, plan, monitor)
    warnings = pairs.warnings
    missed = int(np.sum(pairs.residuals[: settings.k] > tolerance(asked) * pairs.norm))
    if missed:
        warnings = [*warnings, f"{missed} of {settings.k} top eigenvalues have not converged"]
    return replace(pairs, warnings=[f"{candidate.name}: {warning}" for warning in warnings])


def _eigenvalues(pairs: Pairs, settings: CompareSettings) -> list[Eigenvalue]:
    shown = zip(pairs.values[: settings.k].tolist(), pairs.residuals.tolist(), strict=False)
    enough = tolerance(settings) * pairs.norm
    return [eigenvalue(value, residual, residual <= enough, None) for value, residual in shown]


def _overlaps(names: list[ComparedName], tops: list[Pairs], k: int) -> list[Overlap]:
    """Of all pairs, for every number of top vectors up to k."""
    overlaps = []
    for i, j in combinations(range(len(names)), 2):
        first, second = tops[i], tops[j]
        count = min(k, len(first.values), len(second.values))
        inner = np.square(np.asarray(inner_products(first.vectors, second.vectors), np.float64))
        subspaces: list[float | None] = []
        for size in range(1, count + 1):
            settled = _determined(first, size) and _determined(second, size)
            share = float(inner[:size, :size].sum()) / size
            subspaces.append(min(share, 1.0) if settled else None)
        overlaps.append(Overlap(a=names[i], b=names[j], subspaces=subspaces))
    return overlaps


def _determined(pairs: Pairs, size: int) -> bool:
    """Whether the span of the first `size` vectors is that of eigenvectors, whatever the residuals."""
    if size >= len(pairs.values):
        return len(pairs.values) == np.shape(pairs.vectors)[-1]
    gap = pairs.values[size - 1] - pairs.values[size]
    return bool(gap >= APART * pairs.residuals[: size + 1].max())


def _dense_look(compared: list[Candidate], settings: CompareSettings) -> CommonVectors:
    """Everything from the matrices written out."""
    matrices = [candidate.spectral.matrix for candidate in compared]  # type: ignore[union-attr]
    together = Together(len(matrices[0]), len(matrices), jnp.zeros((0, len(matrices[0]))))
    apart = [np.square(matrices[i] - matrices[j]).sum() for i, j in together.pairs]
    together.exact = np.array([*map(np.trace, matrices), *(np.square(matrix).sum() for matrix in matrices), *apart])
    return CommonVectors(together, 1 - settings.confidence, [])


def _sampled_look(
    compared: list[Candidate],
    tops: list[Pairs],
    rounding: list[float],
    settings: CompareSettings,
    at_once: int,
    monitor: Monitor,
    meter: Meter,
) -> CommonVectors:
    """Take the span of all top eigenvectors exactly, and common vectors for the rest until the distances are known.

    Cost: a product a matrix for each of `probes` vectors and of the rows of the span.
    """
    operators, dtype = [candidate.operator for candidate in compared], compared[0].operator.dtype
    basis, _ = orthonormalise(jnp.concatenate([jnp.asarray(pairs.vectors, dtype) for pairs in tops]))
    together = Together(operators[0].dim, len(operators), basis)
    costly = sum(candidate.spectral is None for candidate in compared)
    for start in range(0, len(basis), at_once):
        rows = basis[start : start + at_once]
        missing = at_once - len(rows)  # one compiled shape
        padded = jnp.pad(rows, ((0, missing), (0, 0)))
        together.add_known([candidate.matmat(padded) for candidate in operators], padded)
        meter.products -= missing * costly
        monitor.progress("top eigenspaces", start + len(rows), len(basis), "vectors")
    key = Stream.COMMON_PROBES.key(settings.seed)
    looks = Looks(
        once=settings.rtol is None,
        first=_whole_blocks(FIRST_LOOK, at_once),
        most=settings.max_probes,
        alpha=1 - settings.confidence,
    )

    def stopped() -> bool:
        return together.drawn > 0 and monitor.stop() is not None

    def look(now: Look) -> float:
        """The half-width of the widest interval after the look's common vectors; 0 where that is not asked for."""
        budget = now.budget if together.rest else 0
        for count in block_sizes(budget, at_once, lambda: together.drawn, stopped):
            tests = together.tests(key, count, dtype)
            together.add([operator.matmat(tests) for operator in operators], tests)
            monitor.progress("common vectors", together.drawn, settings.max_probes, "vectors")
        return 0.0 if looks.once else Reader(settings, now.level, together, compared, rounding).widest()

    def is_narrow(margin: float) -> bool:
        return settings.rtol is None or margin <= settings.rtol or not together.rest

    def next_budget(margin: float, now: Look) -> int:
        assert settings.rtol is not None
        growth = min(1.15 * (margin / settings.rtol) ** 2, MOST_GROWTH)
        return _whole_blocks(int(np.ceil(now.budget * growth)), at_once)

    outcome = looks.until_narrow(look, is_narrow, next_budget, monitor)
    warnings = []
    if outcome.end == "exhausted":
        warnings.append(not_reached(settings.rtol, together.drawn, "probes"))
    return CommonVectors(together, outcome.look.level, warnings)


def _whole_blocks(count: int, block: int) -> int:
    """`count`, rounded up to a multiple of `block`."""
    return -(-count // block) * block


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
