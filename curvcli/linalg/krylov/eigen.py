"""Extreme eigenpairs by block Lanczos with thick restarts, from any Krylov space that exists already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.compiling import jit
from curvcli.devices import on_host
from curvcli.linalg.krylov import basis as bases
from curvcli.linalg.krylov import bounds
from curvcli.linalg.krylov import spaces as krylov
from curvcli.linalg.krylov.lanczos import normalise, not_finite
from curvcli.linalg.krylov.spaces import KrylovSpace, Ritz
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.probes import sphere

WIDEST = 8
"""Vectors in the blocks that look for missed copies, at most."""

MISSED = 0.01
"""Probability with which a search for missed copies may end although there are some (in exact arithmetic)."""


class Search(NamedTuple):
    """Everything that a step changes."""

    space: KrylovSpace
    ritz: Ritz | None  # of the space as it was when last looked at
    products: int
    width: int  # vectors that the front is filled up to
    starts: int  # random vectors that the space rests on
    settled: int  # those of them whose search for copies is over
    age: int  # steps since the last of them came in
    room: int  # of these, steps before the first restart
    first: int  # steps until the wanted pairs had first converged; 0 before
    restarts: int


class EigenResult(NamedTuple):
    """Approximate eigenpairs, in ascending order."""

    values: np.ndarray  # [r]
    vectors: Array  # [r, dim], orthonormal
    residuals: np.ndarray  # [r], ‖A y − θ y‖ as the recurrence has it


@dataclass(frozen=True)
class ThickRestart:
    """The k extreme eigenpairs, or `low` and `high` of them at either end.

    Parameters
    ----------
    low, high
        How many eigenpairs at each end.
    tol
        Residual relative to ‖A‖ at which a pair has converged.
    capacity
        Rows of the basis before it is compressed to the Ritz vectors at both ends; at least low + high + 3·block.
    max_products
        Products that may be spent.
    start
        The space to go on from; at least a front.
    key
        Where fresh random vectors come from.
    magnitude
        The low + high pairs of largest |θ| instead, at whichever end they are.
    widest
        Vectors in a block, at most; the blocks are as wide as the start's front until copies are looked for.

    Notes
    -----
    What is found, and what may be missed. In exact arithmetic a block Krylov space from b random vectors holds, with
    probability one, min(b, m) vectors of an m-fold eigenspace, and they converge together. So where every group of
    wanted values that agree within tol·‖A‖ has fewer members than there were random vectors, none is missing. A group
    with as many members as random vectors may be part of a larger one; if it lies inside the wanted range (not at its
    inner edge, where a further copy would not change the values), the wanted pairs are set aside and the search begins
    anew from fresh random vectors orthogonal to them, in blocks that grow to `widest`. It ends when the bound of
    Kuczyński and Woźniakowski says that a copy would have shown itself, but for a probability of 0.01; or when it has
    had as many steps as the first convergence took, which makes a missed copy unlikely but proves nothing; or when the
    products are spent.

    An invariant space is no end as long as pairs are wanting: fresh random vectors take the place of directions that
    have become rounding.

    Cost: b products a step; memory (capacity + what a restart keeps)·dim.
    Source: Wu and Simon (2000), *Thick-restart Lanczos method for large symmetric eigenvalue problems*; Zhou and Saad
    (2008), *Block Krylov–Schur method for large symmetric eigenvalue problems*.
    """

    low: int
    high: int
    tol: float
    capacity: int
    max_products: int
    start: KrylovSpace
    key: Array | None = None
    magnitude: bool = False
    widest: int = WIDEST

    def init(self, operator: LinearOperator, key: Array | None = None) -> Search:
        """The space given."""
        space, width = self.start, max(len(self.start.front), 1)
        look = krylov.ritz(space) if space.size else None
        return Search(space, look, 0, width, width, width, 0, self.capacity, 0, 0)

    def step(self, operator: LinearOperator, state: Search) -> Search:
        """One block of products, after a restart where the basis is full."""
        state = self._filled(operator, state)
        if state.space.size + len(state.space.front) > self.capacity:
            state = self._restarted(state)
        space = krylov.extend(operator, state.space)
        spent = state.products + space.size - state.space.size
        look, looked = state.ritz, 0 if state.ritz is None else len(state.ritz.values)
        # The small eigenproblem is solved when there can be enough pairs, and then for every 1/32 of growth: at each
        # step it would outweigh cheap products.
        ended = not len(space.front) or space.size == operator.dim or spent >= self.max_products
        enough, grown = space.size >= self.low + self.high, space.size - looked >= max(1, space.size // 32)
        if ended or space.size < looked or (enough and grown):
            look = krylov.ritz(space)
        return state._replace(space=space, ritz=look, products=spent, age=state.age + 1)

    def done(self, state: Search) -> bool:
        """Converged with no copy in doubt, exhausted, or out of products."""
        if state.ritz is None:
            return False
        whole = state.space.size == state.space.basis.dim
        return whole or state.products >= self.max_products or (self._converged(state) and not self._suspects(state))

    def products(self, state: Search) -> int:
        """Products spent here; those that built the starting space were counted before."""
        return state.products

    def said(self, state: Search) -> str:
        """The outermost eigenvalues found, and how many of those wanted have converged."""
        if state.ritz is None:
            return ""
        (low, high), pairs = self._ends(state.ritz.values), state.ritz
        wanted = np.r_[pairs.residuals[:low], pairs.residuals[len(pairs.residuals) - high :]]
        ready = int(np.sum(wanted <= self.tol * self._norm(state)))
        ends = [pairs.values[0]] * (self.low > 0) + [pairs.values[-1]] * (self.high > 0)
        return f"λ {' … '.join(f'{one:.4g}' for one in ends)}, {ready} of {self.low + self.high} converged"

    def in_doubt(self, state: Search) -> bool:
        """Whether equal eigenvalues may have further copies that were not found."""
        return state.ritz is not None and self._suspects(state)

    def result(self, state: Search) -> EigenResult:
        """The wanted Ritz pairs."""
        pairs = krylov.ritz(state.space)
        low, high = self._ends(pairs.values)
        pairs = pairs.take(np.r_[:low, len(pairs.values) - high : len(pairs.values)].astype(int))
        return EigenResult(pairs.values, bases.combine(state.space.basis, pairs.vectors.T[None])[0], pairs.residuals)

    def _filled(self, operator: LinearOperator, state: Search) -> Search:
        """Fresh random vectors where the front has lost some, and where copies are to be looked for."""
        if state.ritz is not None and self._converged(state) and self._over(state) and self._suspects(state):
            wanted = self._ends(krylov.ritz(state.space).values)
            space = krylov.compress(krylov.without_front(state.space), wanted)
            width = min(2 * state.width, self.widest) if state.starts > state.width else state.width
            first = state.first or state.products // state.width
            state = state._replace(space=space, width=width, first=first, restarts=state.restarts + 1)
        missing = min(state.width, operator.dim - state.space.size) - len(state.space.front)
        if missing <= 0:
            return state
        if state.space.size + state.width > self.capacity:
            state = self._restarted(state)
        assert self.key is not None
        fresh = sphere(self.key, state.starts, missing, operator.dim, operator.dtype)
        return state._replace(
            space=krylov.add_directions(state.space, fresh), settled=self._settled(state),
            starts=state.starts + missing, age=0, room=(self.capacity - state.space.size) // state.width,
        )  # fmt: skip

    def _restarted(self, state: Search) -> Search:
        space = krylov.compress(state.space, self._kept(state))
        return state._replace(space=space, restarts=state.restarts + 1)

    def _ends(self, values: np.ndarray) -> tuple[int, int]:
        """How many of these ascending values are wanted at the low and at the high end."""
        size = len(values)
        if self.magnitude:
            chosen = np.argsort(-np.abs(values), kind="stable")[: self.low + self.high]
            # They are a prefix and a suffix, since |θ| falls and then rises; a zero counts as high.
            low = int(np.sum(values[chosen] < 0))
            return low, len(chosen) - low
        low = min(self.low, size)
        return low, min(self.high, size - low)

    def _kept(self, state: Search) -> tuple[int, int]:
        """Ritz vectors kept at each end in a restart: the wanted ones, a margin, and some at either end.

        Without the other end the large eigenvalues there would have to be found anew after every restart before small
        ones can be told apart.
        """
        pairs = krylov.ritz(state.space)
        low, high = self._ends(pairs.values)
        extra = max(self.capacity * 3 // 5 - low - high, (self.capacity - low - high - 2 * state.width) // 2)
        share = extra * (low + high + low) // (3 * max(low + high, 1))  # between a third and two thirds
        return low + share, high + extra - share

    def _converged(self, state: Search) -> bool:
        assert state.ritz is not None
        low, high = self._ends(state.ritz.values)
        if low + high < self.low + self.high:
            return False
        residuals = state.ritz.residuals
        wanted = np.r_[residuals[:low], residuals[len(residuals) - high :]]
        return not len(state.space.front) or bool(np.all(wanted <= self.tol * self._norm(state)))

    def _norm(self, state: Search) -> float:
        values = np.zeros(1) if state.ritz is None else state.ritz.values
        return max(float(np.abs(values).max()), state.space.norm)

    def _settled(self, state: Search) -> int:
        return state.starts if self._over(state) else state.settled

    def _over(self, state: Search) -> bool:
        """Whether the search that the latest random vectors began is over: see the notes of the class."""
        if state.settled == state.starts or not len(state.space.front):
            return True
        if state.ritz is None or not state.age:
            return False
        if state.first and state.age >= state.first:
            return True
        steps, dim = min(state.age, state.room), state.space.basis.dim
        short = bounds.shortfall(max(steps, 1), dim, MISSED)
        groups = self._groups(state, state.settled)
        return short < 0.25 and all(
            value - short / (1 - 2 * short) * (value - lowest) > beyond for value, beyond, lowest in groups
        )

    def _suspects(self, state: Search) -> bool:
        """Whether a group of equal wanted values may have further members."""
        return bool(self._groups(state, self._settled(state)))

    def _groups(self, state: Search, members: int) -> list[tuple[float, float, float]]:
        """Groups of equal values inside the wanted range that have at least so many members.

        Each with its value, the first value that is not wanted and the far end of the spectrum; at the low end all
        three with the opposite sign.
        """
        assert state.ritz is not None
        found, values = [], state.ritz.values
        resolution = self.tol * self._norm(state)
        counts = self._ends(values)
        edges = [side * v for side, v in ((-1, values[: counts[0]]), (1, values[len(values) - counts[1] :]))]
        least = min((float(edge.min()) for edge in edges if len(edge)), default=0.0)
        for side, count, edge in zip((-1, 1), counts, edges, strict=True):
            if not count:
                continue
            outermost_first = np.sort(side * values)[::-1]
            inner = least if self.magnitude else float(edge.min())
            wanted = outermost_first[:count]
            for group in np.split(wanted, np.flatnonzero(-np.diff(wanted) > resolution) + 1):
                if len(group) >= members and group[-1] > inner + resolution:
                    beyond = outermost_first[count] if count < len(values) else -np.inf
                    found.append((float(group[-1]), float(beyond), float(outermost_first[-1])))
        return found


def true_residuals(operator: LinearOperator, vectors: Array, block: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Rayleigh quotients θ and residual norms ‖A y − θ y‖ of unit vectors y [r, dim].

    By products in float64 where the operator has them: the rounding of narrower products is then in the residuals, and
    [θ − r, θ + r] contains an eigenvalue of the matrix itself, not of what the narrower products make of it.

    Cost: r products, `block` at a time: a product of so many vectors should be compiled already.
    """
    pairs = [_pair(operator, vectors[start : start + block], block) for start in range(0, len(vectors), block)]
    values, residuals = (np.concatenate([np.asarray(pair[side], np.float64) for pair in pairs]) for side in (0, 1))
    if not np.all(np.isfinite(values + residuals)):
        raise not_finite(operator.dtype)
    return values, residuals


def _pair(operator: LinearOperator, vectors: Array, block: int) -> tuple[Array, Array]:
    """The same of at most `block` vectors; fewer are filled up with zeros, so that there is one shape to compile."""
    count = len(vectors)
    padded = jnp.pad(vectors, ((0, block - count), (0, 0)))
    if operator.precise is None:
        return _residuals(operator.matmat(padded)[:count], vectors)
    images, rows = operator.precise(padded)[:count], on_host(vectors).astype(np.float64)
    values = np.sum(images * rows, axis=1) / np.sum(np.square(rows), axis=1)
    return values, np.linalg.norm(images - values[:, None] * rows, axis=1)


@jit
def _residuals(images: Array, vectors: Array) -> tuple[Array, Array]:
    values = jnp.sum(images * vectors, axis=1) / jnp.sum(jnp.square(vectors), axis=1)
    return values, normalise(images - values[:, None] * vectors)[1]
