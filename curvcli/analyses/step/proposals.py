"""The step r that each method proposes for a λ: −(C + λI)⁻¹∇J, or what stands for it.

Source: Grosse, *Neural Net Training Dynamics*, chapter 4; Martens (2010) for `hessian-free`; Martens and Grosse (2015)
for `kfac`; McAllester, *Gradients as dual vectors*, for `covariance`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import Array

from curvcli.analyses.common import preconditioners
from curvcli.analyses.common.dense import DENSE_BLOCK, DENSE_DIM, written_out
from curvcli.analyses.spectrum import noise
from curvcli.analyses.step.starting_point import Ground, built
from curvcli.curvature.flatten import Layout
from curvcli.curvature.kronecker.factors import Kronecker
from curvcli.curvature.kronecker.kfac import cotangent_count
from curvcli.curvature.kronecker.running import Running
from curvcli.curvature.products.sums import objective_and_gradient
from curvcli.devices import on_host
from curvcli.linalg.iterate import finished
from curvcli.linalg.operator import LinearOperator, dense_operator
from curvcli.linalg.solvers import bfgs
from curvcli.linalg.solvers.truncated_cg import Truncated, truncated_cg
from curvcli.problem import Problem
from curvcli.schema.matrices import FACTORED
from curvcli.schema.step import CgStep, NegativeCurvature, Solve, StepSettings

DECAY = 0.95
"""Of the step before, from which `hessian-free` starts (Martens and Sutskever 2012)."""

HALVINGS = 20
"""Of the length along negative curvature, from the size of the weights, that a line search tries."""


class Proposal(NamedTuple):
    """A method's own step, before it is rescaled or joined with the step before."""

    r: np.ndarray  # [D]
    solve: Solve
    least: bool  # whether r is to be the least of Q with damping, so that there is nothing to rescale
    cg: Sequence[CgStep] = ()
    negative: NegativeCurvature | None = None


Propose = Callable[[float], Proposal]
"""λ -> Proposal."""


@dataclass
class Memory:
    """What a step takes from those before it.

    Parameters
    ----------
    previous
        The step before, [D].
    pairs
        Of `bfgs`: steps and the changes of the gradient, the latest last.
    running
        Factors, of `kfac` and `ekfac`.
    index
        Number of this step, from 0.
    """

    previous: np.ndarray | None = None
    pairs: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    running: Running | None = None
    index: int = 0


def proposer(here: Ground, memory: Memory) -> Propose:
    """The method of the settings at this point.

    Cost: D products where C is written out; the passes of factors; else nothing before the first proposal.
    """
    settings = here.settings
    if settings.method in FACTORED:
        assert memory.running is not None
        matrix = _counted_factors(here, memory.running, memory.index)
        return lambda damping: _factored(here, matrix, damping)
    if settings.method == "bfgs":
        scale = _scale(here, memory)
        return lambda damping: _quasi_newton(here, memory, scale, damping)
    return _Solved(here, own_matrix(here), memory).propose


def own_matrix(here: Ground) -> LinearOperator:
    """The method's own matrix C where it is one with products; for factors and pairs the model's."""
    if here.settings.method == "covariance":
        return here.tally.meter.count(built(here.problem, here.settings, "gradient-covariance"))
    return here.model


class _Solved:
    """(C + λI) r = −∇J: exactly where C is written out and positive definite, else by truncated conjugate gradients."""

    def __init__(self, here: Ground, matrix: LinearOperator, memory: Memory) -> None:
        self.here, self.settings, self.matrix = here, here.settings, matrix
        self.values = self.vectors = None
        if self.settings.method == "hessian-free":
            self.start = None if memory.previous is None else DECAY * memory.previous
        else:
            self.start = None
        if is_dense(here.problem, self.settings):
            dense = written_out(matrix, min(DENSE_BLOCK, matrix.dim), here.monitor)
            self.values, self.vectors = scipy.linalg.eigh(dense)
            # Conjugate gradients, where they are needed, take the same matrix without another pass over the data.
            self.matrix = dense_operator(jnp.asarray(dense, here.problem.dtype))
        self._diagonal: np.ndarray | None = None
        self._kronecker: Kronecker | None = None

    def propose(self, damping: float) -> Proposal:
        """The step for a λ."""
        exact = None if self.values is None else self._exact(damping)
        return exact if exact is not None else self._iterated(damping)

    def _exact(self, damping: float) -> Proposal | None:
        """From the eigendecomposition; None where there is negative curvature, or the step is too long."""
        assert self.values is not None
        assert self.vectors is not None
        here, shifted = self.here, self.values + damping
        cut = noise(self.settings) * float(np.abs(self.values).max())
        if shifted[0] < -cut:
            return None
        along = self.vectors.T @ here.gradient
        known = shifted > cut
        r = -(self.vectors[:, known] @ (along[known] / shifted[known]))
        if self.settings.radius is not None and np.linalg.norm(r) > self.settings.radius:
            return None
        left = float(np.linalg.norm(along[~known])) / (here.slope or 1.0)
        status = "converged" if left <= self.settings.tol else "least-squares"
        return Proposal(r, Solve(solver="dense", status=status, residual=left, iterations=0), self._models)

    @property
    def _models(self) -> bool:
        return self.settings.method != "covariance"

    def _iterated(self, damping: float) -> Proposal:
        here, settings = self.here, self.settings
        free = settings.method == "hessian-free"
        found = truncated_cg(
            here.product(self.matrix, damping), here.gradient,
            tolerance=settings.tol * here.slope, most=settings.most_products, eps=here.eps,
            radius=settings.radius or np.inf, start=self.start, precondition=self._inverse(damping),
            by_progress=free, stop=self._stop,
        )  # fmt: skip
        r, negative, losses = found.p, None, {}
        if found.negative is not None:
            r, negative = self._downwards(found)
        elif free:
            r, losses = self._backtracked(found)
        slope = here.slope or 1.0
        trace = [
            CgStep(iteration=one.iteration, quadratic=one.quadratic, residual=one.residual / slope,
                   loss=losses.get(one.iteration))
            for one in found.trace
        ]  # fmt: skip
        residual = float(np.linalg.norm(found.residual)) / slope
        solve = Solve(solver="cg", status=found.ending, residual=residual, iterations=found.trace[-1].iteration)
        return Proposal(r, solve, self._models, trace, negative)

    def _stop(self, products: int) -> bool:
        return finished(self.here.monitor, "solving", products, self.settings.most_products)

    def _downwards(self, found: Truncated) -> tuple[np.ndarray, NegativeCurvature]:
        """From the iterate before, along the direction of negative curvature, to where J is lowest."""
        assert found.negative is not None
        here, (base, direction, curvature) = self.here, found.negative
        unit = direction / np.linalg.norm(direction)
        reach = here.size if self.settings.radius is None else float(np.linalg.norm(found.p - base))
        lengths = np.append(reach * 0.5 ** np.arange(HALVINGS + 1), 0.0)
        losses = here.losses(np.stack([base, unit]), np.column_stack([np.ones_like(lengths), lengths]))
        length = float(lengths[np.argmin(np.where(np.isfinite(losses), losses, np.inf))])
        return base + length * unit, NegativeCurvature(curvature=curvature, used=length > 0, length=length)

    def _backtracked(self, found: Truncated) -> tuple[np.ndarray, dict[int, float]]:
        """The iterate kept at which J is lowest, going back from the last as long as J falls; the losses met."""
        losses: dict[int, float] = {}
        best, lowest = found.p, np.inf
        for iteration, p in reversed(found.kept):
            loss = float(self.here.losses(p[None], [[1.0]])[0])
            if np.isfinite(loss):
                losses[iteration] = loss
            if not loss < lowest and np.isfinite(lowest):
                break
            if loss < lowest:
                best, lowest = p, loss
        return best, losses

    def _inverse(self, damping: float) -> Callable[[np.ndarray], np.ndarray] | None:
        """v ↦ M⁻¹ v of the preconditioner for this λ."""
        here, settings, name = self.here, self.settings, self.settings.precondition
        if name == "none":
            return None
        if name == "diagonal":
            if self._diagonal is None:
                self._diagonal = preconditioners.ggn_diagonal(here.problem, settings)
                recipe = preconditioners.diagonal_recipe(here.problem, settings)
                here.tally.factors += cotangent_count(here.problem, recipe)
                here.tally.meter.data_passes += 1
            inverse = preconditioners.inverse_diagonal(here.problem, settings, self._diagonal, damping)
            return lambda v: inverse * v
        if self._kronecker is None:
            running = preconditioners.running_factors(here.problem, settings, name, stands_for_ggn=False)
            self._kronecker = _counted_factors(here, running, 0)
        matrix = self._kronecker.damped(damping)
        least = preconditioners.SHARE * float(matrix.eigenvalues().mean()) if matrix.shift == 0 else 0.0
        return _on_host(here.problem, matrix.damped(least).function(lambda values: 1 / values))


def is_dense(problem: Problem, settings: StepSettings) -> bool:
    """Whether C is written out."""
    return settings.method != "hessian-free" and settings.cg_steps is None and problem.dim <= DENSE_DIM


def _on_host(problem: Problem, apply: Callable[[Array], Array]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda v: np.asarray(apply(jnp.asarray(v[None], problem.dtype))[0], np.float64)


def _counted_factors(here: Ground, running: Running, index: int) -> Kronecker:
    passes, data_passes = running.passes, running.data_passes
    matrix = running.at(here.problem, index)
    here.tally.factors += running.passes - passes
    here.tally.meter.data_passes += running.data_passes - data_passes
    return matrix


def _factored(here: Ground, matrix: Kronecker, damping: float) -> Proposal:
    """−(K + λI)⁻¹∇J, in the eigenbasis of the factors or with λ inside them."""
    if here.settings.factored_damping and damping > 0:
        apply = matrix.pi_inverse(damping)
    else:
        apply = matrix.damped(damping).function(partial(_pseudo_inverse, 16 * here.eps))
    r = -_on_host(here.problem, apply)(here.gradient)
    return Proposal(r, Solve(solver="factors", status="approximate", residual=None, iterations=0), False)


def _pseudo_inverse(rounding: float, values: np.ndarray) -> np.ndarray:
    """1/values; 0 for those within rounding of a block's largest."""
    known = values > rounding * float(values.max(initial=0.0))
    return np.where(known, 1 / np.where(known, values, 1.0), 0.0)


def _scale(here: Ground, memory: Memory) -> float:
    """B₀ of `bfgs`: yᵀy/sᵀy of the latest pair; without one the curvature along the gradient, for a product."""
    if memory.pairs:
        s, y = memory.pairs[-1]
        if float(s @ y) > 0:
            return float(y @ y) / float(s @ y)
    return curvature_along_gradient(here, here.model)


def curvature_along_gradient(here: Ground, matrix: LinearOperator) -> float:
    """gᵀCg/gᵀg, or ‖Cg‖/‖g‖ where that is not positive; 1 where both are 0. One product."""
    if not here.slope:
        return 1.0
    unit = here.gradient / here.slope
    image = here.images(unit[None], matrix, judge=True)[0]
    form, length = float(unit @ image), float(np.linalg.norm(image))
    return form if form > here.eps * length else length or 1.0


def _quasi_newton(here: Ground, memory: Memory, scale: float, damping: float) -> Proposal:
    """−B⁻¹∇J, B from the pairs of the steps before."""
    pairs = memory.pairs[-here.settings.history :]
    r = -bfgs.from_pairs(pairs, scale, damping).solve(here.gradient)
    return Proposal(r, Solve(solver="bfgs", status="approximate", residual=None, iterations=len(pairs)), False)


def pair_behind(here: Ground, previous: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The step before and the change of the gradient over it. One gradient."""
    layout = Layout.of(here.problem.params)
    behind = on_host(layout.ravel(here.problem.params)).astype(np.float64) - previous
    _, gradient = objective_and_gradient(
        here.problem, layout, layout.unravel(jnp.asarray(behind, here.problem.dtype))
    )  # fmt: skip
    here.tally.gradient += 1
    return previous, here.gradient - np.asarray(gradient, np.float64)
