"""(C + λI) s = b for the right-hand sides of `influence`: λ, the solver, and what became of every system."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import Array

from curvcli import journal
from curvcli.analyses.common import planning, preconditioners
from curvcli.analyses.common.dense import DENSE_BLOCK, DENSE_DIM, factor_rows, written_out
from curvcli.analyses.influence.solves import Newton, Solve, packed, records_of, unpacked
from curvcli.analyses.spectrum import eigenvalue, noise
from curvcli.curvature import build
from curvcli.curvature.kronecker.factors import Kronecker
from curvcli.curvature.kronecker.running import Running
from curvcli.errors import NumericsError
from curvcli.linalg.iterate import Monitor, iterate
from curvcli.linalg.krylov.lanczos import Lanczos
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.probes import sphere
from curvcli.linalg.solvers import cg, minres, neumann
from curvcli.linalg.solvers.solution import Solution, Status, residual
from curvcli.problem import Problem
from curvcli.schema.estimate import Eigenvalue
from curvcli.schema.influence import DampingChoice, InfluenceSettings, InfluenceSolve, SolverName
from curvcli.schema.matrices import FACTORED
from curvcli.streams import Stream

SCOUTS, STEPS, FEW_STEPS = 2, 40, 12
"""Lanczos processes, and their steps, that look at a spectrum before anything is solved; few where no eigenvalue can
be negative: the largest and the mean are then all that is asked."""

GRADIENT = 0.01
"""Relative residual of the Newton step at least, of which the decrement alone is wanted."""

WORTHLESS = 0.5
"""A relative residual above this leaves no digit, and no order, of what is read off a solution."""

SHARE = 0.1
"""Of the mean eigenvalue of C: λ where the regulariser does not make C regular."""

REGULAR = 16
"""Times the rounding of products: from there on the smallest eigenvalue is known well enough to divide by it."""

BLOCK = 128
"""Right-hand sides in one block, at most."""


class Extent(NamedTuple):
    """Where the eigenvalues of a matrix lie."""

    low: Eigenvalue
    high: float
    mean: float


@dataclass
class System:
    """C + λI, and how systems with it are solved.

    Parameters
    ----------
    problem
        Whose matrix it is.
    matrix
        C, its products counted.
    low
        The smallest eigenvalue found of C.
    values, vectors
        All eigenvalues of C and its eigenvectors in columns, where it is written out.
    at_once
        Right-hand sides in a block.
    root
        v ↦ P^(−1/2) v of a preconditioner P for `cg`.
    factors
        What stands for C in the solvers `kfac` and `ekfac`, without λ.
    scale
        Of `neumann`, once it was found.
    solves
        What became of every system.
    solver_changed
        Warnings that another solver went on where the first one met what it cannot solve.
    """

    problem: Problem
    matrix: LinearOperator
    solver: SolverName
    choice: DampingChoice
    damping: float
    low: Eigenvalue
    settings: InfluenceSettings
    monitor: Monitor
    at_once: int
    values: np.ndarray | None = None
    vectors: np.ndarray | None = None
    root: Callable[[Array], Array] | None = None
    factors: Kronecker | None = None
    scale: float | None = None
    solves: list[Solve] = field(default_factory=list)
    solver_changed: list[str] = field(default_factory=list)

    @property
    def operator(self) -> LinearOperator:
        """C + λI."""
        return self.matrix.shifted(self.damping)

    def solve(
        self, rhs: Array, names: Sequence[str], *, one_record: bool = False, after_step: cg.Each | None = None
    ) -> Array:
        """s [k, D] for right-hand sides [k, D].

        Parameters
        ----------
        names
            What each belongs to, for the records.
        one_record
            Whether one record stands for all, the worst of each figure, named by the first name.
        after_step
            Called after every step of `cg` with the number of steps and the solutions so far.

        Raises
        ------
        NumericsError
            Conjugate gradients met negative curvature: there is no solution to give.
        """
        solution = self._solution(rhs, np.full(len(rhs), self.settings.tol), after_step)
        if one_record:
            record = InfluenceSolve(
                of=names[0],
                status=min(solution.status, key=lambda status: status == "converged"),
                residual=float(np.max(solution.residuals)),
                iterations=int(np.max(solution.iterations)),
                lowest_curvature=None if self.factors is not None else float(np.min(solution.lowest)),
            )
            self.solves.append(Solve(record, self.settings.tol))
        else:
            self.solves += [Solve(record, self.settings.tol) for record in records_of(solution, names)]
        return solution.x

    def solve_newton(
        self, gradient: Array, rhs: Array | None = None, names: Sequence[str] = ()
    ) -> tuple[Array, Newton]:
        """Solutions [k, D] for right-hand sides [k, D], as `solve`, and the Newton step, all in one block.

        Of the Newton step only the decrement is asked for: its tolerance is `GRADIENT` at least.
        """
        right = gradient[None] if rhs is None else jnp.concatenate([rhs, gradient[None]])
        tols = np.full(len(right), self.settings.tol)
        tols[-1] = max(self.settings.tol, GRADIENT)
        solution = self._solution(right, tols)
        *others, newton = records_of(solution, [*names, "gradient"])
        self.solves += [Solve(record, self.settings.tol) for record in others]
        self.solves.append(Solve(newton, float(tols[-1]), scored=False))
        return solution.x[:-1], Newton(solution.x[-1], newton)

    @property
    def records(self) -> list[InfluenceSolve]:
        """What became of every system, as the report has it."""
        return [solve.record for solve in self.solves]

    def _solution(self, rhs: Array, tols: np.ndarray, after_step: cg.Each | None = None) -> Solution:
        if self.values is not None:
            return self._exact(rhs)
        return self._recalled(rhs, tols) if after_step is None else self._in_blocks(rhs, tols, after_step)

    def by_factors(self, power: float, vectors: Array) -> Array:
        """K^power of vectors [k, D], K the factors with λ. No product."""
        assert self.factors is not None
        damped = _damped(self.factors, self.damping, self.choice, self.settings)
        return damped.function(lambda values: values**power)(vectors)

    def _exact(self, rhs: Array) -> Solution:
        assert self.values is not None
        assert self.vectors is not None
        shifted, b = self.values + self.damping, np.asarray(rhs, np.float64)
        cut = noise(self.settings) * float(np.abs(self.values).max(initial=0.0))
        inverse = np.where(np.abs(shifted) > cut, 1 / np.where(shifted == 0, 1.0, shifted), 0.0)
        along, sizes = b @ self.vectors, np.linalg.norm(b, axis=1)
        x = jnp.asarray((along * inverse) @ self.vectors.T, self.matrix.dtype)
        starts = range(0, len(b), self.at_once)
        measured = [residual(self.operator, rhs[i : i + self.at_once], x[i : i + self.at_once])[1] for i in starts]
        relative, tol = np.concatenate(measured), max(self.settings.tol, 1e-10)
        outside = np.linalg.norm(along[:, inverse == 0], axis=1) > tol * sizes
        status: list[Status] = [
            "least-squares" if cut else "converged" if size <= 2 * tol else "not-converged"
            for cut, size in zip(outside, relative, strict=True)
        ]
        count, lowest, norm = len(b), float(shifted.min()), float(np.abs(shifted).max())
        return Solution(x, status, relative, np.zeros(count, int), np.full(count, lowest), np.full(count, norm))

    def _recalled(self, rhs: Array, tols: np.ndarray) -> Solution:
        """All systems, those left out that a run with fewer of them has solved (`curvcli.journal`)."""
        asked = self.settings.model_dump(include={"matrix", "regulariser", "solver", "precondition", "factors", "tol"})
        name = (self.damping, self.settings.seed, self.settings.max_probes, *asked.values())
        rows = journal.finished_rows(self.problem, rhs, *name)
        new = np.array([i for i, row in enumerate(rows) if row is None], int)
        if not len(new):
            return unpacked(np.stack(rows), self.matrix.dtype)
        found = self._in_blocks(rhs if len(new) == len(rhs) else rhs[new], tols[new])
        good = np.array([status == "converged" for status in found.status])
        if good.any():
            journal.keep_rows(self.problem, rhs[new[good]], packed(found)[good], *name)
        if len(new) == len(rhs):
            return found
        for i, row in zip(new, packed(found), strict=True):
            rows[i] = row
        return unpacked(np.stack(rows), self.matrix.dtype)

    def _in_blocks(self, rhs: Array, tols: np.ndarray, after_step: cg.Each | None = None) -> Solution:
        starts = range(0, len(rhs), self.at_once)
        blocks = [self._iterated(rhs[i : i + self.at_once], tols[i : i + self.at_once], after_step) for i in starts]
        return Solution(
            jnp.concatenate([block.x for block in blocks]),
            [status for block in blocks for status in block.status],
            *(np.concatenate([getattr(block, name) for block in blocks]) for name in Solution._fields[2:]),
        )

    def _iterated(self, rhs: Array, tols: np.ndarray, after_step: cg.Each | None) -> Solution:
        settings, steps = self.settings, min(self.settings.max_probes, 4 * self.matrix.dim)
        tol, shared = float(tols.min()), {"max_steps": steps, "monitor": self.monitor}
        if self.factors is not None:
            x = self.by_factors(-1.0, rhs)
            _, left = residual(self.operator, rhs, x)
            count, status = len(rhs), cast(Any, ["approximate"] * len(rhs))  # known here alone, not to the solvers
            return Solution(x, status, left, np.zeros(count, int), np.zeros(count), np.zeros(count))
        if self.solver == "minres":
            return minres.solve(self.operator, rhs, tol=tol, **shared)
        if self.solver == "neumann":
            if self.scale is None:
                key = Stream.NEUMANN_SCALE.key(settings.seed)
                self.scale = neumann.safe_scale(self.operator, key, self.monitor)
            shared["max_steps"] = settings.max_probes
            return neumann.solve(self.operator, rhs, tol=tol, scale=self.scale, **shared)
        solution = cg.solve(self.operator, rhs, tol=tols, root=self.root, each=after_step, **shared)
        if "indefinite" in solution.status:
            if settings.solver == "cg" or settings.per_iteration:
                raise indefinite(settings, float(np.min(solution.lowest)))
            self.solver_changed.append(
                f"conjugate gradients met negative curvature ({float(np.min(solution.lowest)):.2g}): MINRES goes on"
            )
            self.solver = "minres"
            return self._iterated(rhs, tols, after_step)
        return solution

    def remarks(self) -> list[str]:
        """Warnings where a solution is less than it was asked to be."""
        remarks = [*self.solver_changed]
        if self.factors is not None:
            middle = float(np.median([record.residual for record in self.records]))
            remarks.append(
                f"{self.solver} stands for the inverse of the {self.settings.matrix}: applied to its solutions, that "
                f"matrix is off the right-hand sides by {middle:.2g} (median); --solver cg is exact"
            )
        weak = [solve for solve in self.solves if solve.record.status not in ("converged", "approximate")]
        if weak:
            worst, tol, _ = max(weak, key=lambda solve: solve.record.residual)
            cure = "more --probes, more --damping" + ("" if self.settings.dtype == "float64" else ", --dtype float64")
            remarks.append(
                f"{len(weak)} of {len(self.records)} solves have not converged (relative residual up to "
                f"{worst.residual:.2g} for {worst.of}, asked for {tol:.2g}): {cure}"
            )
            lost = sum(solve.record.residual > WORTHLESS and solve.scored for solve in weak)
            if lost:
                remarks.append(f"{lost} of them have residuals above {WORTHLESS}: what is said of these means nothing")
        low = min((low for record in self.records if (low := record.lowest_curvature) is not None), default=0.0)
        if low < -noise(self.settings) * max(self.choice.lambda_max, abs(self.choice.lambda_min)):
            remarks.append(
                f"{self.settings.matrix} + λI is indefinite (an eigenvalue of {low:.2g} or below): the responses are "
                "those of a stationary point that is no minimum; use --matrix ggn, or more --damping"
            )
        return remarks


def indefinite(settings: InfluenceSettings, low: float) -> NumericsError:
    """What to raise where conjugate gradients have no solution to give."""
    return NumericsError(
        f"{settings.matrix} + λI has negative curvature ({low:.2g}): conjugate gradients have no solution there",
        "use --solver minres, --matrix ggn, or more --damping",
    )


def is_dense(problem: Problem, settings: InfluenceSettings) -> bool:
    """Whether C is written out."""
    if settings.per_iteration:
        return False
    return settings.solver == "dense" or (settings.solver == "auto" and problem.dim <= DENSE_DIM)


def chooses_by_all(problem: Problem, settings: InfluenceSettings) -> bool:
    """Whether λ is chosen from all eigenvalues of C: it is the same whatever the solver, and C small enough."""
    return settings.damping == "auto" and problem.dim <= DENSE_DIM


def undamped(problem: Problem, settings: InfluenceSettings, name: str) -> LinearOperator:
    """The matrix of this name, without λ."""
    return build(problem, name, with_regulariser=settings.regulariser, seed=settings.seed)


def prepare(
    problem: Problem,
    settings: InfluenceSettings,
    matrix: LinearOperator,
    at_once: int,
    factors: Running | None,
    monitor: Monitor,
) -> tuple[System, list[str]]:
    """C examined, λ chosen, the solver set up; and warnings.

    Parameters
    ----------
    factors
        Those that the settings ask for, as solver or as preconditioner.

    Notes
    -----
    Cost: D products where C is written out, or λ is chosen for a small C (up to 1500 parameters), else those of
    `scouted`; some passes over the data for a preconditioner.
    """
    values = vectors = root = low = None
    warnings: list[str] = []
    dense, whole = is_dense(problem, settings), chooses_by_all(problem, settings)
    if dense or whole:
        values, vectors = scipy.linalg.eigh(written_out(matrix, min(DENSE_BLOCK, matrix.dim), monitor))
        low = known(float(values[0]), float(np.abs(values).max()), settings)
    if values is not None and low is not None and (whole or settings.damping != "auto"):
        extent = Extent(low, float(values[-1]), float(values.mean()))
    else:
        extent = scouted(matrix, settings, monitor)
    damping, choice = choose_damping(problem, settings, extent)
    if not dense:
        values = vectors = None
    if values is not None:
        solver: SolverName = "dense"
    elif settings.solver == "auto":
        positive = matrix.psd or extent.low.value + damping > noise(settings) * extent.high
        solver = "cg" if positive or settings.per_iteration else "minres"
    else:
        solver = settings.solver
    kronecker = None if factors is None or solver not in (*FACTORED, "cg") else factors.at(problem, 0)
    if solver == "cg" and settings.precondition == "diagonal":
        root = _diagonal_root(problem, settings, damping)
    elif solver == "cg" and kronecker is not None:
        stand_in = _damped(kronecker, damping, choice, settings)
        root = stand_in.function(lambda eigenvalues: eigenvalues**-0.5)
    elif settings.factors_from is not None and kronecker is None:
        warnings.append(f"--factors-from: the solver is {solver}, and the factors are not used; ask for --solver cg")
    system = System(
        problem, matrix, solver, choice, damping, low or extent.low, settings, monitor, at_once,
        values, vectors, root, kronecker if solver in FACTORED else None,
    )  # fmt: skip
    return system, warnings


def scouted(
    matrix: LinearOperator, settings: InfluenceSettings, monitor: Monitor, *, processes: int = SCOUTS
) -> Extent:
    """Extremes and mean from short Lanczos processes; both extremes are inside the true ones.

    Cost: `processes` times `STEPS` products, or `FEW_STEPS` where the matrix is positive semidefinite.
    """
    key = Stream.SPECTRUM_SCOUTS.key(settings.seed)
    start = sphere(key, 0, min(processes, matrix.dim), matrix.dim, matrix.dtype)
    lanczos = Lanczos(start, min(FEW_STEPS if matrix.psd else STEPS, matrix.dim))
    planned = len(start) * lanczos.steps
    state = iterate(lanczos, matrix, None, monitor=monitor, stage="looking at the spectrum", planned=planned)
    found = [(one, *one.eigh()) for one in lanczos.result(state)]
    high, mean = max(float(v[-1]) for _, v, _ in found), float(np.mean([one.alpha[0] for one, _, _ in found]))
    one, values, ritz = min(found, key=lambda item: item[1][0])
    norm = max(abs(high), abs(float(values[0])))
    residual = max(abs(float(one.beta[-1] * ritz[-1, 0])), noise(settings) * norm)
    return Extent(eigenvalue(float(values[0]), residual, residual <= settings.tol * norm, None), high, mean)


def known(value: float, norm: float, settings: InfluenceSettings) -> Eigenvalue:
    """An eigenvalue of a matrix written out, to within its rounding."""
    return eigenvalue(value, noise(settings) * norm, True, None)


def choose_damping(problem: Problem, settings: InfluenceSettings, extent: Extent) -> tuple[float, DampingChoice]:
    """λ as given; else 0 where the regulariser makes C regular, or a small C is; a tenth of C's mean eigenvalue where
    not, and as much more as lifts a negative one above zero. It does not depend on the solver."""
    low, high = extent.low.value, extent.high
    said = {"lambda_max": high, "lambda_min": low, "mean": extent.mean}
    if settings.damping != "auto":
        return settings.damping, DampingChoice(chosen="given", reason="as asked for", **said)
    floor = noise(settings) * max(high, abs(low))
    l2 = problem.regulariser.l2 if settings.regulariser_included else 0.0
    if l2 > floor and low > 0.5 * l2:
        return 0.0, DampingChoice(chosen="auto", reason=f"l2 = {l2:g} makes C regular", **said)
    if chooses_by_all(problem, settings) and low > REGULAR * floor:
        return 0.0, DampingChoice(chosen="auto", reason=f"C is regular (λ_min {low:.2g})", **said)
    lift = -1.1 * low if low < -floor else 0.0
    damping = SHARE * abs(extent.mean) + lift
    reason = f"{SHARE:g} of the mean eigenvalue {extent.mean:.3g}" + (f", and {lift:.2g} over λ_min" if lift else "")
    return max(damping, floor), DampingChoice(chosen="auto", reason=reason, **said)


def _diagonal_root(problem: Problem, settings: InfluenceSettings, damping: float) -> Callable[[Array], Array]:
    """v ↦ v/√d, d the diagonal of the GGN + λI."""
    diagonal = preconditioners.ggn_diagonal(problem, settings)
    inverse = preconditioners.inverse_diagonal(problem, settings, diagonal, damping)
    return preconditioners.root_of_diagonal(inverse, problem.dtype)


def _damped(factors: Kronecker, damping: float, choice: DampingChoice, settings: InfluenceSettings) -> Kronecker:
    """With λ, and no eigenvalue near zero."""
    matrix = factors.damped(damping)
    least = SHARE * abs(choice.mean) if matrix.shift <= noise(settings) * choice.lambda_max else 0.0
    return matrix.damped(least)


def vectors_at_once(problem: Problem, settings: InfluenceSettings, rows: int) -> planning.MemoryPlan:
    """Right-hand sides in a block, beside `rows` of them and their solutions."""
    if is_dense(problem, settings):
        plan = planning.plan_dense(problem.dim, DENSE_BLOCK, settings.max_memory)
        return planning.MemoryPlan(min(max(rows, 1), BLOCK), plan.bytes + 16 * rows * problem.dim)
    factors = factor_rows(problem, preconditioners.recipe_of(settings)) if settings.factored is not None else 0
    whole = 24 * problem.dim // problem.dtype.itemsize if chooses_by_all(problem, settings) else 0
    return planning.plan_vectors(
        problem,
        settings,
        problem.dim,
        rows=2 * rows + STEPS * SCOUTS + factors + whole,
        block=min(max(rows, 1), BLOCK),
        growing=planning.Growing("solve for {} at once: fewer --queries, or --samples", rows, 2),
    )
