"""Stochastic Lanczos quadrature, in rounds of probes that advance in lockstep.

After each round its bases are given up, but for what later stages build on: the Krylov space that reaches furthest at
either end (the start of the refinement of the extremes), and the outlying Ritz vectors (deflation).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jax import Array
from jax.typing import DTypeLike

from curvcli.linalg.iterate import Monitor, Offset, iterate
from curvcli.linalg.krylov import basis as bases
from curvcli.linalg.krylov import spaces as krylov
from curvcli.linalg.krylov.bounds import Measure
from curvcli.linalg.krylov.lanczos import Lanczos, LanczosState, Tridiagonal, check_powers
from curvcli.linalg.krylov.offload import Store
from curvcli.linalg.krylov.quadrature import ENOUGH_STEPS, NO_OUTLIERS, Outliers, Quadrature, leave_one_out
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.probes import sphere
from curvcli.linalg.reductions import inner_products

OUTLIERS_PER_PROBE = 16
OUTLIERS_IN_ALL = 128
"""Ritz vectors kept for deflation: from the first probes on, until there are this many."""

KEPT = 24
"""Ritz vectors kept of the Krylov space that reaches furthest at one end; half as many at its other end."""


@dataclass
class Collected:
    """What all rounds so far have found."""

    tridiagonals: list[Tridiagonal] = field(default_factory=list)
    low: krylov.KrylovSpace | None = None
    high: krylov.KrylovSpace | None = None
    outliers: list[tuple[int, np.ndarray, Array | np.ndarray]] = field(
        default_factory=list
    )  # probe, values [r], vectors [r, dim]
    products: int = 0
    eps: float = 0.0  # of the products' dtype

    @property
    def probes(self) -> int:
        """Probes so far."""
        return len(self.tridiagonals)

    @property
    def measures(self) -> list[Measure]:
        """The quadrature of each probe."""
        return [Measure.of(t, self.eps) for t in self.tridiagonals]


@dataclass(frozen=True)
class Slq:
    """The settings of a run.

    Parameters
    ----------
    steps, reorthogonalize
        Of each Lanczos process.
    deflate
        Whether outlying Ritz vectors are kept; needs reorthogonalisation.
    store
        Where bases and Ritz vectors are kept; None: on the device.
    """

    steps: int
    reorthogonalize: Literal["full", "none"]
    deflate: bool
    store: Store | None = None

    def round(
        self,
        operator: LinearOperator,
        key: Array,
        count: int,
        collected: Collected,
        monitor: Monitor,
        planned: int,
    ) -> None:
        """Run `count` further probes and add what they find. Cost: count·steps products, memory count·steps·dim."""
        first = len(collected.tridiagonals)
        start = sphere(key, first, count, operator.dim, operator.dtype)
        algorithm = Lanczos(start, self.steps, self.reorthogonalize, self.store)
        state = iterate(
            algorithm,
            operator,
            key,
            monitor=Offset(monitor, collected.products),
            stage="density",
            planned=planned,
        )
        collected.products += state.products
        if self.reorthogonalize == "full":
            found = algorithm.result(state)
            _keep_extremes(collected, state, found)
            if self.deflate:
                for probe, tridiagonal in enumerate(found):
                    _keep_outliers(collected, state, probe, tridiagonal)
        collected.tridiagonals += algorithm.result(state)
        collected.eps = float(np.finfo(operator.dtype).eps)


def _keep_extremes(collected: Collected, state: LanczosState, found: list[Tridiagonal]) -> None:
    """Keep the Krylov spaces that reach furthest, if no earlier one reaches further; they are copies."""
    ends = np.array([tridiagonal.eigh()[0][[0, -1]] for tridiagonal in found])
    lowest, highest = int(ends[:, 0].argmin()), int(ends[:, 1].argmax())
    if ends[highest, 1] > _top(collected.high):
        collected.high = None  # before another takes its place
        collected.high = krylov.compress(krylov.from_lanczos(state, highest), (KEPT // 2, KEPT))
    if ends[lowest, 0] < -_top(collected.low, sign=-1):
        collected.low = None
        collected.low = krylov.compress(krylov.from_lanczos(state, lowest), (KEPT, KEPT // 2))


def _top(space: krylov.KrylovSpace | None, sign: int = 1) -> float:
    """The largest eigenvalue of ±T; −∞ for no space."""
    return -np.inf if space is None else float(np.linalg.eigvalsh(sign * space.projected)[-1])


def _keep_outliers(collected: Collected, state: LanczosState, probe: int, tridiagonal: Tridiagonal) -> None:
    """Keep the Ritz vectors that are outlying and have converged, while there is room."""
    room = min(OUTLIERS_PER_PROBE, OUTLIERS_IN_ALL - sum(len(values) for _, values, _ in collected.outliers))
    values, vectors = tridiagonal.eigh()
    converged = tridiagonal.beta[-1] * np.abs(vectors[-1]) <= 1e-3 * np.abs(values)
    order = np.argsort(-np.abs(values), kind="stable")
    chosen = np.array([i for i in order if converged[i] and values[i] != 0][:room], int)
    if not len(chosen):
        return
    basis = bases.single(state.basis, probe)
    # As many rows whatever is found, the last ones zero: another number would be compiled anew.
    weights = np.zeros((1, -(-OUTLIERS_PER_PROBE // 8) * 8, basis.size))
    weights[0, : len(chosen), : len(values)] = vectors[:, chosen].T
    owner = len(collected.tridiagonals) + probe
    found = bases.combine(basis, weights)[0]
    collected.outliers.append((owner, values[chosen], found if basis.store is None else basis.store.keep(found)))


def quadrature(collected: Collected, key: Array, operator: LinearOperator) -> Quadrature:
    """The quadrature of all probes so far, deflated where outliers were kept."""
    measures, dim = collected.measures, operator.dim
    check_powers(max(float(np.abs(m.nodes).max()) for m in measures), np.float64)
    outliers = [NO_OUTLIERS] * len(measures)
    if collected.outliers:
        outliers = _outliers(collected, key, dim, operator.dtype)
    eps = float(np.finfo(operator.dtype).eps)
    cut_off = [not t.invariant and len(t.alpha) < ENOUGH_STEPS for t in collected.tridiagonals]
    if any(cut_off):
        # One row more, with any α: T then has the moments up to degree 2m, ‖Av‖² after the first step among them.
        measures = [
            Measure.of(_one_row_more(t)) if short else m
            for t, m, short in zip(collected.tridiagonals, measures, cut_off, strict=True)
        ]
    nodes, weights = [m.nodes for m in measures], [m.weights for m in measures]
    return Quadrature(dim, nodes, weights, outliers, 100 * eps, eps, any(cut_off))


def _one_row_more(t: Tridiagonal) -> Tridiagonal:
    return t._replace(alpha=np.append(t.alpha, t.alpha[-1]), beta=np.append(t.beta, 0.0))


def _outliers(collected: Collected, key: Array, dim: int, dtype: DTypeLike) -> list[Outliers]:
    """For each probe the outliers that the others know."""
    owners = np.concatenate([np.full(len(values), owner) for owner, values, _ in collected.outliers])
    values = np.concatenate([values for _, values, _ in collected.outliers])
    blocks = [(len(values), rows) for _, values, rows in collected.outliers]
    count = len(collected.tridiagonals)

    def along(rows: Array | np.ndarray, found: int) -> np.ndarray:
        """The first rows' products with all vectors."""
        return np.hstack([np.asarray(inner_products(rows, block), np.float64)[:found, :size] for size, block in blocks])

    # Start vectors are drawn again, not kept: they cost less than the memory.
    overlaps = np.vstack([along(sphere(key, i, 1, dim, dtype), 1) for i in range(count)])
    gram = np.vstack([along(block, size) for size, block in blocks])
    return leave_one_out(owners, values, gram, overlaps)
