"""The matrices that `compare` holds side by side: which of them are distinct, and each as an operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import scipy.linalg
from jax import Array

from curvcli.analyses.common.dense import DENSE_BLOCK, written_out
from curvcli.analyses.common.preconditioners import affordable_sampling
from curvcli.curvature import MATRICES, build
from curvcli.curvature.kronecker.kfac import Recipe
from curvcli.curvature.likelihood import check_output_hessian, difference_in_words
from curvcli.curvature.matrices import check_likelihood
from curvcli.errors import UsageError
from curvcli.linalg.iterate import Monitor
from curvcli.linalg.meter import Meter
from curvcli.linalg.operator import LinearOperator
from curvcli.problem import Problem
from curvcli.schema.compare import DEFAULT, ComparedName, CompareSettings, Equal
from curvcli.schema.matrices import MATRICES as FACTS
from curvcli.schema.matrices import having
from curvcli.schema.settings import MIXED

CLOSED = having("closed_form")
"""Matrices whose eigenvalues and eigenvectors cost no product."""


class Spectral(Protocol):
    """A matrix of which functions can be applied without a product."""

    def eigenvalues(self) -> np.ndarray:
        """All of them, ascending: [dim]."""
        ...

    def function(self, f: Callable[[np.ndarray], np.ndarray]) -> Callable[[Array | np.ndarray], Array | np.ndarray]:
        """Products with f(A): [k, dim] -> [k, dim]."""
        ...


@dataclass(frozen=True)
class Diagonalised:
    """A matrix written out.

    Parameters
    ----------
    matrix
        [D, D], float64.
    values, vectors
        Its eigenvalues, ascending, and eigenvectors in columns.
    """

    matrix: np.ndarray
    values: np.ndarray
    vectors: np.ndarray

    @classmethod
    def of(cls, matrix: np.ndarray) -> Diagonalised:
        """A symmetric matrix. Cost: O(D³)."""
        return cls(matrix, *scipy.linalg.eigh(matrix))

    def eigenvalues(self) -> np.ndarray:
        """All of them, ascending: [D]."""
        return self.values

    def eigenvectors(self, places: np.ndarray) -> np.ndarray:
        """Unit vectors [k, D] of the eigenvalues at these places."""
        return self.vectors.T[places]

    def diagonal_entries(self) -> np.ndarray:
        """The diagonal: [D]."""
        return np.diag(self.matrix)

    def function(self, f: Callable[[np.ndarray], np.ndarray]) -> Callable[[Array | np.ndarray], np.ndarray]:
        """Products with f(A), on the host in float64: [k, D] -> [k, D]."""
        values = f(self.values)
        return lambda rows: ((np.asarray(rows, np.float64) @ self.vectors) * values) @ self.vectors.T


class Choice(NamedTuple):
    """What is compared."""

    names: list[ComparedName]
    equal: list[Equal]
    left_out: dict[str, str]


@dataclass(frozen=True)
class Candidate:
    """One of the matrices.

    Parameters
    ----------
    spectral
        Its eigendecomposition, in closed form or from the matrix written out; None where it has products alone.
    """

    name: ComparedName
    operator: LinearOperator
    spectral: Spectral | None


def choose(problem: Problem, settings: CompareSettings) -> Choice:
    """The matrices asked for, each once; of the default ones those that the loss permits.

    Raises
    ------
    SpecError
        A matrix was asked for that needs a likelihood: the loss has none, or one of another output Hessian.
    UsageError
        Fewer than two are left.
    """
    loss, left_out = problem.loss, {}
    names: list[ComparedName] = list(settings.matrices)
    by_likelihood = recipe_of(problem, settings).sampling != "empirical"
    for name in names:
        check_likelihood(loss, name)
    if by_likelihood and (closed := next((name for name in names if name in CLOSED), None)) is not None:
        check_output_hessian(problem, closed)
    if not names:
        without = having("needs", "likelihood") if loss.family is None else ()
        why = f"{loss.name} declares no likelihood"
        if by_likelihood and (words := difference_in_words(problem)) is not None:
            without, why = CLOSED, words
        left_out = {name: why for name in DEFAULT if name in without}
        if problem.batches.coupled:
            left_out |= {name: MIXED for name in DEFAULT if FACTS[name].by_examples}
        names = [name for name in DEFAULT if name not in left_out]
    kept: list[ComparedName] = []
    equal: list[Equal] = []
    for name in names:
        twin: ComparedName | None = next((one for one in kept if _same(problem, one, name)), None)
        if twin is None:
            kept.append(name)
        else:
            equal.append(Equal(name=name, to=twin, reason=f"for {loss.name} they are the same matrix"))
    if len(kept) < 2:
        raise UsageError(
            f"--matrices {','.join(names)}: for {loss.name} these are one matrix", "name another one to compare with"
        )
    return Choice(kept, equal, left_out)


def _same(problem: Problem, one: str, other: str) -> bool:
    """Whether two names stand for one matrix of this loss."""
    first, second = (MATRICES[name].same_as(problem.loss) or name for name in (one, other))
    return first == second


def recipe_of(problem: Problem, settings: CompareSettings) -> Recipe:
    """Which cotangents the factors, and the diagonal, are made from."""
    sampling = affordable_sampling(problem) if settings.factors == "auto" else settings.factors
    return Recipe(sampling, settings.sharing, settings.mc_samples, settings.seed)


def operator_of(problem: Problem, settings: CompareSettings, name: str, *, regulariser: bool) -> LinearOperator:
    """One matrix, with or without ∇²R where it can be part of it."""
    recipe = recipe_of(problem, settings)
    return build(
        problem, name, with_regulariser=regulariser, mc_samples=settings.mc_samples, seed=settings.seed,
        factors=recipe.sampling, sharing=settings.sharing,
    )  # fmt: skip


def candidates(problem: Problem, settings: CompareSettings, names: list[ComparedName], meter: Meter) -> list[Candidate]:
    """The matrices, their products counted; those of factors cost none."""
    found = []
    for name in names:
        operator = operator_of(problem, settings, name, regulariser=settings.regulariser)
        if name in CLOSED:
            found.append(Candidate(name, operator, operator.known))  # type: ignore[arg-type]
        else:
            found.append(Candidate(name, meter.count(operator), None))
    return found


def diagonalised(candidate: Candidate, monitor: Monitor) -> Candidate:
    """The matrix written out and diagonalised. Cost: D products (none for factors), O(D³)."""
    operator = candidate.operator
    matrix = written_out(operator, min(DENSE_BLOCK, operator.dim), monitor)
    found = Diagonalised.of(matrix)
    return Candidate(candidate.name, replace(operator, known=found), found)
