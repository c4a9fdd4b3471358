"""Which are the extreme eigenpairs of this matrix?

Small matrices are written out and diagonalised. Of larger ones a block Krylov space holds the wanted pairs; each is
handed back with its residual, the rounding of the products included.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.analyses.common import planning
from curvcli.analyses.common.answer import Answer
from curvcli.analyses.common.checks import examined, finite_objective
from curvcli.analyses.common.context import Context
from curvcli.analyses.common.dense import DENSE_BLOCK, DENSE_DIM, plan_factors, written_out
from curvcli.analyses.common.rounding import least_residual
from curvcli.analyses.common.subsampling import Side, eigenvalue_errors, images, subsampled, widened
from curvcli.analyses.spectrum import noise, tolerance
from curvcli.curvature import build_for, dimension
from curvcli.curvature.flatten import Layout
from curvcli.errors import MemoryLimitError
from curvcli.linalg.iterate import Monitor, iterate
from curvcli.linalg.krylov import eigen
from curvcli.linalg.krylov import spaces as krylov
from curvcli.linalg.krylov.basis import CHUNK
from curvcli.linalg.meter import Meter
from curvcli.linalg.operator import LinearOperator
from curvcli.problem import Problem
from curvcli.schema.eigs import Eigenpair, EigsResult, EigsSettings
from curvcli.schema.inspect import Forecast
from curvcli.schema.matrices import MATRICES
from curvcli.schema.plan import Plan
from curvcli.streams import Stream

BLOCK = 2
"""Vectors in a block. Two find double eigenvalues at no further cost and share a linearisation; every further one costs
products: networks needed 4 to 14 % more with two than with one, 23 to 31 % with four (k = 50)."""

EXTRA_ROWS = 64
"""Rows of the basis beyond 3k: networks then needed no restart."""

PROBES = 4
"""Products for what the examples left out may change."""

LEAST_ROWS = 20
"""Rows beyond k (and a quarter) without which restarts make no way."""


@dataclass(frozen=True)
class EigsPlan:
    """How the pairs are found, and what it takes."""

    method: str
    capacity: int  # rows of the basis
    widest: int  # vectors in a block, at most
    bytes: int

    @property
    def block(self) -> int:
        """Vectors in a product."""
        return DENSE_BLOCK if self.method == "dense" else BLOCK


@dataclass(frozen=True)
class Pairs:
    """What either method finds, values descending."""

    values: np.ndarray  # [r]
    residuals: np.ndarray  # [r]
    vectors: Array | np.ndarray  # [r, dim]
    norm: float
    block: int
    starts: int = 0
    restarts: int = 0
    warnings: list[str] = field(default_factory=list)


def run(context: Context[None], settings: EigsSettings) -> Answer[EigsResult]:
    """The k extreme eigenpairs of one curvature matrix.

    Cost: for networks about 3k + 20 products, k of them to measure the residuals; D products for a dense
    answer. On part of the examples, 4 products and 9 k quadratic forms of every example more.
    """
    problem, monitor = context.problem, context.monitor
    value, gradient = finite_objective(problem)
    meter = Meter()
    operator = meter.count(build_for(problem, settings))
    plan = memory_plan(problem, settings)
    block = min(plan.block, operator.dim)
    checks, warnings = examined(problem, operator, settings, block)
    if settings.k > operator.dim:
        warnings.append(f"-k {settings.k} is more than the matrix has rows: all {operator.dim} pairs are given")
    pairs = extreme_pairs(operator, settings, plan, monitor)
    warnings += pairs.warnings
    cosines = None
    if operator.dim == problem.dim:
        cosines = _cosines_squared(pairs.vectors, gradient)
    result = EigsResult(
        dim=operator.dim,
        method=plan.method,  # type: ignore[arg-type]
        which=settings.which,
        eigenvalues=_eigenpairs(problem, operator, settings, pairs, cosines),
        vectors=settings.vectors,
        gradient_overlap=None if cosines is None else min(float(cosines.sum()), 1.0),
        block=pairs.block,
        starts=pairs.starts,
        restarts=pairs.restarts,
    )
    warnings += _unconverged(result, settings, tolerance(settings) * pairs.norm)
    arrays = _arrays(problem, operator.dim, pairs) if settings.vectors else {}
    return Answer(result, meter, value, checks, warnings, arrays)


def forecast(context: Context[Any], settings: EigsSettings) -> tuple[Plan, Forecast]:
    """How the work would be cut, the bytes, and an estimate of the products."""
    problem = context.problem
    plan, dim = memory_plan(problem, settings), dimension(problem, settings.matrix)
    block = min(plan.block, dim)
    products = dim if plan.method == "dense" else min(3 * settings.k + 20, settings.max_probes)
    cost = planning.forecast(problem, products=products, data_passes=-(-products // block), bytes=plan.bytes)
    return planning.cut(problem, block), cost


def memory_plan(problem: Problem, settings: EigsSettings) -> EigsPlan:
    """The method, the rows of the basis, and the bytes that they take.

    Raises
    ------
    MemoryLimitError
        The smallest basis that makes way does not fit, or the whole matrix where it was asked for.
    """
    dim = dimension(problem, settings.matrix)
    limit = planning.memory_limit(settings.max_memory)
    k = min(settings.k, dim)
    wanted = min(-(-(3 * k + EXTRA_ROWS) // CHUNK) * CHUNK, dim)
    whole = 3 * 8 * dim**2
    affordable = settings.probes is None or settings.probes >= dim
    if MATRICES[settings.matrix].closed_form and settings.method != "lanczos":
        plan = plan_factors(problem, settings, rows=4 * k, block=BLOCK)
        return EigsPlan("dense", 0, plan.at_once, plan.bytes)
    small = (dim <= DENSE_DIM or wanted >= dim) and affordable and whole <= limit
    if settings.method == "dense" or (settings.method == "auto" and small):
        if whole > limit:
            raise MemoryLimitError(
                f"the matrix written out ({dim:,} rows) takes {planning.human_bytes(whole)}, "
                f"the limit is {planning.human_bytes(limit)}",
                "use --method lanczos, or --params for a block of the parameters",
            )
        return EigsPlan("dense", 0, DENSE_BLOCK, whole)

    vector = dim * problem.dtype.itemsize
    working = planning.working_bytes(problem, settings, dim)

    def needed(capacity: int, widest: int, pairs: int = k) -> int:
        # The basis, beside it what a restart keeps or the vectors handed back; a block in flight.
        rows = -(-capacity // CHUNK) * CHUNK
        beside = max(rows * 3 // 5 + CHUNK, pairs) + (2 * pairs if settings.vectors else 0)
        return vector * (rows + beside + 6 * widest) + working(widest)

    def least_rows(pairs: int) -> int:
        return pairs + pairs // 4 + LEAST_ROWS

    least = least_rows(k)
    for widest in (eigen.WIDEST, BLOCK):
        fitting = [rows for rows in (*range(wanted, least, -CHUNK), least) if needed(rows, widest) <= limit]
        if fitting:
            return EigsPlan("lanczos", fitting[0], widest, needed(fitting[0], widest))
    fewer = planning.largest(lambda pairs: needed(least_rows(pairs), BLOCK, pairs) <= limit, k)
    raise MemoryLimitError(
        f"a basis of {least} vectors takes {planning.human_bytes(needed(least, BLOCK))}, "
        f"the limit is {planning.human_bytes(limit)}",
        (f"use -k {fewer}; or " if fewer else "") + planning.SMALLER,
    )


def extreme_pairs(operator: LinearOperator, settings: EigsSettings, plan: EigsPlan, monitor: Monitor) -> Pairs:
    """The wanted pairs by the planned method, values descending."""
    if plan.method == "dense":
        return _dense(operator, settings, min(plan.block, operator.dim), monitor)
    return _lanczos(operator, settings, plan, monitor)


def _lanczos(operator: LinearOperator, settings: EigsSettings, plan: EigsPlan, monitor: Monitor) -> Pairs:
    """Block Lanczos with thick restarts, and the true residuals."""
    k, block = min(settings.k, operator.dim), min(BLOCK, operator.dim)
    low = {"smallest": k, "both": k // 2}.get(settings.which, 0)
    key = jax.random.key(settings.seed)
    algorithm = eigen.ThickRestart(
        low, k - low, tol=0.75 * tolerance(settings), capacity=plan.capacity,
        max_products=max(settings.max_probes - k, block), key=Stream.STARTS.key(settings.seed),
        start=krylov.from_random(Stream.STARTS.key(settings.seed), block, operator.dim, operator.dtype, operator.mesh),
        magnitude=settings.which == "magnitude", widest=plan.widest,
    )  # fmt: skip
    state = iterate(algorithm, operator, key, monitor=monitor, stage="eigenpairs", planned=settings.probes)
    ritz, warnings = algorithm.result(state), []
    if len(ritz.values) < k:
        warnings.append(f"only {len(ritz.values)} of {k} pairs were reached with {state.products} products")
    elif algorithm.in_doubt(state):
        warnings.append("equal eigenvalues may have more copies than were found: allow more products with --probes")
    norm = max(state.space.norm, float(np.abs(ritz.values).max()))
    values, residuals = eigen.true_residuals(operator, ritz.vectors, block)
    order = np.argsort(-values, kind="stable")
    # A residual below the noise of a product is not knowledge.
    residuals = np.maximum(residuals, least_residual(operator, noise(settings), norm))[order]
    vectors = ritz.vectors[jnp.asarray(order)]
    return Pairs(values[order], residuals, vectors, norm, state.width, state.starts, state.restarts, warnings)


def _dense(operator: LinearOperator, settings: EigsSettings, block: int, monitor: Monitor) -> Pairs:
    """The wanted ones of all eigenpairs of the matrix written out."""
    if operator.known is not None:
        values, vectors_at = operator.known.eigenvalues(), operator.known.eigenvectors
    else:
        values, vectors = np.linalg.eigh(written_out(operator, block, monitor))
        vectors_at = vectors.T.__getitem__
    norm, k = float(np.abs(values).max()), min(settings.k, operator.dim)
    descending = np.arange(operator.dim)[::-1]
    chosen = {
        "largest": descending[:k],
        "smallest": descending[operator.dim - k :],
        "both": np.r_[descending[: k - k // 2], descending[operator.dim - k // 2 :]],
        "magnitude": np.sort(np.argsort(-np.abs(values), kind="stable")[:k])[::-1],
    }[settings.which]
    residuals = np.full(k, least_residual(operator, noise(settings), norm))
    return Pairs(values[chosen], residuals, vectors_at(chosen).astype(operator.dtype), norm, block)


def _eigenpairs(
    problem: Problem, operator: LinearOperator, settings: EigsSettings, pairs: Pairs, cosines: np.ndarray | None
) -> list[Eigenpair]:
    """The pairs as the report has them."""
    known = [
        Eigenpair(
            value=value, residual=residual, interval=(value - residual, value + residual),
            converged=residual <= tolerance(settings) * pairs.norm,
            gradient_cosine_squared=None if cosines is None else float(cosines[i]),
        )
        for i, (value, residual) in enumerate(zip(pairs.values.tolist(), pairs.residuals.tolist(), strict=True))
    ]  # fmt: skip
    if not subsampled(problem, settings):
        return known
    sides: list[Side] = ["inside"] * len(known)
    if settings.which in ("largest", "both"):
        sides[0] = "top"
    if settings.which in ("smallest", "both"):
        sides[-1] = "bottom"
    probes = images(settings, operator, PROBES)
    errors = eigenvalue_errors(problem, settings, pairs.values, pairs.vectors, sides, probes)
    # What a part of the examples leaves flat the others may fill: of that no error is known.
    zero = settings.damping + noise(settings) * pairs.norm if operator.psd else -np.inf
    return [
        pair if pair.value <= zero or (side == "bottom" and pair.value >= -noise(settings) * pairs.norm) else
        widened(pair, error, positive=operator.psd or (side == "top" and pair.value > 0))
        for pair, error, side in zip(known, errors, sides, strict=True)
    ]  # fmt: skip


def _cosines_squared(vectors: Array | np.ndarray, gradient: Array) -> np.ndarray | None:
    """cos² of the angle between each unit vector and the gradient, in float64; None for a zero gradient."""
    direction = np.asarray(gradient, np.float64)
    norm = float(np.linalg.norm(direction))
    if norm == 0:
        return None
    direction = direction / norm
    cosines = [float(np.asarray(vectors[i], np.float64) @ direction) for i in range(len(vectors))]
    return np.minimum(np.square(cosines), 1.0)


def _unconverged(result: EigsResult, settings: EigsSettings, tolerated: float) -> list[str]:
    """A warning that says how many pairs have not converged, and what to do; none where all have."""
    missed = [pair.residual for pair in result.eigenvalues if not pair.converged]
    if not missed:
        return []
    precision = ", or --dtype float64 if it is rounding" if settings.dtype == "float32" else ""
    return [
        f"{len(missed)} of {len(result.eigenvalues)} eigenvalues have not converged (residual up to "
        f"{max(missed):.2g}, asked for {tolerated:.2g}): allow more products with --probes, a larger --tol{precision}"
    ]


def _arrays(problem: Problem, dim: int, pairs: Pairs) -> dict[str, np.ndarray]:
    """What goes into the file of `--vectors`: the vectors by parameter path, or as they are for the kernel."""
    vectors = np.asarray(pairs.vectors)
    arrays = {"eigenvalues": pairs.values, "residuals": pairs.residuals}
    if dim != problem.dim:
        return {**arrays, "vectors": vectors}
    by_path = Layout.of(problem.params).unravel(vectors)
    return {**arrays, **{f"vectors/{name}": np.asarray(rows) for name, rows in by_path.items()}}
